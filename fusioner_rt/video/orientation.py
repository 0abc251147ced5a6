"""Turns frames upright, as the display matrix of a video says."""

import struct
from typing import Any

import numpy as np


def upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror a frame as its display matrix says, to the nearest quarter turn.

    pixels: (H, W, 3) uint8. frame: av.VideoFrame, whose matrix is in its side data. Returns (H, W, 3) or (W, H, 3), contiguous.
    """
    matrix = _matrix(frame)
    return pixels if matrix is None else np.ascontiguousarray(turned(pixels, *matrix))


def is_on_its_side(frame: Any) -> bool:
    """Whether `upright` exchanges the edges of a frame."""
    matrix = _matrix(frame)
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def turned(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """A pixel at (x, y) comes to (a x + c y, b x + d y), moved so that all are within the picture. A view."""
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of (a, b, u, c, d, v, x, y, w), as libavutil has it; None where a frame has no matrix."""
    for data in frame.side_data:
        data = frame.side_data[data] if not hasattr(data, "type") else data  # PyAV 19 iterates over keys
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            return a, b, c, d
    return None
