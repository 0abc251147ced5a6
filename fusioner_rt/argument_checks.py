"""Checks of what callers give, before any work. All raise UsageError."""

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import Spelled, UsageError


def shown(given: Any, most: int = 60) -> str:
    """What was given, for a message: one line of at most `most` characters."""
    try:
        text = " ".join(repr(given).split())
    except Exception:  # of an int of thousands of digits, or of an object of the caller's
        text = f"a {type(given).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


def named(name: str, given: Any) -> Spelled:
    """What an argument is. name: as the API has it; the command line's option is called alike."""
    option = f"--{name.replace('_', '-')}"
    return Spelled(f"{name} is {shown(given)}", f"{option} is {shown(given)}")


def whole(given: Any, name: str, least: int, most: int, cure: str) -> int:
    """A whole number of any integer type, within least..most. A boolean is none."""
    try:
        number = operator.index(given)
    except TypeError:
        number = least - 1
    if isinstance(given, bool) or not least <= number <= most:
        raise UsageError(named(name, given), cure)
    return number


def flag(given: Any, name: str) -> bool:
    """True or False."""
    kind = type(given)
    if kind is not bool and (kind.__module__, kind.__name__.rstrip("_")) != (
        "numpy",
        "bool",
    ):  # which is not imported here
        raise UsageError(named(name, given), "give True or False")
    return bool(given)


def choice(given: Any, name: str, choices: Sequence[str]) -> None:
    """One of the texts in `choices`."""
    if not isinstance(given, str) or given not in choices:
        raise UsageError(named(name, given), f"choose {' or '.join(choices)}")


def as_path(given: Any, what: str) -> Path:
    """The path of a file or folder. what: it is, for messages."""
    try:
        text = os.fspath(given)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(
            f"{what} is given as {shown(given)}", "give a path as text, without null bytes, or as pathlib.Path"
        )
    return Path(text)
