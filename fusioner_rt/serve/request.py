"""The fields of a request, typed and checked once: the contract that every door of the service shares."""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..argument_checks import shown
from ..errors import TooManyWords
from .errors import RequestInvalid

Masks = Literal["rle", "polygons", "none"]
FIELDS = (
    "words", "background", "threshold", "mode", "window", "size", "masks", "tolerance", "instances", "keep", "model",
)  # fmt: skip
_BETWEEN = re.compile(r"[,;，；、。،؛\n\r\x85\u2028\u2029|]|\.\s")  # words of a text, as `words.spellings` has it
_LARGEST = 1 << 20  # an edge; what is larger cannot be a picture's


@dataclass(frozen=True)
class SegmentRequest:
    """words, background, threshold, mode, window, size: as `Session.segment` takes them.

    masks: how the JSON answer has them. tolerance: of polygons, pixels. instances: also list the connected parts. keep: also
    answer a handle. model: a name, or None for the first.
    """

    words: Any
    background: Any = None
    threshold: float | dict[str, float] | Literal["default"] = "default"
    mode: Literal["joint", "independent"] = "joint"
    window: Literal["whole", "sliding"] = "whole"
    size: tuple[int, int] | None = None
    masks: Masks = "rle"
    tolerance: float = 0.0
    instances: bool = False
    keep: bool = False
    model: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `Session.segment`."""
        names = ("words", "background", "threshold", "mode", "window", "size")
        return {name: getattr(self, name) for name in names}

    @property
    def batch_key(self) -> str:
        """Equal for requests whose pictures one call can segment."""
        return json.dumps(self.options, sort_keys=True)


def parse(fields: Mapping[str, Any], max_words: int, max_pixels: int) -> SegmentRequest:
    """fields: values of JSON, or texts of a form or a query. Raises RequestInvalid, TooManyWords."""
    check_names(fields, FIELDS, ("picture", "handle", *FIELDS))
    if fields.get("words") is None:
        raise RequestInvalid("no words were given", 'give the field words, such as "cat, sofa"', "words")
    given: dict[str, Any] = {"words": _words(fields["words"], "words", max_words)}
    if fields.get("background") is not None:
        given["background"] = _words(fields["background"], "background", max_words)
    for name, read in _READERS.items():
        if fields.get(name) is not None:
            given[name] = read(fields[name], name)
    size = given.get("size")
    if size and size[0] * size[1] > max_pixels:
        raise RequestInvalid(
            f"{size[0]}x{size[1]} is {size[0] * size[1] / 1e6:.0f} million pixels, at most {max_pixels / 1e6:g} million are "
            "answered",
            "ask for a smaller size",
            "size",
        )
    return SegmentRequest(**given)


def check_names(fields: Mapping[str, Any], known: tuple[str, ...], told: tuple[str, ...] = ()) -> None:
    """Raises RequestInvalid for a field that there is not. told: the fields that the message names, by default the known."""
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, told or known, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise RequestInvalid(
                f"there is no field {shown(name)}", f"{meant}the fields are {', '.join(told or known)}"
            )


def read_json(given: bytes, what: str, cure: str) -> Any:
    """what: was given. Raises RequestInvalid."""
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        found = f"is no JSON, from line {error.lineno}, column {error.colno} on"
    except UnicodeDecodeError:
        found = "is no JSON: it holds bytes that are no UTF-8"
    except RecursionError:
        found = "is nested too deeply"
    except ValueError:  # Python's bound of digits
        found = "holds a number with too many digits"
    raise RequestInvalid(f"{what} {found}", cure)


def boolean(given: Any, name: str) -> bool:
    """true or false, also as text. Raises RequestInvalid."""
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in _TRUTHS:
        return _TRUTHS[given.strip().lower()]
    raise _wrong(given, name, "true or false")


def text(given: Any, name: str) -> str:
    """Raises RequestInvalid."""
    if not isinstance(given, str) or not given:
        raise _wrong(given, name, "a text")
    return given


_TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _wrong(given: Any, name: str, expected: str) -> RequestInvalid:
    return RequestInvalid(f"is {shown(given)}", f"give {expected}", name)


def _words(given: Any, name: str, most: int) -> Any:
    """A text, or a list of texts and lists of texts; its own checks `Session.segment` makes."""
    if isinstance(given, str):
        stripped = given.strip()
        if stripped.startswith("["):
            given = _json(stripped, name)
        else:
            _check_count(len(_BETWEEN.findall(stripped)) + 1, name, most)
            return given
    if not isinstance(given, list):
        raise _wrong(given, name, "a text, or a list of texts")
    count = 0
    for entry in given:
        members = entry if isinstance(entry, list) else [entry]
        count += len(members)
        for member in members:
            if not isinstance(member, str):
                raise _wrong(member, name, "a text, or a list of texts")
    _check_count(count, name, most)
    return given


def _check_count(count: int, name: str, most: int) -> None:
    if count > most:
        raise TooManyWords(f"{count} words were given, at most {most} are taken", "give fewer words", name)


def _json(given: str, name: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise _wrong(given, name, "JSON, or a text without brackets") from None


def _number(given: Any, name: str, expected: str) -> float:
    try:
        number = float(given) if isinstance(given, (str, int, float)) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(given, name, expected)
    return number


def _probability(given: Any, name: str) -> float:
    number = _number(given, name, "a probability from 0 to 1")
    if not 0 <= number <= 1:
        raise _wrong(given, name, "a probability from 0 to 1")
    return number


def _threshold(given: Any, name: str) -> Any:
    if given == "default":
        return given
    if isinstance(given, str) and given.strip().startswith("{"):
        given = _json(given, name)
    if isinstance(given, dict):
        return {word: _probability(value, f"{name}[{shown(word)}]") for word, value in given.items()}
    return _probability(given, name)


def _size(given: Any, name: str) -> tuple[int, int]:
    expected = "[H, W] or HxW in whole pixels, at least 1 each"
    if isinstance(given, str):
        match = re.fullmatch(r"\s*\[?\s*(\d{1,9})\s*[x×,]\s*(\d{1,9})\s*\]?\s*", given, re.ASCII)
        given = [int(match[1]), int(match[2])] if match else given
    if not (
        isinstance(given, (list, tuple))
        and len(given) == 2
        and all(isinstance(edge, int) and not isinstance(edge, bool) and 1 <= edge <= _LARGEST for edge in given)
    ):
        raise _wrong(given, name, expected)
    return given[0], given[1]


def _tolerance(given: Any, name: str) -> float:
    number = _number(given, name, "a number of pixels, 0 or more")
    if number < 0:
        raise _wrong(given, name, "a number of pixels, 0 or more")
    return number


def _one_of(*choices: str) -> Any:
    def read(given: Any, name: str) -> str:
        if not isinstance(given, str) or given not in choices:
            raise _wrong(given, name, " or ".join(choices))
        return given

    return read


_READERS: dict[str, Any] = {
    "threshold": _threshold,
    "mode": _one_of("joint", "independent"),
    "window": _one_of("whole", "sliding"),
    "size": _size,
    "masks": _one_of("rle", "polygons", "none"),
    "tolerance": _tolerance,
    "instances": boolean,
    "keep": boolean,
    "model": text,
}
