"""The mask head over ONNX graphs: low-resolution maps to labels of any size, in bands of rows (design: exact algebra).

Upsampling is linear, so K score maps and five Gram maps at low resolution are enough to know the cosine at every
output pixel (paper 3.1.3). The graphs compute any range of output rows; bands keep what lies between the maps and the
output within a bound, however large the output and however many the words.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

BAND_BYTES = 32 << 20
"""Working memory of a band. Every band repeats some work, so that much smaller ones cost time."""


def bands(height: int, row_bytes: int, budget: int = BAND_BYTES) -> Iterator[tuple[int, int]]:
    """Consecutive (first row, one past the last) that cover `height` rows, each within `budget` bytes or one row."""
    rows = max(1, budget // max(1, row_bytes))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


_CALM = 8  # a power of two: dividing scores by it rounds nothing


class MaskHead:
    """Stage 1 (`maps`) and stage 2 (`labels`, `probabilities`, `independent_labels`) of the mask head."""

    def __init__(self, scores: Run, labels: Run, probabilities: Run, budget: int = BAND_BYTES) -> None:
        self._scores, self._labels, self._probabilities = scores, labels, probabilities
        self._budget = budget

    def maps(self, features: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """features: (B, h, w, d) float32. refined: (B, K, d) float32. Neither is normalised.

        Returns scores (B, K, h, w) and gram (B, 5, h, w), float32.
        """
        result = self._scores({"features": features, "refined": refined})
        return result["scores"], result["gram"]

    def labels(
        self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One picture, its words in competition.

        scores: (1, K, h, w) float32. gram: (1, 5, h, w) float32. size: H, W of the output.
        Returns labels (H, W) uint16, 0 = background, n = word n, and confidence (H, W) float32, the best word's
        probability.
        """
        labels, confidence = np.empty(size, np.uint16), np.empty(size, np.float32)
        limit = np.asarray(threshold, np.float32)
        for first, last in self._bands(scores, size):
            band = self._labels({**_band(scores, gram, size, first, last), "threshold": limit})
            labels[first:last], confidence[first:last] = band["labels"][0], band["confidence"][0]
        return labels, confidence

    def probabilities(self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """scores: (B, K, h, w). gram: (B, 5, h, w). Returns (B, K, H, W) float32."""
        out = np.empty((*scores.shape[:2], *size), np.float32)
        for first, last in self._bands(scores, size):
            out[:, :, first:last] = self._band_probabilities(scores, gram, size, first, last)
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
        labels, confidence = np.empty(size, np.uint16), np.empty(size, np.float32)
        calm = scores / np.float32(_CALM)
        for first, last in self._bands(scores, size):
            band = self._band_probabilities(calm, gram, size, first, last)[:, 0]
            best = band.argmax(axis=0)
            highest = np.take_along_axis(band, best[None], axis=0)[0]
            confidence[first:last] = _sharpen(highest)
            labels[first:last] = np.where(confidence[first:last] > np.float32(threshold), best + 1, 0)
        return labels, confidence

    def _band_probabilities(
        self, scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], first: int, last: int
    ) -> np.ndarray:
        return self._probabilities(_band(scores, gram, size, first, last))["probabilities"]

    def _bands(self, scores: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        pictures, words = scores.shape[:2]
        # Per output pixel: the words' values before and after each axis' interpolation, and some ten maps of the norm.
        return bands(size[0], size[1] * pictures * (2 * words + 10) * 4, self._budget)


def _sharpen(calm: np.ndarray) -> np.ndarray:
    """Probabilities at _CALM times the temperature to those at the temperature itself: sigmoid(_CALM * logit(p))."""
    with np.errstate(over="ignore", divide="ignore"):
        return 1 / (1 + ((1 - calm) / calm) ** _CALM)


def _band(scores: np.ndarray, gram: np.ndarray, size: tuple[int, int], first: int, last: int) -> dict[str, np.ndarray]:
    return {
        "scores": scores,
        "gram": gram,
        "size": np.array(size, np.int64),
        "rows": np.array((first, last), np.int64),
    }
