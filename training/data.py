"""Pictures with class masks: the interface of a data set, and a plain folder as the simplest one.

The paper's data sets are in training/datasets; each is a `PictureMasks`.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fusioner_rt.atomic_files import write_atomically
from fusioner_rt.decode_picture import SUFFIXES, decode
from fusioner_rt.errors import FusionerError, one_line
from fusioner_rt.regular_files import open_regular

IGNORE = -1  # mask value of pixels without a class: not counted in loss or scores
BACKGROUND = frozenset({"background", "_background_", "__background__"})  # names of index 0
IGNORE_IN_FILE = 255  # its value in an 8-bit mask file (PASCAL VOC's convention)
ORIENTATION = 0x0112  # EXIF's tag

# Class lists often run words together; text encoders know the separate words.
SPOKEN = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "tv/monitor": "tv monitor",
    "aeroplane": "airplane",
}

# COCO's name → PASCAL VOC's name of the same class, without spaces and punctuation.
SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}

LAYOUT_CURE = "a data folder holds images/, masks/, classes.txt, train.txt and val.txt (or give --split 0.1 in place of the lists)"


class DataError(FusionerError):
    """A data set lacks something or contradicts itself."""

    exit_code = 72
    is_input = True


class PictureMasks(ABC):
    """Pictures with index masks. Index 0 is the background; index n > 0 is `classes[n]`."""

    root: Path

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names by index, the background's first. Raises DataError."""

    @abstractmethod
    def names(self, split: str) -> list[str]:
        """Picture names of a split, `train` or `val`. Raises DataError for a missing picture or mask."""

    @abstractmethod
    def picture(self, name: str) -> Path:
        """The picture's file."""

    @abstractmethod
    def mask(self, name: str) -> np.ndarray:
        """(H, W) int16 class indices and IGNORE, of the picture's size. Raises DataError."""

    @abstractmethod
    def stamp(self, name: str) -> tuple[int, ...]:
        """Changes whenever the picture or its mask does: a feature cache's key."""

    @property
    def words(self) -> list[str]:
        """The words for the text encoder, by class index; the background's is included."""
        return [SPOKEN.get(name, name).replace("_", " ") for name in self.classes]

    def present(self, name: str) -> list[int]:
        """Class indices in a picture, as `present` gives them for its mask. Raises DataError.

        A data set overrides this where annotations tell the classes without opening the mask.
        """
        return present(self.mask(name))

    def may_flip(self, name: str) -> bool:
        """Whether a mirrored picture keeps its mask; not where names tell left from right."""
        return True

    def weight(self, name: str) -> float:
        """How often an epoch shows a training picture."""
        return 1.0

    def never_absent(self, name: str, present: Collection[int]) -> frozenset[int]:
        """Indices of classes that a picture may show without a mask. present: those that it shows with one."""
        return frozenset()

    @property
    def synonyms(self) -> dict[int, tuple[str, ...]]:
        """Class index → further words that mean the same."""
        return {}

    def index(self, name: str) -> int:
        """The index of a class, by its name, its word, or another data set's name for it. Raises DataError."""
        canonical = [same_class(class_) for class_ in self.classes]
        for names, spelling in ((self.classes, name), (self.words, name), (canonical, same_class(name))):
            if spelling in names[1:]:
                return names.index(spelling, 1)
        raise DataError(f"no class of {self.root} is called {name!r}", f"it has: {', '.join(self.classes[1:])}")


