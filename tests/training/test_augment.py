"""Augmentation moves a picture and its mask together, keeps labels exact and draws only from its generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment import Strengths, augment
from training.data import IGNORE

STILL = Strengths(
    crop=(1.0, 1.0), stretch=1.0, flip=0.0, degrees=0.0, shear=0.0, zoom=(1.0, 1.0),
    brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, noise=0.0,
)  # fmt: skip
GEOMETRY = replace(Strengths(), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, noise=0.0)
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)

sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))
seeds = st.integers(0, 2**32 - 1)


def painted(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Four regions, each of its own class and colour."""
    mask = np.zeros((height, width), np.int16)
    mask[: height // 2, width // 2 :] = 1
    mask[height // 3 :, : width // 3] = 2
    mask[2 * height // 3 :, width // 3 :] = 3
    return COLOURS[mask], mask


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, seeds)
def test_any_picture_becomes_exactly_the_size_asked_for_with_no_label_it_did_not_have(
    shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    mask = random.choice(np.array([0, 3, 254, 999, IGNORE], np.int16), shape)
    rgb, labels = augment(random.integers(0, 256, (*shape, 3), np.uint8), mask, size, random)
    assert (rgb.shape, rgb.dtype, labels.shape, labels.dtype) == ((*size, 3), np.uint8, size, np.int16)
    assert set(np.unique(labels)) <= {*np.unique(mask), IGNORE}


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_the_generator_alone_decides_and_torchs_own_is_left_alone(seed: int) -> None:
    picture = painted(61, 97)
    torch.manual_seed(1)
    first = augment(*picture, (64, 48), np.random.default_rng(seed))
    after = torch.rand(3)
    torch.manual_seed(2)
    second = augment(*picture, (64, 48), np.random.default_rng(seed))
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_draws_of_one_generator_differ() -> None:
    random, picture = np.random.default_rng(0), painted(61, 97)
    (first, _), (second, _) = (augment(*picture, (64, 48), random) for _ in range(2))
    assert (first != second).any()


def test_the_input_is_left_as_it_was() -> None:
    rgb, mask = painted(40, 50)
    augment(rgb, mask, (32, 32), np.random.default_rng(0))
    again = painted(40, 50)
    np.testing.assert_array_equal(rgb, again[0])
    np.testing.assert_array_equal(mask, again[1])


@settings(max_examples=15, deadline=None)
@given(sizes, seeds)
def test_with_everything_off_nothing_changes(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rgb, mask = random.integers(0, 256, (*shape, 3), np.uint8), random.integers(-1, 300, shape, np.int16)
    same, labels = augment(rgb, mask, shape, random, STILL)
    np.testing.assert_array_equal(same, rgb)
    np.testing.assert_array_equal(labels, mask)


@settings(max_examples=15, deadline=None)
@given(sizes, seeds)
def test_a_flip_flips_both(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rgb, mask = random.integers(0, 256, (*shape, 3), np.uint8), random.integers(-1, 300, shape, np.int16)
    flipped, labels = augment(rgb, mask, shape, random, replace(STILL, flip=1.0))
    np.testing.assert_array_equal(flipped, rgb[:, ::-1])
    np.testing.assert_array_equal(labels, mask[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 160), st.integers(60, 160), st.integers(60, 160), st.integers(60, 160), seeds)
def test_colours_and_labels_move_together(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    """A pixel's colour tells its label, except at borders of regions, where interpolation mixes colours."""
    rgb, labels = augment(*painted(height, width), (rows, columns), np.random.default_rng(seed), GEOMETRY)
    # Affine mixing reaches one pixel of the picture, and a crop of a quarter is enlarged by 2.7 × 1.33 × 2 at most.
    reach = 8
    smallest = largest = labels
    for axis in (0, 1):
        smallest = np.min([np.roll(smallest, shift, axis) for shift in range(-reach, reach + 1)], 0)
        largest = np.max([np.roll(largest, shift, axis) for shift in range(-reach, reach + 1)], 0)
    inner = smallest == largest
    inner[:reach] = inner[-reach:] = inner[:, :reach] = inner[:, -reach:] = False
    inner &= labels != IGNORE
    np.testing.assert_array_equal(rgb[inner], COLOURS[labels[inner]])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 399))
def test_a_label_border_lies_where_the_picture_changes(edge: int) -> None:
    """A pixel that is mostly white is labelled white: the labels are not half a pixel off. An even pixel may be either."""
    mask = np.zeros((4, 400), np.int16)
    mask[:, edge:] = 1
    rgb, labels = augment(
        np.repeat(mask[..., None] * 255, 3, 2).astype(np.uint8),
        mask,
        (1, 50),
        np.random.default_rng(0),
        replace(STILL, stretch=100.0),
    )
    mostly = rgb[..., 0].astype(int)
    decided = abs(mostly - 127.5) > 20
    np.testing.assert_array_equal(labels[decided], mostly[decided] > 127)


def test_outside_the_picture_is_ignored() -> None:
    mask = np.full((90, 90), 5, np.int16)
    _, labels = augment(
        np.full((90, 90, 3), 9, np.uint8), mask, (90, 90), np.random.default_rng(0), replace(STILL, zoom=(0.5, 0.5))
    )
    assert (labels[:10] == IGNORE).all()
    assert (labels[30:60, 30:60] == 5).all()


@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "noise"])
def test_colour_and_noise_leave_labels_alone(only: str) -> None:
    rgb, mask = painted(50, 60)
    rgb = rgb // 2 + 40
    changed, labels = augment(rgb, mask, (50, 60), np.random.default_rng(3), replace(STILL, **{only: 0.4}))
    assert (changed != rgb).any()
    np.testing.assert_array_equal(labels, mask)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the same height and width"):
        augment(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.int16), (4, 5), np.random.default_rng(0))
