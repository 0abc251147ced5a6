"""Decodes pictures to RGB pixels, for serving and for training.

EXIF orientation is applied, transparent pixels are blended with white, wide grey is scaled to 8 bits. Embedded colour
profiles are not applied. Of a file of several frames or pages the first is taken, which is logged.
"""

import ctypes
import functools
import io
import logging
import math
import os
import warnings
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, Union

import numpy as np

from . import decoding_costs, pixel_arrays
from .errors import PictureInvalid, PictureTooLarge, PictureUnreadable, Spelled, one_line
from .memory_shortage import OF_A_PICTURE, is_shortage, tells_shortage
from .missing_pictures import why_missing
from .picture_formats import COMMON, SUFFIXES, TIFF, is_raw, readable, teach, unread
from .picture_levels import Levels, levels_of, to_8_bits
from .pixel_arrays import Channels
from .regular_files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_PIXELS", "PIXEL_LIMIT", "SUFFIXES", "Picture", "decode", "describe"]


class Tensor(Protocol):
    """An array of another library: torch, JAX, TensorFlow."""

    def __array__(self, /, *arguments: Any) -> np.ndarray: ...


Picture: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes], "Image", np.ndarray, Tensor]

PIXEL_LIMIT = 1 << 27
"""Pixels of the largest picture that a session may be opened for: 134 million, an 11,585 x 11,585 square."""

MAX_PIXELS = 1 << 26
"""Pixels of the largest picture by default: 67 million. Small files that claim as many take seconds to decode."""

BYTE_LIMIT = 8 * PIXEL_LIMIT
"""Bytes that are read of a file object or a JPEG: what the largest picture takes uncompressed, in 16-bit RGBA."""

_BLOCK = 1 << 20
_log = logging.getLogger("fusioner_rt")
_EXPECTED = "a path, the bytes of a file, a file opened in binary mode, a Pillow image or a (H, W, 3) uint8 array"


def _subject(picture: Picture, *_: object, **__: object) -> str:
    return describe(picture)


@tells_shortage(OF_A_PICTURE, of=_subject)
def decode(
    picture: Picture, channels: Channels = "rgb", copy: bool = False, max_pixels: int = PIXEL_LIMIT
) -> np.ndarray:
    """Decode a picture to RGB.

    picture: a path, the bytes of a file, a binary file object, a Pillow image, or a uint8 array or tensor of the CPU's
        memory: (H, W, 3) colours, (H, W) or (H, W, 1) grey, (H, W, 4) colours and alpha, (H, W, 2) grey and alpha.
        A file object is read from its start, or where it cannot be sought, from where it stands.
    channels: the order of an array's colours, "rgb" or "bgr". All else knows its own.
    copy: never share memory with the array that was given.
    max_pixels: of the largest picture, at most PIXEL_LIMIT. What takes as long to decode as larger ones counts as they do.
    Returns (H, W, 3) uint8, C-contiguous. Raises PictureMissing, PictureUnreadable, PictureTooLarge, PictureInvalid
    or MemoryShort.
    """
    if isinstance(picture, (str, os.PathLike)):
        return _from_path(os.fsdecode(picture), max_pixels)
    if is_pillow(picture):
        name = describe(picture)
        _check_pixels(picture.width, picture.height, name, max_pixels)
        _check_pixels(picture.width, picture.height, name, max_pixels, *_cost_left(picture))
        return _from_pillow(picture, name, levels_of(picture, name))
    if pixel_arrays.is_array(picture):
        return _from_array(picture, channels, copy, max_pixels)
    if hasattr(picture, "read"):
        return _from_stream(io.BytesIO(_read(picture)), describe(picture), max_pixels)
    return _from_stream(io.BytesIO(_bytes(picture)), describe(picture), max_pixels)


def pictures_of(batch: Any) -> list[np.ndarray] | None:
    """The pictures of a (B, H, W, C) array or tensor, as `decode` takes them; None where it is none. Raises PictureInvalid."""
    if is_pillow(batch) or not pixel_arrays.is_array(batch):
        return None
    array = pixel_arrays.as_array(batch)
    return pixel_arrays.pictures_of(array, describe(batch)) if array.ndim == 4 else None


