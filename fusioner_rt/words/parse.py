"""Parses and checks the words that users give."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..cures import build_command
from ..errors import TooManyWords, WordsInvalid

LONGEST = 200
"""Maximum characters of a word; text encoders read fewer."""

_INVISIBLE = ("Cf", "Mn", "Me", "Zs")  # layout marks and combining accents
_EXAMPLE = 'give at least one, for example --words "cat, sofa"'


def parse_words(words: str | Iterable[str]) -> list[str]:
    """Clean words in the order given.

    words: one string with commas between the words, or several strings, one word each (those may hold commas).
    White space is collapsed. Words that differ in case alone count as repeated, since most text encoders ignore case.
    Raises WordsInvalid where there is no word, or where one is empty, invisible, repeated, longer than LONGEST or holds
    unprintable characters.
    """
    if isinstance(words, str):
        if not words.strip():
            raise WordsInvalid("no words were given", _EXAMPLE)
        parts: list[str] = words.split(",")
        if not parts[-1].strip():  # allow a trailing comma
            parts.pop()
    else:
        parts = list(words)
    if not parts:
        raise WordsInvalid("no words were given", _EXAMPLE)
    cleaned: list[str] = []
    seen: dict[str, int] = {}
    for position, part in enumerate(parts, start=1):
        if not isinstance(part, str):
            raise WordsInvalid(f"word {position} is {part!r}, a string was expected", _EXAMPLE)
        word = " ".join(part.split())
        if not word:
            raise WordsInvalid(f"word {position} of {len(parts)} is empty", "remove it or its comma")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in word):
            raise WordsInvalid(f"word {position}, {word!r}, holds unprintable characters", "remove them")
        if all(unicodedata.category(character) in _INVISIBLE for character in word):
            raise WordsInvalid(f"word {position}, {word!r}, holds no letter or sign that can be seen", "remove it")
        if len(word) > LONGEST:
            raise WordsInvalid(
                f"word {position}, {word[:20]!r}…, has {len(word)} characters, at most {LONGEST} are read",
                "shorten it, or put commas between its words",
            )
        key = unicodedata.normalize("NFKC", word).casefold()
        if key in seen:
            raise WordsInvalid(
                f"word {position}, {word!r}, repeats word {seen[key]}, {cleaned[seen[key] - 1]!r}",
                "give each word once",
            )
        seen[key] = position
        cleaned.append(word)
    return cleaned


def check_count(words: list[str], max_words: int, bundle: Path) -> None:
    """Raises TooManyWords. max_words: of the bundle's profile. bundle: its folder."""
    if len(words) > max_words:
        raise TooManyWords(
            f"{len(words)} words were given, the bundle in {bundle} was built for at most {max_words}",
            f"give fewer, or rebuild it: {build_command(bundle, max_words=len(words))}",
        )
