"""The legend of an overlay: a strip whose size comes of words and picture size, never of what was found."""

import bisect
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..memory_shortage import is_shortage

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

Side: TypeAlias = Literal["below", "right"]

BACKGROUND = (24, 26, 31)
MIN_WIDTH = 240  # pixels of a strip below; narrower pictures get margins
_TEXT, _GREY = (236, 238, 242), (128, 133, 143)
_LEAST, _USUAL = 11, 14  # pixels of text on pictures of any size; on larger ones parts of their edge
_LONGEST = 20  # text sizes; what is longer is cut
_NARROWEST = 3  # text sizes; no word is cut to less
# Pillow's own font has the letters of English only. Of these, the first that has a word's letters.
_WIDE_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "segoeui.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf",
)  # fmt: skip


@dataclass(frozen=True)
class _Form:
    """How a strip is laid out: its size (width, height), the text's, and the edge around it, in pixels.

    shares: whether shares stand behind the words. places: (x, y) of every word; None where they do not all fit.
    """

    side: Side
    size: tuple[int, int]
    text: int
    pad: int
    shares: bool
    places: tuple[tuple[int, int], ...] | None = None

    @property
    def widest(self) -> int:
        """Pixels of the widest entry: swatch, word and share."""
        return min(self.size[0] - 2 * self.pad, _LONGEST * self.text)

    @property
    def reserved(self) -> int:
        """Pixels of an entry beside its word. The widest share is kept free, so that texts never move."""
        return sum(_gaps(self.text)) + (_share_room(self.text) if self.shares else 0)

    @property
    def capacity(self) -> int:
        """More entries than this never fit."""
        return self.size[0] * self.size[1] // (3 * self.text**2)


