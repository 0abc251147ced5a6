"""Scores of masks: pixel counts summed over pictures, and the figures computed from them (paper 4.1).

IoU and mIoU   IoU per class over the pixels of all pictures together; mIoU is its mean over classes.
FB-IoU         as in the few-shot literature: each (picture, word) pair has two classes, the word's foreground and its
               background. Intersections and unions are summed over all pairs; FB-IoU is the mean of the two IoUs.
precision      fraction of the pixels predicted as a class that belong to it.
recall         fraction of a class's pixels that are predicted as it.

Pixels whose truth is IGNORE do not count. Figures are in percent, and NaN where nothing was counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from training.data import IGNORE


class Confused(NamedTuple):
    """share: percent of class `truth`'s pixels predicted as class `prediction`; both are class indices."""

    truth: int
    prediction: int
    share: float


class ClassIoU:
    """Pixel counts per class, summed over the pictures whose words include it."""

    def __init__(self, classes: int) -> None:
        """classes: the number of class indices, with the background's 0."""
        self.intersection = np.zeros(classes, np.int64)
        self.union = np.zeros(classes, np.int64)
        self.wanted = np.zeros(classes, np.int64)  # pixels of the truth
        self.found = np.zeros(classes, np.int64)  # pixels of the prediction
        self.pictures = np.zeros(classes, np.int64)  # that show the class
        self.pixels = 0  # of all (picture, word) pairs
        self.confusion = np.zeros((classes, classes), np.int64)
        """[truth, prediction] pixels; index 0 is none of the picture's words. Only `add_labels` fills it: overlapping
        masks have no confusion matrix."""

    def add(self, truth: np.ndarray, masks: np.ndarray, classes: list[int]) -> None:
        """truth (H, W) class indices; masks (K, H, W) bool, one per index in `classes`; they may overlap."""
        valid = truth != IGNORE
        for mask, index in zip(masks, classes, strict=True):
            wanted = truth == index
            found = mask & valid
            self._count(
                index,
                np.count_nonzero(valid),
                np.count_nonzero(wanted & found),
                np.count_nonzero(wanted),
                np.count_nonzero(found),
            )

    def add_labels(self, truth: np.ndarray, labels: np.ndarray, classes: list[int]) -> None:
        """truth (H, W) class indices; labels (H, W) integers, n for `classes[n - 1]`, 0 for none."""
        if labels.shape != truth.shape:
            raise ValueError(f"the label map has the shape {labels.shape}, the truth {truth.shape}; they must agree")
        side = len(classes) + 1
        position = np.zeros(len(self.union) + 1, np.intp)  # IGNORE is -1: it indexes the last entry
        position[classes] = np.arange(1, side)
        valid = truth != IGNORE
        pairs = np.bincount(position[truth[valid]] * side + labels[valid], minlength=side * side).reshape(side, side)
        for n, index in enumerate(classes, 1):
            self._count(index, pairs.sum(), pairs[n, n], pairs[n].sum(), pairs[:, n].sum())
        indices = [0, *classes]
        self.confusion[np.ix_(indices, indices)] += pairs

    def _count(self, index: int, pixels: Any, intersection: Any, wanted: Any, found: Any) -> None:
        self.intersection[index] += intersection
        self.union[index] += wanted + found - intersection
        self.wanted[index] += wanted
        self.found[index] += found
        self.pictures[index] += wanted > 0
        self.pixels += int(pixels)

    def iou(self, index: int) -> float:
        return _percent(self.intersection[index], self.union[index])

    def precision(self, index: int) -> float:
        return _percent(self.intersection[index], self.found[index])

    def recall(self, index: int) -> float:
        return _percent(self.intersection[index], self.wanted[index])

    def mean(self, classes: list[int]) -> float:
        """mIoU over `classes`."""
        return float(np.mean([self.iou(index) for index in classes])) if classes else float("nan")

    def fb_iou(self) -> float:
        intersection, union = int(self.intersection.sum()), int(self.union.sum())
        foreground = _percent(intersection, union)
        background = _percent(self.pixels - union, self.pixels - intersection)
        return (foreground + background) / 2

    def counted(self, classes: list[int], least: int) -> list[int]:
        """The indices in `classes` that at least `least` pictures show; means are taken over these."""
        return [index for index in classes if self.pictures[index] >= max(1, least)]

    def normalised_confusion(self, classes: list[int]) -> np.ndarray:
        """(K + 1, K + 1) percent, background first: each row sums to 100, or is NaN for a class without pixels."""
        indices = [0, *classes]
        pairs = self.confusion[np.ix_(indices, indices)].astype(float)
        sums = pairs.sum(axis=1, keepdims=True)
        return 100 * np.divide(pairs, sums, out=np.full_like(pairs, np.nan), where=sums > 0)

    def most_confused(self, classes: list[int], count: int) -> list[Confused]:
        """The `count` most confused pairs of words, largest share first. Background confusion shows in `recall`."""
        shares = self.normalised_confusion(classes)
        indices = [0, *classes]
        pairs = [
            Confused(indices[row], indices[column], float(shares[row, column]))
            for row in range(1, len(indices))
            for column in range(1, len(indices))
            if row != column and shares[row, column] > 0
        ]
        return sorted(pairs, key=lambda pair: -pair.share)[:count]


def _percent(part: int, whole: int) -> float:
    return 100.0 * int(part) / int(whole) if whole else float("nan")
