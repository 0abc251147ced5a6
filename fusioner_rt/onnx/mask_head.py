"""The mask head over ONNX graphs: low-resolution maps to labels of any size (design: exact algebra).

Upsampling is linear, so K score maps and five Gram maps at low resolution are enough to know the cosine at every
output pixel (paper 3.1.3). Labels are computed by tiles (`fusioner_rt.onnx.mask_tiles`), probabilities by bands of rows:
what lies between the maps and the output is bounded, however large the output and however many the words.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..decode_picture import PIXEL_LIMIT
from ..errors import GraphUnusable, UsageError
from ..executor_interface import Answer, Request
from ..workers import Workers
from . import mask_tiles
from .mask_tiles import Run

BAND_BYTES = 8 << 20
"""Working memory of a band. Every band repeats some work, so that much smaller ones cost time."""

BANDS = 4
"""Bands of a map at least, where it has as many rows. Threads share them out; as many threads as this, or fewer, round alike."""

MOST_WORDS = (1 << 16) - 1
"""A label map has 16 bits."""

LARGEST = 1e30
"""Of what maps may hold; `maps` gives d at most. Divided by the temperature it is to remain a float32."""


def bands(height: int, row_bytes: int, budget: int = BAND_BYTES) -> Iterator[tuple[int, int]]:
    """Consecutive (first row, one past the last) that cover `height` rows, `BANDS` or more, each within `budget` bytes or one row."""
    rows = max(1, min(budget // max(1, row_bytes), -(-height // BANDS)))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


_CALM = 8  # a power of two: dividing scores by it rounds nothing


class MaskHead:
    """Stage 1 (`maps`) and stage 2 (`labels`, `probabilities`, `independent_labels`) of the mask head.

    Threads may share one; `close` ends those it started. Arrays of any strides are accepted, and none is written to;
    results are new arrays. Raises UsageError for arguments of another dtype or shape, no words, or a size or threshold
    out of bounds, and GraphUnusable for maps that hold not-a-number, an infinity or what float32 may make one (over
    LARGEST): `maps` gives such for features that do.
    """

    def __init__(
        self,
        scores: Run,
        tiles: Run,
        probabilities: Run,
        threads: int = 1,
        budget: int = BAND_BYTES,
        scoring: str = "sigmoid",
    ) -> None:
        """The graphs of a bundle: mask_scores, mask_tiles and mask_probabilities.

        threads: how many run mask_tiles and mask_probabilities at once, all callers together; load these with one thread of
        their own.
        scoring: the bundle's, "sigmoid" or "softmax".
        """
        self._scores, self._tiles, self._probabilities = scores, tiles, probabilities
        self._budget, self._scoring = budget, scoring
        self.workers = Workers(threads, "mask-head")

    def maps(self, features: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """features: (B, h, w, d) float32. refined: (B, K, d) float32. Neither is normalised.

        Returns scores (B, K, h, w) and gram (B, 5, h, w), float32.
        """
        _check("features", features, ("B", "h", "w", "d"))
        _check("refined", refined, ("B", "K", "d"))
        if refined.shape[::2] != features.shape[::3]:
            raise UsageError(
                f"refined has the shape {refined.shape} beside features of {features.shape}",
                "give as many pictures and channels in both, as image_fusion returns them",
            )
        result = self._scores({"features": features, "refined": refined})
        return result["scores"], result["gram"]

    def labels(
        self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One picture, its words in competition.

        scores: (1, K, h, w) float32. gram: (1, 5, h, w) float32. size: H, W of the output.
        Returns labels (H, W) uint16, 0 = background, n = word n, and confidence (H, W) float32, the best word's
        probability. A tie goes to the word named first; a pixel without direction has the confidence 0.5, by softmax 1/K.
        """
        size = _checked(scores, gram, size, pictures=1)
        _check_threshold(threshold)
        return mask_tiles.resolve(
            self._tiles, scores[0], gram[0], size, threshold, self.workers.run_all, threads=self.workers.threads,
            scoring=self._scoring,
        )  # fmt: skip

    def probabilities(self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """scores: (B, K, h, w). gram: (B, 5, h, w). Returns (B, K, H, W) float32."""
        size = _checked(scores, gram, size)
        out = np.empty((*scores.shape[:2], *size), np.float32)

        def run(band: tuple[int, int]) -> None:
            out[:, :, slice(*band)] = self._band_probabilities(scores, gram, size, *band)

        self.workers.run_all(run, self._bands(scores, size))
        return out

    def independent_labels(
        self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One picture, each word fused alone: every word has features, hence Gram maps, of its own.

        scores: (K, 1, h, w). gram: (K, 5, h, w). The rule stays "the best word whose probability exceeds the
        threshold", but the norm no longer cancels between words, so words are compared by probability: by one at
        _CALM times the temperature, because float32 has few values just below 1 and sure words would tie.
        Returns labels (H, W) uint16 and confidence (H, W) float32.
        """
        size = _checked(scores, gram, size, words=1)
        _check_threshold(threshold)
        labels, confidence = np.empty(size, np.uint16), np.empty(size, np.float32)
        calm = scores / np.float32(_CALM)

        def run(band: tuple[int, int]) -> None:
            rows = slice(*band)
            every = self._band_probabilities(calm, gram, size, *band)[:, 0]
            best = every.argmax(axis=0)
            confidence[rows] = _sharpen(np.take_along_axis(every, best[None], axis=0)[0])
            labels[rows] = np.where(confidence[rows] > np.float32(threshold), best + 1, 0)

        self.workers.run_all(run, self._bands(scores, size))
        return labels, confidence

    def answer(self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], request: Request) -> Answer:
        """What a request asks for of one picture. Independent words are K pictures of one word each."""
        labels_of = self.labels if request.mode == "joint" else self.independent_labels
        labels, confidence = labels_of(scores, gram, size, request.threshold)
        every = self.probabilities(scores, gram, size).reshape(-1, *size) if request.probabilities else None
        return Answer(labels, confidence, every)

    def close(self) -> None:
        """End the threads that `labels` has started; another call would start new ones."""
        self.workers.close()

    def _band_probabilities(
        self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], first: int, last: int
    ) -> np.ndarray:
        rows = np.array((first, last), np.int64)
        inputs = {"scores": scores, "gram": gram, "size": np.array(size, np.int64), "rows": rows}
        return self._probabilities(inputs)["probabilities"]

    def _bands(self, scores: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
        pictures, words = scores.shape[:2]
        # Per output pixel: the words' values before and after each axis' interpolation, and some ten maps of the norm.
        return list(bands(size[0], size[1] * pictures * (2 * words + 10) * 4, self._budget))


def _check(name: str, array: Any, axes: tuple[str, ...]) -> None:
    """Raises UsageError."""
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    if not (isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim == len(axes) and array.size):
        raise UsageError(
            f"{name} is {found}", f"give a numpy array of float32 ({', '.join(axes)}), at least 1 along every axis"
        )


def _checked(
    scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], pictures: int | None = None, words: int | None = None
) -> tuple[int, int]:
    """The size as two ints. Raises UsageError, or GraphUnusable for values that are not finite or over LARGEST."""
    _check(
        "scores", scores, ("B" if pictures is None else str(pictures), "K" if words is None else str(words), "h", "w")
    )
    _check("gram", gram, ("B", "5", "h", "w"))
    if gram.shape != (scores.shape[0], 5, *scores.shape[2:]) or not (
        pictures in (None, scores.shape[0]) and words in (None, scores.shape[1])
    ):
        raise UsageError(
            f"scores has the shape {scores.shape} beside gram of {gram.shape}",
            f"give ({pictures or 'B'}, {words or 'K'}, h, w) and ({pictures or 'B'}, 5, h, w), as `maps` returns them",
        )
    count = scores.shape[0] * scores.shape[1]
    if count > MOST_WORDS:
        raise UsageError(f"scores holds {count} maps", f"give {MOST_WORDS} at most, label maps have 16 bits")
    try:
        height, width = (edge.__index__() for edge in size)
    except (TypeError, ValueError, AttributeError):
        height = width = 0
    if height < 1 or width < 1 or height * width > PIXEL_LIMIT:
        raise UsageError(
            f"the size is {size!r}",
            f"give height and width in whole pixels, at least 1 each and {PIXEL_LIMIT} together",
        )
    for name, array in (("scores", scores), ("gram", gram)):
        if not -LARGEST <= array.min() <= array.max() <= LARGEST:  # both are not-a-number where one value is
            raise GraphUnusable(
                f"{name} holds values that are not finite, or over {LARGEST}",
                "look for the first graph whose outputs do, and rebuild the bundle without --fp16 if it "
                "is image_fusion",
            )
    return height, width


def _check_threshold(threshold: float) -> None:
    """Raises UsageError."""
    if np.isnan(threshold):
        raise UsageError(f"the threshold is {threshold}", "give a probability within 0..1, 0.5 by default")


def _sharpen(calm: np.ndarray) -> np.ndarray:
    """Probabilities at _CALM times the temperature to those at the temperature itself: sigmoid(_CALM * logit(p))."""
    with np.errstate(over="ignore", divide="ignore"):
        return 1 / (1 + ((1 - calm) / calm) ** _CALM)
