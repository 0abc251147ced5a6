"""PASCAL VOC 2012 with SBD's additional masks, for PASCAL-5i (paper 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from training.data import DataError, PictureMasks, file_stamp, read_index_mask

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

LAYOUT = """\
DIR/  (also where it lies in DIR/VOC2012 or DIR/VOCdevkit/VOC2012)
  JPEGImages/NAME.jpg                        17,125 pictures
  SegmentationClass/NAME.png                 2,913 index masks of VOC itself
  SegmentationClassAug/NAME.png              index masks of SBD (or of both)
  ImageSets/Segmentation/train.txt, val.txt  1,464 and 1,449 names
  ImageSets/Segmentation/trainaug.txt        optional: the 10,582 names of the augmented training list (or train_aug.txt)
Without trainaug.txt, training takes train.txt and all of SegmentationClassAug, less val.txt.
SBD as released (dataset/cls/*.mat) is turned into SegmentationClassAug by: python -m training.datasets convert-sbd --help"""

SOURCE = """\
VOC: VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012; SBD: benchmark.tgz of Hariharan et al. (ICCV 2011).
Licence: Flickr's terms of use hold for the pictures; both are for research."""


@dataclass(frozen=True)
class PascalVoc(PictureMasks):
    """train = VOC 2012's training pictures and SBD's, less VOC's validation pictures (10,582); val = VOC's (1,449)."""

    root: Path

    @property
    def classes(self) -> list[str]:
        return list(CLASSES)

    @cached_property
    def home(self) -> Path:
        """The folder that holds JPEGImages. Raises DataError."""
        for folder in (self.root, self.root / "VOC2012", self.root / "VOCdevkit" / "VOC2012"):
            if (folder / "JPEGImages").is_dir():
                return folder
        raise DataError(
            f"{self.root} holds no JPEGImages, nor do its VOC2012 and VOCdevkit/VOC2012; expected PASCAL VOC 2012",
            "python -m training.datasets check pascal-5i --data DIR shows the layout",
        )

    def names(self, split: str) -> list[str]:
        if split == "val":
            names = self._list("val")
        elif split == "train":
            held = set(self._list("val"))
            names = [name for name in self._training_list() if name not in held]
        else:
            raise DataError(f"pascal-5i has no split {split!r}; expected train or val")
        pictures, masks = _stems(self.home / "JPEGImages"), self._own_masks | self._further_masks
        for name in names:
            if name not in pictures:
                raise DataError(
                    f"{self.picture(name)} is missing; expected every picture of the {split} list",
                    "unpack VOCtrainval_11-May-2012.tar again",
                )
            if name not in masks:
                raise DataError(
                    f"{name} of the {split} list has no mask in SegmentationClass or SegmentationClassAug of "
                    f"{self.home}",
                    "add SBD's masks (python -m training.datasets convert-sbd --help), or mend the list",
                )
        if not names:
            raise DataError(f"the {split} list of {self.home} names no picture", "fetch ImageSets/Segmentation again")
        return names

    def picture(self, name: str) -> Path:
        return self.home / "JPEGImages" / f"{name}.jpg"

    def mask_file(self, name: str) -> Path:
        """VOC's own mask where there is one: it marks uncertain borders, SBD's masks do not."""
        folder = "SegmentationClass" if name in self._own_masks else "SegmentationClassAug"
        return self.home / folder / f"{name}.png"

    def mask(self, name: str) -> np.ndarray:
        return read_index_mask(self.mask_file(name), len(CLASSES))

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self.picture(name), self.mask_file(name))

    @cached_property
    def _own_masks(self) -> set[str]:
        return _stems(self.home / "SegmentationClass")

    @cached_property
    def _further_masks(self) -> set[str]:
        return _stems(self.home / "SegmentationClassAug")

    def _training_list(self) -> list[str]:
        for name in ("trainaug", "train_aug"):
            if (self.home / "ImageSets" / "Segmentation" / f"{name}.txt").is_file():
                return self._list(name)
        if not self._further_masks:
            raise DataError(
                f"{self.home / 'SegmentationClassAug'} holds no mask",
                "PASCAL-5i trains on SBD's too: convert them (python -m training.datasets convert-sbd "
                "--help), or copy train.txt to trainaug.txt to do without",
            )
        return sorted({*self._list("train"), *self._further_masks})

    def _list(self, name: str) -> list[str]:
        """Picture names of a list file; its lines are `NAME` or `/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png`."""
        file = self.home / "ImageSets" / "Segmentation" / f"{name}.txt"
        try:
            lines = file.read_text().splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise DataError(
                f"{file} cannot be read ({reason}); expected a picture name a line",
                "fetch ImageSets/Segmentation again",
            ) from None
        return [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in lines if line.strip()]


def _stems(folder: Path) -> set[str]:
    return {file.stem for file in folder.iterdir()} if folder.is_dir() else set()
