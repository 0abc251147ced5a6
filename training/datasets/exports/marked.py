"""A picture of an export with its shapes, and how shapes become an index mask."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt.decode_picture import SUFFIXES
from fusioner_rt.errors import one_line
from training.data import DataError

IGNORED = frozenset({"__ignore__"})  # labels of pixels that do not count
Code = dict[str, Any] | tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Shape:
    """label: the class, or None for pixels that do not count. place: for messages.

    code: polygons, arrays (N, 2) of x, y with pixel edges at whole numbers, or COCO's run-length code, or `(mask, corner)`:
    a (h, w) bool mask and its (x, y).
    """

    label: str | None
    code: Code
    place: str

    def outside(self, size: tuple[int, int]) -> bool:
        """Whether the middle of its extent is outside a picture of (H, W) pixels. A run-length code's is not."""
        if isinstance(self.code, dict):
            return False
        if len(self.code) == 2 and self.code[0].dtype == bool:
            corners = np.stack([self.code[1], self.code[1] + self.code[0].shape[::-1]])
        else:
            corners = np.concatenate(self.code)
        middle = (corners.min(0) + corners.max(0)) / 2
        return bool((middle < 0).any() or (middle > size[::-1]).any())

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool. Raises DataError."""
        from pycocotools import mask as codes

        try:
            if isinstance(self.code, dict):
                if list(self.code["size"]) != list(size):
                    raise ValueError(
                        f"its run-length code is of size {list(self.code['size'])}, its picture of {list(size)}"
                    )
                plain = isinstance(self.code["counts"], list)
                return np.asarray(codes.decode(codes.frPyObjects(self.code, *size) if plain else self.code), bool)
            if len(self.code) == 2 and self.code[0].dtype == bool:
                return _placed(self.code[0], self.code[1], size)
            polygons = [polygon.ravel().tolist() for polygon in self.code]
            return np.asarray(codes.decode(codes.merge(codes.frPyObjects(polygons, *size))), bool)
        except Exception as error:  # pycocotools raises bare Exceptions
            raise DataError(f"{self.place} is malformed ({one_line(error)})", "draw or export it again") from None


@dataclass(frozen=True, eq=False)
class Marked:
    """name: the path below the export without its ending. picture: its file, or its bytes where the export embeds it.

    size: (H, W) as the export tells it, or None. largest_first: smaller shapes lie over larger ones; otherwise later ones
    over earlier ones. split: train or val, where the export tells.
    """

    name: str
    picture: Path | bytes
    shapes: tuple[Shape, ...]
    place: str
    size: tuple[int, int] | None = None
    largest_first: bool = False
    split: str = ""


@dataclass(frozen=True, eq=False)
class Export:
    """classes: in the export's order, or none where only shapes name them. pictures: read one by one, `count` in all.

    notes: what was left out.
    """

    form: str
    classes: list[str]
    pictures: Callable[[], Iterator[Marked]]
    count: int
    notes: list[str]


def _placed(mask: np.ndarray, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at its corner in a picture; what lies outside is cut off."""
    whole = np.zeros(size, bool)
    left, top = (int(v) for v in corner)
    y, x = max(0, -top), max(0, -left)
    part = mask[y : size[0] - top, x : size[1] - left] if top < size[0] and left < size[1] else mask[:0, :0]
    whole[top + y : top + y + part.shape[0], left + x : left + x + part.shape[1]] = part
    return whole


def points(values: Any, place: str, least: int = 3) -> np.ndarray:
    """x, y pairs, nested or flat → (N, 2) float64. Raises DataError."""
    try:
        array = np.asarray(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise DataError(f"{place} has points that are no pairs of numbers", "draw or export it again") from None
    if not np.isfinite(array).all():
        raise DataError(f"{place} has a coordinate that is no number", "draw or export it again")
    if len(array) < least:
        raise DataError(f"{place} has {len(array)} points; expected {least} or more", "draw it again, or delete it")
    return array


def read_json(file: Path) -> Any:
    """Raises DataError."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON ({one_line(error)})", "export it again") from None


def embedded(text: Any, place: str) -> bytes:
    """base64 → bytes. Raises DataError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{place} holds data that are not base64", "export it again") from None


class Pictures:
    """The picture files below some folders, found by the name that an export gives them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.files = sorted(
            {f.resolve(): f for d in folders for f in d.rglob("*") if f.suffix.lower() in SUFFIXES}.values()
        )
        self._by_name: dict[str, list[Path]] = {}
        for file in self.files:
            self._by_name.setdefault(file.name, []).append(file)

    def find(self, given: str, beside: Path) -> Path | None:
        """given: a path of any system, relative to `beside`, to a folder, or cut off. None where nothing fits.

        Raises DataError where several files fit.
        """
        path = Path(given.replace("\\", "/"))
        for folder in (beside, *self.folders):
            if path.suffix.lower() in SUFFIXES and (folder / path).is_file():
                return folder / path
        found = self._by_name.get(path.name, [])
        for length in range(2, len(path.parts) + 1):  # the longest end of the path that some file has, too
            longer = [file for file in found if file.parts[-length:] == path.parts[-length:]]
            found = longer or found
        if len(found) > 1:
            raise DataError(
                f"{given} may be {found[0]} or {found[1]}", f"give their folder: --pictures {found[0].parent}"
            )
        return found[0] if found else None

    def get(self, given: Any, beside: Path, place: str) -> Path:
        """As `find`; raises DataError where nothing fits, too."""
        found = self.find(given, beside) if isinstance(given, str) and given else None
        if found is None:
            raise DataError(
                f"{place} names the picture {given!r}, which is not below {self.folders[-1]}",
                "put it there, or give its folder: --pictures DIR",
            )
        return found
