"""Pillow's resampling of 8-bit pictures as integer tables, for GPUs.

Pillow resizes along one axis, rounds to 8 bits, then resizes along the other (`columns_first`). It skips an axis whose
length stays. A pass is a weighted sum of integers: weights are computed in float64, divided by their sum and rounded to
multiples of 2^-22. Integer sums in any order give the same bytes.
"""

import math
from collections.abc import Callable

import numpy as np
import PIL

from .kernel_contract import PRECISION_BITS

_RAISED = float(np.float32(0.54)), float(np.float32(0.46))  # float32 in Pillow, so their sum is not 1


def _sines(x: np.ndarray) -> np.ndarray:
    """Sines by the C library, like Pillow's; numpy's may differ in the last bit."""
    return np.fromiter(map(math.sin, x.ravel()), np.float64, x.size).reshape(x.shape)


def _cosines(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.cos, x.ravel()), np.float64, x.size).reshape(x.shape)


def _sinc(x: np.ndarray) -> np.ndarray:
    angle = np.where(x == 0, 1.0, x * np.pi)
    return np.where(x == 0, 1.0, _sines(angle) / angle)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _hamming(x: np.ndarray) -> np.ndarray:
    inside = np.where(x == 0, 1.0, _sinc(x) * (_RAISED[0] + _RAISED[1] * _cosines(x * np.pi)))
    return np.where(np.abs(x) < 1, inside, 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "box": (0.5, _box), "bilinear": (1.0, _bilinear), "hamming": (1.0, _hamming), "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}  # fmt: skip
"""Per filter, its radius in input pixels when enlarging, and its function."""


def taps(length: int, size: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels of each pixel of a resized edge, and their weights.

    length, size: pixels of the edge before and after, at least 1. resample: a name of
    `fusioner_rt.preprocess.RESAMPLINGS`.
    Returns first (size,) int32 and weights (size, T) int32: pixel i is the sum of the T pixels from first[i] on, all
    inside the edge, times weights[i] / 2^PRECISION_BITS. Weights outside the filter are 0.
    """
    if length == size:
        return np.arange(size, dtype=np.int32), np.full((size, 1), 1 << PRECISION_BITS, np.int32)
    scale = length / size
    if resample == "nearest":
        # Pillow accumulates steps; their rounding decides which pixel is taken
        steps = np.full(size, scale)
        steps[0] = 0.5 * scale
        return np.add.accumulate(steps).astype(np.int32), np.full((size, 1), 1 << PRECISION_BITS, np.int32)
    radius, function = _FILTERS[resample]
    spread = max(scale, 1.0)
    radius *= spread
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - radius + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + radius + 0.5).astype(np.int64), length)
    count = int((end - first).max())
    pixel = first[:, None] + np.arange(count)
    exact = np.where(pixel < end[:, None], function((pixel - centre[:, None] + 0.5) * (1.0 / spread)), 0.0)
    sums = np.add.accumulate(exact, axis=1)[:, -1:]  # in order, like Pillow; np.sum adds pairwise
    np.divide(exact, sums, out=exact, where=sums != 0)
    scaled = exact * (1 << PRECISION_BITS)
    weights = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)
    # near the end, start earlier, so that all T pixels are inside
    inside = np.minimum(first, length - count)
    moved = np.arange(count) - (first - inside)[:, None]
    weights = np.where(moved >= 0, np.take_along_axis(weights, np.maximum(moved, 0), axis=1), 0)
    return inside.astype(np.int32), np.ascontiguousarray(weights, dtype=np.int32)


def columns_first(before: tuple[int, int], after: tuple[int, int], pillow: str = PIL.__version__) -> bool:
    """Whether Pillow resizes the columns before the rows; the order changes the rounding.

    before: H, W. after: h, w. pillow: its version. Up to 12, rows come first; from 13 on, columns do where they lose more
    than twice as many pixels.
    """
    fewer_rows, fewer_columns = before[0] - after[0], before[1] - after[1]
    return int(pillow.split(".")[0]) >= 13 and fewer_rows > max(0, 2 * fewer_columns)


def resize(rgb: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """Resize like Pillow, by `taps`. Slow; the reference for the GPU kernels.

    rgb: (H, W, 3) uint8. size: (h, w). Returns (h, w, 3) uint8.
    """
    for axis in (0, 1) if columns_first(rgb.shape[:2], size) else (1, 0):
        rgb = _resized(rgb.swapaxes(0, axis), size[axis], resample).swapaxes(0, axis)
    return np.ascontiguousarray(rgb)


def _resized(lines: np.ndarray, size: int, resample: str) -> np.ndarray:
    """lines: (length, ...) uint8. Returns (size, ...)."""
    first, weights = taps(len(lines), size, resample)
    total = np.full((size, *lines.shape[1:]), 1 << (PRECISION_BITS - 1), np.int32)
    for index in range(weights.shape[1]):
        total += weights[:, index].reshape(-1, *[1] * (lines.ndim - 1)) * lines[first + index].astype(np.int32)
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
