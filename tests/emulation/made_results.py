"""Results that no model gave: of any shape, with words that have no pixels, all, stripes and noise."""

import numpy as np
from hypothesis import strategies as st

from fusioner_rt import Segmentation

WORDS = ("cat", "sofa", "dog", "red car")


def result_of(labels: np.ndarray, words: tuple[str, ...] = WORDS) -> Segmentation:
    """labels: (H, W)."""
    confidence = np.random.default_rng(labels.size).uniform(0.5, 1, labels.shape).astype(np.float32)
    picture = np.zeros((*labels.shape, 3), np.uint8)
    return Segmentation(words, labels.astype(np.uint16), confidence, picture, {}, 0.5, "joint")


def results() -> st.SearchStrategy[Segmentation]:
    """From one pixel to odd sizes; at most four of the words have pixels."""
    return st.builds(
        _drawn, st.integers(1, 37), st.integers(1, 53), st.integers(1, 9), st.integers(0, 4), st.integers(0, 999)
    )


def found(result: Segmentation) -> list[int]:
    """k of the words that have pixels."""
    return [k for k, mask in enumerate(result.masks) if mask.any()]


def _drawn(height: int, width: int, grain: int, most: int, seed: int) -> Segmentation:
    coarse = np.random.default_rng(seed).integers(0, most + 1, (height, width))
    return result_of(coarse.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width])
