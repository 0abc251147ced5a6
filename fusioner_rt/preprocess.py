"""Picture to network input: size, resampling and normalisation, for training and serving."""

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np

from .argument_checks import named, shown, whole
from .errors import ManifestInvalid, PictureInvalid, UsageError
from .json_fields import Field

FITS = ("area", "short")
MOST_PIXELS = 1 << 16
"""Of an edge of the network's input."""
RESAMPLINGS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """The manifest's `preprocessing`.

    side: square root of the input's area, or its short edge, in pixels; `fit` says which: "area" or "short".
    multiple: the edges of the input are positive multiples of it.
    longest: maximum of an edge (rounded down to a multiple).
    resample: one of RESAMPLINGS; Pillow antialiases when it shrinks.
    mean, std: per channel, in units of 0..1.
    """

    side: int
    multiple: int
    longest: int
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: str = "area"

    def __post_init__(self) -> None:
        most = 1 << 31
        for name in ("side", "multiple", "longest"):
            object.__setattr__(self, name, whole(getattr(self, name), name, -most, most, "give a whole number"))
        for name in ("resample", "fit"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(named(name, getattr(self, name)), "give a text")
        for name in ("mean", "std"):
            if not _is_three_numbers(getattr(self, name)):
                raise UsageError(named(name, getattr(self, name)), "give three finite numbers")
        if not 1 <= self.multiple <= self.longest or self.side < 1:
            raise ManifestInvalid(
                f"preprocessing: side {self.side}, multiple {self.multiple} and longest {self.longest} do not fit; "
                "side must be positive and multiple within 1..longest",
            )
        if self.fit not in FITS:
            raise ManifestInvalid(f"preprocessing: fit {self.fit!r} is unknown; it must be one of {', '.join(FITS)}")
        if self.resample not in RESAMPLINGS:
            raise ManifestInvalid(
                f"preprocessing: resample {self.resample!r} is unknown; it must be one of {', '.join(RESAMPLINGS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ManifestInvalid("preprocessing: mean and std must hold three numbers each, those of std positive")

    @classmethod
    def from_manifest(cls, entry: Field) -> "Preprocessing":
        """From the manifest's `preprocessing` object. Raises ManifestInvalid."""
        mean = tuple(value.number(-1000, 1000) for value in entry["mean"].items(3))
        std = tuple(value.number(1e-6, 1000) for value in entry["std"].items(3))
        side, multiple, longest = (entry[name].whole(1, MOST_PIXELS) for name in ("side", "multiple", "longest"))
        resample, fit = entry["resample"].text(), entry["fit"].text()
        return cls(side, multiple, longest, resample, mean, std, fit)  # type: ignore[arg-type]

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `preprocessing` object; `from_manifest` reads it back."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Network input (h, w) of a picture of height x width pixels: same aspect, area about side² or short edge `side`."""
        cure = "give height and width in whole pixels"
        height, width = (whole(edge, "an edge of the picture", -1, 1 << 31, cure) for edge in (height, width))
        if height < 1 or width < 1:
            raise PictureInvalid(
                f"a picture of {width}x{height} has no pixels; both edges must be at least 1",
                "give a picture with pixels",
            )
        scale = self.side / (min(height, width) if self.fit == "short" else math.sqrt(height * width))
        return self._edge(height * scale), self._edge(width * scale)

    def _edge(self, length: float) -> int:
        whole = math.floor(length / self.multiple + 0.5) * self.multiple
        return min(max(whole, self.multiple), self.longest // self.multiple * self.multiple)

    def gain_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) float32 each: value = level · gain - shift, rounded to float32 after each operation."""
        std = np.asarray(self.std, np.float32)
        return 1 / (255 * std), np.asarray(self.mean, np.float32) / std

    def resized(self, rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """rgb: (H, W, 3) uint8. size: (h, w). Returns (h, w, 3) uint8, the picture itself where it has that size."""
        from PIL import Image

        if not (
            isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size
        ):
            given = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else shown(rgb)
            raise PictureInvalid(f"the picture is {given}", "give a (H, W, 3) uint8 RGB array with pixels")
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise UsageError(named("size", size), "give height and width in pixels, (h, w)")
        height, width = (
            whole(edge, "size", 1, MOST_PIXELS, f"give edges of 1 to {MOST_PIXELS} pixels") for edge in size
        )
        image = Image.fromarray(rgb)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.resample.upper()])
        return np.asarray(image)

    def __call__(self, rgb: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Resize and normalise.

        rgb: (H, W, 3) uint8. size: (h, w) of the result, by default `input_size(H, W)`.
        Returns (3, h, w) float32, C-contiguous.
        """
        if size is None and isinstance(rgb, np.ndarray) and rgb.ndim == 3:
            size = self.input_size(rgb.shape[0], rgb.shape[1])
        resized = self.resized(rgb, size)  # type: ignore[arg-type]  # it looks at both
        gain, shift = self.gain_and_shift()
        planes = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
        planes *= gain[:, None, None]
        planes -= shift[:, None, None]
        return planes


def _is_three_numbers(given: Any) -> bool:
    return (
        isinstance(given, (tuple, list))
        and len(given) == 3
        and all(isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number) for number in given)
    )
