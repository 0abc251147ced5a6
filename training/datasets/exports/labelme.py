"""LabelMe: a JSON file a picture, with polygons, rectangles, circles and masks; later shapes lie over earlier ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusioner_rt.errors import one_line
from training.data import DataError, counted
from training.datasets.exports.marked import Code, Export, Marked, Pictures, Shape, embedded, points, read_json

CORNERS = 180  # of a circle: its area errs by 0.02%


def open_labelme(root: Path, files: list[Path], pictures: Pictures) -> Export:
    """files: the JSON files, below root."""

    def read() -> Iterator[Marked]:
        for file in files:
            yield _read(file, root, pictures)

    marked = {file.with_suffix("").resolve() for file in files}
    unmarked = [file for file in pictures.files if file.with_suffix("").resolve() not in marked]
    notes = []
    if len(pictures.files) > len(files) and unmarked:
        count = counted(len(unmarked), "picture has", "pictures have")
        notes.append(f"{count} no JSON of the same name, such as {unmarked[0]}: left out")
    return Export("labelme", [], read, len(files), notes)


def is_labelme(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("shapes"), list)


def _read(file: Path, root: Path, pictures: Pictures) -> Marked:
    document = read_json(file)
    if not is_labelme(document):
        raise DataError(f"{file} is not LabelMe's; expected a list of shapes", "move it out of the export")
    given = document.get("imagePath")
    found: Path | bytes | None = pictures.find(given, file.parent) if isinstance(given, str) and given else None
    if found is None and document.get("imageData"):
        found = embedded(document["imageData"], f"imageData of {file}")
    if found is None:
        found = pictures.get(given, file.parent, str(file))  # raises
    size = document.get("imageHeight"), document.get("imageWidth")
    return Marked(
        file.relative_to(root).with_suffix("").as_posix().removesuffix(".labelme"),
        found,
        tuple(_shape(shape, f"{file}, shape {number}") for number, shape in enumerate(document["shapes"], start=1)),
        str(file),
        (int(size[0]), int(size[1])) if all(isinstance(v, int) and v > 0 for v in size) else None,
    )


def _shape(shape: Any, place: str) -> Shape:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        raise DataError(f"{place} has no label", "name it in LabelMe, or delete it")
    label = shape["label"].strip()
    place = f"{place} ({label})"
    return Shape(label, _code(shape, place), place)


def _code(shape: dict[str, Any], place: str) -> Code:
    match shape.get("shape_type") or "polygon":
        case "polygon":
            return (points(shape.get("points"), place),)
        case "rectangle":
            corners = points(shape.get("points"), place, least=2)
            if len(corners) == 2:
                (x0, y0), (x1, y1) = corners
                corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            return (corners,)
        case "circle":
            centre, edge = points(shape.get("points"), place, least=2)[:2]
            angles = np.arange(CORNERS) * 2 * np.pi / CORNERS
            radius = np.hypot(*(edge - centre))
            return (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1),)
        case "mask":
            corner = points(shape.get("points"), place, least=1)[0].round()
            try:
                with Image.open(io.BytesIO(embedded(shape.get("mask"), place)), formats=["PNG"]) as image:
                    return np.asarray(image).astype(bool), corner
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{place} holds no PNG as its mask ({one_line(error)})", "draw it again") from None
        case other:
            raise DataError(
                f"{place} is a {other}, which has no area; expected a polygon, rectangle, circle or mask",
                "delete it in LabelMe, or draw a polygon",
            )
