"""From the words that the mask head knows to the names that were asked for: groups and background words."""

from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from .parse import Asked


def labels_of_names(labels: np.ndarray, asked: Asked) -> np.ndarray:
    """labels: (H, W) uint16, numbers of F words. Returns numbers of K names, 0 also where a background word won."""
    if asked.is_plain:
        return labels
    return np.array([0, *asked.owners], np.uint16)[labels]


def probabilities_of_names(probabilities: np.ndarray | None, asked: Asked) -> np.ndarray | None:
    """probabilities: (F, H, W). Returns (K, H, W), of each name its best word's."""
    if probabilities is None or asked.is_plain:
        return probabilities
    owners = np.array(asked.owners)
    return np.stack([probabilities[owners == number].max(axis=0) for number in range(1, len(asked.names) + 1)])


class Thresholds:
    """The least probabilities of masks: one for all names, or some of their own."""

    def __init__(self, given: float | Mapping[str, float], asked: Asked) -> None:
        """given: a probability, or those of names; names that it does not hold have 0.5. Raises UsageError."""
        self.given = given
        self._of_names: np.ndarray | None = None
        if not isinstance(given, Mapping):
            self.least = float(given)
            return
        if unknown := [name for name in given if name not in asked.names]:
            raise UsageError(
                f"threshold holds {unknown[0]!r}, which is none of the words ({', '.join(asked.names)})",
                "give probabilities by the words that are asked for",
            )
        of_names = [float(given.get(name, 0.5)) for name in asked.names]
        self.least = min(of_names)
        self._of_names = np.array([0.0, *of_names], np.float32)

    def apply(self, labels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """labels: (H, W) uint16 of names, made with `least`. Returns them, 0 where a name is not as sure as it has to be."""
        if self._of_names is None:
            return labels
        return np.where(confidence > self._of_names[labels], labels, np.uint16(0))
