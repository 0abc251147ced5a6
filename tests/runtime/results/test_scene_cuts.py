"""Where one scene of a video ends."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fusioner_rt.results.scene_cuts import BLOCK, block_indices, is_cut, small_picture

PICTURES = sorted((Path(__file__).parents[3] / "docs/pictures").glob("*.jpg"))


def photograph(path: Path, size: tuple[int, int] = (640, 360)) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize(size))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 37), st.integers(1, 37), st.just(3))))
@settings(deadline=None, max_examples=60)
def test_a_small_picture_has_the_means_of_blocks(picture: np.ndarray) -> None:
    small = small_picture(picture)
    down, across = (min(BLOCK, edge) for edge in picture.shape[:2])
    assert small.dtype == np.float32
    assert small.shape == (picture.shape[0] // down, picture.shape[1] // across, 3)
    for row, column in np.ndindex(small.shape[:2]):
        block = picture[row * down :, column * across :][:down, :across]
        np.testing.assert_allclose(small[row, column], block.mean(axis=(0, 1)), rtol=1e-6)


@given(st.integers(1, 99), st.integers(1, 99))
def test_every_pixel_of_a_label_map_has_the_block_it_lies_in(edge: int, of_picture: int) -> None:
    found, block = block_indices(edge, of_picture), min(BLOCK, of_picture)
    blocks = of_picture // block
    assert found.tolist() == [min(at * of_picture // edge // block, blocks - 1) for at in range(edge)]


@pytest.mark.parametrize(("before", "now"), permutations(PICTURES, 2), ids=lambda path: path.stem)
def test_other_photographs_are_cuts(before: Path, now: Path) -> None:
    assert is_cut(small_picture(photograph(before)), small_picture(photograph(now)))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_photograph_that_moves_is_none(path: Path) -> None:
    picture = photograph(path)
    for shift in (8, 40, 120):  # 120 pixels in a frame are a very fast pan
        assert not is_cut(small_picture(picture[:, :-shift]), small_picture(picture[:, shift:]))
    brighter = np.clip(picture.astype(int) + 12, 0, 255).astype(np.uint8)
    assert not is_cut(small_picture(picture), small_picture(brighter))


def test_noise_on_one_colour_is_none() -> None:
    random = np.random.default_rng(0)
    grey = [small_picture(random.integers(115, 141, (90, 160, 3)).astype(np.uint8)) for _ in range(9)]
    assert not any(is_cut(before, now) for before in grey for now in grey)  # 128 is between two colours


def test_other_sizes_are_cuts() -> None:
    assert is_cut(np.zeros((3, 4, 3), np.float32), np.zeros((4, 3, 3), np.float32))
