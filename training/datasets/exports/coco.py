"""A COCO JSON with polygons or run-length codes of any categories; smaller instances lie over larger ones."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusioner_rt.errors import one_line
from training.data import DataError, counted
from training.datasets.exports.marked import Code, Export, Marked, Pictures, Shape, points, read_json

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
LISTS = ("images", "annotations", "categories")


def is_coco(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(name), list) for name in LISTS)


def open_coco(root: Path, files: list[Path], pictures: Pictures) -> Export:
    """files: one or more JSON files, one for each split."""
    classes: list[str] = []
    marked: list[Marked] = []
    notes: list[str] = []
    for file in files:
        split = split_of(file, root) if len(files) > 1 else ""
        if split == "test":
            notes.append(f"{file} is a test split: left out")
            continue
        names, read = _read(file, root, pictures, split, notes)
        classes += [name for name in names if name not in classes]
        marked += read
    marked = _below_their_folder(marked)
    return Export("coco", classes, lambda: iter(marked), len(marked), notes)


def split_of(path: Path, root: Path) -> str:
    """train, val or test, by a word in the file's name, else in that of a folder below root; "" where none is."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    words = (word for part in reversed(parts) for word in re.split(r"[^a-z]+", part.lower()))
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _below_their_folder(marked: list[Marked]) -> list[Marked]:
    """Pictures that are named by absolute paths are called by the part below the folder that all of them share."""
    absolute = [one.name for one in marked if _ABSOLUTE.match(one.name)]
    try:
        shared = os.path.commonpath([os.path.dirname(name) for name in absolute]) if absolute else ""
    except ValueError:  # several drives
        return marked
    return [
        replace(one, name=os.path.relpath(one.name, shared)) if _ABSOLUTE.match(one.name) else one for one in marked
    ]


def _read(file: Path, root: Path, pictures: Pictures, split: str, notes: list[str]) -> tuple[list[str], list[Marked]]:
    document = read_json(file)
    if not is_coco(document):
        raise DataError(f"{file} is no COCO JSON; expected lists of {', '.join(LISTS)}", "export it again")
    try:
        categories = {c["id"]: str(c["name"]).strip() for c in sorted(document["categories"], key=lambda c: c["id"])}
        images = {image["id"]: image for image in document["images"]}
        shapes: dict[Any, list[Shape]] = {number: [] for number in images}
        flat = 0
        for number, entry in enumerate(document["annotations"], start=1):
            place = f"{file}, annotation {entry.get('id', number)}"
            if entry["image_id"] not in images:
                raise DataError(
                    f"{place} is of image {entry['image_id']}, which the file does not list", "export again"
                )
            if entry["category_id"] not in categories:
                raise DataError(
                    f"{place} is of category {entry['category_id']}, which the file does not list", "export again"
                )
            label = categories[entry["category_id"]]
            code = _code(entry.get("segmentation"), f"{place} ({label})")
            flat += not code
            if code:
                ignored = entry.get("iscrowd", 0)
                shapes[entry["image_id"]].append(Shape(None if ignored else label, code, f"{place} ({label})"))
        if flat:
            count = counted(flat, f"annotation of {file} has", f"annotations of {file} have")
            notes.append(f"{count} fewer than three points: left out")
        for number, image in images.items():
            if not isinstance(image.get("file_name"), str) or not image["file_name"]:
                raise DataError(f"{file}, image {number} has no file_name; expected its picture's", "export again")
        return list(categories.values()), [
            Marked(
                _name(image["file_name"]),
                pictures.get(image["file_name"], file.parent, f"{file}, image {number}"),
                tuple(shapes[number]),
                f"{file}, image {number} ({image['file_name']})",
                (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None,
                largest_first=True,
                split=split,
            )
            for number, image in images.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} is no COCO JSON ({type(error).__name__}: {one_line(error)}); expected images with id and file_name, "
            "annotations with image_id, category_id and segmentation, categories with id and name",
            "export it again",
        ) from None


def _name(file_name: str) -> str:
    name = Path(file_name.replace("\\", "/")).with_suffix("").as_posix()
    return name if _ABSOLUTE.match(name) else name.lstrip("./")


def _code(shape: Any, place: str) -> Code:
    """Polygons or a run-length code; () of polygons without an area."""
    if isinstance(shape, dict) and "counts" in shape and len(shape.get("size", ())) == 2:
        return shape
    if isinstance(shape, list) and shape:
        rings = shape if isinstance(shape[0], (list, tuple)) else [shape]
        return tuple(ring for ring in (points(values, place, least=0) for values in rings) if len(ring) >= 3)
    raise DataError(
        f"{place} has no segmentation; expected polygons or a run-length code, not a box alone",
        "export instance segmentation, or draw its outline",
    )
