"""EXIF's orientation: a picture is trained on as a viewer shows it, and its mask must be so, too."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fusioner_rt.errors import one_line
from training.data import ORIENTATION, DataError

# EXIF's orientation → what makes a stored array upright, as Pillow's exif_transpose does.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def stored_size(picture: Path | bytes) -> tuple[tuple[int, int], int]:
    """((H, W) as stored, EXIF's orientation) of a file or its bytes, from the header alone. Raises DataError."""
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            turn = image.getexif().get(ORIENTATION, 1)
            return (image.height, image.width), turn if turn in _TURNS else 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = "the embedded picture" if isinstance(picture, bytes) else picture
        raise DataError(f"{name} cannot be read as a picture ({one_line(error)})", "fetch or export it again") from None


def upright_size(picture: Path | bytes) -> tuple[int, int]:
    """(H, W) as a viewer shows it. Raises DataError."""
    (height, width), turn = stored_size(picture)
    return (width, height) if turn > 4 else (height, width)


def upright(mask: np.ndarray, turn: int) -> np.ndarray:
    """A mask of the stored pixels (H, W), turned as EXIF's orientation turns the picture."""
    return np.asarray(Image.fromarray(mask).transpose(_TURNS[turn])) if turn in _TURNS else mask
