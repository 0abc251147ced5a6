"""Parses and checks the words that users give: words, groups of words, and hidden background words."""

import re
import unicodedata
from collections import UserString
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ..argument_checks import shown
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

MOST = 65535
"""Words of any call: label maps have 16 bits."""

_BYTES = (bytes, bytearray, memoryview)
_SEPARATOR = re.compile(r"[|;\n\r]")  # that no word of a list holds; a comma it may
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
    background: words that take pixels away from the others and then are none; "common" stands for those of COMMON.

    Words that differ in case alone count as repeated, since most text encoders ignore case; where all words are in capitals,
    they become small ones. Background words that are asked for are left out.
    Raises WordsInvalid where there is no word, or where one is empty, invisible, repeated, longer than LONGEST, no string, the
    name of a file, or holds unprintable characters, separators in a list, or half of a pair of quotes or brackets.
    """
    groups = _groups(words)
    seen: dict[str, str] = {}
    names, flat, owners = [], [], []
    for number, group in enumerate(groups, start=1):
        members = group or [""]
        places = (
            [f"word {number}"]
            if len(members) == 1
            else [f"word {m} of group {number}" for m in range(1, len(members) + 1)]
        )
        checked = [_checked(word, place, len(groups), seen) for word, place in zip(members, places, strict=True)]
        names.append(checked[0])
        flat += checked
        owners += [number] * len(checked)
    for word in _background(background):
        if word_key(word) not in seen:
            seen[word_key(word)] = word
            flat.append(word)
            owners.append(0)
    if all(map(str.isupper, names)):
        names, flat = [[word.lower() if len(word) > 2 else word for word in part] for part in (names, flat)]
    return Asked(tuple(names), tuple(flat), tuple(owners))


def check_count(asked: Asked, max_words: int, bundle: Path) -> None:
    """Raises TooManyWords. max_words: of the bundle's profile. bundle: its folder."""
    count, background = len(asked.words), asked.owners.count(0)
    if count > max_words:
        parts = f" ({count - background} for {len(asked.names)} names, {background} for the background)"
        raise TooManyWords(
            f"{count} words were given{'' if asked.is_plain else parts}, this bundle was built for at most {max_words}",
            f"give fewer, or rebuild it: {build_command(bundle, max_words=count)}",
        )


def in_one_word(asked: Asked) -> str | None:
    """A note on a word of a list that holds a comma, which a text would be split at."""
    word = next((word for word in asked.words if "," in word), None)
    return word and (
        f"{word!r} is one word, since it stood in a list: where several are meant, give each its place, or one text"
    )


def _groups(words: Any) -> list[list[Any]]:
    """The words of every name, neither cleaned nor checked. Raises WordsInvalid where there are none."""
    if isinstance(words, UserString):
        words = str(words)
    if isinstance(words, str) and words.strip():
        words = split(words)
    if isinstance(words, (set, frozenset)):
        raise WordsInvalid("words were given as a set, which has no order", "give a list, such as sorted(words)")
    try:
        if isinstance(words, (str, *_BYTES)):
            raise TypeError
        entries = list(islice(words.items() if isinstance(words, Mapping) else words, MOST + 1))
    except TypeError:
        if isinstance(words, str):
            raise WordsInvalid("no words were given", EXAMPLE) from None
        raise WordsInvalid(
            f"words were given as {type(words).__name__}, a text or a list of texts was expected",
            f"{EXAMPLE} or ['cat', 'sofa']",
        ) from None
    if not entries:
        raise WordsInvalid("no words were given", EXAMPLE)
    if len(entries) > MOST:
        raise TooManyWords(f"more than {MOST} words were given", "give fewer")
    return (
        [_members(*entry) for entry in entries]
        if isinstance(words, Mapping)
        else [_members(entry) for entry in entries]
    )


def _members(given: Any, more: Any = None) -> list[Any]:
    """The words of one group: a string with `|` between them, or a list. more: those that a mapping gives a name."""
    if isinstance(more, str):
        more = [member for part in (split(f"{more},") if more.strip() else []) for member in part.split("|")]
    if isinstance(given, (str, UserString)):
        given = str(given).split("|")
    elif (
        isinstance(given, (set, frozenset, Mapping, *_BYTES))
        or not isinstance(given, Iterable)
        or getattr(given, "ndim", 1) == 0
    ):
        given = [given]
    return [*islice(given, MOST), *([] if more is None else _members(more))]


def _background(background: Any) -> list[str]:
    if background is None or (isinstance(background, (str, list, tuple)) and not background):
        return []
    if isinstance(background, str):
        background = background.replace("|", ",")  # groups among them mean nothing
    try:
        groups = _groups(background)
        words = [
            _checked(word, f"word {number}", len(groups), {})
            for number, group in enumerate(groups, 1)
            for word in group
        ]
    except WordsInvalid as error:
        raise WordsInvalid(f"background: {error.found}", error.cure) from None
    return [word for given in words for word in (COMMON if given.casefold() == "common" else (given,))]


def _checked(given: Any, place: str, count: int, seen: dict[str, str]) -> str:
    """A cleaned word. place: "word 2", count: of names, for messages. seen: words by key, to which it is added."""
    if not isinstance(given, str):
        raise WordsInvalid(
            f"{place} is {shown(given)}, a string was expected",
            "give strings; a group is a list of strings within the list",
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") and not character.isspace() for character in given):
        raise WordsInvalid(f"{place}, {shown(given)}, holds unprintable characters", "remove them")
    if sign := _SEPARATOR.search(given.strip()):
        raise WordsInvalid(
            f"{place}, {shown(given)}, holds {sign[0]!r}, which separates words",
            "give its words one by one, or all words as one text",
        )
    if len(given) > 2 * LONGEST:
        raise _too_long(given, place)
    word = clean(given)
    if not word:
        raise WordsInvalid(f"{place} of {count} is empty", "remove it or its comma")
    if all(unicodedata.category(character) in _INVISIBLE for character in word):
        raise WordsInvalid(f"{place}, {word!r}, holds no letter or sign that can be seen", "remove it")
    if all(unicodedata.category(character)[0] in "PZ" for character in word):
        raise WordsInvalid(f"{place}, {word!r}, is punctuation alone", "remove it")
    if len(word) > LONGEST:
        raise _too_long(word, place)
    if first := seen.get(word_key(word)):
        raise WordsInvalid(f"{place}, {word!r}, repeats {first}", "give each word once")
    seen[word_key(word)] = f"{place}, {word!r}"
    return word


def _too_long(word: str, place: str) -> WordsInvalid:
    return WordsInvalid(
        f"{place}, {word[:20]!r}…, has {len(word)} characters, at most {LONGEST} are read",
        "shorten it, or put commas between its words",
    )


def word_key(word: str) -> str:
    """The same for spellings of one word that differ in case or form of their letters."""
    return unicodedata.normalize("NFKC", word).casefold()
