"""Words and thresholds of a command line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ..argument_checks import shown
from ..errors import UsageError, WordsInvalid
from ..regular_files import is_shells_pipe, open_regular
from .parse import Words
from .spellings import clean, separates, split

_NO_WORDS = ("a", "an", "the", "and", "or", "of", "with", "on", "in")
_LONGEST_FILE = 1 << 20  # bytes; 65,535 words are half of it


def take_pictures(arguments: Sequence[str], is_picture: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Part the arguments of `--words` before all pictures: those at the end that name pictures are these.

    Returns words, of which one at least stays, and pictures.
    """
    first = len(arguments)
    while first > 1 and is_picture(arguments[first - 1]):
        first -= 1
    return list(arguments[:first]), list(arguments[first:])


def join_words(arguments: Sequence[str]) -> Words:
    """The words of `--words`: "cat, sofa" in quotes, or without them `cat, red sofa`, or `cat sofa` for one word each.

    Raises WordsInvalid where one of them is no word by itself, as of `--words a red car`.
    """
    if len(arguments) == 1:
        return arguments[0]
    if any(" " in argument.strip() for argument in arguments):  # in quotes each
        return ", ".join(argument.strip().rstrip(",;") for argument in arguments)
    joined = " ".join(arguments)
    if separates(joined):
        return joined
    if parts := [
        argument for argument in arguments if argument.casefold() in _NO_WORDS or not any(map(str.isalpha, argument))
    ]:
        raise WordsInvalid(
            f"{parts[0]!r} was given as a word of its own",
            f'put quotes around words of several parts: --words "{joined}", with commas between the words',
        )
    return list(arguments)


def read_words(path: Path) -> Words:
    """The words of a text file, one per line or with commas; or a JSON list. Lines that begin with # are comments.

    Raises UsageError and WordsInvalid.
    """
    try:
        with path.open("rb") if is_shells_pipe(path) else open_regular(path) as stream:
            content = stream.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise UsageError(
                f"it has more than {_LONGEST_FILE} bytes", "name a text file with a word per line", subject=path
            )
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("is no text in UTF-8", "name a text file with a word per line", subject=path) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be read ({reason})", "name a text file with a word per line", subject=path) from None
    text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#")).strip()
    if not text:
        raise WordsInvalid("holds no words", "write one per line", subject=path)
    return text if separates(text) or text[0] in "[({" else [text]  # one line may be one group


def parse_threshold(text: str | None) -> float | dict[str, float] | Literal["default"]:
    """The argument of `--threshold`: "0.6", or "cat=0.7, sofa=0.4"; without one, "default". Raises UsageError."""
    if text is None:
        return "default"
    try:
        if "=" not in text:
            return float(text)
        thresholds: dict[str, float] = {}
        for part in split(f"{text},"):
            word, _, least = part.rpartition("=")
            word = clean(word)
            if not word or "=" in word or word in thresholds:
                raise ValueError
            thresholds[word] = float(least)
        return thresholds
    except (ValueError, WordsInvalid):
        percent = re.fullmatch(r"\s*(\d{1,2}(?:\.\d+)?|100)\s*%\s*", text)
        raise UsageError(
            "expected a probability, or words with theirs, each once",
            f"give {float(percent[1]) / 100:g}" if percent else 'give 0.6, or "cat=0.7, sofa=0.4"',
            subject=f"--threshold {shown(text)}",
        ) from None
