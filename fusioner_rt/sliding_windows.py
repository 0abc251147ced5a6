"""Sliding windows over the network's input: small things are seen as large as the encoder was trained to see them.

Where windows overlap, the features of a position are averaged; the mask head takes them like any others. Bundles without
layers of their own have windows (the manifest's `windows`): their features do not depend on the words.
"""

from collections.abc import Sequence

import numpy as np

from .manifest import Windows


def starts(edge: int, windows: Windows) -> list[int]:
    """The first pixel of each window along an edge. The last window ends with the edge."""
    last = max(0, edge - windows.side)
    return [*range(0, last, windows.stride), last]


def crops(picture: np.ndarray, windows: Windows) -> list[np.ndarray]:
    """The windows of a network input (h, w, 3), row by row; all of one size, at most `side` an edge."""
    height, width = picture.shape[:2]
    return [
        picture[top : top + windows.side, left : left + windows.side]
        for top in starts(height, windows)
        for left in starts(width, windows)
    ]


def joined(features: Sequence[np.ndarray], input_size: tuple[int, int], windows: Windows, step: int) -> np.ndarray:
    """The features of the windows of `crops`, (h', w', d) float32 each, as those of the whole input: their means.

    input_size: (h, w). step: pixels between two features; edges, side and stride are multiples of it.
    """
    height, width = (edge // step for edge in input_size)
    total = np.zeros((height, width, features[0].shape[2]), np.float32)
    count = np.zeros((height, width, 1), np.float32)
    places = [(top, left) for top in starts(input_size[0], windows) for left in starts(input_size[1], windows)]
    for (top, left), part in zip(places, features, strict=True):
        rows, columns = slice(top // step, top // step + len(part)), slice(left // step, left // step + part.shape[1])
        total[rows, columns] += part
        count[rows, columns] += 1
    return total / count
