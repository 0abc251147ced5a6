"""Decodes pictures to RGB pixels, for serving and for training.

EXIF orientation is applied, transparent pixels are blended with white, 16-bit grey is scaled to 8 bits. Embedded colour
profiles are not applied.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from .errors import PictureInvalid, PictureMissing, PictureTooLarge, PictureUnreadable, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, "Image", np.ndarray]

PIXEL_LIMIT = 1 << 27
"""Pixels of the largest picture: 134 million, an 11,585 x 11,585 square."""

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()  # noqa: SIM905
)
"""Suffixes of the files in a folder that count as pictures."""

# Raster formats only: Pillow passes others, such as EPS, to an external interpreter.
_COMMON = ("JPEG", "PNG", "BMP", "GIF", "PPM")  # Pillow opens these without loading all its plugins
_FORMATS = (*_COMMON, "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA")


def decode(picture: Picture) -> np.ndarray:
    """Decode a picture to RGB.

    picture: a path, the bytes of a file, a Pillow image, or a (H, W, 3) uint8 RGB array.
    Returns (H, W, 3) uint8, C-contiguous. A contiguous array is returned without a copy.
    Raises PictureMissing, PictureUnreadable, PictureTooLarge or PictureInvalid.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, (str, os.PathLike)):
        return _from_path(Path(picture))
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(picture), describe(picture))
    if _is_pillow(picture):
        _check_pixels(picture.width, picture.height, describe(picture))
        return _from_pillow(picture, describe(picture))
    raise PictureInvalid(
        f"a picture was given as {type(picture).__module__}.{type(picture).__qualname__}",
        "pass a path, the bytes of a file, a Pillow image or a (H, W, 3) uint8 numpy array",
    )


def describe(picture: Any) -> str:
    """A short name for messages."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    if isinstance(picture, np.ndarray):
        return f"the {picture.dtype} array of shape {picture.shape}"
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return f"the picture of {memoryview(picture).nbytes} bytes"
    if _is_pillow(picture):
        return getattr(picture, "filename", "") or f"the Pillow image of {picture.width}x{picture.height}"
    return f"the {type(picture).__qualname__}"


def _is_pillow(picture: Any) -> bool:
    from PIL import Image

    return isinstance(picture, Image.Image)


def _from_array(array: np.ndarray) -> np.ndarray:
    name = describe(array)
    if array.dtype != np.uint8:
        raise PictureInvalid(
            "pixels must be uint8, 0..255",
            "convert floats in 0..1 with (array * 255).round().astype('uint8')",
            subject=name,
        )
    if array.ndim != 3 or array.shape[2] != 3:
        raise PictureInvalid(
            "the shape must be (height, width, 3), RGB",
            "stack grey to three channels, drop alpha, and move channels last with array.transpose(1, 2, 0)",
            subject=name,
        )
    _check_pixels(array.shape[1], array.shape[0], name)
    return np.ascontiguousarray(array)


def _from_path(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as stream:
            return _from_stream(stream, str(path))
    except FileNotFoundError:
        raise PictureMissing(
            "there is no such file", f"check the path (relative to {Path.cwd()})", subject=path
        ) from None
    except IsADirectoryError:
        raise PictureMissing(
            "this is a folder, a picture file was expected", "name the file in it", subject=path
        ) from None
    except OSError as error:
        raise PictureMissing(
            f"cannot be opened ({error.strerror or error})", "check its permissions", subject=path
        ) from None
    except ValueError as error:  # a path with a null byte
        raise PictureMissing(f"is not a path ({error})", "check the path", subject=f"{str(path)!r}") from None


def _from_stream(stream: Any, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with _open(stream) as image:  # reads the header alone
            _check_pixels(image.width, image.height, name)
            image.load()
            return _from_pillow(image, name)
    except (PictureTooLarge, PictureUnreadable):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # the application has set a lower limit in Pillow
        raise PictureTooLarge(f"Pillow refuses it ({error})", "shrink the picture first", subject=name) from None
    except UnidentifiedImageError:
        raise PictureUnreadable(
            "the content is not a picture that is understood (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, "
            "...), whatever its name says",
            "convert it to one of these",
            subject=name,
        ) from None
    except MemoryError:
        raise PictureTooLarge(
            "there is not enough memory to decode it", "shrink the picture first", subject=name
        ) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on broken files
        raise PictureUnreadable(
            f"the picture is broken or cut short ({one_line(error)})", "fetch or export it again", subject=name
        ) from None


def _open(stream: Any) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(stream, formats=_COMMON)
    except UnidentifiedImageError:
        Image.init()
        stream.seek(0)
        return Image.open(stream, formats=[form for form in _FORMATS if form in Image.OPEN])


def _check_pixels(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise PictureInvalid(
            f"has no pixels ({width}x{height}); both edges must be at least 1",
            "give a picture with pixels",
            subject=name,
        )
    if width * height > PIXEL_LIMIT:
        raise PictureTooLarge(
            f"{width}x{height} is {width * height / 1e6:.0f} million pixels, at most "
            f"{PIXEL_LIMIT / 1e6:.0f} million are accepted",
            "shrink the picture first",
            subject=name,
        )


def _from_pillow(image: "Image", name: str) -> np.ndarray:
    try:
        return np.ascontiguousarray(np.asarray(_to_rgb(_upright(image))))
    except Exception as error:
        raise PictureUnreadable(
            f"a picture of mode {image.mode} cannot be turned into RGB ({one_line(error)})",
            "convert it to 8-bit RGB and try again",
            subject=name,
        ) from None


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are good even where EXIF is broken
        return image


def _to_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":  # both hold 16-bit values
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(wide: np.ndarray) -> np.ndarray:
    """(H, W) of 0..65535 in any integer type to uint8, rounded. Works in strips, to save memory."""
    narrow = np.empty(wide.shape, np.uint8)
    rows = max(1, (1 << 20) // max(1, wide.shape[1]))
    for start in range(0, len(wide), rows):
        part = np.clip(wide[start : start + rows], 0, 65407).astype(np.uint16)  # 65407 + 128 is the largest uint16
        narrow[start : start + rows] = (part + np.uint16(128)) // np.uint16(257)
    return narrow
