"""Draws a picture with coloured masks and a legend below."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .colours import colours

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

OPACITY = 0.5
MIN_EDGE = 320  # pixels; smaller pictures are enlarged
MAX_ABSENT = 6  # words without pixels in the legend
MAX_LISTED = 40  # words with pixels in the legend
_BACKGROUND, _TEXT, _GREY = (24, 26, 31), (236, 238, 242), (128, 133, 143)
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf", "NotoSans-Regular.ttf")


@dataclass(frozen=True)
class _Entry:
    text: str
    colour: tuple[int, int, int] | None
    width: int


def draw_overlay(picture: np.ndarray, labels: np.ndarray, words: Sequence[str], shares: np.ndarray) -> "Image":
    """picture: (H', W', 3) uint8 RGB. labels: (H, W) uint16, 0 = background. shares: (K,) of pixels per word, 0..1.

    Returns an RGB image, the label map's size with the legend below; small pictures are enlarged by a whole factor.
    """
    palette = colours(len(words))
    painted = _paint(picture, labels, palette)
    side = math.sqrt(painted.width * painted.height)
    legend = _legend(max(painted.width, MIN_EDGE), max(14, round(side / 34)), words, shares, palette)
    return _stack(painted, legend)


def _paint(picture: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> "Image":
    from PIL import Image

    height, width = labels.shape
    enlarge = max(1, math.ceil(MIN_EDGE / max(height, width)))
    if enlarge > 1:
        labels = labels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    size = (width * enlarge, height * enlarge)
    image = Image.fromarray(picture)
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST if enlarge > 1 else Image.Resampling.BICUBIC)

    tint = Image.fromarray(np.concatenate((np.zeros((1, 3), np.uint8), palette))[labels])
    foreground = Image.fromarray((labels > 0).astype(np.uint8) * 255)
    painted = Image.composite(Image.blend(image, tint, OPACITY), image, foreground)
    bright = Image.blend(tint, Image.new("RGB", size, (255, 255, 255)), 0.25)
    contour = Image.fromarray(_contour(labels, max(1, round(min(size) / 400))).astype(np.uint8) * 255)
    return Image.composite(bright, painted, contour)


def _contour(labels: np.ndarray, thickness: int) -> np.ndarray:
    """(H, W) bool: pixels of a word within `thickness` of another label, across rows and columns."""
    edge = np.zeros(labels.shape, bool)
    for distance in range(1, thickness + 1):
        across = labels[:, distance:] != labels[:, :-distance]
        down = labels[distance:] != labels[:-distance]
        edge[:, distance:] |= across
        edge[:, :-distance] |= across
        edge[distance:] |= down
        edge[:-distance] |= down
    return edge & (labels > 0)


def _legend(width: int, text_size: int, words: Sequence[str], shares: np.ndarray, palette: np.ndarray) -> "Image":
    from PIL import Image, ImageDraw

    font = _font(text_size, "".join(words))
    pad, swatch = text_size * 2 // 3, round(text_size * 0.85)
    gap, line = text_size // 2, round(text_size * 1.6)
    entries = []
    for text, colour in _lines(words, shares, palette):
        fitted = _shorten(text, font, width - 2 * pad - swatch - gap)
        entries.append(_Entry(fitted, colour, swatch + gap + math.ceil(font.getlength(fitted))))

    rows: list[list[_Entry]] = [[]]
    used = 0
    for entry in entries:
        if rows[-1] and used + entry.width > width - 2 * pad:
            rows.append([])
            used = 0
        rows[-1].append(entry)
        used += entry.width + text_size * 3 // 2

    strip = Image.new("RGB", (width, 2 * pad + line * len(rows) - (line - text_size)), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for number, row in enumerate(rows):
        x, middle = pad, pad + number * line + text_size // 2
        for entry in row:
            box = (x, middle - swatch // 2, x + swatch, middle - swatch // 2 + swatch)
            if entry.colour is None:
                draw.rounded_rectangle(box, swatch // 4, outline=_GREY)
            else:
                draw.rounded_rectangle(box, swatch // 4, fill=entry.colour)
            fill = _GREY if entry.colour is None else _TEXT
            draw.text((x + swatch + gap, middle), entry.text, fill=fill, font=font, anchor="lm")
            x += entry.width + text_size * 3 // 2
    return strip


def _lines(
    words: Sequence[str], shares: np.ndarray, palette: np.ndarray
) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Texts and colours of the legend, the largest share first; words without pixels last, without a colour."""
    order = sorted(range(len(words)), key=lambda index: -shares[index])
    found = [index for index in order if shares[index] > 0]
    absent = [index for index in order if shares[index] == 0]
    lines: list[tuple[str, tuple[int, int, int] | None]] = []
    for index in found[:MAX_LISTED]:
        red, green, blue = (int(channel) for channel in palette[index])
        lines.append((f"{words[index]} {percent(shares[index])}", (red, green, blue)))
    if len(found) > MAX_LISTED:
        lines.append((f"and {len(found) - MAX_LISTED} more", None))
    lines += [(f"{words[index]} 0%", None) for index in absent[:MAX_ABSENT]]
    if len(absent) > MAX_ABSENT:
        lines.append((f"{len(absent) - MAX_ABSENT} more not found", None))
    return lines


def percent(share: float) -> str:
    """A share of 0..1 as text; a positive share is never 0%."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _shorten(text: str, font: "FreeTypeFont | ImageFont", width: int) -> str:
    if font.getlength(text) <= width:
        return text
    head, _, share = text.rpartition(" ")

    def width_of(characters: int) -> int:
        return math.ceil(font.getlength(f"{head[:characters]}... {share}"))

    fits = bisect.bisect_right(range(1, len(head) + 1), width, key=width_of)
    return f"{head[:fits]}... {share}"


def _font(size: int, text: str) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    if any(ord(character) > 0x24F for character in text):  # Pillow's own font has Latin letters only
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _stack(painted: "Image", legend: "Image") -> "Image":
    from PIL import Image

    width = max(painted.width, legend.width)
    whole = Image.new("RGB", (width, painted.height + legend.height), _BACKGROUND)
    whole.paste(painted, ((width - painted.width) // 2, 0))
    whole.paste(legend, (0, painted.height))
    return whole
