"""The parts of a segmentation: what a word found, whole or in connected parts, by scipy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..argument_checks import named
from ..errors import UsageError
from ..memory_shortage import OF_A_RESULT, tells_shortage
from ..optional_packages import optional
from .polygons import Polygon, check_tolerance, trace

_EDGES_OR_CORNERS = np.ones((3, 3), bool)
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Instance:
    """Pixels of one word that join by edges or corners.

    label: the word's number in the label map. box: x, y, width and height in pixels, as COCO's. area: number of pixels.
    score: their mean probability. crop: (height, width) bool, the mask within the box. size: (H, W) of the label map.
    id: of the object over the frames of a video, where a `Tracker` gave it one.
    """

    word: str
    label: int
    box: Box
    area: int
    score: float
    crop: np.ndarray = field(repr=False)
    size: tuple[int, int]
    id: int | None = None

    @property
    @tells_shortage(OF_A_RESULT)
    def mask(self) -> np.ndarray:
        """(H, W) bool. Made on each use, as the masks of many instances would fill the memory."""
        x, y, width, height = self.box
        mask = np.zeros(self.size, bool)
        mask[y : y + height, x : x + width] = self.crop
        return mask

    @tells_shortage(OF_A_RESULT)
    def polygons(self, tolerance: float = 0.0) -> list[Polygon]:
        """As `Segmentation.polygons`; several where parts join by corners alone."""
        return [
            polygon.moved(*self.box[:2]) for _, polygon in trace(self.crop.view(np.uint8), check_tolerance(tolerance))
        ]


def connected(
    labels: np.ndarray, confidence: np.ndarray, words: Sequence[str], min_area: int = 1
) -> Iterator[Instance]:
    """Yields the connected parts of at least `min_area` pixels, by word and then from large to small.

    labels: (H, W) uint16. confidence: (H, W) float32. Raises PackageMissing, UsageError.
    """
    if isinstance(min_area, bool) or not isinstance(min_area, (int, float, np.number)) or not min_area >= 0:
        raise UsageError(named("min_area", min_area), "give a number of pixels")
    ndimage = optional("scipy.ndimage", "scipy", "instances")
    for label, rows, columns in _extents(labels):
        parts, count = ndimage.label(labels[rows, columns] == label, _EDGES_OR_CORNERS)
        flat = parts.ravel()
        areas = np.bincount(flat, minlength=count + 1)
        sums = np.bincount(flat, weights=confidence[rows, columns].ravel(), minlength=count + 1)
        boxes = ndimage.find_objects(parts)
        order = np.argsort(-areas[1:], kind="stable") + 1
        for number in order[areas[order] >= min_area].tolist():
            box = boxes[number - 1]
            score = float(sums[number] / areas[number])
            corner = columns.start + box[1].start, rows.start + box[0].start
            crop = parts[box] == number
            yield _instance(words, label, corner, crop, int(areas[number]), score, labels.shape)


def per_word(labels: np.ndarray, words: Sequence[str], scores: np.ndarray) -> Iterator[Instance]:
    """Yields all pixels of each word that has any, as one instance each. scores: (K,)."""
    for label, rows, columns in _extents(labels):
        crop = labels[rows, columns] == label
        corner = columns.start, rows.start
        score = float(scores[label - 1])
        yield _instance(words, label, corner, crop, int(np.count_nonzero(crop)), score, labels.shape)


def _extents(labels: np.ndarray) -> Iterator[tuple[int, slice, slice]]:
    """Each label that has pixels, and the rows and columns that hold them all."""
    for label in (np.flatnonzero(np.bincount(labels.ravel())[1:]) + 1).tolist():
        mask = labels == label
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        yield label, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _instance(
    words: Sequence[str], label: int, corner: tuple[int, int], crop: np.ndarray, area: int, score: float, size: Any
) -> Instance:
    height, width = crop.shape
    return Instance(words[label - 1], label, (*corner, width, height), area, score, crop, size)
