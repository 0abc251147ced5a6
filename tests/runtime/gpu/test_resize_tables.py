"""The resampling that the GPU kernels are held to is Pillow's, byte for byte."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt.gpu.resize_tables import PRECISION_BITS, columns_first, resize, taps
from fusioner_rt.preprocess import RESAMPLINGS

resamplings = pytest.mark.parametrize("resample", RESAMPLINGS)
edges = st.one_of(st.integers(1, 8), st.integers(1, 300))
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """Black and white, on which the filters overshoot most, or any level."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return levels if seed % 2 else np.where(levels > 127, 255, 0).astype(np.uint8)


def by_pillow(rgb: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling[resample.upper()]))


@resamplings
@given(seeds, edges, edges, edges, edges)
@settings(max_examples=60, deadline=None)
@example(0, 1, 1, 1, 1)
@example(0, 1, 1, 37, 123)
@example(0, 5, 123, 1, 1)
@example(0, 61, 83, 61, 40)
@example(0, 61, 83, 40, 83)
@example(0, 200, 40, 50, 39)  # the columns first
@example(0, 200, 100, 100, 50)  # twice as many: the rows first still
def test_a_resize_is_pillows(resample: str, seed: int, height: int, width: int, h: int, w: int) -> None:
    rgb = noise(seed, height, width)
    np.testing.assert_array_equal(resize(rgb, (h, w), resample), by_pillow(rgb, (h, w), resample))


@resamplings
@pytest.mark.parametrize(
    ("length", "size"),
    [(4000, 320), pytest.param(65535, 3, marks=pytest.mark.slow), (3, 20000), (59, 251), (1024, 1023)],
)
def test_long_edges_too(resample: str, length: int, size: int) -> None:
    rgb = noise(length, length, max(4, 200_000 // max(length, size)))
    turned = np.ascontiguousarray(rgb.swapaxes(0, 1))
    for picture, after in ((rgb, (size, rgb.shape[1])), (turned, (rgb.shape[1], size))):
        np.testing.assert_array_equal(resize(picture, after, resample), by_pillow(picture, after, resample))


def test_where_a_pixel_lies_in_the_middle_of_hammings_window_it_weighs_1_as_in_pillow() -> None:
    """And not 1.00000003, what its constants add up to. A few bytes in 100,000 tell."""
    rgb = noise(2, 22, 100_000)
    np.testing.assert_array_equal(resize(rgb, (2, 100_000), "hamming"), by_pillow(rgb, (2, 100_000), "hamming"))


@resamplings
@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
def test_tables_stay_within_the_edge_and_sums_within_32_bits(resample: str, length: int, size: int) -> None:
    first, weights = taps(length, size, resample)
    assert first.dtype == weights.dtype == np.int32
    assert first.shape == weights.shape[:1] == (size,)
    assert weights.flags.c_contiguous
    assert first.min() >= 0
    assert (first + weights.shape[1]).max() <= length
    one = 1 << PRECISION_BITS
    wide = weights.astype(np.int64)
    assert np.abs(wide.sum(1) - one).max() <= weights.shape[1]  # of every weight at most half is rounded away
    assert 255 * np.abs(wide).sum(1).max() + one // 2 < 2**31
    if length == size:
        assert (first == np.arange(size)).all()
        assert (weights == one).all()


def test_which_axis_comes_first_depends_on_pillows_version() -> None:
    assert columns_first((200, 100), (99, 50), "13.0.0")
    assert not columns_first((200, 100), (100, 50), "13.0.0")
    assert columns_first((200, 100), (199, 300), "13.1.0.dev0")
    assert not columns_first((100, 200), (100, 300), "13.0.0")
    assert not columns_first((200, 100), (20, 99), "12.3.0")
