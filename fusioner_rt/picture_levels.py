"""Which value is white, and which is transparent, in pictures whose pixels hold more or less than 8 bits."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import PictureUnreadable

if TYPE_CHECKING:
    from PIL.Image import Image

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_STEPS = {"L;2": 85, "L;4": 17}
"""By PNG's kind of grey: the 8-bit grey of its value 1. Pillow widens pixels so, but not the transparent one."""


class Levels(NamedTuple):
    """white: the grey of wide pixels, of mode I or I;16, that is white. inverted: black is, and 0 is white.

    transparent: the grey that is transparent, in the values that Pillow gives; None where none is, or Pillow knows it.
    """

    white: int = 65535
    inverted: bool = False
    transparent: int | None = None


def levels_of(image: "Image", name: str) -> Levels:
    """The levels of an opened picture, before it is loaded. Raises PictureUnreadable where a file does not tell them.

    Wide pictures in memory do not tell their range: it is that of 16 bits.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_BITS, (1,))[0]
        if image.mode == "I" or 2 in tags.get(_SAMPLE_FORMAT, ()):
            raise PictureUnreadable(
                f"its pixels of {bits} bits are signed, or wider than 16, and no file tells which value of these is white",
                "bring its values to 8 or 16 bits without a sign, and save it again",
                subject=name,
            )
        return Levels((1 << bits) - 1, tags.get(_PHOTOMETRIC) == 0)
    transparent = image.info.get("transparency")
    raw = next((tile[3] for tile in getattr(image, "tile", ()) if image.format == "PNG"), None)
    if raw == "RGB;16B" and transparent is not None:
        raise PictureUnreadable(
            "one of its 16-bit colours is transparent, and colours are read with 8 bits alone",
            "save it with an alpha channel, or with 8 bits",
            subject=name,
        )
    if not isinstance(transparent, int):
        return Levels()
    return Levels(transparent=transparent * _STEPS.get(str(raw), 1))


def to_8_bits(wide: np.ndarray, levels: Levels) -> np.ndarray:
    """(H, W) of 0..white in any integer type to uint8, rounded."""
    kept = np.clip(wide, 0, levels.white).astype(np.uint32)
    narrow = ((kept * 255 + levels.white // 2) // levels.white).astype(np.uint8)
    return 255 - narrow if levels.inverted else narrow