def millions(pixels: int) -> str:
    """A number of pixels, for messages."""
    return f"{pixels / 1e6:.0f}" if pixels >= 10_000_000 else f"{pixels / 1e6:.2g}"


def or_more(cure: str, pixels: int) -> str:
    """A cure for too many pixels, and the other one: to allow as many, where a session may."""
    if pixels > PIXEL_LIMIT:
        return cure
    return Spelled(f"{cure}, or open the session with max_pixels={pixels}", f"{cure}, or add --max-pixels {pixels}")


def describe(picture: Any) -> str:
    """A short name for messages."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fsdecode(picture) or "''"
    if is_pillow(picture):
        return getattr(picture, "filename", "") or f"the Pillow image of {picture.width}x{picture.height}"
    if pixel_arrays.is_array(picture):
        return pixel_arrays.describe(picture)
    if hasattr(picture, "read"):
        name = getattr(picture, "name", None)
        return name if isinstance(name, str) and name else f"the {type(picture).__qualname__}"
    try:
        return f"the picture of {memoryview(picture).nbytes} bytes"
    except Exception:  # released, or of no buffer
        return f"the {type(picture).__qualname__}"


def is_pillow(picture: Any) -> TypeGuard["Image"]:
    """Whether an object is a Pillow image."""
    from PIL import Image

    return isinstance(picture, Image.Image)


def _cost_left(image: "Image") -> tuple[float, str]:
    """`decoding_costs.times` of a Pillow image, where it is opened and not decoded yet."""
    try:
        if image.tile:  # type: ignore[attr-defined]
            return decoding_costs.times(image, image.fp)  # type: ignore[attr-defined]
    except Exception as error:  # it is in memory alone; or its file is closed, which its pixels will tell
        if is_shortage(error):
            raise
    return 1.0, ""


def _from_array(picture: Any, channels: Channels, copy: bool, max_pixels: int) -> np.ndarray:
    from PIL import Image

    name = describe(picture)
    array = pixel_arrays.as_array(picture)
    pixels = pixel_arrays.shaped(array, name)
    _check_pixels(pixels.shape[1], pixels.shape[0], name, max_pixels)
    pixels = pixel_arrays.in_rgb_order(pixels, channels)
    if pixels.shape[2] in (2, 4):
        return _from_pillow(Image.fromarray(np.ascontiguousarray(pixels)), name, Levels())
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
        content = _content(stream)
    except PictureTooLarge:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        raise PictureUnreadable(
            f"cannot be read ({one_line(error)})", "open it again, in binary mode: open(path, 'rb')", subject=name
        ) from None
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        raise text
    if hasattr(content, "close"):  # a coroutine, which complains where nobody waits for it
        content.close()
        raise PictureInvalid("its read() is asynchronous", "pass what it gives: await file.read()", subject=name)
    raise PictureInvalid(
        f"its read() gives {type(content).__qualname__}, bytes were expected", f"pass {_EXPECTED}", subject=name
    )


def _content(stream: Any) -> Any:
    """All bytes of a file object; what it gives instead where that is no bytes. Raises PictureTooLarge."""
    parts: list[bytes] = []
    read = 0
    while read <= BYTE_LIMIT:
        try:
            part = stream.read(_BLOCK)
        except TypeError:  # its read() takes no size
            part = stream.read()
            if isinstance(part, (bytes, bytearray, memoryview)):
                return bytes(part)
        if not isinstance(part, (bytes, bytearray, memoryview)):
            return part
        if not len(part):
            return b"".join(parts)
        parts.append(bytes(part))
        read += len(parts[-1])
    raise PictureTooLarge(
        f"has more than {BYTE_LIMIT / 1e6:.0f} million bytes, as no picture of at most {PIXEL_LIMIT / 1e6:.0f} million pixels has",
        "give the picture alone",
        subject=describe(stream),
    )


def _bytes(picture: Any) -> memoryview:
    """The bytes of an object that holds a file's content."""
    try:
        view = memoryview(picture)
    except Exception as error:  # TypeError, ValueError, BufferError, and what its exporter raises
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


def _from_path(path: str, max_pixels: int) -> np.ndarray:
    if path.startswith("~") and not os.path.exists(path):
        path = os.path.expanduser(path)
    try:
        with open_regular(path) as stream:
            return _from_stream(stream, path, max_pixels)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if is_shortage(error):
            raise
        raise why_missing(path, error) from None