@dataclass(frozen=True)
class MaskFolder(PictureMasks):
    """`images/*.jpg`, `masks/*.png` (8-bit, 255 = ignore), `classes.txt` (line n+1 = index n), `train.txt`, `val.txt`.

    split: without the two lists, the share of the pictures that is kept for validation; their names decide which.
    """

    root: Path
    split: float = 0.0

    @cached_property
    def classes(self) -> list[str]:
        file = self.root / "classes.txt"
        names = [line.strip() for line in self._lines("classes.txt")]
        while names and not names[-1]:
            names.pop()
        if len(names) < 2:
            raise DataError(
                f"{file} names {counted(len(names), 'class', 'classes')}; expected the background and at least one more",
                "write a name a line, the background's first",
            )
        if "" in names:
            raise DataError(
                f"line {names.index('') + 1} of {file} is empty; expected a name a line, for line n + 1 is index n",
                "name that index, or remove the line where the masks do not count it",
            )
        if len(names) > IGNORE_IN_FILE:
            raise DataError(
                f"{file} names {len(names)} classes; expected at most {IGNORE_IN_FILE}, the background's included",
                "8-bit masks hold no more: merge some, or train on several folders ([sets] in a recipe)",
            )
        if repeated := repeated_class(names):
            first, second = repeated
            raise DataError(
                f"{file} names one class twice, {names[first]!r} in line {first + 1} and {names[second]!r} in line "
                f"{second + 1}; expected names that differ in more than case, spaces and synonyms",
                "give both one index in the masks and one line, or rename one where two things are meant",
            )
        return names

    def names(self, split: str) -> list[str]:
        names = self._listed(split)
        if not names:
            source = f"{self.root / (split + '.txt')} names" if self.has_lists else f"{self.root} leaves {split}"
            raise DataError(
                f"{source} no picture; expected one or more",
                "write a picture's name a line" if self.has_lists else "add pictures, or choose another --split",
            )
        for name in names:
            self.picture(name)
            if not self.mask_file(name).is_file():
                raise self._without_mask(name, split)
        return names

    @property
    def has_lists(self) -> bool:
        return any((self.root / f"{split}.txt").is_file() for split in ("train", "val"))

    def _listed(self, split: str) -> list[str]:
        if not self.split or self.has_lists:
            return [line.strip() for line in self._lines(f"{split}.txt") if line.strip()]
        every = sorted(file.stem for file in (self.root / "masks").glob("*.png"))
        kept = for_validation(every, self.split)
        return [name for name in every if (name in kept) == (split == "val")]

    def picture(self, name: str) -> Path:
        if name not in self.pictures:
            self.__dict__.pop("pictures", None)  # it may have come since the folder was listed
        files = self.pictures.get(name, [])
        if len(files) == 1:
            return files[0]
        if files:
            raise DataError(
                f"{self.root / 'images'} holds {' and '.join(file.name for file in files)}; expected one picture called "
                f"{name!r}",
                "rename one of them with its mask, or remove it",
            )
        stem, _, ending = name.rpartition(".")
        if f".{ending.lower()}" in SUFFIXES and stem in self.pictures:
            raise DataError(
                f"the lists of {self.root} name the file {name!r}; expected {stem!r}, a name without its ending",
                "remove the endings from train.txt and val.txt",
            )
        raise DataError(
            f"{self.root / 'images' / name}.jpg is missing; expected a picture of that name in images/",
            "add it, or take the name off the list",
        )

    @cached_property
    def pictures(self) -> dict[str, list[Path]]:
        """The picture files below images/, by the path without its ending. Raises DataError."""
        folder = self.root / "images"
        if not folder.is_dir():
            raise DataError(f"{folder} is missing; expected a folder of pictures", LAYOUT_CURE)
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
        return found

    def _without_mask(self, name: str, split: str) -> DataError:
        file = self.mask_file(name)
        other = next((o for o in map(file.with_suffix, (".jpg", ".jpeg", ".bmp", ".tif", ".PNG")) if o.is_file()), None)
        if other is not None:
            return DataError(
                f"{file} is missing, and {other.name} is there; expected a PNG",
                "write the indices as 8-bit PNG: JPEG changes them",
            )
        return DataError(
            f"{file} is missing; expected an index mask of every picture of {split}",
            f"add it, or take the name off {split}.txt" if self.has_lists else "add it",
        )

    def mask_file(self, name: str) -> Path:
        return self.root / "masks" / f"{name}.png"

    def mask(self, name: str) -> np.ndarray:
        return read_index_mask(self.mask_file(name), len(self.classes), self.classes[0])

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self.picture(name), self.mask_file(name))

    def _lines(self, name: str) -> list[str]:
        try:
            with open_regular(self.root / name) as stream:
                return io.TextIOWrapper(stream, encoding="utf-8-sig").read().splitlines()
        except UnicodeDecodeError:
            raise DataError(
                f"{self.root / name} is not UTF-8 text; expected a name a line", "save it as UTF-8"
            ) from None
        except OSError as error:
            cure = LAYOUT_CURE
            if name != "classes.txt" and self.has_lists:
                cure = f"write {name}, or remove the other list and give --split 0.1"
            raise DataError(f"{self.root / name} cannot be read ({error.strerror})", cure) from None


