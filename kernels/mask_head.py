"""The mask head on torch tensors: Triton kernels on a GPU, their definition on the CPU.

The functions are those of `kernels.reference`, with the same shapes and the same meaning; training and its scores call
them here. An application runs the same kernels without Triton or torch, compiled into the bundle (docs/bundle.md).

With TRITON_INTERPRET=1 tensors on the CPU go through the kernels too, interpreted one program at a time.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusioner_rt.gpu.kernel_contract import (
    MAX_EDGE,
    MAX_PICTURES,
    MAX_VALUES,
    MAX_WORDS,
    MIN_TEMPERATURE,
    SCORINGS,
    few_or_many,
    least_cosine,
    mask_sizes,
    programs,
)
from kernels import reference


def score_maps(features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Stage 1: low-resolution score and Gram maps (paper 3.1.3; `kernels.reference.score_maps`).

    features: (B, h, w, d) float16, bfloat16 or float32, not normalised. words: (B, K, d) of the same dtype and device,
    not normalised. Returns scores (B, K, h, w) and gram (B, 5, h, w), float32, in units common to a picture: on a GPU
    a power of two near its largest feature value, 1 for float16. Nothing waits for the GPU to find NaN or infinity: such
    features give NaN maps, and `resolve` gives those label 0 with NaN confidence.
    No gradient flows through the functions here; those of `kernels.reference` have one. Raises TypeError and ValueError.
    """
    _check_features(features, words)
    if not _by_kernels(features):
        return reference.score_maps(features, words)
    from kernels.variants import DOT_TYPES, PARTS

    features, words = features.contiguous(), words.contiguous()
    pictures, height, width, channels = features.shape
    count, dtype = words.shape[1], str(features.dtype).removeprefix("torch.")
    new = functools.partial(torch.empty, device=features.device)
    parts = new(pictures, PARTS, dtype=torch.int32)
    units, inverses = new(pictures, count), new(pictures, count)
    finite = new(pictures, dtype=torch.int32)
    scores, gram = new(pictures, count, height, width), new(pictures, 5, height, width)
    size = mask_sizes((height, width), count)
    positions = height * width
    _launch(
        f"measure.{dtype}",
        pictures,
        size,
        (features, words, parts, units, inverses, finite, positions, count, channels),
    )
    interpreted = {"DOT": DOT_TYPES["float32"]} if _interpreting() and dtype == "bfloat16" else {}  # it has no bfloat16
    _launch(
        f"maps.{dtype}.{few_or_many(count)}", pictures, size,
        (features, words, parts, units, inverses, scores, gram, finite, height, width, count, channels), **interpreted,
    )  # fmt: skip
    return scores, gram