def draw_legend(
    words: tuple[str, ...], shares: np.ndarray, colours: np.ndarray, size: tuple[int, int], side: Side
) -> "Image | None":
    """The strip for a picture of `size` (width, height): all words in their order, found ones with their share.

    shares: (K,) of the pixels, 0..1. colours: (K, 3) uint8. It takes at most a third of the picture, of its height (below) or
    width (right). The text shrinks until all words fit. Where its least size is too large, those with most pixels are shown, and
    "and 7 more" last. None where there is no room for a word.
    """
    from PIL import Image, ImageDraw

    form = _form(words, size, side)
    if form is None:
        return None
    shown, places = (range(len(words)), form.places) if form.places else _some(words, shares, form)
    strip = Image.new("RGB", form.size, BACKGROUND)
    draw = ImageDraw.Draw(strip)
    swatch, gap, after = _gaps(form.text)
    for index, (x, y) in zip(shown, places, strict=False):
        word, font, length = _fitted(words[index], index + 1, form.text, form.widest - form.reserved)
        middle = y + form.text // 2
        top = middle - swatch // 2
        x += swatch
        box = (x - swatch, top, x, top + swatch)
        if not shares[index]:
            draw.rectangle(box, outline=_GREY, width=max(1, form.text // 14))
            draw.text((x + gap, middle), word, fill=_GREY, font=font, anchor="lm")
            continue
        red, green, blue = colours[index].tolist()
        draw.rectangle(box, fill=(red, green, blue))
        draw.text((x + gap, middle), word, fill=_TEXT, font=font, anchor="lm")
        if form.shares:
            share = percent(shares[index])
            draw.text((x + gap + length + after, middle), share, fill=_TEXT, font=_font("", form.text), anchor="lm")
    if len(places) > len(shown):
        x, y = places[-1]
        draw.text((x, y + form.text // 2), _more(words, len(shown)), fill=_GREY, font=_font("", form.text), anchor="lm")
    return strip


def percent(share: float) -> str:
    """A share of 0..1 as text; a positive share is never 0%."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


@lru_cache(maxsize=64)
def _form(words: tuple[str, ...], size: tuple[int, int], side: Side) -> _Form | None:
    width, height = size
    edge = math.sqrt(width * height)
    if side == "below":
        across = max(width, MIN_WIDTH)
        room = across, _even(min(height, width * height // across) // 3, height)
    else:
        room = _even(width // 3, width), height
    usual, least = max(_USUAL, round(edge / 34)), max(_LEAST, round(edge / 60))
    tries = [(text, True) for text in _sizes(usual, least)] + [(least, False)]
    forms = [_Form(side, room, text, _pad(text, room[1]), shares) for text, shares in tries if text <= room[1]]
    for form in forms:
        if fitted := _filled(words, form, size, _LONGEST * form.text):
            return fitted
    for form in forms[-2:]:  # least text: cut words, and leave out those that still do not fit
        if form.widest >= form.reserved + _NARROWEST * form.text:
            return _filled(words, form, size, form.widest) or form
    return None


def _filled(words: tuple[str, ...], form: _Form, size: tuple[int, int], longest: int) -> _Form | None:
    """The form with places for all words, cut to `longest` pixels, and no larger than they need; None where they do not fit."""
    if len(words) > form.capacity:
        return None
    widths = [_width(word, number, form, longest) for number, word in enumerate(words, start=1)]
    places, used = _places(widths, form)
    if len(places) < len(words):
        return None
    used += (used + size[form.side == "below"]) % 2
    return replace(
        form, size=(form.size[0], used) if form.side == "below" else (used, form.size[1]), places=tuple(places)
    )


def _pad(text: int, height: int) -> int:
    return min(text * 2 // 3, (height - text) // 2)


def _even(room: int, picture: int) -> int:
    """The most pixels in `room` with which strip and picture have an even edge together, as video codecs want."""
    return max(0, room - (room + picture) % 2)


def _sizes(usual: int, least: int) -> list[int]:
    """Text sizes, falling."""
    sizes = [usual]
    while sizes[-1] > least:
        sizes.append(max(least, sizes[-1] * 7 // 8))
    return sizes


def _places(widths: Sequence[int], form: _Form) -> tuple[list[tuple[int, int]], int]:
    """Where entries stand, of those that fit, and the strip's height (below, in rows) or width (right, in columns)."""
    width, height, pad, line, between = *form.size, form.pad, form.text * 8 // 5, form.text * 3 // 2
    places: list[tuple[int, int]] = []
    x = y = pad
    column = used = 0
    for entry in widths:
        if form.side == "below" and x > pad and x + entry + pad > width:
            x, y = pad, y + line
        elif form.side == "right" and places and y + form.text + pad > height:
            x, y, column = x + column + between, pad, 0
        if x + entry + pad > width or y + form.text + pad > height:
            break
        places.append((x, y))
        if form.side == "below":
            x, used = x + entry + between, y + form.text + pad
        else:
            column = max(column, entry)
            y, used = y + line, max(used, x + entry + pad)
    return places, used


def _some(words: tuple[str, ...], shares: np.ndarray, form: _Form) -> tuple[list[int], list[tuple[int, int]]]:
    """The words that are shown where not all fit, in their order, and places for them and "and 7 more" behind."""
    first = np.argsort(-np.asarray(shares), kind="stable")[: form.capacity].tolist()
    widths = [_width(words[index], index + 1, form, form.widest) for index in first]
    more = math.ceil(_font("", form.text).getlength(_more(words, 0)))
    places, _ = _places(widths, form)
    for count in range(len(places), 0, -1):
        shown = sorted(first[:count])
        ordered = [widths[first.index(index)] for index in shown]
        with_more, _ = _places([*ordered, more], form)
        if len(with_more) > count:
            return shown, with_more
    return first[: len(places)], places


def _more(words: Sequence[str], shown: int) -> str:
    return f"and {len(words) - shown} more"


def _gaps(text: int) -> tuple[int, int, int]:
    """Pixels of the swatch, between it and its word, and between the word and its share."""
    return round(text * 0.85), text // 2, text // 3


def _width(word: str, number: int, form: _Form, longest: int) -> int:
    """Pixels of an entry whose word is cut so that it has at most `longest`."""
    return form.reserved + _fitted(word, number, form.text, longest - form.reserved)[2]


@lru_cache(maxsize=64)
def _share_room(text: int) -> int:
    return math.ceil(max(_font("", text).getlength(share) for share in ("100%", "<0.1%", "8.8%")))


@lru_cache(maxsize=4096)
def _fitted(word: str, number: int, text: int, room: int) -> tuple[str, "FreeTypeFont | ImageFont", int]:
    """A word cut to `room` pixels, its font and its width. Where no font has its letters, without accents, or "word 3"."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
    for drawn in (word, plain, f"word {number}"):
        if (name := _font_of(drawn)) is not None:
            break
    font = _font(name or "", text)
    cut = _shorten(drawn, font, room)
    return cut, font, math.ceil(font.getlength(cut))


def _shorten(text: str, font: "FreeTypeFont | ImageFont", width: int) -> str:
    if font.getlength(text) <= width:
        return text

    def width_of(characters: int) -> int:
        return math.ceil(font.getlength(f"{text[:characters]}..."))

    return f"{text[: bisect.bisect_right(range(1, len(text) + 1), width, key=width_of)]}..."


@lru_cache(maxsize=4096)
def _font_of(word: str) -> str | None:
    """The first font that has all letters of a word: "" is Pillow's own."""
    letters = [letter for letter in set(word) if unicodedata.category(letter)[0] in "LNPS"]
    for name in ("", *_WIDE_FONTS):
        try:
            font = _font(name, _USUAL)
        except OSError as error:
            if is_shortage(error):
                raise
            continue
        missing = bytes(font.getmask("\U0010ffff"))
        if all(bytes(font.getmask(letter)) != missing for letter in letters):
            return name
    return None


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> "FreeTypeFont | ImageFont":
    """Raises OSError where the machine lacks it. "" is Pillow's own."""
    from PIL import ImageFont

    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
