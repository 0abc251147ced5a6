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

from fusioner_rt.errors import FusionerError, one_line
from fusioner_rt.pictures import SUFFIXES, decode

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

# One class under the names of PASCAL VOC and of COCO; spaces, case and punctuation do not count.
SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}


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

    def present(self, name: str) -> list[int]:
        """Class indices in a picture, without background and ignored pixels. Raises DataError.

        A data set that knows them from its annotations says so without opening the mask.
        """
        return [int(index) for index in np.unique(self.mask(name)) if index not in (0, IGNORE)]

    def index(self, name: str) -> int:
        """The index of a class by its name, its spoken word, or another data set's name for it. Raises DataError."""
        wanted = same_class(name)
        for names, asked in ((self.classes, name), (self.words, name), ([*map(same_class, self.classes)], wanted)):
            if asked in names[1:]:
                return names.index(asked, 1)
        raise DataError(f"no class of {self.root} is called {name!r}", f"it has: {', '.join(self.classes[1:])}")


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
                raise DataError(
                    f"{self.mask_file(name)} is missing", f"every picture of {split}.txt needs an index mask"
                )
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
                f"{self.root / name} cannot be read ({error.strerror})",
                "a data folder holds images/, masks/, classes.txt, train.txt and val.txt",
            ) from None


def read_picture(data: PictureMasks, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and (H, W) int16. Raises DataError where the two differ in size."""
    mask = data.mask(name)
    return decode_as(data, name, (mask.shape[0], mask.shape[1])), mask


def decode_as(data: PictureMasks, name: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8. Raises DataError where H and W are not `size`, its mask's."""
    rgb = decode(data.picture(name))
    if rgb.shape[:2] != size:
        raise DataError(
            f"the mask of {name} has {size[1]}×{size[0]} pixels, its picture "
            f"{rgb.shape[1]}×{rgb.shape[0]} as a viewer shows it",
            "they must agree",
        )
    return rgb


def read_index_mask(file: Path, classes: int) -> np.ndarray:
    """An 8-bit mask file → (H, W) int16, 255 becoming IGNORE. Raises DataError for an index without a name."""
    mask = open_mask(file, ("L", "P")).astype(np.int16)
    mask[mask == IGNORE_IN_FILE] = IGNORE
    largest = int(mask.max(initial=0))
    if largest >= classes:
        raise DataError(f"{file} holds index {largest}, but the class names end at {classes - 1}")
    return mask


def open_mask(file: Path, modes: tuple[str, ...]) -> np.ndarray:
    """A mask file's values, as Pillow gives them. Raises DataError where it is missing, broken or of another mode."""
    try:
        with Image.open(file) as image:
            if image.mode not in modes:
                raise DataError(
                    f"{file} is a {image.mode} picture; expected 8-bit class indices (mode L or P): a palette's colours are "
                    "no indices once they are saved as RGB"
                )
            return np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"{file} is missing; expected a mask of that name") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on broken files
        raise DataError(f"{file} cannot be read as a mask ({one_line(error)})", "fetch it again") from None


def same_class(name: str) -> str:
    """What two spellings of one class have in common: "TV/monitor" and "tv" are both "tvmonitor"."""
    letters = "".join(c for c in name.lower() if c.isalnum())
    return SYNONYMS.get(letters, letters)


def file_stamp(*files: Path) -> tuple[int, ...]:
    """Sizes and times of change."""
    return tuple(value for file in files for value in (file.stat().st_size, file.stat().st_mtime_ns))
