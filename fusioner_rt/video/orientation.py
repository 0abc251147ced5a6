"""Turns frames upright, as the display matrix of a video says."""

import struct
from typing import Any

import numpy as np


class Orientation:
    """Of a video's frames."""

    def __init__(self) -> None:
        self._rotation: float | None = None
        self._matrix: tuple[int, int, int, int] | None = None

    def look(self, frame: Any) -> None:
        """Take the orientation of an av.VideoFrame. Its side data is read where its angle is another than before alone: a frame whose
        side data was read refers to itself, and lies in memory until Python's collector comes by.
        """
        if frame.rotation != self._rotation:
            self._rotation, self._matrix = frame.rotation, _matrix(frame)

    @property
    def on_its_side(self) -> bool:
        """Whether `upright` exchanges the edges."""
        return self._matrix is not None and abs(self._matrix[1]) > abs(self._matrix[0])

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Turn and mirror a frame as its display matrix says, to the nearest quarter turn.

        pixels: (H, W, 3) uint8. Returns (H, W, 3) or (W, H, 3), contiguous.
        """
        return pixels if self._matrix is None else np.ascontiguousarray(turned(pixels, *self._matrix))


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
