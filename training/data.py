"""A folder of pictures, index masks and class names: `images/*.jpg`, `masks/*.png`, `classes.txt`, `train.txt`, `val.txt`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fusioner_rt.errors import FusionerError
from fusioner_rt.pictures import SUFFIXES

IGNORE = 255  # a mask value that belongs to no class: it counts neither in the loss nor in a score

# Class lists often run words together; a text encoder knows them apart.
SPOKEN = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "tv/monitor": "tv monitor",
    "aeroplane": "airplane",
}


class DataError(FusionerError):
    """A data folder that misses something or contradicts itself."""

    exit_code = 72


@dataclass(frozen=True)
class MaskFolder:
    """Pictures with index masks. Index n is line n+1 of classes.txt, line 1 being the background."""

    root: Path

    @cached_property
    def classes(self) -> list[str]:
        """Names by index, the background's first. Raises DataError."""
        names = [line.strip() for line in self._lines("classes.txt")]
        if len(names) < 2:
            raise DataError(
                f"{self.root / 'classes.txt'} names {len(names)} classes; expected the background and at least one more, a line each"
            )
        return names

    @cached_property
    def words(self) -> list[str]:
        """The classes as a text encoder should read them, the background's included."""
        return [SPOKEN.get(name, name) for name in self.classes]

    def index(self, name: str) -> int:
        for names in (self.classes, self.words):
            if name in names[1:]:
                return names.index(name)
        raise DataError(
            f"no class is called {name!r} in {self.root / 'classes.txt'}; it has: {', '.join(self.classes[1:])}"
        )

    def names(self, split: str) -> list[str]:
        """Picture names (no suffix) of `train` or `val`. Raises DataError where a picture or mask is missing."""
        names = [line.strip() for line in self._lines(f"{split}.txt") if line.strip()]
        for name in names:
            self.picture(name)
            if not self.mask_file(name).is_file():
                raise DataError(f"{self.mask_file(name)} is missing; every picture of {split}.txt needs an index mask")
        if not names:
            raise DataError(f"{self.root / (split + '.txt')} names no picture")
        return names

    def picture(self, name: str) -> Path:
        file = self.root / "images" / f"{name}.jpg"
        if file.is_file():
            return file
        for other in sorted((self.root / "images").glob(f"{name}.*")):
            if other.suffix.lower() in SUFFIXES:
                return other
        raise DataError(f"{file} is missing; expected a picture of that name in images/")

    def mask_file(self, name: str) -> Path:
        return self.root / "masks" / f"{name}.png"

    def mask(self, name: str) -> np.ndarray:
        """(H, W) uint8 class indices, 255 = ignore. Raises DataError for an index without a name."""
        with Image.open(self.mask_file(name)) as image:
            if image.mode not in ("L", "P"):
                raise DataError(
                    f"{self.mask_file(name)} is a {image.mode} picture; expected 8-bit class indices (mode L or P)"
                )
            mask = np.asarray(image)
        largest = int(mask[mask != IGNORE].max(initial=0))
        if largest >= len(self.classes):
            raise DataError(
                f"{self.mask_file(name)} holds index {largest}, but classes.txt ends at {len(self.classes) - 1}"
            )
        return mask

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.root / name).read_text().splitlines()
        except OSError as error:
            raise DataError(
                f"{self.root / name} cannot be read ({error.strerror}); a data folder holds images/, masks/, classes.txt, train.txt and val.txt"
            ) from None
