"""Pictures with class masks: what training and evaluation need of a data set, and the plain folder that anyone can make.

The paper's data sets are in training/datasets; each is a `PictureMasks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fusioner_rt.errors import FusionerError
from fusioner_rt.pictures import SUFFIXES

IGNORE = -1  # a mask value that belongs to no class: it counts neither in the loss nor in a score
IGNORE_IN_FILE = 255  # the same in an 8-bit mask file (PASCAL VOC's convention)

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


class PictureMasks(ABC):
    """Pictures with index masks. Index 0 is the background; index n > 0 is `classes[n]`."""

    root: Path

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names by index, the background's first. Raises DataError."""

    @abstractmethod
    def names(self, split: str) -> list[str]:
        """Picture names of `train` or `val`. Raises DataError where a picture or mask is missing."""

    @abstractmethod
    def picture(self, name: str) -> Path:
        """The picture's file."""

    @abstractmethod
    def mask(self, name: str) -> np.ndarray:
        """(H, W) int16 class indices, IGNORE = ignore; H and W are the picture's. Raises DataError."""

    @abstractmethod
    def stamp(self, name: str) -> tuple[int, ...]:
        """Changes whenever the picture or its mask changes: what a feature cache goes by."""

    @property
    def words(self) -> list[str]:
        """The classes as a text encoder should read them, the background's included."""
        return [SPOKEN.get(name, name).replace("_", " ") for name in self.classes]

    def index(self, name: str) -> int:
        """The index of a class by its name or its spoken word. Raises DataError."""
        for names in (self.classes, self.words):
            if name in names[1:]:
                return names.index(name, 1)
        raise DataError(f"no class of {self.root} is called {name!r}; it has: {', '.join(self.classes[1:])}")


@dataclass(frozen=True)
class MaskFolder(PictureMasks):
    """`images/*.jpg`, `masks/*.png` (8-bit, 255 = ignore), `classes.txt` (line n+1 = index n), `train.txt`, `val.txt`."""

    root: Path

    @cached_property
    def classes(self) -> list[str]:
        names = [line.strip() for line in self._lines("classes.txt")]
        if len(names) < 2:
            raise DataError(
                f"{self.root / 'classes.txt'} names {len(names)} classes; expected the background and at least one more, a line each"
            )
        return names

    def names(self, split: str) -> list[str]:
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
        return read_index_mask(self.mask_file(name), len(self.classes))

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self.picture(name), self.mask_file(name))

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.root / name).read_text().splitlines()
        except OSError as error:
            raise DataError(
                f"{self.root / name} cannot be read ({error.strerror}); a data folder holds images/, masks/, classes.txt, train.txt and val.txt"
            ) from None


def read_index_mask(file: Path, classes: int) -> np.ndarray:
    """An 8-bit mask file → (H, W) int16, 255 becoming IGNORE. Raises DataError for an index without a name."""
    with Image.open(file) as image:
        if image.mode not in ("L", "P"):
            raise DataError(f"{file} is a {image.mode} picture; expected 8-bit class indices (mode L or P)")
        mask = np.asarray(image).astype(np.int16)
    mask[mask == IGNORE_IN_FILE] = IGNORE
    largest = int(mask.max(initial=0))
    if largest >= classes:
        raise DataError(f"{file} holds index {largest}, but the class names end at {classes - 1}")
    return mask


def file_stamp(*files: Path) -> tuple[int, ...]:
    """Sizes and times of change."""
    return tuple(value for file in files for value in (file.stat().st_size, file.stat().st_mtime_ns))
