"""Label maps made for the tests, and what polygons cover."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_pictures import scene

from fusioner_rt import Segmentation

NAMES = ("cat", "red sofa", "dog")


def label_maps(words: int = 3) -> st.SearchStrategy[np.ndarray]:
    """(H, W) uint16 of every shape: small ones that hypothesis draws, and larger ones of many parts and holes."""
    drawn = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, words))
    return drawn | st.builds(
        noise, st.integers(1, 33), st.integers(1, 33), st.integers(0, 999), st.floats(0.05, 0.95), st.just(words)
    )


def noise(height: int, width: int, seed: int, share: float, words: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(random.random((height, width)) < share, random.integers(1, words + 1, (height, width)), 0).astype(
        np.uint16
    )


def segmentation(labels: np.ndarray, words: Sequence[str] = NAMES, source: str | None = None) -> Segmentation:
    confidence = np.random.default_rng(1).random(labels.shape, np.float32)
    return Segmentation(tuple(words), labels, confidence, scene(*labels.shape), {}, 0.5, "joint", source=source)


def covered(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels whose centre an odd number of the rings' edges has to its left."""
    rows, columns = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1]) + 0.5
    inside = np.zeros(shape, bool)
    for ring in rings:
        for (ax, ay), (bx, by) in zip(ring.astype(float), np.roll(ring, -1, axis=0).astype(float), strict=True):
            if ay != by:
                crossed = (rows > min(ay, by)) & (rows < max(ay, by))
                inside ^= crossed & (columns > ax + (rows - ay) * (bx - ax) / (by - ay))
    return inside
