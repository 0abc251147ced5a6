"""Decodes pictures to RGB pixels, for serving and for training.

EXIF orientation is applied, transparent pixels are blended with white, 16-bit grey is scaled to 8 bits. Embedded colour
profiles are not applied. Of a file of several frames or pages the first is taken, which is logged.
"""

import io
import logging
import os
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, Union

import numpy as np

from . import pixel_arrays
from .errors import PictureInvalid, PictureTooLarge, PictureUnreadable, one_line
from .memory_shortage import OF_A_PICTURE, is_shortage, tells_shortage
from .missing_pictures import why_missing
from .picture_formats import COMMON, SUFFIXES, is_raw, readable, teach, unread
from .pixel_arrays import Channels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PIXEL_LIMIT", "SUFFIXES", "Picture", "decode", "describe"]


class Tensor(Protocol):
    """An array of another library: torch, JAX, TensorFlow."""

    def __array__(self, /, *arguments: Any) -> np.ndarray: ...


Picture: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes], "Image", np.ndarray, Tensor]

PIXEL_LIMIT = 1 << 27
"""Pixels of the largest picture: 134 million, an 11,585 x 11,585 square."""

_log = logging.getLogger("fusioner_rt")
_EXPECTED = "a path, the bytes of a file, a file opened in binary mode, a Pillow image or a (H, W, 3) uint8 array"


def _subject(picture: Picture, *_: object, **__: object) -> str:
    return describe(picture)


@tells_shortage(OF_A_PICTURE, of=_subject)
def decode(picture: Picture, channels: Channels = "rgb", copy: bool = False) -> np.ndarray:
    """Decode a picture to RGB.

    picture: a path, the bytes of a file, a binary file object, a Pillow image, or a uint8 array or tensor of the CPU's
        memory: (H, W, 3) colours, (H, W) or (H, W, 1) grey, (H, W, 4) colours and alpha, (H, W, 2) grey and alpha.
        A file object is read from its start, or where it cannot be sought, from where it stands.
    channels: the order of an array's colours, "rgb" or "bgr". All else knows its own.
    copy: never share memory with the array that was given.
    Returns (H, W, 3) uint8, C-contiguous. Raises PictureMissing, PictureUnreadable, PictureTooLarge, PictureInvalid
    or MemoryShort.
    """
    if isinstance(picture, (str, os.PathLike)):
        return _from_path(os.fsdecode(picture))
    if _is_pillow(picture):
        _check_pixels(picture.width, picture.height, describe(picture))
        return _from_pillow(picture, describe(picture))
    if pixel_arrays.is_array(picture):
        return _from_array(picture, channels, copy)
    if hasattr(picture, "read"):
        return _from_stream(io.BytesIO(_read(picture)), describe(picture))
    return _from_stream(io.BytesIO(_bytes(picture)), describe(picture))


def pictures_of(batch: Any) -> list[np.ndarray] | None:
    """The pictures of a (B, H, W, C) array or tensor, as `decode` takes them; None where it is none. Raises PictureInvalid."""
    if _is_pillow(batch) or not pixel_arrays.is_array(batch):
        return None
    array = pixel_arrays.as_array(batch)
    return pixel_arrays.pictures_of(array, describe(batch)) if array.ndim == 4 else None


def describe(picture: Any) -> str:
    """A short name for messages."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fsdecode(picture) or "''"
    if _is_pillow(picture):
        return getattr(picture, "filename", "") or f"the Pillow image of {picture.width}x{picture.height}"
    if pixel_arrays.is_array(picture):
        return pixel_arrays.describe(picture)
    if hasattr(picture, "read"):
        name = getattr(picture, "name", None)
        return name if isinstance(name, str) and name else f"the {type(picture).__qualname__}"
    try:
        return f"the picture of {memoryview(picture).nbytes} bytes"
    except (TypeError, ValueError):
        return f"the {type(picture).__qualname__}"


def _is_pillow(picture: Any) -> TypeGuard["Image"]:
    from PIL import Image

    return isinstance(picture, Image.Image)


def _from_array(picture: Any, channels: Channels, copy: bool) -> np.ndarray:
    from PIL import Image

    name = describe(picture)
    array = pixel_arrays.as_array(picture)
    pixels = pixel_arrays.shaped(array, name)
    _check_pixels(pixels.shape[1], pixels.shape[0], name)
    pixels = pixel_arrays.in_rgb_order(pixels, channels)
    if pixels.shape[2] in (2, 4):
        return _from_pillow(Image.fromarray(np.ascontiguousarray(pixels)), name)
    if pixels.shape[2] == 1:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    rgb = np.ascontiguousarray(pixels)
    return rgb.copy() if copy and np.may_share_memory(rgb, array) else rgb


def _read(stream: Any) -> bytes:
    """All bytes of a file object."""
    name = describe(stream)
    text = PictureInvalid(
        "this file is opened as text, bytes were expected", "open it in binary mode: open(path, 'rb')", subject=name
    )
    if isinstance(stream, io.TextIOBase):
        raise text
    try:
        stream.seek(0)
    except Exception:  # a pipe, or a response
        pass
    try:
        content = stream.read()
    except Exception as error:
        if is_shortage(error):
            raise
        raise PictureUnreadable(
            f"cannot be read ({one_line(error)})", "open it again, in binary mode: open(path, 'rb')", subject=name
        ) from None
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, str):
        raise text
    if hasattr(content, "close"):  # a coroutine, which complains where nobody waits for it
        content.close()
        raise PictureInvalid("its read() is asynchronous", "pass what it gives: await file.read()", subject=name)
    raise PictureInvalid(
        f"its read() gives {type(content).__qualname__}, bytes were expected", f"pass {_EXPECTED}", subject=name
    )


def _bytes(picture: Any) -> memoryview:
    """The bytes of an object that holds a file's content."""
    try:
        view = memoryview(picture)
    except (TypeError, ValueError) as error:
        if isinstance(picture, memoryview):
            raise PictureInvalid(f"this memoryview cannot be read ({one_line(error)})", "pass bytes") from None
        raise PictureInvalid(
            f"a picture was given as {type(picture).__module__}.{type(picture).__qualname__}", _cure_of(picture)
        ) from None
    if view.ndim != 1 or view.itemsize != 1 or not view.contiguous:
        raise PictureInvalid(
            f"a {type(picture).__qualname__} of shape {view.shape}, strides {view.strides} and format {view.format!r} holds "
            "no file's bytes in their order",
            "pass bytes; or, where it holds pixels, numpy.asarray(view)",
        )
    if view.nbytes <= 1024 and os.path.exists(bytes(view)):
        raise PictureInvalid(
            "these bytes are a path; those of a file were expected", "pass it as text, os.fsdecode(path)"
        )
    return view


