"""Words as people write them: how a text is split into words, and how a word is cleaned."""

import ast
import re
from typing import Any

from ..errors import WordsInvalid

EXAMPLE = 'give at least one, for example --words "cat, sofa"'
_LISTS = {"[": "]", "(": ")", "{": "}"}
_SEPARATORS = re.compile(r"\s*[,;，；、]\s*|\s*[\n\r]\s*")  # blank lines, and a comma at a line's end, separate once
_FULL_STOPS = re.compile(r"\s+\.(?=\s|$)")  # "cat . sofa ." of GroundingDINO
_SENTENCES = re.compile(r"\.(?:\s+|$)")  # "cat. sofa.", likewise
_QUOTES = "\"'`“”„‘’«»"
_BULLET = re.compile(r"^(?:[-*•#]\s*|\d+[.)]\s+)")  # of a list in a text
_LEAD = re.compile(r"^(?:and|or|a|an|the)\s+(?=\S)", re.IGNORECASE)
_FILE = re.compile(r"\.(?:txt|csv|tsv|json|ya?ml|md|jpe?g|png|webp|bmp|gif|tiff?|pdf)$", re.IGNORECASE)


def separates(text: str) -> bool:
    """Whether a text holds a sign that separates words."""
    return bool(_SEPARATORS.search(text) or _FULL_STOPS.search(text))


def split(text: str) -> Any:
    """The words of a text: a list of strings, or what a Python or JSON list in it holds.

    Words are separated by commas, semicolons, line ends or full stops between spaces. Raises WordsInvalid for a broken
    list, and for words that only `|` separates, which is for the words of one group.
    """
    text = text.strip()
    if text[:1] in _LISTS:
        return _listed(text)
    parts = [part for piece in _SEPARATORS.split(text) for part in _FULL_STOPS.split(piece)]
    if len(parts) == 1 and text.endswith(".") and ". " in text:
        parts = _SENTENCES.split(text)
    if len(parts) == 1 and "|" in text:
        raise WordsInvalid(
            f"{text[:40]!r} has `|` between its words alone, which makes them one group, as synonyms are",
            "put commas between words; give a group inside a list, [['cat', 'kitten'], 'sofa'], or beside other words, "
            "'cat|kitten, sofa'",
        )
    if len(parts) > 1 and not parts[-1].strip():  # a trailing separator
        parts.pop()
    return parts


def _listed(text: str) -> Any:
    inner = text[1:-1]
    try:
        listed = ast.literal_eval(text)
        return (
            listed if isinstance(listed, (list, tuple, dict)) else ast.literal_eval(f"[{inner}]")
        )  # sets have no order
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.endswith(_LISTS[text[0]]) and not re.search(r"[][(){}:]", inner):  # without quotes: [cat, sofa]
            return split(inner)
        raise WordsInvalid(
            f"{text[:40]!r} begins like a list and is none",
            f"close its brackets and quotes, or put commas between the words: {_LISTS[text[0]]!r} ends it",
        ) from None


def clean(word: str) -> str:
    """A word without what surrounds it: quotes, bullets, articles, a full stop; with single spaces, in small letters where
    all were capitals. "" where nothing is left. Raises WordsInvalid for a file's name.
    """
    word = " ".join(word.replace("_", " ").split())
    while word != (stripped := _stripped(word)):
        word = stripped
    if _FILE.search(word):
        raise WordsInvalid(
            f"{word!r} is the name of a file and not a word",
            "give the words themselves; on the command line --words-file FILE reads them from a file, and pictures stand "
            "before --words",
        )
    return word.lower() if word.isupper() and len(word) > 2 else word


def _stripped(word: str) -> str:
    word = _LEAD.sub("", _BULLET.sub("", word).strip())
    if len(word) > 1 and word[0] in _QUOTES and word[-1] in _QUOTES:
        word = word[1:-1].strip()
    if word.endswith(".") and word.count(".") == 1 and len(word) > 1:
        word = word[:-1].strip()
    return word
