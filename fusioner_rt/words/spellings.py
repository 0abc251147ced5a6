"""Words as people write them: how a text is split into words, and how a word is cleaned."""

import ast
import json
import re
from typing import Any

from ..argument_checks import shown
from ..errors import Spelled, WordsInvalid

EXAMPLE = 'give at least one, such as "cat, sofa"'
_LISTS = {"[": "]", "(": ")", "{": "}"}
_SEPARATORS = re.compile(r"[,;，；、。،؛\n\r\x85\u2028\u2029]")
_LINES = re.compile(r"[\n\r\x85\u2028\u2029]+")
_FULL_STOPS = re.compile(r"(?<=\s)\.(?=\s|$)")  # "cat . sofa ." of GroundingDINO
_SENTENCES = re.compile(r"(?<![\w.])([^\W\d_]{3,})\.\s+")  # "cat. sofa.", likewise
_ADJACENT = re.compile(r"(?<=\w)(['\"])\s*\1(?=\w)")  # strings without a comma, which Python joins
_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+")
_CONJUNCTION = re.compile(r"^\s*(?:and|or)\s+(?=\S)")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»"}
_OPENING = '"“„«`'
_BULLET = re.compile(r"^(?:[-*•–—·]\s+|•)(?=\S)")
_ARTICLE = re.compile(r"^(?:(?:an?|the)\s+(?!la\b)(?=\S)|(?:An?|The)\s+(?=[a-z]))")
_FILE = re.compile(r"\.(?:txt|csv|tsv|json|ya?ml|md|jpe?g|png|webp|bmp|gif|tiff?|heic|svg|pdf)$", re.IGNORECASE)


def separates(text: str) -> bool:
    """Whether a text holds a sign that separates words."""
    return bool(_SEPARATORS.search(text) or _FULL_STOPS.search(text))


def split(text: str) -> Any:
    """The words of a text: a list of strings, or what a Python or JSON list or object in it holds.

    Words are separated by commas (also those of Arabic and Chinese), semicolons, line ends, full stops between spaces, and
    full stops after words in small letters. Numbers that count the words go, and so does "and" or "or" before the last.
    Raises WordsInvalid for a list without commas, and for words that only `|` separates, which is for those of a group.
    """
    text = text.strip()
    if text[:1] in _LISTS and text.endswith(_LISTS[text[0]]) and (listed := _listed(text)) is not None:
        return listed
    if (inner := _unquoted(text)) != text:
        return split(inner)
    parts = _parts(_SENTENCES.sub(lambda found: f"{found[1]}\n" if found[1].islower() else found[0], text))
    if len(parts) == 1 and "|" in text:
        raise WordsInvalid(
            f"{shown(text)} has `|` between its words alone, which makes them one group, as synonyms are",
            Spelled(
                "put commas between words; give a group inside a list, [['cat', 'kitten'], 'sofa'], or beside other words, "
                "'cat|kitten, sofa'",
                'put commas between words; give a group beside other words, "cat|kitten, sofa", or as a line of --words-file',
            ),
        )
    return parts


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for line in filter(str.strip, _LINES.split(text)):
        pieces = [piece for part in _SEPARATORS.split(line) for piece in _FULL_STOPS.split(part)]
        if len(pieces) > 1 and not pieces[-1].strip():  # a separator ends the line
            pieces.pop()
        parts += pieces
    if len(parts) < 2:
        return parts or [text]
    numbers = [int(number[1]) for part in parts if (number := _NUMBERED.match(part))]
    if len(numbers) == len(parts) and numbers == list(range(numbers[0], numbers[0] + len(parts))):
        parts = [_NUMBERED.sub("", part, count=1) for part in parts]
    return [*parts[:-1], _CONJUNCTION.sub("", parts[-1], count=1)]


def _listed(text: str) -> Any:
    """What a list in a text holds, or None where it is no list."""
    inner = text[1:-1]
    if _ADJACENT.search(text):
        raise WordsInvalid(f"{shown(text)} has words without a comma between them", "put commas between the words")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        listed = ast.literal_eval(text)
        if isinstance(listed, (list, tuple, dict)):
            return listed
        if isinstance(listed, set):
            return ast.literal_eval(f"[{inner}]")  # sets have no order
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    return None if re.search(r"[][(){}:]", inner) else split(inner)  # without quotes: [cat, sofa]


def clean(word: str) -> str:
    """A word without what surrounds it: quotes, bullets, articles, a full stop; with single spaces.

    "" where nothing is left. Raises WordsInvalid for a file's name, and where a quote or bracket is not closed.
    """
    word = " ".join(word.replace("_", " ").split())
    while word != (stripped := _stripped(word)):
        word = stripped
    if _FILE.search(word):
        raise WordsInvalid(
            f"{shown(word)} is the name of a file and not a word",
            Spelled(
                'give the words themselves, such as "cat, sofa", and pictures as pictures',
                "give the words themselves; --words-file FILE reads them from a file, and pictures stand before --words",
            ),
        )
    if word and word[0] in _OPENING and _QUOTES[word[0]] not in word[1:]:
        raise WordsInvalid(
            f"{shown(word)} begins with a quote that is not closed", "put quotes around each word, or none"
        )
    if any(word.count(opening) != word.count(closing) for opening, closing in _LISTS.items()) and len(word) > 2:
        raise WordsInvalid(
            f"{shown(word)} has a bracket without its other one",
            "close the list that it begins, put quotes and commas into it, or leave the bracket out",
        )
    return word


def _stripped(word: str) -> str:
    word = _unquoted(_ARTICLE.sub("", _BULLET.sub("", word)))
    last = word.split()[-1] if word else ""
    if last.endswith(".") and len(last) > 2 and last.count(".") == 1:
        word = word[:-1]
    return word


def _unquoted(text: str) -> str:
    """A text without the quotes around all of it."""
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text[-1] in (closing, "”" if text[0] == "„" else closing):
        inner = text[1:-1]
        if text[0] not in inner and text[-1] not in inner:
            return inner.strip()
    return text
