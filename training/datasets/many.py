"""Several folders of pictures and masks as one data set, each with what its unmarked pixels mean.

A recipe's [sets] table names them, below --data:

[sets.animals]                     # the folder --data/animals, or folder = "..."
unmarked = "background"            # an unmarked pixel is none of the set's classes
may_show = ["sky", "street", "shirt if person"]   # names of other sets, or those sets, that its pictures may show
                                   # unmarked, always or beside a class of its own: never asked as absent
[sets.street]
unmarked = "never"                 # every pixel is marked; one that is not does not count
flip = false                       # its names tell left from right
weight = 2.0                       # every picture twice an epoch; 0.5: every other one
[sets.street.names]                # what a class is called: further words mean the same
pedestrian = ["person", "pedestrian"]
[sets.found]
unmarked = "ignored"               # an unmarked pixel may be anything
split = 0.1                        # without train.txt and val.txt: a tenth of its pictures is kept for validation

Classes of several sets that are called alike are one class, masked in each set as it marks it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training.data import IGNORE, DataError, MaskFolder, PictureMasks, same_class

UNMARKED = ("background", "ignored", "never")


@dataclass(frozen=True)
class SetChoice:
    """One set of a recipe's [sets] table, as the module tells.

    folder: below the data folder, by default the set's name. names: class → what it is called, the first for good; a class
    without an entry is called by its name. may_show: of other sets.
    """

    folder: str = ""
    unmarked: str = "background"
    may_show: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flip: bool = True
    weight: float = 1.0
    split: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any], place: str) -> SetChoice:
        """From a TOML table. place: for messages. Raises ValueError."""
        known = {f.name: f.type for f in fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(f"{place} has no field {name!r}; it has: {', '.join(near or known)}")
        checked = dict(values)
        _expect(place, checked, "folder", str)
        _expect(place, checked, "flip", bool)
        if checked.get("unmarked", "background") not in UNMARKED:
            raise ValueError(f"{place}.unmarked is {checked['unmarked']!r}; expected one of {', '.join(UNMARKED)}")
        for name, least, most in (("weight", 0, 1000), ("split", 0, 0.99)):
            value = checked.get(name, 1)
            if name in checked and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most
            ):
                raise ValueError(f"{place}.{name} is {value!r}; expected a number from {least} to {most}")
        checked["may_show"] = _texts(place, "may_show", checked.get("may_show", ()))
        called = checked.get("names", {})
        if not isinstance(called, Mapping):
            raise ValueError(f"{place}.names is {called!r}; expected a table from classes to lists of words")
        checked["names"] = {
            name: _texts(place, f"names.{name}", [words] if isinstance(words, str) else words)
            for name, words in called.items()
        }
        return cls(**checked)


def _expect(place: str, values: Mapping[str, Any], name: str, kind: type) -> None:
    if name in values and not isinstance(values[name], kind):
        raise ValueError(f"{place}.{name} is {values[name]!r}; expected {'true or false' if kind is bool else 'text'}")


def _texts(place: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"{place}.{name} is {value!r}; expected a list of words")
    return tuple(value)


@dataclass(frozen=True)
class ManySets(PictureMasks):
    """Pictures are named SET/NAME. Classes: the background's, then every name once, in the sets' order.

    without: sets whose pictures `names` leaves out.
    """

    root: Path
    choices: Mapping[str, SetChoice]
    without: tuple[str, ...] = ()

    @cached_property
    def sets(self) -> dict[str, MaskFolder]:
        """By name. Raises DataError for a folder that is not there, or classes that a table names and a set lacks."""
        found = {}
        for name, choice in self.choices.items():
            folder = self.root / (choice.folder or name)
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is no folder; the recipe's set {name!r} was expected there",
                    f"add it, take [sets.{name}] out of the recipe, or name its folder: folder = ...",
                )
            found[name] = MaskFolder(folder, choice.split)
            if missing := sorted(set(choice.names) - set(found[name].classes)):
                raise DataError(
                    f"[sets.{name}.names] holds {missing[0]!r}, which {folder / 'classes.txt'} does not",
                    f"its classes are: {', '.join(found[name].classes[1:])}",
                )
        return found

    @cached_property
    def classes(self) -> list[str]:
        first = next(iter(self.sets.values())).classes[0]
        by_key: dict[str, str] = {}
        for name, data in self.sets.items():
            for word in self._called(name, data):
                by_key.setdefault(same_class(word), word)
        return [first, *by_key.values()]

    @cached_property
    def synonyms(self) -> dict[int, tuple[str, ...]]:
        """Class index → further words that mean the same."""
        found: dict[int, list[str]] = {}
        for name, data in self.sets.items():
            for index, class_ in enumerate(data.classes[1:], start=1):
                more = self.choices[name].names.get(class_, ())[1:]
                found.setdefault(int(self._tables[name][index]), []).extend(more)
        return {index: tuple(dict.fromkeys(words)) for index, words in found.items() if words}

    def names(self, split: str) -> list[str]:
        if unknown := sorted(set(self.without) - set(self.sets)):
            raise DataError(f"no set is called {unknown[0]!r}", f"leave out one of {', '.join(self.sets)}")
        kept = (name for name in self.sets if name not in self.without)
        return [f"{name}/{picture}" for name in kept for picture in self.sets[name].names(split)]

    def picture(self, name: str) -> Path:
        data, picture, _ = self._of(name)
        return data.picture(picture)

    def mask(self, name: str) -> np.ndarray:
        data, picture, set_ = self._of(name)
        return self._tables[set_][data.mask(picture)]

    def stamp(self, name: str) -> tuple[int, ...]:
        data, picture, set_ = self._of(name)
        return (*data.stamp(picture), *self._tables[set_].tolist())

    def may_flip(self, name: str) -> bool:
        return self.choices[name.partition("/")[0]].flip

    def weight(self, name: str) -> float:
        return self.choices[name.partition("/")[0]].weight

    def own_classes(self, set_: str) -> list[int]:
        """Indices of a set's classes, ascending."""
        return sorted(set(self._tables[set_][1:-1].tolist()))

    def never_absent(self, name: str, present: Collection[int]) -> frozenset[int]:
        found: set[int] = set()
        for shown, condition in self._may_show[name.partition("/")[0]]:
            if condition is None or condition in present:
                found |= shown
        return frozenset(found)

    @cached_property
    def _may_show(self) -> dict[str, list[tuple[frozenset[int], int | None]]]:
        """By set: indices of classes, and the class whose presence they depend on. Raises DataError."""
        of_sets = {set_: frozenset(self.own_classes(set_)) for set_ in self.sets}
        found: dict[str, list[tuple[frozenset[int], int | None]]] = {}
        for name, choice in self.choices.items():
            for entry in choice.may_show:
                shown, _, condition = entry.partition(" if ")
                indices = of_sets.get(shown) or frozenset({self.index(shown)})
                found.setdefault(name, []).append(
                    (indices - of_sets[name], self.index(condition) if condition else None)
                )
        return {name: found.get(name, []) for name in self.choices}

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """By set: from its index to the index here. The last place is that of IGNORE, which is -1."""
        indices = {same_class(word): index for index, word in enumerate(self.classes) if index}
        tables = {}
        for name, data in self.sets.items():
            unmarked = 0 if self.choices[name].unmarked == "background" else IGNORE
            own = [indices[same_class(word)] for word in self._called(name, data)]
            tables[name] = np.array([unmarked, *own, IGNORE], np.int16)
        return tables

    def _called(self, name: str, data: MaskFolder) -> list[str]:
        """What a set's classes are called, without the background."""
        chosen = self.choices[name].names
        return [chosen.get(class_, (word,))[0] for class_, word in zip(data.classes[1:], data.words[1:], strict=True)]

    def _of(self, name: str) -> tuple[MaskFolder, str, str]:
        set_, _, picture = name.partition("/")
        if set_ not in self.sets:
            raise DataError(f"no set is called {set_!r}; expected one of {', '.join(self.sets)}", "name it SET/NAME")
        return self.sets[set_], picture, set_
