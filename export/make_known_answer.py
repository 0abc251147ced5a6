"""The known answer that a bundle carries (docs/bundle.md): what its CPU path gives for drawn pictures and the gates' words.

Every other backend is compared with it when it is opened (fusioner_rt/known_answer.py). How far a backend may be off is
derived: as far as the parity gate allows a graph to be off the truth, and as far as the answer itself is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from export import gates
from fusioner_rt.bundle import Bundle
from fusioner_rt.executor_interface import untimed
from fusioner_rt.gpu.kernel_contract import least_cosine
from fusioner_rt.known_answer import KnownAnswer, cosines, errors
from fusioner_rt.onnx.executor import OnnxRuntimeExecutor
from kernels import reference
from training.model import Fusioner, FusionerConfig

FILE = "known_answer.npz"
PICTURES = 3
SIZE = (96, 128)
"""H, W of the pictures."""
FAST_CONVOLUTIONS = 256 * float(np.finfo(np.float32).eps)
"""The error of GPU libraries' fast convolutions in float32, which may lose eight of its bits. A backend that is wrong is off
by a hundred times as much."""
MAX_VALUES = 32 << 10
"""Cosines in the file, 4 bytes each."""


def add(
    bundle: Bundle, model: Fusioner, words: Sequence[str], vectors: np.ndarray, precisions: Sequence[str]
) -> dict[str, Any]:
    """Write the file into a bundle's folder; returns the manifest's entry.

    vectors: (K, t) float32, of the words. precisions: "fp32", "fp16" or "bf16", those that a backend may compute in.
    """
    words, vectors = words[: bundle.words.max], vectors[: bundle.words.max]
    size, pictures = _input_size(bundle), np.stack([picture(seed) for seed in range(PICTURES)])
    answer = KnownAnswer(pictures, size, tuple(words), vectors, 1, np.empty(0), np.empty(0), {}, bundle.threshold)
    with contextlib.closing(OnnxRuntimeExecutor(bundle, "onnxruntime-cpu", None)) as cpu:
        # one by one: the gates prove that a batch gives the same
        maps = [cpu.maps([waiting], answer.request)[0] for waiting in answer.waiting(cpu)]
        found = [cpu.run([waiting], answer.request, untimed)[0].labels for waiting in answer.waiting(cpu)]
    whole, labels = np.concatenate([cosines(*both) for both in maps]), np.stack(found)
    step = next(n for n in range(1, max(whole.shape)) if whole[:, :, ::n, ::n].size <= MAX_VALUES)
    stored = np.ascontiguousarray(whole[:, :, ::step, ::step])
    np.savez_compressed(bundle.folder / FILE, pictures=pictures, vectors=vectors, cosines=stored, labels=labels)
    pixels = [bundle.preprocessing(rgb, size) for rgb in pictures]
    return {
        "file": FILE, "words": list(words), "input_size": list(size), "step": step,
        "bounds": {precision: bounds(model, pixels, vectors, whole, labels, precision) for precision in precisions},
        "apart": apart(stored),
    }  # fmt: skip


def bounds(
    model: Fusioner, pixels: Sequence[np.ndarray], vectors: np.ndarray, stored: np.ndarray, labels: np.ndarray,
    precision: str,
) -> dict[str, float]:  # fmt: skip
    """How far a backend of a precision may be off, and the errors that this comes from.

    pixels: (3, h', w') each. vectors: (K, t). stored: (B, K, h, w). labels: (B, H, W).

    mean, largest: of cosines, twice plain PyTorch's error and ROUNDINGS, as in the parity gate (a cosine's scale is 1),
    and the stored cosines' own error; FAST_CONVOLUTIONS at least. labels: the same of the share of pixels that get another
    label, and the share so near a tie that cosines off by `mean` may change their label.
    """
    truth, plain = gates.in_pytorch(model, precision)
    size = labels.shape[1], labels.shape[2]
    worst = {side: dict.fromkeys(("mean", "largest", "labels"), 0.0) for side in ("pytorch", "own")}
    margins = []
    for index, picture_pixels in enumerate(pixels):
        true, by_plain = (gates.image(side, picture_pixels[None], vectors) for side in (truth, plain))
        true_labels, plain_labels = (gates.reference_masks(fused, size, model.config)[0] for fused in (true, by_plain))
        for side, found, found_labels in (
            ("pytorch", _cosines(*by_plain), plain_labels),
            ("own", stored[index], labels[index]),
        ):
            off = {name: float(of_words.max()) for name, of_words in errors(found, _cosines(*true)).items()}
            off["labels"] = float((found_labels != true_labels).mean())
            worst[side] = {name: max(off[name], before) for name, before in worst[side].items()}
        margins.append(_margins(true, size, model.config))
    allowed = {name: 2 * worst["pytorch"][name] + gates.ROUNDINGS + worst["own"][name] for name in worst["own"]}
    allowed |= {name: max(allowed[name], FAST_CONVOLUTIONS) for name in ("mean", "largest")}
    allowed["labels"] += max(float((margin <= allowed["mean"]).mean()) for margin in margins)
    return allowed | {f"{side}_{name}": error for side, found in worst.items() for name, error in found.items()}


def apart(stored: np.ndarray) -> dict[str, float]:
    """How well the answer tells one picture from another, one word from another, and either from nothing at all.

    stored: (B, K, h, w). Two pictures differ by the mean difference of their cosines, of the word where it is largest; two
    words likewise, in the picture where it is largest. The number is that of the pair that differs least.
    """

    def least(differences: list[np.ndarray]) -> float:
        return float(min(np.abs(difference).mean(axis=(1, 2)).max() for difference in differences))

    by_word = stored.swapaxes(0, 1)
    found = {
        "pictures": [second - first for at, second in enumerate(stored) for first in stored[:at]],
        "words": [second - first for at, second in enumerate(by_word) for first in by_word[:at]],
        "nothing": list(stored),
    }
    return {name: least(differences) for name, differences in found.items() if differences}


def weakness(entry: Mapping[str, Any]) -> str:
    """What a manifest's entry says its answer cannot tell apart within its bounds, or an empty text."""
    weak = [
        f"{name} in {precision}"
        for precision, allowed in entry["bounds"].items()
        for name, found in entry["apart"].items()
        if not found > 2 * allowed["mean"]
    ]
    return f"cannot tell apart: {', '.join(weak)}" if weak else ""


