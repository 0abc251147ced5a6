"""Fields of a JSON document, read with errors that name the field and what was expected of it."""

import json
import math
from collections.abc import Iterable
from typing import Any

from .errors import ManifestInvalid

_SHOWN = 60  # characters of a wrong value


class Field:
    """A value of a JSON document. Every method raises ManifestInvalid where it is not what the method is named after."""

    def __init__(self, value: Any, place: str = "") -> None:
        """place: where the value lies, such as "profiles.words.max"; "" for the whole document."""
        self.value, self.place = value, place

    def __getitem__(self, name: str) -> "Field":
        """An entry of an object, which must be there."""
        found = self.get(name)
        if found is None:
            raise ManifestInvalid(f"{self._inner(name)} is missing")
        return found

    def get(self, name: str) -> "Field | None":
        """An entry of an object, or None."""
        entries = self._of(dict, "an object")
        return Field(entries[name], self._inner(name)) if name in entries else None

    def entries(self) -> dict[str, "Field"]:
        """All entries of an object, by name."""
        return {name: Field(value, self._inner(name)) for name, value in self._of(dict, "an object").items()}

    def items(self, count: int | None = None) -> list["Field"]:
        """The items of a list. count: how many there must be."""
        expected = "a list" if count is None else f"a list of {count}"
        items = self._of((list, tuple), expected)  # a document that a build has not written yet holds tuples
        if count not in (None, len(items)):
            raise self.wrong(expected)
        return [Field(value, f"{self.place}[{index}]") for index, value in enumerate(items)]

    def text(self) -> str:
        text: str = self._of(str, "text")
        return text

    def true_or_false(self) -> bool:
        truth: bool = self._of(bool, "true or false")
        return truth

    def whole(self, least: int = 0) -> int:
        value = self.value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(f"a whole number from {least}")
        return value

    def number(self) -> float:
        value = self.value
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise self.wrong("a number")

    def positive(self) -> float:
        value = self.number()
        if value <= 0:
            raise self.wrong("a number above 0")
        return value

    def probability(self) -> float:
        value = self.number()
        if not 0 <= value <= 1:
            raise self.wrong("a number from 0 to 1")
        return value

    def one_of(self, choices: Iterable[str]) -> str:
        text = self.text()
        if text not in choices:
            raise self.wrong(f"one of {', '.join(choices)}")
        return text

    def wrong(self, expected: str) -> ManifestInvalid:
        """The error of a value that is not as expected."""
        shown = json.dumps(self.value, default=str, ensure_ascii=False)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        return ManifestInvalid(f"{self.place or 'it'} is {shown}, {expected} was expected")

    def _of(self, kind: type | tuple[type, ...], expected: str) -> Any:
        if not isinstance(self.value, kind):
            raise self.wrong(expected)
        return self.value

    def _inner(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name
