"""A picture kept as what words are fused with, so that other words cost no second pass of the image encoder."""

from dataclasses import dataclass

import numpy as np

from .errors import UsageError


@dataclass(frozen=True, eq=False, repr=False)
class EncodedPicture:
    """What `Session.encode` returns and `Session.segment` takes in a picture's place.

    picture: (H, W, 3) uint8 RGB, as decoded. input_size: (h, w) of the network's input, pixels.
    encoded: what the backend keeps of it: tokens (h', w', c) float32, or what it starts from where it runs image encoder
        and fusion as one.
    backend, picture_sha256: what it was encoded by, `Backend.effective` and `Bundle.picture_sha256`.

    The arrays cannot be written to; threads, and sessions of the same bundle and backend, may share one.
    """

    picture: np.ndarray
    input_size: tuple[int, int]
    encoded: np.ndarray
    backend: str
    picture_sha256: str

    def __post_init__(self) -> None:
        for array in (self.picture, self.encoded):
            array.flags.writeable = False

    def check(self, backend: str, picture_sha256: str) -> None:
        """Raises UsageError where a session of that backend and bundle cannot use it."""
        if self.picture_sha256 != picture_sha256:
            raise UsageError(
                f"was encoded by another bundle (pictures' hash {self.picture_sha256[:12]}…, this "
                f"session's {picture_sha256[:12]}…)",
                "encode the picture with this session",
                subject=self,
            )
        if self.backend != backend:
            raise UsageError(
                f"was encoded by the backend {self.backend}, this session's is {backend}",
                "encode the picture with this session",
                subject=self,
            )

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        high, wide = self.input_size
        return f"<EncodedPicture {width}x{height}, input {wide}x{high}>"
