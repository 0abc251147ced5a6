"""Frames of a video as small pictures, and whether one begins another scene."""

import functools

import numpy as np

BLOCK = 8
"""Edge in pixels of the squares that are averaged: noise averages out."""
CALM = 15.0
"""Mean change of colours, of 255, up to which two frames are of one scene."""
CUT = 0.4
"""Share of blocks, beyond CALM, that must have another colour wherever they are: what only moves keeps its colours."""


def small_picture(picture: np.ndarray) -> np.ndarray:
    """The mean colours of blocks. picture: (H, W, 3) uint8. Returns (h, w, 3) float32, 0..255, where h is H // BLOCK, at least 1.

    What is left of the edges has no part in it.
    """
    height, width = picture.shape[:2]
    down, across = min(BLOCK, height), min(BLOCK, width)
    rows, columns = height // down, width // across
    strips = picture[: rows * down, : columns * across].reshape(rows, down, -1).sum(axis=1, dtype=np.uint16)
    squares = strips.reshape(rows, columns, across, 3)
    sums = functools.reduce(
        np.add, (squares[:, :, at] for at in range(across))
    )  # faster than a sum over so short an axis
    return sums.astype(np.float32) / np.float32(down * across)


def block_indices(edge: int, of_picture: int) -> np.ndarray:
    """(edge,) the block of each row, or column, of a label map. edge: of the map. of_picture: the picture's."""
    block = min(BLOCK, of_picture)
    return np.minimum(np.arange(edge) * of_picture // edge // block, of_picture // block - 1)


def is_cut(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether small pictures are of different scenes, as those of different sizes are."""
    if before.shape != now.shape:
        return True
    if np.abs(now - before).mean() <= CALM:
        return False
    return bool(np.abs(_colours(now) - _colours(before)).sum() > 2 * CUT * now[..., 0].size)


def _colours(small: np.ndarray) -> np.ndarray:
    """(512,) how many blocks there are of each colour, in steps of 32."""
    red, green, blue = np.moveaxis((small // 32).astype(np.intp), 2, 0)
    return np.bincount((64 * red + 8 * green + blue).ravel(), minlength=512)
