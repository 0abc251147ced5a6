from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import windows


@given(st.integers(1, 400), st.floats(1, 16), st.floats(0, 0.95))
def test_windows_are_equal_in_size_cover_the_edge_and_overlap_as_asked(
    length: int, scale: float, overlap: float
) -> None:
    spans = windows.spans(length, scale, overlap)
    sizes = {last - first for first, last in spans}
    assert len(sizes) == 1
    size = sizes.pop()
    assert size == int(np.ceil(length / scale))
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    for (first, last), (following, _) in itertools.pairwise(spans):
        assert first < following <= last
        assert last - following >= overlap * size - 1  # whole pixels


def test_scale_2_cuts_an_edge_into_3_windows_that_overlap_by_half() -> None:
    assert windows.spans(8, 2) == [(0, 4), (2, 6), (4, 8)]


def pixelwise(rgb: np.ndarray) -> np.ndarray:
    """Three words' probabilities that depend on the pixel alone."""
    return np.moveaxis(rgb, 2, 0).astype(np.float32) / 256


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.integers(0, 256, (draw(st.integers(1, 40)), draw(st.integers(1, 40)), 3)).astype(np.uint8)


@given(pictures(), st.floats(0, 1))
def test_one_window_is_the_whole_picture(rgb: np.ndarray, threshold: float) -> None:
    labels = windows.label(rgb, 3, pixelwise, threshold, scale=1)
    assert np.array_equal(labels, windows.resolve(pixelwise(rgb), threshold))


@given(pictures(), st.floats(1, 6))
def test_what_depends_on_the_pixel_alone_does_not_depend_on_the_windows(rgb: np.ndarray, scale: float) -> None:
    # Multiples of 1/256 add up and divide without rounding, for as many windows as there are here.
    labels = windows.label(rgb, 3, pixelwise, 0.5, scale)
    assert np.array_equal(labels, windows.resolve(pixelwise(rgb), 0.5))


@given(st.integers(1, 60), st.integers(1, 60), st.floats(1, 8))
def test_a_constant_prediction_stays_constant(height: int, width: int, scale: float) -> None:
    def constant(rgb: np.ndarray) -> np.ndarray:
        return np.stack([np.full(rgb.shape[:2], p, np.float32) for p in (0.25, 0.75, 0.5)])

    rgb = np.zeros((height, width, 3), np.uint8)
    assert (windows.label(rgb, 3, constant, 0.5, scale) == 2).all()
    assert (windows.label(rgb, 3, constant, 0.75, scale) == 0).all(), "the threshold must be exceeded"


def test_probabilities_are_averaged_where_windows_overlap() -> None:
    """Windows 0..4, 2..6 and 4..8 say 1, 0 and 0.4 of the only word: in the overlaps 0.5 and 0.2."""
    answers = iter((1.0, 0.0, 0.4))
    rgb = np.zeros((1, 8, 3), np.uint8)

    def answer(crop: np.ndarray) -> np.ndarray:
        assert crop.shape == (1, 4, 3)
        return np.full((1, 1, 4), next(answers), np.float32)

    assert windows.label(rgb, 1, answer, 0.3, scale=2).tolist() == [[1, 1, 1, 1, 0, 0, 1, 1]]


def test_no_more_rows_are_held_than_a_window_has(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    resolve = windows.resolve

    def watched(probabilities: np.ndarray, threshold: float) -> np.ndarray:
        held.append(probabilities.shape[1])
        return resolve(probabilities, threshold)

    monkeypatch.setattr(windows, "resolve", watched)
    windows.label(np.zeros((64, 5, 3), np.uint8), 3, pixelwise, 0.5, scale=8)
    assert max(held) <= 8
    assert sum(held) == 64
