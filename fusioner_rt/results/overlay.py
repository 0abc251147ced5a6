"""Draws a picture with coloured masks and a legend."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..argument_checks import flag, named
from ..errors import UsageError
from ..words.parse import word_key
from .colours import Colour, word_colours
from .legend import BACKGROUND, draw_legend

if TYPE_CHECKING:
    from PIL.Image import Image

LEGENDS = ("below", "right", False)
MIN_EDGE = 320  # pixels; smaller pictures are enlarged where there is a legend
_DARK, _LIGHT = (12, 13, 16), (255, 255, 255)  # the outer line of an outline: light around dark colours


def draw_overlay(
    picture: np.ndarray,
    labels: np.ndarray,
    words: Sequence[str],
    *,
    legend: Literal["below", "right", False] = "below",
    alpha: float = 0.5,
    outlines: bool = False,
    only: str | Sequence[str] | None = None,
    colours: Mapping[str, Colour] | None = None,
    resize: bool = True,
) -> "Image":
    """picture: (H', W', 3) uint8 RGB. labels: (H, W) uint16, 0 = background, n = words[n - 1].

    `Segmentation.overlay` tells what the others mean. Returns an RGB image. Raises UsageError.
    """
    check_options(legend, alpha, outlines, resize)
    shown = _named(only, words)
    table = word_colours(words, colours)
    if only is not None:
        kept = np.zeros(len(words) + 1, labels.dtype)
        kept[np.array(shown) + 1] = np.array(shown) + 1
        labels = kept[labels]
    enlarge = max(1, math.ceil(MIN_EDGE / max(labels.shape))) if legend and resize else 1
    painted = _paint(picture, labels, table, enlarge, 0.0 if outlines else float(alpha))
    if not legend:
        return painted
    shares = _pixels(labels, len(words)) / labels.size
    strip = draw_legend(tuple(words[n] for n in shown), shares[shown], table[shown], painted.size, legend)
    if strip is None:  # no room for a word
        return painted if enlarge == 1 else _paint(picture, labels, table, 1, 0.0 if outlines else float(alpha))
    return _joined(painted, strip, legend)


def check_options(legend: Any, alpha: Any, outlines: Any = False, resize: Any = True) -> None:
    """Raises UsageError."""
    if not any(legend is known or (isinstance(legend, str) and legend == known) for known in LEGENDS):
        raise UsageError(named("legend", legend), 'give "below", "right" or False')
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= float(alpha) <= 1:
        raise UsageError(named("alpha", alpha), "give 0 to 1: 0 for outlines alone, 1 for full colour")
    for name, value in (("outlines", outlines), ("resize", resize)):
        flag(value, name)


def _named(only: Any, words: Sequence[str]) -> list[int]:
    """Indices of the words that are drawn, in their order."""
    if only is None:
        return list(range(len(words)))
    index = {word_key(word): number for number, word in enumerate(words)}
    if isinstance(only, str):
        only = [only] if word_key(only) in index else only.split(",")
    try:
        asked = list(only)
        unknown = [word for word in asked if word_key(" ".join(word.split())) not in index]
    except (AttributeError, TypeError):
        raise UsageError(f"{only!r} names no words", "give a word or a list of them", "words") from None
    if unknown or not asked:
        found = f"{unknown[0]!r} is none of the words" if unknown else "no word is named"
        rest = f" and {len(words) - 20} more" if len(words) > 20 else ""
        raise UsageError(found, f"give of {', '.join(words[:20])}{rest}", "words")
    return sorted({index[word_key(" ".join(word.split()))] for word in asked})


def _pixels(labels: np.ndarray, words: int) -> np.ndarray:
    """(K,) pixels of each word."""
    from PIL import Image

    if words < 256:  # a fifth of bincount's time
        return np.array(Image.fromarray(labels.astype(np.uint8)).histogram()[1 : words + 1])
    return np.bincount(labels.ravel(), minlength=words + 1)[1:]


def _paint(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray, enlarge: int, alpha: float) -> "Image":
    from PIL import Image

    # Colour 0 is that of outer lines; the last is that around dark colours.
    table = np.concatenate((np.array([_DARK], np.uint8), colours, np.array([_LIGHT], np.uint8)))
    index = labels.astype(np.uint8 if len(table) <= 256 else np.uint32)
    if enlarge > 1:
        index = index.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    image = Image.fromarray(picture)
    size = index.shape[1], index.shape[0]
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST if enlarge > 1 else Image.Resampling.BICUBIC)

    thickness = max(1, round(min(size) / 400)) if alpha else max(2, round(min(size) / 250))
    edge = _edges(index, thickness, closed=alpha == 0)
    opacity = np.greater(index, 0).view(np.uint8)
    opacity *= round(255 * alpha)
    np.maximum(opacity, edge.view(np.uint8) * 255, out=opacity)
    dark = _luminance(table) < 0.19  # lightness under 51, no colour of a word's own
    dark[0] = False
    if dark.any():
        index[_edges(dark[index], thickness, closed=False) & (index == 0)] = len(table) - 1
    image.paste(_tint(index, table), mask=Image.fromarray(opacity))
    return image


def _edges(index: np.ndarray, thickness: int, closed: bool) -> np.ndarray:
    """(H, W) bool: pixels within `thickness` of another label; where closed, those of words at the picture's edge too."""
    edge = np.zeros(index.shape, bool)
    across = index[:, 1:] != index[:, :-1]
    down = index[1:] != index[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    if closed:
        for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            edge[side] |= index[side] > 0
    for lines in (edge, edge.T):
        reach = 0
        while reach < thickness - 1:
            step = min(2 * reach + 1, thickness - 1 - reach)
            before = lines.copy(order="K")
            lines[step:] |= before[:-step]
            lines[:-step] |= before[step:]
            reach += step
    return edge


def _tint(index: np.ndarray, table: np.ndarray) -> "Image":
    from PIL import Image

    if index.dtype != np.uint8:
        return Image.fromarray(table[index])
    image = Image.fromarray(index)
    image.putpalette(table.tobytes())
    return image.convert("RGB")


def _luminance(table: np.ndarray) -> np.ndarray:
    """0..1, linear."""
    return np.asarray(((table / 255) ** 2.2 * np.array([0.2126, 0.7152, 0.0722])).sum(axis=-1))


def _joined(painted: "Image", strip: "Image", side: str) -> "Image":
    from PIL import Image

    if side == "right":
        whole = Image.new("RGB", (painted.width + strip.width, painted.height), BACKGROUND)
        whole.paste(painted, (0, 0))
        whole.paste(strip, (painted.width, 0))
        return whole
    whole = Image.new("RGB", (strip.width, painted.height + strip.height), BACKGROUND)
    whole.paste(painted, ((strip.width - painted.width) // 2, 0))
    whole.paste(strip, (0, painted.height))
    return whole
