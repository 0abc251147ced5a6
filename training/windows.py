"""Sliding windows: a picture segmented in overlapping parts, each at the network's own input size.

The whole picture, shrunk to the network's input, loses small things. Windows of 1/scale of its height and width are
enlarged to that same input instead, which shows the picture `scale` times as large; where windows overlap, their
probabilities are averaged. With scale 1 there is one window, the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

OVERLAP = 0.5
"""Least part of a window that its neighbour repeats."""

CropProbabilities = Callable[[np.ndarray], np.ndarray]
"""A crop (h, w, 3) uint8 RGB → probabilities (K, h, w) float32."""


def spans(length: int, scale: float, overlap: float = OVERLAP) -> list[tuple[int, int]]:
    """(first, one past the last) of equal windows along an edge, from its beginning to its end, in order."""
    if not (scale >= 1 and 0 <= overlap < 1):
        raise ValueError(f"scale is {scale}, expected 1 or more; overlap is {overlap}, expected a number in [0, 1)")
    span = math.ceil(length / scale)
    steps = math.ceil((scale - 1) / (1 - overlap) - 1e-9)  # scale 2.2 less 1 is not 1.2 in floating point
    starts = sorted({round(step * (length - span) / steps) for step in range(steps + 1)}) if steps else [0]
    return [(start, start + span) for start in starts]


def label(
    rgb: np.ndarray,
    words: int,
    probabilities: CropProbabilities,
    threshold: float,
    scale: float,
    overlap: float = OVERLAP,
) -> np.ndarray:
    """rgb (H, W, 3) uint8 → labels (H, W) uint16: n for word n of `words` where its averaged probability is the largest
    and exceeds `threshold`, else 0; a tie goes to the word named first.

    No more rows of probabilities are held than a window has: what no further window touches is labelled and let go.
    """
    height, width = rgb.shape[:2]
    labels = np.zeros((height, width), np.uint16)
    rows, columns = spans(height, scale, overlap), spans(width, scale, overlap)
    total = np.zeros((words, 0, width), np.float32)  # of rows top..bottom
    count = np.zeros((0, width), np.float32)
    top = 0
    for number, (first, last) in enumerate(rows):
        total = np.concatenate([total, np.zeros((words, last - top - total.shape[1], width), np.float32)], axis=1)
        count = np.concatenate([count, np.zeros((last - top - len(count), width), np.float32)])
        for left, right in columns:
            total[:, first - top :, left:right] += probabilities(np.ascontiguousarray(rgb[first:last, left:right]))
            count[first - top :, left:right] += 1
        done = (rows[number + 1][0] if number + 1 < len(rows) else height) - top
        labels[top : top + done] = resolve(total[:, :done] / count[:done], threshold)
        total, count, top = total[:, done:], count[done:], top + done
    return labels


def resolve(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """probabilities (K, H, W) → labels (H, W) uint16 (paper 3.1.3)."""
    best = probabilities.argmax(axis=0)
    highest = np.take_along_axis(probabilities, best[None], axis=0)[0]
    return np.where(highest > np.float32(threshold), best + 1, 0).astype(np.uint16)
