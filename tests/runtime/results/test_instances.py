"""Connected parts of words, and masks and labels by word and type."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_labels import label_maps, noise, segmentation

from fusioner_rt.errors import UsageError


def neighbours(mask: np.ndarray) -> np.ndarray:
    """The mask and all pixels that touch it by an edge or a corner."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    return np.logical_or.reduce([wide[y : y + height, x : x + width] for y in range(3) for x in range(3)])


@given(label_maps(), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_instances_are_the_parts_of_words_that_edges_and_corners_join(labels: np.ndarray, min_area: int) -> None:
    found = segmentation(labels)
    instances = found.instances()
    covered = np.zeros_like(labels)
    for instance in instances:
        mask = instance.mask
        assert mask.shape == labels.shape
        assert mask.dtype == bool
        assert found.words[instance.label - 1] == instance.word
        assert instance.area == mask.sum() > 0
        assert instance.score == pytest.approx(float(found.confidence[mask].mean()), abs=1e-6)
        x, y, width, height = instance.box
        rows, columns = np.nonzero(mask)
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert not covered[mask].any()
        covered[mask] = instance.label
        np.testing.assert_array_equal(neighbours(mask) & (labels == instance.label), mask)  # nothing more joins it
        grown = np.zeros_like(mask)
        grown[rows[0], columns[0]] = True
        for _ in range(instance.area):
            grown = neighbours(grown) & mask
        np.testing.assert_array_equal(grown, mask)  # and it is one
    np.testing.assert_array_equal(covered, labels)
    order = [(instance.label, -instance.area) for instance in instances]
    assert order == sorted(order)
    assert [one.box for one in found.instances(min_area)] == [one.box for one in instances if one.area >= min_area]


@pytest.mark.parametrize("min_area", ["9", None, float("nan"), -1, True])
def test_least_areas_are_numbers(min_area: Any) -> None:
    with pytest.raises(UsageError, match="give a number of pixels"):
        segmentation(noise(5, 5, 0, 0.5, 1)).instances(min_area)


@pytest.mark.parametrize("word", ["red sofa", "Red Sofa", "the red_sofa", " red  sofa ", '"red sofa"'])
def test_a_words_mask_is_found_by_any_spelling_that_asks_for_it(word: str) -> None:
    found = segmentation(noise(9, 7, 3, 0.8, 3))
    np.testing.assert_array_equal(found[word], found.labels == 2)
    assert found[word].dtype == bool
    assert word in found


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("couch", "'couch' is none of the words that were asked for (cat, red sofa, dog); take one"),
        ("sofa", "did you mean 'red sofa'?"),
        ("cats", "did you mean 'cat'?"),
        ("", "'' is none of the words"),
        (0, "0 is none of the words"),
        (slice(None), "is none of the words"),
        ("a.jpg", "'a.jpg' is none of the words"),
    ],
)
def test_a_word_that_was_not_asked_for_is_answered_with_those_that_were(word: Any, said: str) -> None:
    found = segmentation(noise(5, 5, 0, 0.5, 1))
    with pytest.raises(UsageError) as caught:
        found[word]
    assert said in str(caught.value)
    assert word not in found


def test_of_many_words_a_message_names_ten() -> None:
    with pytest.raises(UsageError) as caught:
        segmentation(noise(5, 5, 0, 0.5, 1), [f"word {number}" for number in range(99)])["dog"]
    assert "word 9, …)" in str(caught.value)


def test_opencv_takes_masks_and_labels() -> None:
    found = segmentation(noise(21, 33, 0, 0.7, 3))
    assert found.masks_uint8.shape == (3, 21, 33)
    for mask, own in zip(found.masks_uint8, found.masks, strict=True):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros_like(mask), contours, -1, 255, cv2.FILLED)
        assert (filled[own] == 255).all()
        assert cv2.countNonZero(mask) == own.sum()
    small = found.labels_as("uint8")
    assert cv2.connectedComponents(small)[0] >= 2
    assert cv2.applyColorMap(small, cv2.COLORMAP_JET).shape == (21, 33, 3)


@pytest.mark.parametrize("dtype", ["int64", np.int64, np.dtype("int64"), torch.int64, int])
def test_torch_takes_labels(dtype: Any) -> None:
    found = segmentation(noise(21, 33, 0, 0.7, 3))
    labels = torch.from_numpy(found.labels_as(dtype))
    assert torch.nn.functional.one_hot(labels, 4).sum(dim=(0, 1)).tolist()[1:] == found.masks.sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int16", np.int32, torch.int32, "uint64", torch.uint8])
def test_labels_in_another_type_are_the_same_numbers_in_memory_of_their_own(dtype: Any) -> None:
    found = segmentation(noise(21, 33, 0, 0.7, 3))
    labels = found.labels_as(dtype)
    assert labels.dtype == np.dtype(str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype)
    np.testing.assert_array_equal(labels, found.labels)
    assert not np.may_share_memory(labels, found.labels)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("float32", "no type of whole numbers"),
        (torch.float32, "no type of whole numbers"),
        (bool, "no type of whole numbers"),
        ("uint9", "no type of whole numbers"),
        (None, "no type of whole numbers"),
        ("uint8", "uint8 counts to 255, and there are 300 words"),
        (np.int8, "int8 counts to 127"),
    ],
)
def test_types_that_cannot_hold_labels_are_refused(dtype: Any, said: str) -> None:
    found = segmentation(noise(5, 5, 0, 0.5, 1), [f"word {number}" for number in range(300)])
    with pytest.raises(UsageError, match='"int64"') as caught:
        found.labels_as(dtype)
    assert said in str(caught.value)