def resolve(
    scores: Tensor,
    gram: Tensor,
    size: Sequence[int],
    temperature: float,
    threshold: float,
    confidence: torch.dtype = torch.float32,
    scoring: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Label map and winner's probability at any size (`kernels.reference.resolve`), K costing no memory.

    scores (B, K, h, w) and gram (B, 5, h, w) of `score_maps`. size: H, W. Returns labels (B, H, W) uint16, 0 where no
    word's probability exceeds `threshold`, and confidence (B, H, W) in the dtype asked for, float16 or float32; the
    threshold is compared before rounding to it. scoring: "sigmoid" or "softmax". Raises TypeError and ValueError.
    """
    size, temperature = _check_maps(scores, gram, size, temperature)
    threshold, prefix = _check_threshold(threshold), _check_scoring(scoring)
    if confidence not in (torch.float16, torch.float32):
        raise TypeError(f"confidence is {confidence}, expected torch.float16 or torch.float32")
    if scores.shape[1] > MAX_WORDS:
        raise ValueError(f"{scores.shape[1]} words: a label map numbers them with 16 bits, {MAX_WORDS} at most")
    if not _by_kernels(scores):
        labels, values = reference.resolve(scores, gram, size, temperature, threshold, scoring)
        return labels.to(torch.uint16), values.to(confidence)
    new = functools.partial(torch.empty, device=scores.device)
    labels, values = new(len(scores), *size, dtype=torch.uint16), new(len(scores), *size, dtype=confidence)
    name = f"{prefix}labels.{_name(confidence)}.{few_or_many(scores.shape[1])}"
    _resolve(name, scores, gram, size, (labels, values), (1 / temperature, threshold))
    return labels, values


def probabilities(
    scores: Tensor,
    gram: Tensor,
    size: Sequence[int],
    temperature: float,
    dtype: torch.dtype = torch.float32,
    scoring: str = "sigmoid",
) -> Tensor:
    """One probability map per word (`kernels.reference.probabilities`): (B, K, H, W) float16 or float32."""
    size, temperature = _check_maps(scores, gram, size, temperature)
    prefix = _check_scoring(scoring)
    if dtype not in (torch.float16, torch.float32):
        raise TypeError(f"dtype is {dtype}, expected torch.float16 or torch.float32")
    if not _by_kernels(scores):
        return reference.probabilities(scores, gram, size, temperature, scoring).to(dtype)
    out = torch.empty(*scores.shape[:2], *size, dtype=dtype, device=scores.device)
    _resolve(f"{prefix}probabilities.{_name(dtype)}", scores, gram, size, (out,), (1 / temperature,))
    return out


def masks(
    scores: Tensor,
    gram: Tensor,
    size: Sequence[int],
    temperature: float,
    threshold: float,
    scoring: str = "sigmoid",
) -> Tensor:
    """Bit-packed masks, every word whose probability is over the threshold: (B, K, H, ⌈W/32⌉) int32
    (`kernels.reference.masks`, `pack`).
    """
    size, temperature = _check_maps(scores, gram, size, temperature)
    threshold, prefix = _check_threshold(threshold), _check_scoring(scoring)
    if not _by_kernels(scores):
        return reference.pack(reference.masks(scores, gram, size, temperature, threshold, scoring))
    height, width = size
    out = torch.empty(*scores.shape[:2], height, -(-width // 32), dtype=torch.int32, device=scores.device)
    scalars = (1 / temperature, threshold) if scoring == "softmax" else (least_cosine(temperature, threshold),)
    _resolve(f"{prefix}masks", scores, gram, size, (out,), scalars)
    return out


def _resolve(
    name: str, scores: Tensor, gram: Tensor, size: tuple[int, int], outputs: tuple[Tensor, ...], scalars: tuple[float, ...]
) -> None:  # fmt: skip
    pictures, words, low_height, low_width = scores.shape
    known = mask_sizes((low_height, low_width), words, size)
    _launch(
        name, pictures, known,
        (scores.contiguous(), gram.contiguous(), *outputs, low_height, low_width, words, *size, known["band_rows"], *scalars),
    )  # fmt: skip


def _launch(name: str, pictures: int, size: Mapping[str, int], arguments: tuple[Any, ...], **constants: Any) -> None:
    from kernels.variants import variant

    device = arguments[0].device
    capability, tiling = _tiling(name, device.index if device.type == "cuda" else None)
    chosen = variant(name, capability)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        chosen.kernel[(programs(tiling.grid, size), pictures)](
            *arguments, **{**chosen.constants, **tiling.constants, **constants}, **options
        )


@functools.cache
def _tiling(name: str, device: int | None) -> tuple[int, Any]:
    """A GPU's place among the compiled targets, and what the compiler's report chose for it."""
    from kernels.variants import TARGETS, variant

    if device is None:
        return 80, variant(name, 80).tilings[0]
    from kernels.compile import choose

    major, minor = torch.cuda.get_device_capability(device)
    known = [target for target in TARGETS if target <= 10 * major + minor]
    if not known:
        raise RuntimeError(f"GPU of compute capability {major}.{minor}: the kernels need {TARGETS[0] / 10} or later")
    return known[-1], choose(name, known[-1]).tiling


def _by_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda or _interpreting()


def _interpreting() -> bool:
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided or tensor.device.type not in ("cpu", "cuda"):
            raise TypeError(
                f"{name} is {tensor.layout} on {tensor.device}, expected a dense tensor on a CPU or CUDA GPU"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and none flows through here; detach it or use torch.no_grad()"
            )


def _check_features(features: Tensor, words: Tensor) -> None:
    _check_tensors(features=features, words=words)
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"features are {features.dtype}, expected torch.float16, torch.bfloat16 or torch.float32")
    if words.dtype != features.dtype or words.device != features.device:
        raise TypeError(
            f"words are {words.dtype} on {words.device} and features {features.dtype} on {features.device}; "
            "expected the same of both"
        )
    if features.ndim != 4 or words.ndim != 3 or len(words) != len(features) or words.shape[2] != features.shape[3]:
        raise ValueError(
            f"features {tuple(features.shape)} and words {tuple(words.shape)}, expected (B, h, w, d) and (B, K, d)"
        )
    if not (features.numel() and words.numel()):
        raise ValueError(
            f"features {tuple(features.shape)} and words {tuple(words.shape)}, expected at least one in every dimension"
        )
    _check_pictures(len(features))
    _check_range(features[0].numel(), "feature values of a picture")
    _check_range(words[0].numel(), "word values of a picture")
    _check_range(max(words.shape[1], 5) * features.shape[1] * features.shape[2], "scores of a picture")


def _check_maps(scores: Tensor, gram: Tensor, size: Sequence[int], temperature: float) -> tuple[tuple[int, int], float]:
    """Returns size and temperature as plain numbers."""
    _check_tensors(scores=scores, gram=gram)
    if scores.dtype != torch.float32 or gram.dtype != torch.float32 or scores.device != gram.device:
        raise TypeError(
            f"scores are {scores.dtype} on {scores.device} and gram {gram.dtype} on {gram.device}; "
            "expected torch.float32 on one device"
        )
    if scores.ndim != 4 or not scores.numel() or gram.shape != (len(scores), 5, *scores.shape[2:]):
        raise ValueError(
            f"scores {tuple(scores.shape)} and gram {tuple(gram.shape)}, expected (B, K, h, w) and (B, 5, h, w), none 0"
        )
    height, width = _edges(size)
    _check_pictures(len(scores))
    _check_range(max(scores.shape[1], 5) * scores.shape[2] * scores.shape[3], "scores of a picture")
    for edge, low in zip((height, width), scores.shape[2:], strict=True):
        if low > MAX_EDGE:
            raise ValueError(f"maps of {tuple(scores.shape[2:])}, expected edges of at most {MAX_EDGE}")
        _check_range((edge + 2) * (low + 2), "an output edge times its low-resolution edge")
    temperature = _number("temperature", temperature)
    if not MIN_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected a finite number of at least {MIN_TEMPERATURE}")
    return (height, width), temperature


def _edges(size: Sequence[int]) -> tuple[int, int]:
    try:
        edges = tuple(operator.index(edge) for edge in size if not isinstance(edge, bool))
    except TypeError:
        edges = ()
    if len(edges) != 2 or len(size) != 2 or not all(1 <= edge <= MAX_EDGE for edge in edges):
        raise ValueError(f"size is {size!r}, expected (H, W), each a whole number of pixels from 1 to {MAX_EDGE}")
    return edges[0], edges[1]


def _check_threshold(threshold: float) -> float:
    """Returns it as a plain number."""
    threshold = _number("threshold", threshold)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected 0 to 1")
    return threshold


def _check_scoring(scoring: str) -> str:
    """Returns what the names of its kernels begin with."""
    if scoring not in SCORINGS:
        raise ValueError(f"scoring is {scoring!r}, expected {' or '.join(SCORINGS)}")
    return SCORINGS[scoring]


def _number(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number; of a tensor, its item()")
    return float(value)


def _check_pictures(number: int) -> None:
    if number > MAX_PICTURES:
        raise ValueError(f"{number} pictures: a launch takes {MAX_PICTURES} at most; give them less at once")


def _check_range(number: int, what: str) -> None:
    if number > MAX_VALUES:
        raise ValueError(f"{number} {what}: the kernels count to 2**30; give them less at once")
