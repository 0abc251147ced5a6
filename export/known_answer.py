"""The known answer that a bundle carries (docs/bundle.md): what its CPU path makes of made pictures and the gates' words.

Every other backend is compared with it when it is opened (fusioner_rt/known_answer.py). How far it may be off is derived:
as far as the parity gate lets a graph be off the truth, and the answer's own distance from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import gates
from fusioner_rt.bundle import Bundle
from fusioner_rt.executor import untimed
from fusioner_rt.known_answer import KnownAnswer, cosines, errors
from fusioner_rt.onnx.executor import OnnxRuntimeExecutor
from kernels import reference
from training.model import Fusioner

FILE = "known_answer.npz"
PICTURES = 3
SIZE = (96, 128)
"""H, W of the pictures."""
FAST_CONVOLUTIONS = 256 * float(np.finfo(np.float32).eps)
"""What GPU libraries' fast convolutions may lose in float32: eight of its bits. What is wrong is wrong by a hundred times as
much."""
MOST_VALUES = 32 << 10
"""Of cosines, 4 bytes each."""


def add(
    folder: Path, model: Fusioner, words: Sequence[str], vectors: np.ndarray, precisions: Sequence[str]
) -> dict[str, Any]:
    """Write the file into a bundle's folder, whose manifest is there; returns the manifest's entry.

    vectors: (K, t) float32, of the words. precisions: "fp32", "fp16" or "bf16", those that a backend may compute in.
    """
    bundle = Bundle.open(folder)
    words, vectors = words[: bundle.words.max], vectors[: bundle.words.max]
    size, pictures = _input_size(bundle), np.stack([picture(seed) for seed in range(PICTURES)])
    answer = KnownAnswer(pictures, size, tuple(words), vectors, 1, np.empty(0), np.empty(0), {})
    with contextlib.closing(OnnxRuntimeExecutor(bundle, "onnxruntime-cpu", None)) as cpu:
        # one by one: what a picture beside another gives is for the gates to prove
        maps = [cpu.maps([one], answer.request)[0] for one in answer.waiting(cpu)]
        found = [cpu.run([one], answer.request, untimed)[0].labels for one in answer.waiting(cpu)]
    whole, labels = np.concatenate([cosines(*both) for both in maps]), np.stack(found)
    step = next(n for n in range(1, max(whole.shape)) if whole[:, :, ::n, ::n].size <= MOST_VALUES)
    stored = np.ascontiguousarray(whole[:, :, ::step, ::step])
    np.savez_compressed(folder / FILE, pictures=pictures, vectors=vectors, cosines=stored, labels=labels)
    pixels = [bundle.preprocessing(rgb, size) for rgb in pictures]
    return {
        "file": FILE, "words": list(words), "input_size": list(size), "step": step,
        "bounds": {one: bounds(model, pixels, vectors, whole, labels, one) for one in precisions},
        "apart": apart(stored),
    }  # fmt: skip


def bounds(
    model: Fusioner, pixels: Sequence[np.ndarray], vectors: np.ndarray, stored: np.ndarray, labels: np.ndarray,
    precision: str,
) -> dict[str, float]:  # fmt: skip
    """What a backend of a precision may be off, and what that comes from. pixels: (3, h', w') each. stored: (B, K, h, w).
    labels: (B, H, W).

    mean, largest: twice what plain PyTorch errs and ROUNDINGS, as in the parity gate (a cosine's scale is 1), and what the
    stored ones err; FAST_CONVOLUTIONS at least. labels: likewise of the pixels that flip, and those so near a tie that
    cosines off by `mean` flip them.
    """
    truth, plain = gates.in_pytorch(model, precision)
    size, temperature = (labels.shape[1], labels.shape[2]), model.config.temperature
    worst = {side: dict.fromkeys(("mean", "largest", "labels"), 0.0) for side in ("pytorch", "own")}
    margins = []
    for index, one in enumerate(pixels):
        true, theirs = (gates.image(side, one[None], vectors) for side in (truth, plain))
        drawn = gates.reference_masks(true, size, temperature)[0]
        for side, found, mask in (
            ("pytorch", _cosines(*theirs), gates.reference_masks(theirs, size, temperature)[0]),
            ("own", stored[index], labels[index]),
        ):
            off = {name: float(of_words.max()) for name, of_words in errors(found, _cosines(*true)).items()}
            off["labels"] = float((mask != drawn).mean())
            worst[side] = {name: max(off[name], before) for name, before in worst[side].items()}
        margins.append(_margins(true, size))
    allowed = {name: 2 * worst["pytorch"][name] + gates.ROUNDINGS + worst["own"][name] for name in worst["own"]}
    allowed |= {name: max(allowed[name], FAST_CONVOLUTIONS) for name in ("mean", "largest")}
    allowed["labels"] += max(float((margin <= allowed["mean"]).mean()) for margin in margins)
    return allowed | {f"{side}_{name}": error for side, found in worst.items() for name, error in found.items()}


def apart(stored: np.ndarray) -> dict[str, float]:
    """By how much the answer tells pictures, words and nothing at all from each other: the mean difference of cosines, of
    the word or in the picture where it is largest, and of the two where that is least. stored: (B, K, h, w).
    """

    def least(differences: list[np.ndarray]) -> float:
        return float(min(np.abs(one).mean(axis=(1, 2)).max() for one in differences))

    by_word = stored.swapaxes(0, 1)
    found = {
        "pictures": [one - other for at, one in enumerate(stored) for other in stored[:at]],
        "words": [one - other for at, one in enumerate(by_word) for other in by_word[:at]],
        "nothing": list(stored),
    }
    return {name: least(differences) for name, differences in found.items() if differences}


def weakness(entry: Mapping[str, Any]) -> str:
    """What the answer of a manifest's entry cannot tell apart within its bounds, or nothing."""
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
    """Not square, which would hide a transposed picture, and within every set of export/tensorrt/profiles.py."""
    step = bundle.preprocessing.multiple
    return max(bundle.size.min, bundle.size.opt * 3 // 4 // step * step), bundle.size.opt


def _cosines(features: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """features: (1, h, w, d). refined: (1, K, d). Returns (K, h, w), in their dtype."""
    unit = [value[0] / np.linalg.norm(value[0], axis=-1, keepdims=True) for value in (features, refined)]
    return np.einsum("hwd,kd->khw", *unit)


def _margins(true: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(H, W): how far all cosines may be off before a pixel's label can change: half the distance of the two best, or the
    best one's from the threshold.
    """
    scores, gram = reference.score_maps(*(torch.from_numpy(value) for value in true))
    found = reference.upsample(scores, size) / reference.squared_length(gram, size).sqrt()[:, None]
    best = found[0].topk(min(2, found.shape[1]), dim=0).values.numpy()
    from_threshold = np.abs(best[0])  # a probability of 0.5 is a cosine of 0
    return np.minimum(from_threshold, (best[0] - best[-1]) / 2) if len(best) > 1 else from_threshold
