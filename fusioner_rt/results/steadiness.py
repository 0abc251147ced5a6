"""`Steadier`: the labels of a video, kept from flickering."""

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from ..argument_checks import named
from ..errors import UsageError
from .scene_cuts import block_indices, is_cut, small_picture
from .segmentation import Segmentation

MOST = 2.0
"""Summed margins that other labels must win with before one is given up, at an amount of 1."""
NOISE, MOVED = 4.0, 12.0
"""Change of a block's mean colour, of 255, up to which nothing moved there, and from which all is new there."""
FOLLOWS = 0.3
"""Share of each frame in the slow picture that the next is compared with, too: slow motion adds up, and noise does not."""


class Steadier:
    """Keeps labels from flickering. Called with a stream's results in their order, it returns them steadied.

    A pixel keeps its label until others have won there in consecutive frames, the fewer the surer they are, and gives it up at
    once where the picture changed, so that what moves does not lag, or where it would be all but alone with it. Its label is
    always that of this frame or of one before, and changes no more often than in what comes in.

    Results of other words, of another size, or after a cut begin anew. Memory: ten bytes a pixel. One thread at a time.
    """

    def __init__(self, amount: float) -> None:
        """amount: 0..1; 0 changes nothing, 1 holds labels longest. Raises UsageError."""
        self._most = MOST * _share(amount)
        self._words: tuple[str, ...] = ()
        nothing: np.ndarray = np.empty(0)
        self._labels = self._confidence = self._doubt = self._before = self._slow = nothing

    def __call__(self, result: Segmentation) -> Segmentation:
        """The frame's result with steadied labels (H, W) uint16 and confidence (H, W) float32.

        Where a label was kept, the confidence is that of the last frame that gave it. All else is the frame's own, its
        probabilities too. Raises UsageError.
        """
        if not isinstance(result, Segmentation):
            raise UsageError(
                f"the result is a {type(result).__name__}", "give one picture's, as session.segment returns it"
            )
        if not self._most:
            return result
        small = small_picture(result.picture)
        begins = self._words != result.words or self._labels.shape != result.labels.shape
        if begins or is_cut(self._before, small):
            self._begin(result, small)
            return result
        kept, doubt = self._held(result, small)
        self._doubt.fill(0)
        self._doubt.put(kept, doubt)
        for own, new in ((self._labels, result.labels), (self._confidence, result.confidence)):
            held = own.take(kept)
            np.copyto(own, new)
            own.put(kept, held)
        self._slow += FOLLOWS * (small - self._slow)
        self._before = small
        # Copies: the result's arrays are the caller's, who may write into them.
        return replace(result, labels=self._labels.copy(), confidence=self._confidence.copy())

    def _begin(self, result: Segmentation, small: np.ndarray) -> None:
        self._words, self._before, self._slow = result.words, small, small.copy()
        self._labels, self._confidence = result.labels.copy(), result.confidence.copy()
        self._doubt = np.zeros_like(self._confidence)

    def _held(self, result: Segmentation, small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels that keep a label which is not the frame's: (N,) indices in the flat label map, and (N,) their doubt."""
        change = np.maximum(np.abs(small - self._before), np.abs(small - self._slow))
        largest = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        still = np.clip((MOVED - largest) / (MOVED - NOISE), 0, 1)  # 1 where the picture is as before
        height, width = result.labels.shape
        rows, columns = map(block_indices, (height, width), result.picture.shape[:2])
        others = result.labels != self._labels
        others &= (still > 0).take(columns, axis=1).take(rows, axis=0)  # of those that moved there may be many
        pixels = np.flatnonzero(others)
        down, across = np.divmod(pixels, width)
        doubt = self._doubt.take(pixels) + _margins(result.confidence.take(pixels), result.threshold)
        held = doubt < self._most * still[rows[down], columns[across]]
        pixels, doubt = pixels[held], doubt[held]
        joined = ~self._lonely(result.labels, pixels)
        return pixels[joined], doubt[joined]

    def _lonely(self, labels: np.ndarray, held: np.ndarray) -> np.ndarray:
        """(N,) bool: pixels that have their held label in common with fewer than three of the eight around them.

        Each pixel decides for itself, which leaves specks and threads of old labels. labels: (H, W), the frame's.
        held: (N,) indices of pixels in the flat label map.
        """
        height, width = labels.shape
        row = width + 2
        around = np.full((height + 2, row), len(self._words) + 1, np.uint16)  # with a frame of no word's label
        around[1:-1, 1:-1] = labels
        flat, at = around.reshape(-1), held + row + 1 + 2 * (held // width)
        own = flat[at] = self._labels.take(held)
        alike = np.zeros(len(held), np.uint8)
        for step in (-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1):
            alike += flat.take(at + step) == own
        return alike < 3


def _share(amount: Any) -> float:
    """Raises UsageError."""
    if isinstance(amount, bool) or not (isinstance(amount, Real) and 0 <= float(amount) <= 1):  # NaN fails too
        raise UsageError(named("steady", amount), "give 0 to 1: 0 changes nothing, 1 holds labels longest")
    return float(amount)


def _margins(confidence: np.ndarray, threshold: float | Mapping[str, float]) -> np.ndarray:
    """How far probabilities are from the threshold, 0..1: 1 for words that are certain, and for a certain background."""
    of_all: Any = min(threshold.values(), default=0.5) if isinstance(threshold, Mapping) else threshold
    least = np.float32(min(max(of_all, 0.01), 0.99))
    distance = confidence - least
    return np.maximum(distance / (1 - least), -distance / least)
