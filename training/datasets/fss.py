"""FSS-1000 (Wei et al., CVPR 2020): a thousand classes of ten pictures, one class a picture (paper 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from training.data import DataError, PictureMasks, file_stamp, open_mask

TEST_CLASSES: tuple[str, ...] = tuple(
    line
    for line in Path(__file__).with_name("fss_test_classes.txt").read_text().splitlines()
    if line and not line.startswith("#")
)

LAYOUT = """\
DIR/  (also where it lies in DIR/fewshot_data or DIR/fewshot_data/fewshot_data)
  CLASS/1.jpg … 10.jpg                       pictures of 1,000 classes, a folder each: abacus, abe's_flyingfish, …
  CLASS/1.png … 10.png                       masks: white where the class is
val = the 240 official test classes (training/datasets/fss_test_classes.txt), train = all other classes."""

SOURCE = """\
github.com/HKUSTCV/FSS-1000 (a Google Drive link; fewshot_data.zip).
Licence: none is stated; the pictures come from the web. For research."""


@dataclass(frozen=True)
class Fss1000(PictureMasks):
    """val = the 240 test classes, train = the others. A picture's name is `CLASS-N`."""

    root: Path

    @cached_property
    def home(self) -> Path:
        """The folder that holds the class folders. Raises DataError."""
        inner = ("", "fewshot_data", "fewshot_data/fewshot_data")
        for folder in (self.root / name for name in inner):
            if _class_folders(folder):
                return folder
        raise DataError(
            f"{self.root} holds no CLASS/1.jpg or other numbered picture, nor do {inner[1]} and {inner[2]} in it; expected FSS-1000",
            "python -m training.datasets check fss-1000 --data DIR shows the layout",
        )

    @cached_property
    def classes(self) -> list[str]:
        return ["background", *_class_folders(self.home)]

    @property
    def missing_test_classes(self) -> list[str]:
        return sorted(set(TEST_CLASSES) - set(self.classes))

    def names(self, split: str) -> list[str]:
        if split not in ("train", "val"):
            raise DataError(f"fss-1000 has no split {split!r}; expected train or val")
        test = set(TEST_CLASSES)
        chosen = [name for name in self.classes[1:] if (name in test) == (split == "val")]
        if not chosen:
            raise DataError(f"{self.home} has no class of the {split} split", "fetch FSS-1000 again")
        return [name for class_ in chosen for name in self.pictures_of(class_)]

    def pictures_of(self, class_: str) -> list[str]:
        """Names of a class's pictures, by number. Raises DataError where one has no mask."""
        files = {file.name for file in (self.home / class_).iterdir()}
        numbers = sorted(int(f[:-4]) for f in files if f.endswith(".jpg") and f[:-4].isdecimal())
        for number in numbers:
            if f"{number}.png" not in files:
                raise DataError(f"{self.home / class_ / f'{number}.png'} is missing", "every picture needs a mask")
        return [f"{class_}-{number}" for number in numbers]

    def picture(self, name: str) -> Path:
        return self._file(name, "jpg")

    def mask_file(self, name: str) -> Path:
        return self._file(name, "png")

    def mask(self, name: str) -> np.ndarray:
        """White is the class. Released masks are RGB or grey; some have grey levels at the borders."""
        values = open_mask(self.mask_file(name), ("1", "L", "RGB", "RGBA"))
        if values.ndim == 3:
            values = values[..., :3].max(2)
        white = values if values.dtype == bool else values >= 128
        return np.where(white, np.int16(self._class(name)), np.int16(0))

    def present(self, name: str) -> list[int]:
        return [self._class(name)]

    def stamp(self, name: str) -> tuple[int, ...]:
        # With the class index: it changes when class folders are added or removed, and the mask holds it.
        return (self._class(name), *file_stamp(self.picture(name), self.mask_file(name)))

    def _class(self, name: str) -> int:
        class_ = name.rpartition("-")[0]
        if class_ not in self._indices:
            raise DataError(
                f"{self.home} has no class {class_!r}; expected a picture name CLASS-N, found {name!r}",
                "name a picture of the data set",
            )
        return self._indices[class_]

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes) if index}

    def _file(self, name: str, suffix: str) -> Path:
        class_, _, number = name.rpartition("-")
        return self.home / class_ / f"{number}.{suffix}"


def _class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder` with numbered pictures."""
    return sorted({file.parent.name for file in folder.glob("*/*.jpg") if file.stem.isdecimal()})