def _cure_of(picture: Any) -> str:
    if picture is None:
        return f"pass {_EXPECTED}; cv2.imread gives None where it cannot read a file: pass the path itself"
    if isinstance(picture, (bool, np.bool_)):
        return f"pass {_EXPECTED}; cv2's capture.read() gives (ok, frame): pass the frame"
    if hasattr(picture, "__next__") or isinstance(picture, (set, frozenset)) or hasattr(picture, "mapping"):
        return f"pass a list of pictures, list(...), or one: pass {_EXPECTED}"
    if isinstance(picture, (list, tuple)):
        return f"pass {_EXPECTED}; a list in a list is none, and pixels are numpy.asarray(list, 'uint8')"
    if hasattr(picture, "content"):
        return "pass response.content, the bytes"
    return f"pass {_EXPECTED}"


def _from_path(path: str) -> np.ndarray:
    if path.startswith("~") and not os.path.exists(path):
        path = os.path.expanduser(path)
    try:
        with open(path, "rb") as stream:
            return _from_stream(stream if stream.seekable() else io.BytesIO(stream.read()), path)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if is_shortage(error):
            raise
        raise why_missing(path, error) from None


def _from_stream(stream: Any, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    head = b""
    try:
        head = stream.read(32)
        stream.seek(0)
        with _open(stream, head) as image:  # reads the header alone
            if is_raw(head, name, image):
                raise PictureUnreadable(*unread(head, raw=True), subject=name)
            _check_pixels(image.width, image.height, name)
            image.load()
            rgb = _from_pillow(image, name)
            if _has_more(image):
                _log.warning("%s: holds several frames or pages; the first one is taken", name)
            return rgb
    except (PictureTooLarge, PictureUnreadable):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # the application has set a lower limit in Pillow
        raise PictureTooLarge(f"Pillow refuses it ({error})", "shrink the picture first", subject=name) from None
    except UnidentifiedImageError:
        raise PictureUnreadable(*unread(head, raw=is_raw(head, name)), subject=name) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on broken files
        if is_shortage(error):
            raise
        raise PictureUnreadable(
            f"the picture is broken or cut short ({one_line(error)})", "fetch or export it again", subject=name
        ) from None


def _open(stream: Any, head: bytes) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(stream, formats=COMMON)
    except UnidentifiedImageError:
        teach(head)
        stream.seek(0)
        return Image.open(stream, formats=readable())


def _has_more(image: "Image") -> bool:
    """Whether a file holds more frames or pages. The second picture of a camera's MPO, a preview, is none."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # the first is good even where the second is broken
        return False


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
        return np.ascontiguousarray(np.asarray(_to_rgb(_upright(image), name)))
    except Exception as error:
        if is_shortage(error):
            raise
        raise PictureUnreadable(
            f"a picture of mode {image.mode} cannot be turned into RGB ({one_line(error)})",
            "convert it to 8-bit RGB and try again",
            subject=name,
        ) from None


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are good even where EXIF is broken
        if is_shortage(error):
            raise
        return image


def _to_rgb(image: "Image", name: str) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":  # both hold 16-bit values
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        page, shown = Image.new("RGBA", image.size, (255, 255, 255, 255)), image.convert("RGBA")
        if shown.getchannel("A").getextrema() == (0, 0):
            _log.warning(
                "%s: is transparent everywhere, and so white; where alpha means nothing, drop it: x[..., :3]", name
            )
        return Image.alpha_composite(page, shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(wide: np.ndarray) -> np.ndarray:
    """(H, W) of 0..65535 in any integer type to uint8, rounded. Works in strips, to save memory."""
    narrow = np.empty(wide.shape, np.uint8)
    rows = max(1, (1 << 20) // max(1, wide.shape[1]))
    for start in range(0, len(wide), rows):
        part = np.clip(wide[start : start + rows], 0, 65407).astype(np.uint16)  # 65407 + 128 is the largest uint16
        narrow[start : start + rows] = (part + np.uint16(128)) // np.uint16(257)
    return narrow
