"""MS COCO's instances as index masks of 80 classes, for COCO-20i (paper 4.1)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusioner_rt.atomic_files import writable_folder
from fusioner_rt.errors import one_line
from training.data import IGNORE, DataError, PictureMasks, file_stamp, read_index_mask, write_index_mask

CLASSES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

LAYOUT = """\
DIR/  (2014, as the paper's peers use it, or 2017; where both are there, 2014 is taken)
  train2014/COCO_train2014_*.jpg, val2014/COCO_val2014_*.jpg     82,783 and 40,504 pictures
  train2017/*.jpg, val2017/*.jpg                                 118,287 and 5,000 pictures
  annotations/instances_{train,val}{2014,2017}.json              or, prepared once:
  annotations/masks_{train,val}{2014,2017}/NAME.png              index masks, 1..80 in COCO's order, 255 = ignored
Pictures without an instance (crowds apart) belong to no split.
python -m training.datasets prepare --help    writes the masks: runs then start without reading the JSON"""

SOURCE = """\
cocodataset.org: train2014.zip, val2014.zip and annotations_trainval2014.zip (or the same of 2017).
Licence: annotations CC BY 4.0; Flickr's terms of use hold for the pictures."""

YEARS = ("2014", "2017")


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotation. shape: polygons as arrays x, y, x, y, …, or COCO's run-length code."""

    index: int
    crowd: bool
    shape: tuple[np.ndarray, ...] | dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """One instances_*.json: each picture's size (height, width) and instances."""

    sizes: dict[str, tuple[int, int]]
    instances: dict[str, list[Instance]]  # of pictures with at least one that is no crowd


@dataclass(frozen=True)
class Coco(PictureMasks):
    """COCO's train and val. A picture's name is its file's stem. Smaller instances cover larger ones; crowds are IGNORE."""

    root: Path

    @property
    def classes(self) -> list[str]:
        return list(CLASSES)

    @cached_property
    def year(self) -> str:
        for year in YEARS:
            if any((self.root / f"{split}{year}").is_dir() for split in ("train", "val")):
                return year
        raise DataError(
            f"{self.root} holds none of train2014, val2014, train2017, val2017; expected MS COCO",
            "python -m training.datasets check coco-20i --data DIR shows the layout",
        )

    def names(self, split: str) -> list[str]:
        pictures = self._pictures(split)
        if self.is_prepared(split):
            names = sorted(file.stem for file in self.masks(split).glob("*.png"))
            if not names:
                raise DataError(
                    f"{self.masks(split)} is empty", "remove it, or prepare it: python -m training.datasets prepare"
                )
        else:
            names = sorted(self.annotations(split).instances)
            if not names:
                raise DataError(f"{self.annotation_file(split)} annotates no picture", "fetch it again")
        for name in names:
            if name not in pictures:
                raise DataError(
                    f"{self.root / f'{split}{self.year}' / name}.jpg is missing; expected every annotated picture of {split}",
                    f"fetch {split}{self.year}.zip again",
                )
        return names

    def picture(self, name: str) -> Path:
        return self.root / f"{self.split_of(name)}{self.year}" / f"{name}.jpg"

    def mask(self, name: str) -> np.ndarray:
        split = self.split_of(name)
        if self.is_prepared(split):
            return read_index_mask(self.masks(split) / f"{name}.png", len(CLASSES))
        annotations = self.annotations(split)
        if name not in annotations.sizes:
            raise DataError(
                f"{self.annotation_file(split)} does not know the picture {name}; expected all of {split}",
                f"fetch the annotations of {self.year}",
            )
        return rasterise(annotations.instances.get(name, []), annotations.sizes[name], name)

    def present(self, name: str) -> list[int]:
        """From the annotations, unless masks are prepared; may name a class whose pixels smaller instances cover."""
        split = self.split_of(name)
        if self.is_prepared(split):
            return super().present(name)
        return sorted({i.index for i in self.annotations(split).instances.get(name, []) if not i.crowd})

    def stamp(self, name: str) -> tuple[int, ...]:
        split = self.split_of(name)
        mask = self.masks(split) / f"{name}.png" if self.is_prepared(split) else self.annotation_file(split)
        try:
            return file_stamp(self.picture(name), mask)
        except OSError as error:
            raise DataError(
                f"{error.filename} cannot be read ({error.strerror}); expected a picture and its mask", "fetch it again"
            ) from None

    def split_of(self, name: str) -> str:
        """train or val. Raises DataError for a picture of neither."""
        for split in ("train", "val"):
            if name in self._stems.get(split, ()):
                return split
        raise DataError(
            f"neither train{self.year} nor val{self.year} of {self.root} holds a picture {name}.jpg",
            "name a picture of the data set",
        )

    def annotation_file(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{split}{self.year}.json"

    def masks(self, split: str) -> Path:
        """The folder of a split's prepared masks."""
        return self.root / "annotations" / f"masks_{split}{self.year}"

    def is_prepared(self, split: str) -> bool:
        return self._prepared[split]

    def annotations(self, split: str) -> Annotations:
        """Reads the JSON once, which takes seconds. Raises DataError."""
        if split not in self._annotations:
            self._annotations[split] = read_annotations(self.annotation_file(split))
        return self._annotations[split]

    def _pictures(self, split: str) -> set[str]:
        if split not in ("train", "val"):
            raise DataError(f"coco-20i has no split {split!r}; expected train or val")
        if split not in self._stems:
            raise DataError(
                f"{self.root / (split + self.year)} is missing; expected COCO's pictures of {split}",
                f"unpack {split}{self.year}.zip there",
            )
        return self._stems[split]

    @cached_property
    def _stems(self) -> dict[str, set[str]]:
        folders = {split: self.root / f"{split}{self.year}" for split in ("train", "val")}
        return {s: {f.stem for f in d.iterdir() if f.suffix == ".jpg"} for s, d in folders.items() if d.is_dir()}

    @cached_property
    def _prepared(self) -> dict[str, bool]:
        return {split: self.masks(split).is_dir() for split in ("train", "val")}

    @cached_property
    def _annotations(self) -> dict[str, Annotations]:
        return {}


def read_annotations(file: Path) -> Annotations:
    """Parses an instances_*.json, with polygons as arrays: a quarter of the memory of lists. Raises DataError."""
    try:
        size = file.stat().st_size
        if size > 10_000_000:
            print(f"reading {file} ({size / 1e6:.0f} MB) …", file=sys.stderr, flush=True)
        with file.open() as stream:
            document = json.load(stream, object_hook=_compact)
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing; expected COCO's annotations, or prepared masks beside it",
            "unpack the annotations there",
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({one_line(error)})", "fetch it again") from None
    try:
        indices = {}
        for category in document["categories"]:
            if category["name"] not in CLASSES[1:]:
                raise DataError(
                    f"{file} has a category {category['name']!r}; expected COCO's 80 classes",
                    "fetch COCO's annotations",
                )
            indices[category["id"]] = CLASSES.index(category["name"])
        names = {image["id"]: Path(image["file_name"]).stem for image in document["images"]}
        sizes = {names[image["id"]]: (int(image["height"]), int(image["width"])) for image in document["images"]}
        instances: dict[str, list[Instance]] = {}
        for entry in document["annotations"]:
            instance = Instance(indices[entry["category_id"]], bool(entry.get("iscrowd", 0)), entry["segmentation"])
            if instance.shape:  # `_compact` drops degenerate polygons
                instances.setdefault(names[entry["image_id"]], []).append(instance)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not a COCO instances file ({type(error).__name__}: {one_line(error)}); "
            "expected images, annotations, categories",
            "fetch COCO's annotations",
        ) from None
    return Annotations(
        sizes, {name: shown for name, shown in instances.items() if not all(instance.crowd for instance in shown)}
    )


def rasterise(instances: list[Instance], size: tuple[int, int], name: str = "") -> np.ndarray:
    """(H, W) int16: crowds as IGNORE, instances over them from largest to smallest. Raises DataError."""
    mask = np.zeros(size, np.int16)
    shapes = []
    for instance in instances:
        try:
            shapes.append((instance, _decode(instance.shape, size)))
        except Exception as error:  # pycocotools raises bare Exceptions
            raise DataError(
                f"an instance of picture {name} is malformed ({one_line(error)})", "fetch the JSON again"
            ) from None
    shapes.sort(key=lambda pair: (not pair[0].crowd, -np.count_nonzero(pair[1])))
    for instance, shape in shapes:
        mask[shape] = IGNORE if instance.crowd else instance.index
    return mask


def prepare(data: Coco, split: str) -> int:
    """Writes a split's masks as index PNGs and returns how many; an interrupted call can be repeated and resumes."""
    if data.is_prepared(split):
        return 0
    annotations, folder = data.annotations(split), data.masks(split)
    unfinished = writable_folder(folder.with_name(folder.name + ".unfinished"))
    names = [name for name in data.names(split) if not (unfinished / f"{name}.png").is_file()]
    for name in tqdm(names, desc=f"{split} masks", unit="mask"):
        mask = rasterise(annotations.instances[name], annotations.sizes[name], name)
        write_index_mask(unfinished / f"{name}.png", mask)
    unfinished.rename(folder)
    return len(names)


def _compact(value: dict[str, Any]) -> dict[str, Any]:
    """json.load's object_hook: an annotation's polygons as arrays."""
    shape = value.get("segmentation")
    if isinstance(shape, list):
        # Fewer than three points enclose no area, and pycocotools reads two points as a box.
        value["segmentation"] = tuple(np.asarray(p, np.float64) for p in shape if len(p) >= 6)
    return value


def _decode(shape: tuple[np.ndarray, ...] | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    from pycocotools import mask as codes

    if isinstance(shape, tuple):
        polygons = [polygon.tolist() for polygon in shape]
        return np.asarray(codes.decode(codes.merge(codes.frPyObjects(polygons, *size))), bool)
    if list(shape["size"]) != list(size):
        raise ValueError(f"its run-length code is of size {shape['size']}, its picture of {list(size)}")
    code = codes.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape
    return np.asarray(codes.decode(code), bool)
