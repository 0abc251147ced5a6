"""The mask head on a GPU: arrays in device memory to labels, masks or probabilities, on a caller's stream.

The kernels are those of the bundle; the sizes their grids are made of are defined here and in kernels/variants.py,
held equal by a test. Nothing is allocated: outputs and workspace are the caller's.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..device_array import DeviceArray
from ..errors import DeviceArrayInvalid, UsageError
from .kernels import Kernels

PARTS = 256  # partial maxima of a picture's features
FEW_WORDS = 32
LONGEST_EDGE = MOST_WORDS = 65535
_COUNTED = 2**30  # the kernels count the elements of a picture in 32 bits
_ALIGNMENT = 256


class CudaMaskHead:
    """Both stages on one GPU. Threads may share it, each with its own stream, workspace and outputs."""

    def __init__(self, kernels: Kernels, temperature: float) -> None:
        """temperature: the bundle's, what a cosine is divided by. Raises UsageError."""
        if not 1e-6 <= temperature < math.inf:
            raise UsageError(f"temperature is {temperature}; expected a number from 1e-6, 0.07 in the paper")
        self._kernels, self._temperature = kernels, temperature

    @staticmethod
    def workspace_bytes(features: Sequence[int], words: int) -> int:
        """Bytes of the workspace that `maps` needs. features: B, h, w, d. words: K."""
        pictures = features[0]
        return _padded(pictures * PARTS * 4) + 2 * _padded(pictures * words * 4)

    def maps(self, features: Any, words: Any, workspace: Any, scores: Any, gram: Any, finite: Any, stream: int) -> None:
        """Stage 1: features (B, h, w, d) and words (B, K, d), both float16, bfloat16 or float32, neither normalised.

        workspace: uint8 of at least `workspace_bytes`. scores: (B, K, h, w) float32 out. gram: (B, 5, h, w) float32 out.
        finite: (B,) int32 out, 1 where all of a picture's maps are finite, else 0. stream: CUstream as an integer.
        d must be a multiple of 16. Non-finite features give NaN maps, and those labels 0 with confidence NaN.
        Raises DeviceArrayInvalid, KernelsUnusable, CudaFailed.
        """
        features, words = DeviceArray.of(features, "features"), DeviceArray.of(words, "words")
        kinds = ("float16", "bfloat16", "float32")
        pictures, height, width, channels = _shape(features, "features", "(B, h, w, d)", kinds)
        count = _shape(words, "words", "(B, K, d)", (features.dtype,))[1]
        _expect(words, "words", (pictures, count, channels), features.dtype)
        scores = _out(scores, "scores", (pictures, count, height, width), "float32")
        gram = _out(gram, "gram", (pictures, 5, height, width), "float32")
        finite = _out(finite, "finite", (pictures,), "int32")
        if channels % 16:
            raise DeviceArrayInvalid(f"features have {channels} channels", "the compiled kernels take multiples of 16")
        for what, number in (("feature values", height * width * channels), ("word values", count * channels)):
            _counted(number, what)
        _counted(max(count, 5) * height * width, "scores or inner products")
        workspace = DeviceArray.of(workspace, "workspace")
        needed = self.workspace_bytes(features.shape, count)
        if workspace.nbytes < needed:
            raise DeviceArrayInvalid(f"workspace has {workspace.nbytes} bytes", f"these shapes need {needed}")
        self._check_device(features=features, words=words, workspace=workspace, scores=scores, gram=gram, finite=finite)
        parts = workspace.pointer
        units = parts + _padded(pictures * PARTS * 4)
        inverses = units + _padded(pictures * count * 4)
        measured = {"parts": parts, "units": units, "inverses": inverses}
        size = sizes((height, width), count)
        inputs = {
            "features": features.pointer, "words": words.pointer, **measured, "finite": finite.pointer, "K": count,
            "d": channels,
        }  # fmt: skip
        self._kernels.launch(f"measure.{features.dtype}", pictures, size, {**inputs, "N": height * width}, stream)
        self._kernels.launch(
            f"maps.{features.dtype}.{_many(count)}", pictures, size,
            {**inputs, "scores": scores.pointer, "gram": gram.pointer, "h": height, "w": width}, stream,
        )  # fmt: skip

    def labels(self, scores: Any, gram: Any, threshold: float, labels: Any, confidence: Any, stream: int) -> None:
        """Stage 2: scores (B, K, h, w) and gram (B, 5, h, w) of `maps` to a label map of any size.

        labels: (B, H, W) uint16 out, 0 = background, n = word n. confidence: (B, H, W) float16 or float32 out, the best
        word's probability; NaN where a feature was no number. Raises DeviceArrayInvalid, KernelsUnusable, CudaFailed.
        """
        labels = DeviceArray.of(labels, "labels")
        _shape(labels, "labels", "(B, H, W)", ("uint16",))
        confidence = DeviceArray.of(confidence, "confidence")
        _shape(confidence, "confidence", "(B, H, W)", ("float16", "float32"))
        _expect(confidence, "confidence", labels.shape, confidence.dtype)
        outputs = {"labels": labels, "confidence": confidence}
        scalars = {"inverse_temperature": 1 / self._temperature, "threshold": _threshold(threshold)}
        scores = DeviceArray.of(scores, "scores")
        count = _shape(scores, "scores", "(B, K, h, w)", ("float32",))[1]
        self._resolve(f"labels.{confidence.dtype}.{_many(count)}", scores, gram, labels.shape, outputs, scalars, stream)

    def probabilities(self, scores: Any, gram: Any, probabilities: Any, stream: int) -> None:
        """One map per word. probabilities: (B, K, H, W) float16 or float32 out. Raises as `labels`."""
        out = DeviceArray.of(probabilities, "probabilities")
        pictures, words, height, width = _shape(out, "probabilities", "(B, K, H, W)", ("float16", "float32"))
        scalars = {"inverse_temperature": 1 / self._temperature}
        self._resolve(
            f"probabilities.{out.dtype}", scores, gram, (pictures, height, width), {"probabilities": out}, scalars, stream,
            words,
        )  # fmt: skip

    def masks(self, scores: Any, gram: Any, threshold: float, masks: Any, width: int, stream: int) -> None:
        """One bit per word and pixel: whether the word's probability exceeds the threshold, whatever other words do.

        masks: (B, K, H, ⌈width / 32⌉) int32 out; bit x % 32 of element x // 32 is pixel x. Raises as `labels`.
        """
        out = DeviceArray.of(masks, "masks")
        pictures, words, height, pitch = _shape(out, "masks", "(B, K, H, ⌈W/32⌉)", ("int32",))
        if pitch != -(-width // 32):
            raise DeviceArrayInvalid(f"masks have rows of {pitch} elements", f"{width} pixels need {-(-width // 32)}")
        limit = _threshold(threshold)
        if limit in (0, 1):
            least = math.inf if limit else -math.inf
        else:
            least = self._temperature * math.log(limit / (1 - limit))
        scalars = {"least_cosine": least}
        self._resolve("masks", scores, gram, (pictures, height, width), {"masks": out}, scalars, stream, words)

    def _resolve(
        self, name: str, scores: Any, gram: Any, output: Sequence[int], outputs: dict[str, DeviceArray],
        scalars: dict[str, float], stream: int, expected_words: int | None = None,
    ) -> None:  # fmt: skip
        scores, gram = DeviceArray.of(scores, "scores"), DeviceArray.of(gram, "gram")
        pictures, words, low_height, low_width = _shape(scores, "scores", "(B, K, h, w)", ("float32",))
        _expect(scores, "scores", (output[0], expected_words or words, low_height, low_width), "float32")
        _expect(gram, "gram", (pictures, 5, low_height, low_width), "float32")
        height, width = output[1:]
        if words > MOST_WORDS or max(height, width) > LONGEST_EDGE:
            raise DeviceArrayInvalid(
                f"{words} words at {width}x{height} pixels",
                f"at most {MOST_WORDS} words and {LONGEST_EDGE} pixels an edge",
            )
        _counted(max(words, 5) * low_height * low_width, "scores or inner products")
        for edge, low in ((height, low_height), (width, low_width)):
            _counted((edge + 2) * (low + 2), "an output edge times its low-resolution edge,")
        self._check_device(scores=scores, gram=gram, **outputs)
        size = sizes((low_height, low_width), words, (height, width))
        arguments: dict[str, int | float] = {
            "scores": scores.pointer, "gram": gram.pointer, **{key: array.pointer for key, array in outputs.items()},
            "h": low_height, "w": low_width, "K": words, "H": height, "W": width, "band_rows": size["band_rows"], **scalars,
        }  # fmt: skip
        self._kernels.launch(name, pictures, size, arguments, stream)

    def _check_device(self, **arrays: DeviceArray) -> None:
        for name, array in arrays.items():
            self._kernels.device.check_owns(array.pointer, name)


def sizes(features: tuple[int, int], words: int, output: tuple[int, int] = (1, 1)) -> dict[str, int]:
    """The sizes that grids are made of. features: h, w. output: H, W.

    A band is the output rows between two low-resolution rows; one is above the first, one below the last.
    """
    (low_height, low_width), (height, width) = features, output
    rows = -(-height // low_height)
    return {
        "positions": low_height * low_width, "words": words, "bands": low_height + 1, "band_rows": rows, "columns": width,
    }  # fmt: skip


def _many(words: int) -> str:
    return "few" if words <= FEW_WORDS else "many"


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _shape(array: DeviceArray, name: str, letters: str, dtypes: Sequence[str]) -> tuple[int, ...]:
    if array.dtype not in dtypes:
        raise DeviceArrayInvalid(f"{name} is {array.dtype}; expected {' or '.join(dtypes)}")
    if len(array.shape) != letters.count(",") + 1 or min(array.shape, default=0) < 1:
        raise DeviceArrayInvalid(f"{name} has shape {array.shape}; expected {letters}, none of them 0")
    if array.pointer % 16 or not array.pointer:
        raise DeviceArrayInvalid(f"{name} lies at {array.pointer:#x}; expected an address that is a multiple of 16")
    return array.shape


def _expect(array: DeviceArray, name: str, shape: Sequence[int], dtype: str) -> None:
    if array.dtype != dtype or tuple(array.shape) != tuple(shape):
        raise DeviceArrayInvalid(f"{name} is {array.dtype} {array.shape}; expected {dtype} {tuple(shape)}")
    if array.pointer % 16 or not array.pointer:
        raise DeviceArrayInvalid(f"{name} lies at {array.pointer:#x}; expected an address that is a multiple of 16")


def _out(array: Any, name: str, shape: Sequence[int], dtype: str) -> DeviceArray:
    array = DeviceArray.of(array, name)
    _expect(array, name, shape, dtype)
    return array


def _counted(number: int, what: str) -> None:
    if number >= _COUNTED:
        raise DeviceArrayInvalid(f"{number} {what} of a picture", "the kernels count to 2**30: give them less at once")


def _threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; expected 0 to 1")
    return float(threshold)
