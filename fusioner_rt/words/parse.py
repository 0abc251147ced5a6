"""Parses and checks the words that users give: words, groups of words, and hidden background words."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..cures import build_command
from ..errors import TooManyWords, WordsInvalid
from .spellings import EXAMPLE, clean, split

Words: TypeAlias = str | Iterable[str | Iterable[str]] | Mapping[str, str | Iterable[str]]

LONGEST = 200
"""Maximum characters of a word; text encoders read fewer."""

COMMON = (
    "background", "wall", "floor", "ceiling", "ground", "grass", "tree", "sky", "cloud", "water", "road", "building",
    "mountain", "sand", "snow", "window", "door", "table", "shadow", "text",
)  # fmt: skip
"""The background words of `background="common"`: what surrounds things in photographs."""

_INVISIBLE = ("Cf", "Mn", "Me", "Zs")  # layout marks and combining accents


@dataclass(frozen=True)
class Asked:
    """What a call asks for.

    names: K names, each of one word or of a group of words, which is called by its first.
    words: F words that the text encoder reads, those of the names in order, then those of the background.
    owners: for each of F words the number of its name, 1 to K, or 0 for the background.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    owners: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Every name is one word, and there is no background."""
        return self.names == self.words


def parse_words(words: Words, background: Words | None = None) -> Asked:
    """Split, clean and check.

    words: a text with commas between the words (`spellings.split` tells what else), a list, or a mapping from a name to
        further words of its group. A list within the list, or `|` between words, makes a group.
    background: words that take pixels away from the others and then are none; "common" for those of COMMON.

    Words that differ in case alone count as repeated, since most text encoders ignore case. Background words that are
    asked for are left out. Raises WordsInvalid where there is no word, or where one is empty, invisible, repeated, longer
    than LONGEST, holds unprintable characters, or is the name of a file.
    """
    groups = _groups(words)
    seen: dict[str, str] = {}
    names, flat, owners = [], [], []
    for number, group in enumerate(groups, start=1):
        checked = [_checked(word, number, len(groups), seen) for word in group or [""]]
        names.append(checked[0])
        flat += checked
        owners += [number] * len(checked)
    for word in _background(background):
        if _key(word) not in seen:
            seen[_key(word)] = word
            flat.append(word)
            owners.append(0)
    return Asked(tuple(names), tuple(flat), tuple(owners))


def check_count(words: Iterable[str], max_words: int, bundle: Path) -> None:
    """Raises TooManyWords. max_words: of the bundle's profile. bundle: its folder."""
    count = len(list(words))
    if count > max_words:
        raise TooManyWords(
            f"{count} words were given, the bundle in {bundle} was built for at most {max_words}",
            f"give fewer, or rebuild it: {build_command(bundle, max_words=count)}",
        )


def _groups(words: Any) -> list[list[str]]:
    """The words of every name, neither cleaned nor checked. Raises WordsInvalid where there are none."""
    if isinstance(words, str) and words.strip():
        words = split(words)
    if isinstance(words, (str, bytes, bytearray)) or not isinstance(words, Iterable):
        found = "no words were given" if isinstance(words, str) else f"words were given as {type(words).__name__}"
        raise WordsInvalid(found, EXAMPLE)
    if isinstance(words, Mapping):
        groups = [[name, *([] if more is None else _members(more))] for name, more in words.items()]
    else:
        groups = [_members(word) for word in words]
    if not groups:
        raise WordsInvalid("no words were given", EXAMPLE)
    return groups


def _members(given: Any) -> list[Any]:
    """The words of one group: a string with `|` between them, or a list."""
    if isinstance(given, str):
        return given.split("|")
    return list(given) if isinstance(given, Iterable) and not isinstance(given, (bytes, Mapping)) else [given]


def _background(background: Any) -> list[str]:
    if background is None:
        return []
    if background == "common":
        return list(COMMON)
    groups = _groups(background)
    return [_checked(word, number, len(groups), {}) for number, group in enumerate(groups, 1) for word in group]


def _checked(given: Any, position: int, count: int, seen: dict[str, str]) -> str:
    """A cleaned word. position, count: of its name, for messages. seen: words by key, to which it is added."""
    if not isinstance(given, str):
        raise WordsInvalid(f"word {position} is {given!r}, a string was expected", EXAMPLE)
    if any(unicodedata.category(character) in ("Cc", "Cs") and not character.isspace() for character in given):
        raise WordsInvalid(f"word {position}, {given!r}, holds unprintable characters", "remove them")
    word = clean(given)
    if not word:
        raise WordsInvalid(f"word {position} of {count} is empty", "remove it or its comma")
    if all(unicodedata.category(character) in _INVISIBLE for character in word):
        raise WordsInvalid(f"word {position}, {word!r}, holds no letter or sign that can be seen", "remove it")
    if len(word) > LONGEST:
        raise WordsInvalid(
            f"word {position}, {word[:20]!r}…, has {len(word)} characters, at most {LONGEST} are read",
            "shorten it, or put commas between its words",
        )
    if first := seen.get(_key(word)):
        raise WordsInvalid(f"word {position}, {word!r}, repeats word {first}", "give each word once")
    seen[_key(word)] = f"{position}, {word!r}"
    return word


def _key(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