def picture(seed: int) -> np.ndarray:
    """(*SIZE, 3) uint8: large shapes of one colour each, which compress well."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    drawn = np.empty((*SIZE, 3), np.uint8)
    drawn[:] = generator.integers(0, 256, 3)
    for number in range(6):
        centre, reach = generator.integers((0, 0), SIZE), generator.integers(SIZE[0] // 6, SIZE[0] // 2)
        down, across = np.abs(y - centre[0]), np.abs(x - centre[1])
        inside = down**2 + across**2 < reach**2 if number % 2 else np.maximum(down, across) < reach
        drawn[inside] = generator.integers(0, 256, 3)
    return drawn


def _input_size(bundle: Bundle) -> tuple[int, int]:
    """Within every set of export/tensorrt/profiles.py, and not square: a square would hide a transposed picture."""
    step = bundle.preprocessing.multiple
    return max(bundle.size.min, bundle.size.opt * 3 // 4 // step * step), bundle.size.opt


def _cosines(features: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """features: (1, h, w, d). refined: (1, K, d). Returns (K, h, w), in their dtype."""
    unit = [value[0] / np.linalg.norm(value[0], axis=-1, keepdims=True) for value in (features, refined)]
    return np.einsum("hwd,kd->khw", *unit)


def _margins(true: Sequence[np.ndarray], size: tuple[int, int], config: FusionerConfig) -> np.ndarray:
    """(H, W): how far all cosines may be off before a pixel's label can change: half the distance between the two best, or
    how far they may be off before the best one's probability meets the threshold, where that is less.

    By softmax, of the best word against all others (which is log(1/(p⁻¹ - 1)) times the temperature as a cosine), and as
    those may rise while the best one falls, half of it.
    """
    scores, gram = reference.score_maps(*(torch.from_numpy(value) for value in true))
    found = reference.upsample(scores, size) / reference.squared_length(gram, size).sqrt()[:, None]
    best = found[0].topk(min(2, found.shape[1]), dim=0).values.numpy()
    ahead = best[0]
    if config.scoring == "softmax":
        others = (found[0] - found[0].amax(dim=0)).div(config.temperature).exp().sum(dim=0).numpy() - 1
        ahead = -np.log(np.maximum(others, 1e-30)) * config.temperature / 2
    least = least_cosine(config.temperature, config.threshold) / (2 if config.scoring == "softmax" else 1)
    from_threshold = np.abs(ahead - least)
    return np.minimum(from_threshold, (best[0] - best[-1]) / 2) if len(best) > 1 else from_threshold
