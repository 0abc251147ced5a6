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
    once where the picture changed, so that what moves does not lag; no specks of old labels are left. Its label is always that of this frame or of one before,
    and changes no more often than in what comes in.

    Results of other words, of another size, or after a cut begin anew. Memory: ten bytes a pixel. One thread at a time.
    """

    def __init__(self, amount: float) -> None:
        """amount: 0..1; 0 changes nothing, 1 holds labels longest. Raises UsageError."""
        if isinstance(amount, bool) or not (isinstance(amount, Real) and 0 <= amount <= 1):  # NaN fails too
            raise UsageError(named("steady", amount), "give 0 to 1: 0 changes nothing, 1 holds labels longest")
        self._most = MOST * float(amount)
        self._words: tuple[str, ...] | None = None

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
        if (
            self._words != result.words
            or self._labels.shape != result.labels.shape
            or is_cut(self._before, small)
        ):  # fmt: skip
            self._begin(result, small)
            return result
        others = np.flatnonzero(result.labels != self._labels)
        doubt = self._doubt.take(others) + _margins(result.confidence.take(others), result.threshold)
        held = doubt < self._most * self._stillness(result, small, others)
        held[held] = ~self._lonely(result.labels, others[held])
        taken, kept = others[~held], others[held]
        self._doubt.fill(0)
        self._doubt.put(kept, doubt[held])
        self._labels.put(taken, result.labels.take(taken))
        sure = self._confidence.take(kept)
        np.copyto(self._confidence, result.confidence)
        self._confidence.put(kept, sure)
        self._slow += FOLLOWS * (small - self._slow)
        self._before = small
        # Copies: the result's arrays are the caller's, who may write into them.
        return replace(result, labels=self._labels.copy(), confidence=self._confidence.copy())

    def _begin(self, result: Segmentation, small: np.ndarray) -> None:
        self._words, self._before, self._slow = result.words, small, small.copy()
        self._labels, self._confidence = result.labels.copy(), result.confidence.copy()
        self._doubt = np.zeros_like(self._confidence)

    def _lonely(self, labels: np.ndarray, held: np.ndarray) -> np.ndarray:
        """(N,) bool: pixels that have their held label in common with fewer than three of the eight around them.

        Each pixel decides for itself, which leaves specks and threads of old labels. labels: (H, W), the frame's.
        held: (N,) indices of pixels in the flat label map.
        """
        height, width = labels.shape
        around = np.full((height + 2, width + 2), len(self._words or ()) + 1, np.uint16)  # a frame of no word's label
        around[1:-1, 1:-1] = labels
        flat, at = around.reshape(-1), held + width + 3 + 2 * (held // width)
        own = self._labels.take(held)
        flat[at] = own
        row = width + 2
        steps = (-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1)
        return sum((flat[at + step] == own).view(np.uint8) for step in steps) < 3

    def _stillness(self, result: Segmentation, small: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """(N,) float32 within 0..1: 1 where the picture is as before. pixels: (N,), their indices in the flat label map."""
        change = np.maximum(np.abs(small - self._before), np.abs(small - self._slow))
        largest = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        still = np.clip((MOVED - largest) / (MOVED - NOISE), 0, 1)
        height, width = result.labels.shape
        rows, columns = (
            block_indices(edge, of_picture)
            for edge, of_picture in zip((height, width), result.picture.shape[:2], strict=True)
        )
        down, across = np.divmod(pixels, width)
        return still[rows[down], columns[across]]


def _margins(confidence: np.ndarray, threshold: float | Mapping[str, float]) -> np.ndarray:
    """How far probabilities are from the threshold, 0..1: 1 for words that are certain, and for a certain background."""
    of_all: Any = min(threshold.values(), default=0.5) if isinstance(threshold, Mapping) else threshold
    least = np.float32(min(max(of_all, 0.01), 0.99))
    distance = confidence - least
    return np.maximum(distance / (1 - least), -distance / least)
