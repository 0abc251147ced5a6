"""Parses and checks the words that users give: words, groups of words, and hidden background words."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..cures import build_command
from ..errors import TooManyWords, WordsInvalid
from .spellings import EXAMPLE, clean, shown, split

Words: TypeAlias = str | Iterable[str | Iterable[str]] | Mapping[str, str | Iterable[str]]

LONGEST = 200
"""Maximum characters of a word; text encoders read fewer."""

COMMON = (
    "background", "wall", "floor", "ceiling", "ground", "grass", "tree", "sky", "cloud", "water", "road", "building",
    "mountain", "sand", "snow", "window", "door", "table", "shadow", "text",
)  # fmt: skip
"""The background words of `background="common"`: what surrounds things in photographs."""

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
        checked = [_checked(word, number, len(groups), seen) for word in group or [""]]
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


def check_count(words: Sequence[str], max_words: int, bundle: Path) -> None:
    """Raises TooManyWords. max_words: of the bundle's profile. bundle: its folder."""
    count = len(words)
    if count > max_words:
        raise TooManyWords(
            f"{count} words were given, the bundle in {bundle} was built for at most {max_words}",
            f"give fewer, or rebuild it: {build_command(bundle, max_words=count)}",
        )


def _groups(words: Any) -> list[list[Any]]:
    """The words of every name, neither cleaned nor checked. Raises WordsInvalid where there are none."""
    if isinstance(words, str) and words.strip():
        words = split(words)
    try:
        if isinstance(words, (str, bytes, bytearray)):
            raise TypeError
        entries = list(words.items() if isinstance(words, Mapping) else words)
    except TypeError:
        found = "no words were given" if isinstance(words, str) else f"words were given as {type(words).__name__}"
        raise WordsInvalid(found, EXAMPLE) from None
    if not entries:
        raise WordsInvalid("no words were given", EXAMPLE)
    return (
        [_members(*entry) for entry in entries]
        if isinstance(words, Mapping)
        else [_members(entry) for entry in entries]
    )


def _members(given: Any, more: Any = None) -> list[Any]:
    """The words of one group: a string with `|` between them, or a list. more: those that a mapping gives a name."""
    if isinstance(more, str):
        more = [member for part in (split(f"{more},") if more.strip() else []) for member in part.split("|")]
    if isinstance(given, str):
        given = given.split("|")
    elif isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        given = [given]
    return [*given, *([] if more is None else _members(more))]


def _background(background: Any) -> list[str]:
    if background is None or (isinstance(background, (str, list, tuple)) and not background):
        return []
    if isinstance(background, str):
        background = background.replace("|", ",")  # groups among them mean nothing
    try:
        groups = _groups(background)
        words = [_checked(word, number, len(groups), {}) for number, group in enumerate(groups, 1) for word in group]
    except WordsInvalid as error:
        raise WordsInvalid(f"background: {error.found}", error.cure) from None
    return [word for given in words for word in (COMMON if given.casefold() == "common" else (given,))]


def _checked(given: Any, position: int, count: int, seen: dict[str, str]) -> str:
    """A cleaned word. position, count: of its name, for messages. seen: words by key, to which it is added."""
    if not isinstance(given, str):
        raise WordsInvalid(
            f"word {position} is {shown(given)}, a string was expected",
            "give strings; a group is a list of strings within the list",
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") and not character.isspace() for character in given):
        raise WordsInvalid(f"word {position}, {shown(given)}, holds unprintable characters", "remove them")
    if sign := _SEPARATOR.search(given.strip()):
        raise WordsInvalid(
            f"word {position}, {shown(given)}, holds {sign[0]!r}, which separates words",
            "give its words one by one, or all words as one text",
        )
    if len(given) > 2 * LONGEST:
        raise _too_long(given, position)
    word = clean(given)
    if not word:
        raise WordsInvalid(f"word {position} of {count} is empty", "remove it or its comma")
    if all(unicodedata.category(character) in _INVISIBLE for character in word):
        raise WordsInvalid(f"word {position}, {word!r}, holds no letter or sign that can be seen", "remove it")
    if all(unicodedata.category(character)[0] in "PZ" for character in word):
        raise WordsInvalid(f"word {position}, {word!r}, is punctuation alone", "remove it")
    if len(word) > LONGEST:
        raise _too_long(word, position)
    if first := seen.get(word_key(word)):
        raise WordsInvalid(f"word {position}, {word!r}, repeats word {first}", "give each word once")
    seen[word_key(word)] = f"{position}, {word!r}"
    return word


def _too_long(word: str, position: int) -> WordsInvalid:
    return WordsInvalid(
        f"word {position}, {word[:20]!r}…, has {len(word)} characters, at most {LONGEST} are read",
        "shorten it, or put commas between its words",
    )


def word_key(word: str) -> str:
    """The same for spellings of one word that differ in case or form of their letters."""
    return unicodedata.normalize("NFKC", word).casefold()
