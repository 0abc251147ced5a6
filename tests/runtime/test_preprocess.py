import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import scene

from fusioner_rt.errors import ManifestInvalid, PictureInvalid
from fusioner_rt.json_fields import Field
from fusioner_rt.preprocess import Preprocessing

edges = st.integers(1, 20_000)


@st.composite
def settings_of_preprocessing(draw: st.DrawFn) -> Preprocessing:
    multiple = draw(st.sampled_from([1, 14, 16, 32]))
    longest = draw(st.integers(multiple, 2048))
    return Preprocessing(side=draw(st.integers(1, 1024)), multiple=multiple, longest=longest)


@given(settings_of_preprocessing(), edges, edges)
def test_input_edges_are_multiples_within_bounds(pre: Preprocessing, height: int, width: int) -> None:
    for edge in pre.input_size(height, width):
        assert edge % pre.multiple == 0
        assert pre.multiple <= edge <= pre.longest


@given(settings_of_preprocessing(), edges, edges)
def test_turning_a_picture_turns_its_input(pre: Preprocessing, height: int, width: int) -> None:
    assert pre.input_size(height, width) == pre.input_size(width, height)[::-1]


@given(st.integers(200, 5000), st.integers(200, 5000))
def test_each_edge_is_within_half_a_multiple_of_equal_area(height: int, width: int) -> None:
    pre = Preprocessing(side=320, multiple=32, longest=100_000)
    scale = 320 / math.sqrt(height * width)
    for got, wanted in zip(pre.input_size(height, width), (height * scale, width * scale), strict=True):
        assert abs(got - max(wanted, 32)) <= 16 + 1e-9


def test_sizes_people_meet() -> None:
    pre = Preprocessing(side=320, multiple=32, longest=1024)
    assert pre.input_size(375, 500) == (288, 384)
    assert pre.input_size(500, 375) == (384, 288)
    assert pre.input_size(1, 1) == (320, 320)
    assert pre.input_size(1, 100_000) == (32, 1024)


def test_a_plain_colour_becomes_its_normalised_value_everywhere() -> None:
    pre = Preprocessing(64, 32, 128, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    planes = pre(np.full((37, 53, 3), (255, 51, 0), np.uint8))
    assert planes.dtype == np.float32
    assert planes.flags.c_contiguous
    assert planes.shape == (3, *pre.input_size(37, 53))
    for plane, expected in zip(planes, (0.9 / 0.5, 0.0, -0.3 / 0.125), strict=True):
        np.testing.assert_allclose(plane, expected, atol=4e-7)  # a few float32 roundings of values up to 4


def test_a_picture_of_the_input_size_is_not_resampled() -> None:
    pixels = scene(32, 64)
    planes = Preprocessing(side=48, multiple=32, longest=64)(pixels, size=(32, 64))
    np.testing.assert_array_equal(np.rint((planes * 0.5 + 0.5) * 255), pixels.transpose(2, 0, 1))


def test_shrinking_filters_instead_of_picking_pixels() -> None:
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    planes = Preprocessing(32, 32, 32)(np.stack([checkers] * 3, axis=2))
    assert np.abs(planes).max() < 0.02  # mid grey: an unfiltered resize would keep black and white


def test_the_manifest_entry_reads_back() -> None:
    pre = Preprocessing(320, 32, 1024, "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_manifest(Field(json.loads(json.dumps(pre.to_manifest())))) == pre


@pytest.mark.parametrize(
    "change",
    [
        {"side": 0}, {"multiple": 0}, {"longest": 16}, {"resample": "cubic"}, {"mean": [0.5]}, {"std": [0, 1, 1]},
        {"side": "x"},
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(change: dict[str, object]) -> None:
    with pytest.raises(ManifestInvalid):
        Preprocessing.from_manifest(Field({**Preprocessing(320, 32, 1024).to_manifest(), **change}))


def test_no_pixels() -> None:
    with pytest.raises(PictureInvalid):
        Preprocessing(320, 32, 1024).input_size(0, 5)