def read_picture(data: PictureMasks, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and (H, W) int16. Raises DataError where the two differ in size."""
    mask = data.mask(name)
    return decode_as(data, name, (mask.shape[0], mask.shape[1])), mask


def decode_as(data: PictureMasks, name: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8. Raises DataError where (H, W) is not `size`, the mask's."""
    rgb = decode(data.picture(name))
    if rgb.shape[:2] != size:
        cure = "they must agree: scale the mask without interpolation, or take the picture that it was drawn on"
        if rgb.shape[1::-1] == size and orientation(data.picture(name)) > 4:
            cure = "the picture is turned by its EXIF data, its mask is not: turn the mask, too"
        raise DataError(
            f"the mask of {name} has {size[1]}×{size[0]} pixels, its picture "
            f"{rgb.shape[1]}×{rgb.shape[0]} as a viewer shows it",
            cure,
        )
    return rgb


def orientation(picture: Path) -> int:
    """EXIF's orientation: 1 = as stored, 5 to 8 exchange width and height. 1 where the file does not tell."""
    try:
        with open_regular(picture) as stream, Image.open(stream) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # decoding says what is wrong with a file
        return 1


def for_validation(names: Sequence[str], share: float) -> set[str]:
    """The share of the names, one or more, that is kept for validation: decided by the names alone."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ranked[: max(1, round(share * len(names)))])


def repeated_class(names: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two names that are one class by `same_class`."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        first = places.setdefault(same_class(name) or name, place)
        if first != place:
            return first, place
    return None


def counted(count: int, one: str, many: str = "") -> str:
    """1, "picture" → "1 picture"; 2 → "2 pictures", or `many`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def read_index_mask(file: Path, classes: int, background: str = "background") -> np.ndarray:
    """An 8-bit mask file → (H, W) int16, 255 as IGNORE. Raises DataError for an index of `classes` or above.

    background: what index 0 is called.
    """
    mask = open_mask(file, ("L", "P")).astype(np.int16)
    mask[mask == IGNORE_IN_FILE] = IGNORE
    largest = int(mask.max(initial=0))
    if largest >= classes:
        cure = "name every class, or mark pixels without one as 255"
        if largest == classes and background.lower() not in BACKGROUND:
            cure = f"does classes.txt lack its first line, background? It begins with {background!r}; else {cure}"
        raise DataError(f"{file} holds index {largest}, but the class names end at {classes - 1}", cure)
    return mask


def write_index_mask(file: Path, mask: np.ndarray) -> None:
    """mask (H, W) class indices → an 8-bit PNG with IGNORE as 255, written atomically. Raises OSError."""
    image = Image.fromarray(np.where(mask == IGNORE, IGNORE_IN_FILE, mask).astype(np.uint8))
    write_atomically(file, lambda stream: image.save(stream, "PNG"))


def present(mask: np.ndarray) -> list[int]:
    """Class indices in a mask, ascending, without background and IGNORE."""
    return [int(index) for index in np.unique(mask) if index not in (0, IGNORE)]


def open_mask(file: Path, modes: tuple[str, ...]) -> np.ndarray:
    """A mask file's values, as Pillow reads them. Raises DataError for a missing or broken file or another mode."""
    try:
        with open_regular(file) as stream, Image.open(stream) as image:
            if image.mode not in modes:
                raise DataError(
                    f"{file} is a {image.mode} picture; expected 8-bit class indices (mode L or P)",
                    "write the indices again: saved as RGB, a palette's indices are lost",
                )
            return np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"{file} is missing; expected a mask of that name", "add it") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for broken files
        raise DataError(f"{file} cannot be read as a mask ({one_line(error)})", "fetch it again") from None


def same_class(name: str) -> str:
    """A canonical spelling of a class name: "TV/monitor" and "tv" are both "tvmonitor"."""
    letters = "".join(c for c in name.lower() if c.isalnum())
    return SYNONYMS.get(letters, letters)


def file_stamp(*files: Path) -> tuple[int, ...]:
    """Sizes and modification times."""
    return tuple(value for file in files for value in (file.stat().st_size, file.stat().st_mtime_ns))
