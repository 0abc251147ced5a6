"""Sliding windows: a picture is segmented in overlapping parts, each resized to the network's input size.

Small objects vanish when the whole picture is shrunk to the network's input. A window covers 1/scale of the picture's
height and width and is resized to the same input, so objects appear `scale` times as large. Where windows overlap,
probabilities are averaged. With scale 1 there is one window, the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

OVERLAP = 0.5
"""Smallest fraction of a window that it shares with its neighbour."""

CropProbabilities = Callable[[np.ndarray], np.ndarray]
"""A crop (h, w, 3) uint8 RGB → probabilities (K, h, w) float32."""


def spans(length: int, scale: float, overlap: float = OVERLAP) -> list[tuple[int, int]]:
    """(start, end) of equal windows that cover an edge of `length` pixels, in order; `end` is exclusive."""
    if not (scale >= 1 and 0 <= overlap < 1):
        raise ValueError(f"scale is {scale}, expected 1 or more; overlap is {overlap}, expected a number in [0, 1)")
    span = math.ceil(length / scale)
    steps = math.ceil((scale - 1) / (1 - overlap) - 1e-9)  # 1e-9: 2.2 - 1 is above 1.2 in float64
    starts = sorted({round(step * (length - span) / steps) for step in range(steps + 1)}) if steps else [0]
    return [(start, start + span) for start in starts]


def label(
    rgb: np.ndarray,
    words: int,
    probabilities: CropProbabilities,
    threshold: float,
    scale: float,
) -> np.ndarray:
    """rgb (H, W, 3) uint8 → labels (H, W) uint16: n where word n has the largest averaged probability and it exceeds
    `threshold`, else 0. A tie goes to the first word.

    words: their number K. Probabilities are held for one window's rows: rows that no later window covers are labelled.
    """
    height, width = rgb.shape[:2]
    labels = np.zeros((height, width), np.uint16)
    rows, columns = spans(height, scale), spans(width, scale)
    total = np.zeros((words, 0, width), np.float32)  # summed probabilities of the rows from `top` on
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
