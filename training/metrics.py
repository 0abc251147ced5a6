"""What masks are worth: counts of pixels, added up over pictures, and the scores that follow from them (paper 4.1).

IoU and mIoU   per class: intersection over union of all pictures' pixels together; mIoU averages it over classes.
FB-IoU         the few-shot literature's: every (picture, word) pair is a segmentation in two classes, the word's pixels
               and the others; intersections and unions of all pairs are added up, whatever the word; the mean of the
               foreground's IoU and the background's.
precision      the share of the pixels given to a class that are its own.
recall         the share of a class's pixels that are given to it.

Pixels whose truth is IGNORE count nowhere. Every figure is in percent, and NaN where there is nothing to count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from training.data import IGNORE


class Confused(NamedTuple):
    """Of `truth`'s pixels the share, in percent, that was given to `prediction`; both are class indices."""

    truth: int
    prediction: int
    share: float


class ClassIoU:
    """Pixels per class, summed over the pictures that were asked for it."""

    def __init__(self, classes: int) -> None:
        """classes: how many indices there are, the background's 0 included."""
        self.intersection = np.zeros(classes, np.int64)
        self.union = np.zeros(classes, np.int64)
        self.wanted = np.zeros(classes, np.int64)  # pixels of the truth
        self.found = np.zeros(classes, np.int64)  # pixels of the prediction
        self.pictures = np.zeros(classes, np.int64)  # that show the class
        self.pixels = 0  # of all pairs of a picture and a word
        self.confusion = np.zeros((classes, classes), np.int64)
        """[truth, prediction] pixels; index 0 is what belongs, or was given, to no word that was asked for. Filled by
        `add_labels` alone: masks that overlap have no such matrix."""

    def add(self, truth: np.ndarray, masks: np.ndarray, classes: list[int]) -> None:
        """truth (H, W) class indices; masks (K, H, W) bool, one for each of `classes`, and free to overlap."""
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
        """truth (H, W) class indices; labels (H, W) integers, n for `classes[n - 1]`, 0 for none of them."""
        if labels.shape != truth.shape:
            raise ValueError(f"the label map has the shape {labels.shape}, the truth {truth.shape}; they must agree")
        side = len(classes) + 1
        position = np.zeros(len(self.union) + 1, np.intp)  # IGNORE, as the index -1, falls on the last
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
        """Those of `classes` that at least `least` pictures show: the ones a mean is taken over."""
        return [index for index in classes if self.pictures[index] >= max(1, least)]

    def normalised_confusion(self, classes: list[int]) -> np.ndarray:
        """(K + 1, K + 1) percent, background first: each row sums to 100, or is NaN where the truth has no pixel."""
        indices = [0, *classes]
        pairs = self.confusion[np.ix_(indices, indices)].astype(float)
        sums = pairs.sum(axis=1, keepdims=True)
        return 100 * np.divide(pairs, sums, out=np.full_like(pairs, np.nan), where=sums > 0)

    def most_confused(self, classes: list[int], count: int) -> list[Confused]:
        """The words most taken for another word, largest share first. What went to the background is in `recall`."""
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
