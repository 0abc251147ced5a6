"""Words and thresholds of a command line."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, WordsInvalid
from .parse import Words
from .spellings import separates

_LONGEST_FILE = 1 << 20  # bytes; 65,535 words are half of it


def take_pictures(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the arguments of `--words` before all pictures: those at the end that are files or folders are pictures.

    Returns words, of which one at least stays, and pictures.
    """
    first = len(arguments)
    while first > 1 and os.path.exists(arguments[first - 1]):
        first -= 1
    return list(arguments[:first]), list(arguments[first:])


def join_words(arguments: Sequence[str]) -> Words:
    """The words of `--words`: "cat, sofa" in quotes, or without them `cat, red sofa`, or `cat sofa` for one word each."""
    if len(arguments) == 1:
        return arguments[0]
    joined = " ".join(arguments)
    return joined if separates(joined) else list(arguments)


def read_words(path: Path) -> Words:
    """The words of a text file, one per line or with commas; or a JSON list. Raises UsageError and WordsInvalid."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise UsageError(
                f"it has more than {_LONGEST_FILE} bytes", "name a text file with a word per line", subject=path
            )
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})", "name a text file with a word per line", subject=path
        ) from None
    except UnicodeDecodeError:
        raise UsageError("is no text in UTF-8", "name a text file with a word per line", subject=path) from None
    if not text.strip():
        raise WordsInvalid("holds no words", "write one per line", subject=path)
    return text if separates(text) else [text]  # one line may be one group


def parse_threshold(text: str) -> float | dict[str, float]:
    """The argument of `--threshold`: "0.6", or "cat=0.7, sofa=0.4". Raises UsageError."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.rpartition("=") for part in text.split(",") if part.strip()]
        return {" ".join(word.split()): float(least) for word, _, least in pairs}
    except ValueError:
        raise UsageError(
            "expected a probability, or words with theirs",
            'give 0.6, or "cat=0.7, sofa=0.4"',
            subject=f"--threshold {text!r}",
        ) from None
