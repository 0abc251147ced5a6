"""The paper's data sets (section 4.1): each is a `training.data.PictureMasks`, opened by name.

python -m training.datasets convert EXPORT --out DIR LabelMe, COCO or YOLO-seg into a folder of one's own
python -m training.datasets check DIR                what is in it, and what would stop a training
python -m training.datasets check KIND --data DIR    what is there, what is missing, where it comes from
training.datasets.splits                             which classes are held out (table 6)

"coco-20i-to-voc" is a split, not a kind: train on coco-20i, score on pascal-5i with that split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.data import DataError, MaskFolder, PictureMasks
from training.datasets import coco, fss, mosaic, voc
from training.datasets.exports import find_form

__all__ = ["KINDS", "Kind", "not_converted", "open_dataset"]


@dataclass(frozen=True)
class Kind:
    """How a data set is opened, its folder layout and its source."""

    open: Callable[[Path], PictureMasks]
    layout: str
    source: str
    splits: tuple[str, ...] = ("train", "val")
    folds: str = ""  # its split into folds, a name of training.datasets.splits.FOLDS
    counts: dict[str, int] | None = None  # pictures of the complete data set, by split


_FOLDER_LAYOUT = """\
DIR/
  images/NAME.jpg                            or another picture format
  masks/NAME.png                             8-bit class indices, 255 = ignored; as large as the picture
  classes.txt                                a name a line, the background's first: line n + 1 is index n
  train.txt, val.txt                         picture names, a line each"""

KINDS: dict[str, Kind] = {
    "folder": Kind(MaskFolder, _FOLDER_LAYOUT, "Yours."),
    "pascal-5i": Kind(voc.PascalVoc, voc.LAYOUT, voc.SOURCE, folds="pascal-5i", counts={"train": 10_582, "val": 1_449}),
    "coco-20i": Kind(coco.Coco, coco.LAYOUT, coco.SOURCE, folds="coco-20i"),
    "fss-1000": Kind(fss.Fss1000, fss.LAYOUT, fss.SOURCE, counts={"train": 7_600, "val": 2_400}),
    "mosaic-4": Kind(mosaic.Mosaic, mosaic.LAYOUT, mosaic.SOURCE, splits=("val",), counts={"val": 600}),
}


def open_dataset(kind: str, root: Path, split: float = 0.0) -> PictureMasks:
    """The data set in a folder; its files are opened when they are needed. Raises DataError.

    split: of a folder without lists of pictures, the share that is kept for validation.
    """
    if kind not in KINDS:
        raise DataError(
            f"there is no kind of data set called {kind!r}; expected one of {', '.join(KINDS)}", "choose one of them"
        )
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder; expected " + ("pictures and masks" if kind == "folder" else kind),
            "python -m training.datasets convert EXPORT --out DIR makes one; check --help shows its layout"
            if kind == "folder"
            else f"python -m training.datasets check {kind} --data DIR shows the layout",
        )
    if split and kind != "folder":
        raise DataError(f"{kind} has lists of its own", "leave --split out")
    if kind == "folder":
        not_converted(root)
    return MaskFolder(root, split) if kind == "folder" else KINDS[kind].open(root)


def not_converted(root: Path) -> None:
    """Raises DataError for a folder that holds an export in place of index masks."""
    if not (root / "masks").is_dir() and (form := find_form(root)):
        raise DataError(
            f"{root} is an export in the form {form}; expected pictures with index masks",
            f"convert it: python -m training.datasets convert {root} --out DIR",
        )
