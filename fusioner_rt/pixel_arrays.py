"""Pixels in memory: arrays and tensors of one picture or of a batch. No array library but numpy is imported."""

import re
from typing import Any, Literal

import numpy as np

from .errors import PictureInvalid, UsageError, one_line
from .memory_shortage import is_shortage

Channels = Literal["rgb", "bgr"]
CHANNELS = ("rgb", "bgr")

_HOST = (1, 3)  # DLPack's kinds of devices whose memory the CPU reads: kDLCPU, kDLCUDAHost
_FLOATS = "(x * 255).round().astype('uint8') for floats in 0..1, x.astype('uint8') for other numbers in 0..255; of a tensor .byte()"
_BITS = "x >> 8 brings 16 bits to 8, x >> 4 brings 12; then .astype('uint8')"


def check_channels(channels: Any) -> Channels:
    """The order of channels, if it is one. Raises UsageError."""
    if isinstance(channels, str) and channels in CHANNELS:
        return channels  # type: ignore[return-value]
    raise UsageError(
        f"channels is {channels!r}",
        "choose 'rgb', or 'bgr' for OpenCV's arrays; the number of channels is seen from the array",
    )


def is_array(picture: Any) -> bool:
    """Whether an object is an array or a tensor, of any library."""
    return isinstance(picture, np.ndarray) or any(
        hasattr(type(picture), name)
        for name in ("__array__", "__array_interface__", "__dlpack__", "__cuda_array_interface__")
    )


def as_array(picture: Any) -> np.ndarray:
    """The uint8 pixels of an array or a tensor in the CPU's memory, without a copy where that can be.

    Raises PictureInvalid.
    """
    name = describe(picture)
    if is_on_device(picture):
        raise PictureInvalid(
            "its pixels lie in the memory of a device, and segment reads the CPU's",
            "pass it to session.segment_on_device, which takes CUDA's, or copy it: tensor.cpu()",
            subject=name,
        )
    _check_dtype(getattr(picture, "dtype", "uint8"), name)
    try:
        by_dlpack = not (hasattr(picture, "__array__") or hasattr(picture, "__array_interface__"))
        array = np.from_dlpack(picture) if by_dlpack else np.asarray(picture)
    except Exception as error:  # of the library that holds it
        if is_shortage(error):
            raise
        raise PictureInvalid(
            f"cannot be read as an array ({one_line(error)})", "pass a (H, W, 3) uint8 numpy array", subject=name
        ) from None
    _check_dtype(array.dtype, name)
    return array


def pictures_of(batch: np.ndarray, name: str) -> list[np.ndarray]:
    """The pictures of a (B, H, W, C) batch. Raises PictureInvalid where C is not 1 to 4."""
    if batch.shape[3] not in (1, 2, 3, 4):
        last = "channels come last: x.transpose(0, 2, 3, 1), of a tensor x.permute(0, 2, 3, 1)"
        raise PictureInvalid(
            "a batch must be (pictures, height, width, channels)",
            last if batch.shape[1] in (1, 3, 4) else "give 1, 3 or 4 channels",
            subject=name,
        )
    return list(batch)


def shaped(array: np.ndarray, name: str) -> np.ndarray:
    """One picture's pixels as (H, W, C): grey, grey and alpha, colours, colours and alpha. Raises PictureInvalid."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3 and array.shape[2] in (1, 2, 3, 4):
        return array
    expected = "one picture must be (height, width), (height, width, 3), or with alpha (height, width, 4)"
    if array.ndim == 1:
        cure = "if these are the bytes of a file, pass x.tobytes()"
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
        cure = "channels come last: x.transpose(1, 2, 0), of a tensor x.permute(1, 2, 0)"
    elif array.ndim == 3:
        cure = "a batch of grey pictures is (pictures, height, width, 1): x[..., None]"
    elif array.ndim == 4:
        cure = "give a batch by itself, or its pictures one by one: [*x]"
    else:
        cure = "give one of these"
    raise PictureInvalid(expected, cure, subject=name)


def in_rgb_order(pixels: np.ndarray, channels: Channels) -> np.ndarray:
    """(H, W, C) in the order `channels` → RGB or RGBA. Grey has no order."""
    if channels == "rgb" or pixels.shape[2] < 3:
        return pixels
    ordered = np.empty(pixels.shape, np.uint8)
    sources = (2, 1, 0, 3)[: pixels.shape[2]]
    for channel, source in enumerate(sources):  # a plane each: four times as fast as [..., ::-1]
        ordered[..., channel] = pixels[..., source]
    return ordered


def describe(picture: Any) -> str:
    """An array's dtype and shape, for messages."""
    kind = "array" if isinstance(picture, np.ndarray) else type(picture).__qualname__
    dtype = str(getattr(picture, "dtype", "")).removeprefix("torch.")
    shape = getattr(picture, "shape", None)
    return " ".join(filter(None, ["the", dtype, kind, shape is not None and f"of shape {tuple(shape)}"]))  # type: ignore[list-item]


def is_on_device(picture: Any) -> bool:
    """Whether an array's or a tensor's pixels lie in the memory of a device."""
    if isinstance(picture, np.ndarray):
        return False
    try:
        return picture.__dlpack_device__()[0] not in _HOST
    except Exception:  # it has none, or a device that DLPack has no number for
        pass
    try:
        return picture.__cuda_array_interface__ is not None
    except AttributeError:
        return False
    except Exception:  # it has one that cannot be read
        return True


def _check_dtype(dtype: Any, name: str) -> None:
    kind = (re.findall(r"\w+", str(dtype)) or [""])[-1]  # uint8, torch.uint8, <dtype: 'uint8'>, <class 'numpy.uint8'>
    if kind == "uint8":
        return
    cure = {"bool": "x.astype('uint8') * 255 makes it black and white", "uint16": _BITS}.get(kind, _FLOATS)
    raise PictureInvalid("pixels must be uint8, 0..255", cure, subject=name)
