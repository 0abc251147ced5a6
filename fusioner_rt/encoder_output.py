"""A picture after the image encoder, so that further words need no second pass of it."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UsageError


@dataclass(frozen=True, eq=False, repr=False)
class EncodedPicture:
    """`Session.encode` returns it; `Session.segment` takes it like a picture.

    picture: (H, W, 3) uint8 RGB, as decoded. input_size: (h, w) of the network's input, pixels.
    encoded: tokens (h', w', c) float32, or the prepared picture where the backend runs image encoder and fusion as one.
    window: "whole", or "sliding" where they are those of sliding windows.
    source: the picture's path as it was given, or None.
    backend: `Backend.effective` of its session. picture_sha256: `Bundle.picture_sha256` of its bundle.

    The arrays are read-only. Threads, and sessions of the same bundle and backend, may share one.
    """

    picture: np.ndarray
    input_size: tuple[int, int]
    encoded: np.ndarray
    backend: str
    picture_sha256: str
    window: str = "whole"
    source: str | None = None

    def __post_init__(self) -> None:
        made = all(isinstance(array, np.ndarray) for array in (self.picture, self.encoded))
        made = made and self.picture.dtype == np.uint8 and self.picture.ndim == 3 and self.picture.shape[2] == 3
        made = made and isinstance(self.input_size, tuple) and len(self.input_size) == 2
        if not (made and all(isinstance(text, str) for text in (self.backend, self.picture_sha256, self.window))):
            raise UsageError(
                "an encoded picture's fields are not as they are described", "take what Session.encode returns"
            )
        for array in (self.picture, self.encoded):
            array.flags.writeable = False

    def check(self, backend: str, picture_sha256: str, window: str = "whole") -> None:
        """Raises UsageError where it comes from another backend or bundle, or was encoded with another window."""
        if self.picture_sha256 != picture_sha256:
            raise UsageError(
                f"was encoded by another bundle or for another input_size (pictures' hash {self.picture_sha256[:12]}…, this "
                f"session's {picture_sha256[:12]}…)",
                "encode the picture with this session",
                subject=str(self),
            )
        if self.backend != backend:
            raise UsageError(
                f"was encoded by the backend {self.backend}, this session's is {backend}",
                "encode the picture with this session",
                subject=str(self),
            )

        if self.window != window:
            raise UsageError(
                f"was encoded with window={self.window!r}, this call says {window!r}",
                f"pass window={self.window!r}, or encode the picture again",
                subject=str(self),
            )

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        h, w = self.input_size
        return f"<EncodedPicture {width}x{height}, input {w}x{h}>"


def source_of(picture: Any) -> str | None:
    """The path that a picture was given as, or that a Pillow image or an open file was read from; else None."""
    if isinstance(picture, EncodedPicture):
        return picture.source
    if isinstance(picture, (str, os.PathLike)):
        return os.fsdecode(picture)
    for name in ("filename", "name"):
        path = getattr(picture, name, None)
        if path and isinstance(path, (str, os.PathLike)) and not str(path).startswith("<"):  # <stdin>
            return os.fsdecode(path)
    return None
