"""Segmentations as label files of YOLO's segmentation task."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..regular_files import open_regular
from .instances import Instance
from .key_holes import in_one, without_holes

_MARK = "# by fusioner-rt segment --yolo"


def lines(found: Sequence[Instance], tolerance: float) -> str:
    """A line per instance: the number of its word from 0, then x and y of its outline, 0 to 1 of width and height.

    An outline is one ring: holes and parts that touch at corners are joined to it. Raises PackageMissing, UsageError.
    """
    text = []
    for instance in found:
        ring = in_one([without_holes(polygon) for polygon in instance.polygons(tolerance)])
        points = (ring / np.array(instance.size[::-1])).ravel().tolist()
        text.append(" ".join([str(instance.label - 1), *(f"{value:.7g}" for value in points)]) + "\n")
    return "".join(text)


def data_file(words: Sequence[str]) -> str:
    """The content of data.yaml beside the folders images and labels, whose paths are relative to it."""
    names = "".join(f"  {number}: {json.dumps(word, ensure_ascii=False)}\n" for number, word in enumerate(words))
    return f"{_MARK}\ntrain: images\nval: images\nnames:\n{names}"


def is_ours(folder: Path) -> bool:
    """Whether a folder holds no labels yet, or those that an earlier run wrote."""
    try:
        with open_regular(folder / "data.yaml") as stream:
            return stream.readline(len(_MARK) + 2).strip() == _MARK.encode()
    except FileNotFoundError:
        return not any((folder / "labels").glob("*"))
    except OSError:  # whatever it is, it is none of ours
        return False
