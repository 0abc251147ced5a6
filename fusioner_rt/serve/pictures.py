"""A request's picture to pixels."""

import io

import numpy as np

from ..decode_picture import decode
from ..errors import FusionerError, PictureUnreadable


def decoded(picture: bytes | np.ndarray, max_pixels: int, name: str) -> np.ndarray:
    """(H, W, 3) uint8 of a file's bytes, or of pixels. name: of the field or input, for messages.

    Raises PictureUnreadable, PictureTooLarge, PictureInvalid.
    """
    try:
        if isinstance(picture, bytes) and not picture:
            raise PictureUnreadable("is empty, no bytes came", "send the bytes of a picture file")
        # bytes as a file: they could be taken for a path
        return decode(io.BytesIO(picture) if isinstance(picture, bytes) else picture, max_pixels=max_pixels)
    except FusionerError as error:
        raise type(error)(error.found, error.cure, name) from None
