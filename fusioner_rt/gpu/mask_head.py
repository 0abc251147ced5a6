"""The mask head on a GPU: arrays in device memory to labels, masks or probabilities, on a caller's stream; and labels of
words to those of names.

It launches the bundle's kernels. Nothing is allocated: outputs and workspace are the caller's.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..device_array import DeviceArray
from ..errors import DeviceArrayInvalid, UsageError
from .argument_checks import array_as, array_of, check_count
from .kernel_contract import (
    MAX_EDGE,
    MAX_WORDS,
    MIN_TEMPERATURE,
    PARTS,
    SCORINGS,
    few_or_many,
    least_cosine,
    mask_sizes,
)
from .kernel_launcher import Kernels

_ALIGNMENT = 256  # of the workspace's parts


class CudaMaskHead:
    """Both stages on one GPU. Threads may share it, each with its own stream, workspace and outputs."""

    def __init__(self, kernels: Kernels, temperature: float, scoring: str = "sigmoid") -> None:
        """temperature: the bundle's, what a cosine is divided by. scoring: the bundle's, "sigmoid" or "softmax", which
        makes probabilities of that. Raises UsageError.
        """
        if not MIN_TEMPERATURE <= temperature < math.inf:
            raise UsageError(
                f"temperature is {temperature}; expected a number from {MIN_TEMPERATURE}, 0.07 in the paper"
            )
        if scoring not in SCORINGS:
            raise UsageError(f"scoring is {scoring!r}; expected {' or '.join(SCORINGS)}")
        self._kernels, self._temperature, self._prefix = kernels, temperature, SCORINGS[scoring]

    @staticmethod
    def workspace_bytes(features: Sequence[int], words: int) -> int:
        """Bytes of the workspace that `maps` needs. features: B, h, w, d. words: K."""
        pictures = features[0]
        return _padded(pictures * PARTS * 4) + 2 * _padded(pictures * words * 4)

    def maps(self, features: Any, words: Any, workspace: Any, scores: Any, gram: Any, finite: Any, stream: int) -> None:
        """Stage 1: features (B, h, w, d) and words (B, K, d), both float16, bfloat16 or float32, neither normalised.

        workspace: uint8 of at least `workspace_bytes`. scores: (B, K, h, w) float32 out. gram: (B, 5, h, w) float32 out.
        finite: (B,) int32 out, 1 where all of a picture's maps are finite, else 0. stream: CUstream as an integer.
        d must be a multiple of 16. Infinite or NaN features give label 0 with NaN confidence. Raises DeviceArrayInvalid, KernelsUnusable, CudaFailed.
        """
        features = array_of(features, "features", "(B, h, w, d)", ("float16", "bfloat16", "float32"))
        pictures, height, width, channels = features.shape
        words = array_of(words, "words", "(B, K, d)", (features.dtype,))
        count = words.shape[1]
        words = array_as(words, "words", (pictures, count, channels), features.dtype)
        scores = array_as(scores, "scores", (pictures, count, height, width), "float32")
        gram = array_as(gram, "gram", (pictures, 5, height, width), "float32")
        finite = array_as(finite, "finite", (pictures,), "int32")
        if channels % 16:
            raise DeviceArrayInvalid(f"features have {channels} channels; the compiled kernels take multiples of 16")
        check_count(height * width * channels, "feature values")
        check_count(count * channels, "word values")
        check_count(max(count, 5) * height * width, "scores or inner products")
        workspace = DeviceArray.of(workspace, "workspace")
        needed = self.workspace_bytes(features.shape, count)
        if workspace.nbytes < needed:
            raise DeviceArrayInvalid(f"workspace has {workspace.nbytes} bytes; these shapes need {needed}")
        self._check_device(features=features, words=words, workspace=workspace, scores=scores, gram=gram, finite=finite)
        parts = workspace.pointer
        units = parts + _padded(pictures * PARTS * 4)
        inverses = units + _padded(pictures * count * 4)
        measured = {"parts": parts, "units": units, "inverses": inverses}
        size = mask_sizes((height, width), count)
        inputs = {
            "features": features.pointer, "words": words.pointer, **measured, "finite": finite.pointer, "K": count,
            "d": channels,
        }  # fmt: skip
        self._kernels.launch(f"measure.{features.dtype}", pictures, size, {**inputs, "N": height * width}, stream)
        self._kernels.launch(
            f"maps.{features.dtype}.{few_or_many(count)}", pictures, size,
            {**inputs, "scores": scores.pointer, "gram": gram.pointer, "h": height, "w": width}, stream,
        )  # fmt: skip

    def labels(self, scores: Any, gram: Any, threshold: float, labels: Any, confidence: Any, stream: int) -> None:
        """Stage 2: scores (B, K, h, w) and gram (B, 5, h, w) of `maps` to a label map of any size.

        labels: (B, H, W) uint16 out, 0 = background, n = word n. confidence: (B, H, W) float16 or float32 out, the best
        word's probability; NaN features give NaN confidence. Raises DeviceArrayInvalid, KernelsUnusable, CudaFailed.
        """
        labels = array_of(labels, "labels", "(B, H, W)", ("uint16",))
        confidence = array_of(confidence, "confidence", "(B, H, W)", ("float16", "float32"))
        confidence = array_as(confidence, "confidence", labels.shape, confidence.dtype)
        outputs = {"labels": labels, "confidence": confidence}
        scalars = {"inverse_temperature": 1 / self._temperature, "threshold": _threshold(threshold)}
        scores = array_of(scores, "scores", "(B, K, h, w)", ("float32",))
        name = f"{self._prefix}labels.{confidence.dtype}.{few_or_many(scores.shape[1])}"
        self._resolve(name, scores, gram, labels.shape, outputs, scalars, stream)

    def probabilities(self, scores: Any, gram: Any, probabilities: Any, stream: int) -> None:
        """One map per word. probabilities: (B, K, H, W) float16 or float32 out. Raises as `labels`."""
        out = array_of(probabilities, "probabilities", "(B, K, H, W)", ("float16", "float32"))
        pictures, words, height, width = out.shape
        scalars = {"inverse_temperature": 1 / self._temperature}
        self._resolve(
            f"{self._prefix}probabilities.{out.dtype}", scores, gram, (pictures, height, width), {"probabilities": out}, scalars, stream,
            words,
        )  # fmt: skip

    def masks(self, scores: Any, gram: Any, threshold: float, masks: Any, width: int, stream: int) -> None:
        """One bit per word and pixel: whether the word's probability exceeds the threshold, be it the best word or not.

        masks: (B, K, H, ⌈width / 32⌉) int32 out; bit x % 32 of element x // 32 is pixel x. Raises as `labels`.
        """
        out = array_of(masks, "masks", "(B, K, H, ⌈W/32⌉)", ("int32",))
        pictures, words, height, pitch = out.shape
        if pitch != -(-width // 32):
            raise DeviceArrayInvalid(f"masks have rows of {pitch} elements; {width} pixels need {-(-width // 32)}")
        threshold = _threshold(threshold)
        if self._prefix:
            scalars = {"inverse_temperature": 1 / self._temperature, "threshold": threshold}
        else:
            scalars = {"least_cosine": least_cosine(self._temperature, threshold)}
        self._resolve(
            f"{self._prefix}masks", scores, gram, (pictures, height, width), {"masks": out}, scalars, stream, words
        )

    def names(self, labels: Any, confidence: Any, owners: Any, thresholds: Any, stream: int) -> None:
        """In place, from the words of `labels` to the names of groups: label = owners[label], and 0 where the confidence does
        not exceed thresholds[label].

        labels, confidence: (B, H, W), of `labels`. owners: (K + 1,) uint16, of word n its name's number; 0 of background
        words and of 0. thresholds: (K + 1,) float32, by numbers of names. Raises as `labels`.
        """
        labels = array_of(labels, "labels", "(B, H, W)", ("uint16",))
        confidence = array_of(confidence, "confidence", "(B, H, W)", ("float16", "float32"))
        confidence = array_as(confidence, "confidence", labels.shape, confidence.dtype)
        owners = array_of(owners, "owners", "(K + 1)", ("uint16",))
        thresholds = array_as(thresholds, "thresholds", owners.shape, "float32")
        pictures, height, width = labels.shape
        check_count(height * width, "labels")
        arrays = {"labels": labels, "confidence": confidence, "owners": owners, "thresholds": thresholds}
        self._check_device(**arrays)
        arguments = {**{name: array.pointer for name, array in arrays.items()}, "N": height * width}
        self._kernels.launch(f"names.{confidence.dtype}", pictures, {"pixels": height * width}, arguments, stream)

    def _resolve(
        self, name: str, scores: Any, gram: Any, output: Sequence[int], outputs: dict[str, DeviceArray],
        scalars: dict[str, float], stream: int, expected_words: int | None = None,
    ) -> None:  # fmt: skip
        scores = array_of(scores, "scores", "(B, K, h, w)", ("float32",))
        pictures, words, low_height, low_width = scores.shape
        scores = array_as(scores, "scores", (output[0], expected_words or words, low_height, low_width), "float32")
        gram = array_as(gram, "gram", (pictures, 5, low_height, low_width), "float32")
        height, width = output[1:]
        if words > MAX_WORDS or max(height, width) > MAX_EDGE:
            raise DeviceArrayInvalid(
                f"{words} words at {width}x{height} pixels; at most {MAX_WORDS} words and {MAX_EDGE} pixels an edge"
            )
        check_count(max(words, 5) * low_height * low_width, "scores or inner products")
        for edge, low in ((height, low_height), (width, low_width)):
            check_count((edge + 2) * (low + 2), "an output edge times its low-resolution edge,")
        self._check_device(scores=scores, gram=gram, **outputs)
        size = mask_sizes((low_height, low_width), words, (height, width))
        arguments: dict[str, int | float] = {
            "scores": scores.pointer, "gram": gram.pointer, **{key: array.pointer for key, array in outputs.items()},
            "h": low_height, "w": low_width, "K": words, "H": height, "W": width, "band_rows": size["band_rows"], **scalars,
        }  # fmt: skip
        self._kernels.launch(name, pictures, size, arguments, stream)

    def _check_device(self, **arrays: DeviceArray) -> None:
        for name, array in arrays.items():
            self._kernels.device.check_owns(array.pointer, name)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; expected 0 to 1")
    return float(threshold)
