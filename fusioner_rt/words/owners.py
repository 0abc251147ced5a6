"""From the words that the mask head knows to the names that were asked for: groups and background words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..argument_checks import shown
from ..errors import UsageError
from .parse import Asked, word_key
from .spellings import clean

_SHOWN = 10  # words in a message


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


@dataclass(frozen=True, eq=False)
class NameTables:
    """What a GPU makes labels of names with, as `labels_of_names` and `Thresholds.apply` do.

    owners: (F + 1,) uint16, of word n its name's number; 0 of background words and of 0. thresholds: (F + 1,) float32, of
    name n what its confidence must exceed.
    """

    owners: np.ndarray
    thresholds: np.ndarray

    def same(self, other: "NameTables") -> bool:
        """Whether the numbers are."""
        return np.array_equal(self.owners, other.owners) and np.array_equal(self.thresholds, other.thresholds)


class Thresholds:
    """The least probabilities of masks: one for all names, or some of their own."""

    def __init__(self, given: float | Mapping[str, float] | str, asked: Asked, default: float) -> None:
        """given: a probability, or those of words, a group's by any of its words; the others, or all where it is "default", have `default`.
        Raises UsageError."""
        self.given = default if isinstance(given, str) else given
        self._of_names: np.ndarray | None = None
        if not isinstance(given, Mapping):
            self.least = float(self.given)  # type: ignore[arg-type]
            return
        owners = {word_key(word): owner for word, owner in zip(asked.words, asked.owners, strict=True)}
        least = np.full(len(asked.names) + 1, default, np.float32)
        least[0] = 0
        named: dict[int, str] = {}
        for name, probability in given.items():
            owner = owners.get(word_key(clean(str(name))))
            if owner == 0:
                raise UsageError(
                    f"threshold holds {shown(name)}, a background word, and these have none of their own",
                    "leave it out: a background word takes the pixels where it is the best",
                )
            if owner is None:
                words = ", ".join(asked.names[:_SHOWN]) + (", …" if len(asked.names) > _SHOWN else "")
                raise UsageError(
                    f"threshold holds {shown(name)}, which is none of the words ({words})",
                    "give probabilities by the words that are asked for",
                )
            if owner in named:
                raise UsageError(
                    f"threshold holds {shown(named[owner])} and {shown(name)}, which are one", "give it once"
                )
            named[owner] = name
            least[owner] = probability
        self.least = float(least[1:].min())
        self._of_names = least

    def apply(self, labels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """labels: (H, W) uint16 of names, made with `least`. Returns them, 0 where a name is not as sure as it has to be."""
        if self._of_names is None:
            return labels
        return np.where(confidence > self._of_names[labels], labels, np.uint16(0))

    def tables(self, asked: Asked) -> NameTables | None:
        """For labels made with `least`; None where those are the names' as they are."""
        if asked.is_plain and self._of_names is None:
            return None
        owners = np.array([0, *asked.owners], np.uint16)
        thresholds = np.full(len(owners), -1, np.float32)  # `least`, where it is all there is, was compared with
        thresholds[0] = 0
        if self._of_names is not None:
            thresholds[: len(self._of_names)] = self._of_names
        return NameTables(owners, thresholds)
