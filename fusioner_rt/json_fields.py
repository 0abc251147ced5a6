"""Fields of a JSON document, read with errors that name the field and what was expected of it."""

import json
import re
from collections.abc import Iterable
from typing import Any

from .errors import ManifestInvalid

MOST_ITEMS = 1000
"""Items of a list and entries of an object, where nothing else is said."""
MOST_CHARACTERS = 1000
"""Of a text, where nothing else is said."""
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

    def entries(self, most: int = MOST_ITEMS) -> dict[str, "Field"]:
        """All entries of an object, by name."""
        entries = self._of(dict, "an object")
        if len(entries) > most:
            raise ManifestInvalid(f"{self.place or 'it'} has {len(entries)} entries, at most {most} were expected")
        return {name: Field(value, self._inner(name)) for name, value in entries.items()}

    def items(self, count: int | None = None, most: int = MOST_ITEMS) -> list["Field"]:
        """The items of a list. count: how many there must be."""
        expected = "a list" if count is None else f"a list of {count}"
        items = self._of((list, tuple), expected)  # a document that a build has not written yet holds tuples
        if count not in (None, len(items)):
            raise self.wrong(expected)
        if len(items) > most:
            raise ManifestInvalid(f"{self.place} has {len(items)} items, at most {most} were expected")
        return [Field(value, f"{self.place}[{index}]") for index, value in enumerate(items)]

    def text(self, most: int = MOST_CHARACTERS) -> str:
        text: str = self._of(str, "text")
        if len(text) > most:
            raise self.wrong(f"text of at most {most} characters")
        return text

    def sha256(self) -> str:
        """64 digits of 0 to 9 and a to f."""
        text = self.text()
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise self.wrong("a sha256 in hexadecimal")
        return text

    def true_or_false(self) -> bool:
        truth: bool = self._of(bool, "true or false")
        return truth

    def whole(self, least: int, most: int) -> int:
        value = self.value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(f"a whole number from {least} to {most}")
        return value

    def number(self, least: float, most: float) -> float:
        value = self.value
        # NaN is in no range
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(f"a number from {least:g} to {most:g}")
        return float(value)

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
        name = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        return f"{self.place}.{name}" if self.place else name
