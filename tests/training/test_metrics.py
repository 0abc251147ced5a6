from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import IGNORE
from training.encoders.open_clip import define_torchvision_operators
from training.metrics import ClassIoU

define_torchvision_operators()  # torchmetrics imports torchvision
from torchmetrics.functional.classification import (  # noqa: E402
    binary_jaccard_index,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

CLASSES = 5  # the background's included
WORDS = list(range(1, CLASSES))


@st.composite
def pictures(draw: st.DrawFn, ignored: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truths and label maps (H, W) of class indices, each picture of its own size; some classes never occur."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 13)), draw(st.integers(1, 11))
        kinds = draw(st.integers(1, CLASSES))
        truth = random.integers(0, kinds, size).astype(np.int16)
        labels = np.where(random.random(size) < draw(st.floats(0, 1)), truth, random.integers(0, CLASSES, size))
        if ignored:
            truth[random.random(size) < draw(st.floats(0, 1))] = IGNORE
        made.append((truth, labels.astype(np.uint16)))
    return made


def counted(made: list[tuple[np.ndarray, np.ndarray]]) -> ClassIoU:
    result = ClassIoU(CLASSES)
    for truth, labels in made:
        result.add_labels(truth, labels, WORDS)
    return result


def flat(made: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    truth = np.concatenate([truth.ravel() for truth, _ in made]).astype(np.int64)
    labels = np.concatenate([labels.ravel() for _, labels in made]).astype(np.int64)
    return torch.from_numpy(labels), torch.from_numpy(truth)


def same(ours: float, theirs: float) -> bool:
    return (math.isnan(ours) and math.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-4)  # theirs is float32


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_scores_per_class_are_those_of_torchmetrics(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ours, (labels, truth) = counted(made), flat(made)
    options = {"num_classes": CLASSES, "average": "none", "ignore_index": IGNORE}
    iou = 100 * multiclass_jaccard_index(labels, truth, **options)
    precision = 100 * multiclass_precision(labels, truth, **options)
    recall = 100 * multiclass_recall(labels, truth, **options)
    for index in WORDS:
        # Where nothing is counted, ours is NaN and theirs is 0.
        for mine, theirs, count in (
            (ours.iou(index), iou[index], ours.union[index]),
            (ours.precision(index), precision[index], ours.found[index]),
            (ours.recall(index), recall[index], ours.wanted[index]),
        ):
            assert same(mine, float(theirs)) if count else math.isnan(mine)


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_the_confusion_matrix_is_that_of_torchmetrics(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    labels, truth = flat(made)
    theirs = multiclass_confusion_matrix(labels, truth, num_classes=CLASSES, ignore_index=IGNORE).numpy()
    ours = counted(made)
    assert (ours.confusion == theirs).all()
    rows = ours.normalised_confusion(WORDS)
    filled = theirs.sum(axis=1) > 0
    assert rows[filled].sum(axis=1) == pytest.approx(100)
    assert np.isnan(rows[~filled]).all()


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_fb_iou_is_the_mean_of_two_binary_ious_over_all_pairs_of_a_picture_and_a_word(
    made: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    labels, truth = flat(made)
    wanted = torch.stack([truth == index for index in WORDS]).long()
    found = torch.stack([labels == index for index in WORDS]).long()
    wanted[:, truth == IGNORE] = IGNORE
    foreground = 100 * binary_jaccard_index(found, wanted, ignore_index=IGNORE)
    background = 100 * binary_jaccard_index(
        1 - found, torch.where(wanted == IGNORE, wanted, 1 - wanted), ignore_index=IGNORE
    )
    ours = counted(made)
    if ours.union.sum() == 0 or ours.pixels == ours.intersection.sum():
        assert math.isnan(ours.fb_iou())  # nothing is foreground, or nothing background
    else:
        assert same(ours.fb_iou(), float(foreground + background) / 2)


@given(pictures())
def test_masks_and_label_maps_count_alike(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    by_labels, by_masks = counted(made), ClassIoU(CLASSES)
    for truth, labels in made:
        by_masks.add(truth, labels == np.arange(1, CLASSES)[:, None, None], WORDS)
    for name in ("intersection", "union", "wanted", "found", "pictures", "pixels"):
        assert np.array_equal(getattr(by_labels, name), getattr(by_masks, name)), name


@given(pictures())
def test_a_perfect_prediction_gives_100_for_whatever_is_there(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    result = counted([(truth, np.maximum(truth, 0)) for truth, _ in made])
    for index in WORDS:
        if result.pictures[index]:
            assert (result.iou(index), result.precision(index), result.recall(index)) == (100, 100, 100)
        else:
            assert math.isnan(result.iou(index))
    if result.counted(WORDS, 1):
        assert result.mean(result.counted(WORDS, 1)) == 100
        assert result.fb_iou() == 100
    assert result.most_confused(WORDS, 9) == []


@given(pictures(ignored=False))
def test_swapping_truth_and_prediction_keeps_iou_and_swaps_precision_with_recall(
    made: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    counts, swapped = counted(made), counted([(labels.astype(np.int16), truth) for truth, labels in made])
    for index in WORDS:
        assert same(counts.iou(index), swapped.iou(index))
        assert same(counts.precision(index), swapped.recall(index))
    assert same(counts.fb_iou(), swapped.fb_iou())
    assert (counts.confusion == swapped.confusion.T).all()


@given(pictures(), st.randoms(use_true_random=False))
def test_the_order_of_the_pictures_changes_nothing(made: list[tuple[np.ndarray, np.ndarray]], random: object) -> None:
    shuffled = list(made)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    counts, reordered = counted(made), counted(shuffled)
    assert (counts.confusion == reordered.confusion).all()
    assert same(counts.fb_iou(), reordered.fb_iou())
    assert (counts.pictures == reordered.pictures).all()


@given(pictures())
def test_predictions_on_ignored_pixels_count_nowhere(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    changed = [(truth, np.where(truth == IGNORE, (labels + 1) % CLASSES, labels)) for truth, labels in made]
    counts, altered = counted(made), counted(changed)
    assert (counts.confusion == altered.confusion).all()
    assert counts.pixels == altered.pixels


def test_a_word_that_was_not_asked_for_is_background_in_the_truth() -> None:
    result = ClassIoU(4)
    result.add_labels(np.array([[1, 2, 3, 0]], np.int16), np.array([[1, 1, 2, 0]]), [1, 3])
    assert result.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert result.pictures.tolist() == [0, 1, 0, 1]


def test_the_most_confused_words_come_first_and_the_background_is_no_word() -> None:
    result = ClassIoU(4)
    result.confusion[:] = [[9, 9, 9, 9], [50, 40, 10, 0], [0, 30, 70, 0], [90, 0, 5, 5]]
    pairs = [(pair.truth, pair.prediction, pair.share) for pair in result.most_confused([1, 2, 3], 2)]
    assert pairs == [(2, 1, 30.0), (1, 2, 10.0)]


def test_a_label_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must agree"):
        ClassIoU(3).add_labels(np.zeros((4, 5), np.int16), np.zeros((5, 4), np.uint16), [1])
