"""Colours of words: a word has the same one in every list, picture, session and process."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ..errors import UsageError
from ..words.parse import word_key

Rgb: TypeAlias = tuple[int, int, int]
Colour: TypeAlias = str | Sequence[int]
"""(red, green, blue) of 0 to 255, or a name that Pillow knows: "red", "#f00", "hsl(0, 100%, 50%)"."""

# In CIE Lab, lightness is over 52, and no two are nearer than 15 among the first, than 11 among all.
_FIRST, _MORE = (
    tuple((int(code[0], 16) * 17, int(code[1], 16) * 17, int(code[2], 16) * 17) for code in codes.split())
    for codes in (
        "e7b 0f0 0bf f90 f02 097 880 77f 4ee fd0 c1f 290 0fb f97 cd8 e26 caf b62 18e ca5 f89 7b7 a6b be0 a70 f50 f6f c65 9af e09 bb2 2df",
        "289 785 fca fbd aec af9 eda a79 88b b86 0aa b67 8b3 fb0 985 fbb 0ca b7f 0c4 faf 9cf aa6 59b ecf ccf e84 fc8 ed7 681 395 bda 586",
    )
)
_PALETTE = (*_FIRST, *_MORE)
_SALT = "81"  # of 1,500 the one with which common names, such as VOC's and of streets, least often look alike in a list


def word_colours(words: Sequence[str], chosen: Mapping[str, Colour] | None = None) -> np.ndarray:
    """(K, 3) uint8 RGB.

    A word's own colour comes from its letters alone, whatever their case. Where two words of a list have the same, one keeps
    it and the other takes the next of its own order, whatever the order of the list; so a further word changes the colours
    of others only where it has the colour of one. No two of 32 words look alike, and no two of 64 have the same colour.
    chosen: colours for some words; those that the list lacks are ignored. Raises UsageError for what is no colour.
    """
    if chosen is None:
        return _allot(tuple(words), ())
    if not isinstance(chosen, Mapping):
        raise UsageError(f"colours were given as {type(chosen).__name__}", 'give a mapping from words, {"cat": "red"}')
    return _allot(tuple(words), tuple((_key(word), _rgb(word, colour)) for word, colour in chosen.items()))


@lru_cache(maxsize=64)
def _allot(words: tuple[str, ...], chosen: tuple[tuple[str, Rgb], ...]) -> np.ndarray:
    digests = {key: hashlib.sha256(f"{_SALT}{key}".encode("utf-8", "replace")).digest() for key in map(word_key, words)}
    colours = {key: colour for key, colour in chosen if key in digests}
    taken = {min(_PALETTE, key=lambda own: _distance(own, colour)) for colour in colours.values()}
    for key in sorted(digests.keys() - colours.keys(), key=lambda key: digests[key][8:]):
        colours[key] = _first_free(digests[key], taken)
        taken.add(colours[key])
    table = np.array([colours[word_key(word)] for word in words], np.uint8).reshape(-1, 3)
    table.setflags(write=False)
    return table


def _first_free(digest: bytes, taken: set[Rgb]) -> Rgb:
    """The first colour of a word's order that is not taken: 32 distinct ones, 32 more, then mixtures of two of them."""
    start, step = digest[0], digest[1] | 1  # an odd step visits all
    for part in (_FIRST, _MORE):
        for index in range(len(part)):
            if (colour := part[(start + index * step) % len(part)]) not in taken:
                return colour
    for _ in range(64):
        one, other, share = _PALETTE[digest[0] % 64], _PALETTE[digest[1] % 64], digest[2]
        red, green, blue = ((a * share + b * (255 - share)) // 255 for a, b in zip(one, other, strict=True))
        if (red, green, blue) not in taken:
            break
        digest = hashlib.sha256(digest).digest()
    return red, green, blue


def _distance(one: Rgb, other: Rgb) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _key(word: Any) -> str:
    if not isinstance(word, str):
        raise UsageError(f"colours name {word!r} as a word", 'give a mapping from words, {"cat": "red"}')
    return word_key(" ".join(word.split()))


def _rgb(word: str, colour: Any) -> Rgb:
    from PIL import ImageColor

    try:
        channels = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(map(operator.index, colour))
        red, green, blue = channels
        if min(channels) < 0 or max(channels) > 255:
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"{colour!r} for {word!r} is no colour", 'give a name, "#f00", or (red, green, blue) of 0 to 255', "colours"
        ) from None
    return red, green, blue
