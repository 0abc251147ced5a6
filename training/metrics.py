"""Intersection over union, accumulated over pictures (paper 4.1: mIoU averages it over the classes of a fold)."""

from __future__ import annotations

import numpy as np

from training.data import IGNORE


class ClassIoU:
    """One intersection and one union per class, summed over the pictures that were asked for that class."""

    def __init__(self, classes: int) -> None:
        self.intersection = np.zeros(classes, np.int64)
        self.union = np.zeros(classes, np.int64)
        self.pictures = np.zeros(classes, np.int64)

    def add(self, truth: np.ndarray, masks: np.ndarray, classes: list[int]) -> None:
        """truth (H, W) class indices, IGNORE counted nowhere; masks (K, H, W) bool, the prediction for each of `classes`."""
        valid = truth != IGNORE
        for mask, index in zip(masks, classes, strict=True):
            wanted = truth == index
            found = mask & valid
            self.intersection[index] += np.count_nonzero(wanted & found)
            self.union[index] += np.count_nonzero(wanted | found)
            self.pictures[index] += 1

    def iou(self, index: int) -> float:
        """Percent; NaN for a class no picture was asked for."""
        return 100.0 * self.intersection[index] / self.union[index] if self.union[index] else float("nan")

    def mean(self, classes: list[int]) -> float:
        """NaN where there is no class."""
        return float(np.mean([self.iou(index) for index in classes])) if classes else float("nan")