def _from_stream(stream: Any, name: str, max_pixels: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    head = b""
    try:
        head = stream.read(32)
        _quieten_pillow()
        if head[:4] in TIFF:
            _quieten_libtiff()
            if decoding_costs.tags_overlap(stream):
                raise ValueError("its tags lie in each other")
        stream.seek(0)
        with _open(stream, head) as image:  # reads the header alone
            if is_raw(head, name, image):
                raise PictureUnreadable(*unread(head, raw=True), subject=name)
            _check_pixels(image.width, image.height, name, max_pixels)
            _check_pixels(image.width, image.height, name, max_pixels, *decoding_costs.times(image, stream))
            levels = levels_of(image, name)
            image.load()
            rgb = _from_pillow(image, name, levels)
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


def _check_pixels(width: int, height: int, name: str, most: int, times: float = 1.0, why: str = "") -> None:
    """Raise PictureTooLarge where the pixels, each counted `times` for the reason `why`, are more than `most`."""
    if width < 1 or height < 1:
        raise PictureInvalid(
            f"has no pixels ({width}x{height}); both edges must be at least 1",
            "give a picture with pixels",
            subject=name,
        )
    pixels = math.ceil(width * height * times)
    if pixels <= most:
        return
    size = f"{width}x{height} {why} costs as much as" if why else f"{width}x{height} is"
    cure = "save it as another picture, or smaller" if why else "shrink the picture first"
    raise PictureTooLarge(
        f"{size} {millions(pixels)} million pixels, at most {millions(most)} million are accepted",
        or_more(cure, pixels),
        subject=name,
    )


def _from_pillow(image: "Image", name: str, levels: Levels) -> np.ndarray:
    try:
        image = _upright(image)
        rgb = np.empty((image.height, image.width, 3), np.uint8)
        rows, clear = max(1, _BLOCK // image.width), True
        for top in range(0, image.height, rows):  # in strips: each kind's steps need some copies
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            shown, is_clear = _to_rgb(strip, levels)
            rgb[top : top + rows] = np.asarray(shown)
            clear &= is_clear
    except Exception as error:
        if is_shortage(error):
            raise
        raise PictureUnreadable(
            f"a picture of mode {image.mode} cannot be turned into RGB ({one_line(error)})",
            "convert it to 8-bit RGB and try again",
            subject=name,
        ) from None
    if clear:
        _log.warning(
            "%s: is transparent everywhere, and so white; where alpha means nothing, drop it: x[..., :3]", name
        )
    return rgb


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    try:
        exif = image.info.get("exif")
        if exif is None and (profile := image.info.get("Raw profile type exif")):  # as ImageMagick writes it into a PNG
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        if exif and decoding_costs.tags_overlap(io.BytesIO(exif.removeprefix(b"Exif\0\0"))):
            return image
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are good even where EXIF is broken
        if is_shortage(error):
            raise
        return image


def _to_rgb(image: "Image", levels: Levels) -> tuple["Image", bool]:
    """A picture, or a strip of one, as RGB, and whether it is transparent everywhere."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image)
        image = Image.fromarray(to_8_bits(wide, levels))
        if levels.transparent is not None:
            image.putalpha(Image.fromarray(np.where(wide == levels.transparent, 0, 255).astype(np.uint8)))
    elif levels.transparent is not None and image.mode in ("1", "L"):
        image.info["transparency"] = levels.transparent
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if not image.has_transparency_data:
        return (image if image.mode == "RGB" else image.convert("RGB")), False
    shown = image.convert("RGBA")
    least, most = shown.getchannel("A").getextrema()
    if least == 255:
        return shown.convert("RGB"), False
    page = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, shown).convert("RGB"), most == 0


@functools.cache
def _quieten_pillow() -> None:
    """Keep Pillow from warning of each broken tag, thousands in a small file, all of which Python would remember.

    For the whole process. That a picture is huge is a warning of another category, and is left.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@functools.cache
def _quieten_libtiff() -> None:
    """Keep libtiff from writing to stderr, by itself and past Python, what its errors already tell. For the whole process."""
    from PIL import Image

    try:
        library = ctypes.CDLL(Image.core.__file__)  # which finds what it is linked with
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError, TypeError):  # linked otherwise: its lines stay
        pass
