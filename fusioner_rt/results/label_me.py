"""A segmentation as LabelMe keeps it: polygons to correct by hand."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .instances import Instance
from .key_holes import without_holes

VERSION = "5.5.0"
"""The version of LabelMe whose format this is."""


def content(
    found: Sequence[Instance], edges: tuple[int, ...], source: str | None, folder: Path, tolerance: float
) -> dict[str, Any]:
    """What a LabelMe file in `folder` holds: a shape per polygon, in pixels of the picture.

    edges: (H', W', ...) of the picture, which the label map's size may differ from. source: its file, if any.
    Polygons of one instance share a group_id; holes are joined to the ring around them. The picture stays where it is, and
    its path is relative to the folder. Raises PackageMissing, UsageError.
    """
    height, width = edges[:2]
    shapes = []
    for group, instance in enumerate(found, start=1):
        scale = np.array((width / instance.size[1], height / instance.size[0]))
        polygons = instance.polygons(tolerance)
        for polygon in polygons:
            shapes.append(
                {
                    "label": instance.word,
                    "points": (without_holes(polygon) * scale).round(3).tolist(),
                    "group_id": group if len(polygons) > 1 else None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": _path_from(folder, source),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _path_from(folder: Path, source: str | None) -> str:
    if source is None or "://" in source:
        return source or ""
    try:
        return Path(os.path.relpath(source, folder)).as_posix()
    except ValueError:  # another drive
        return str(Path(source).absolute())
