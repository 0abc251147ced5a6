"""Rounds a text encoder's weights to what codes of 8 and 4 bits stand for (export/onnx/small_weights.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.onnx.half_precision import LARGE
from export.onnx.small_weights import GROUP, Rounded

COARSE = ("query", "key")  # products that only say which token attends to which: four bits suffice
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)  # factors tried of a group's largest value: what lies beyond is clipped


@torch.no_grad()
def round_weights(encoder: nn.Module, half: bool) -> dict[bytes, Rounded]:
    """Rounds the weights of every large nn.Linear, and of the largest nn.Embedding, in place. half: they fit float16 then.

    Returns the codes by the bytes of their values, as `small` finds them in a graph.
    """
    found, dtype = {}, np.float16 if half else np.float32
    tables = [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight.shape[1] % (2 * GROUP) == 0]
    for table in sorted(tables, key=lambda m: m.weight.numel())[-1:]:
        rounded = Rounded(*_four_bits(table.weight, dtype), table=True)
        table.weight.copy_(torch.from_numpy(rounded.values().astype(np.float32)))
        found[rounded.values().tobytes()] = rounded
    for name, product in encoder.named_modules():
        if not isinstance(product, nn.Linear) or product.weight.numel() * 2 < LARGE:
            continue
        coarse = name.endswith(COARSE) and product.weight.shape[1] % (2 * GROUP) == 0
        codes, scale = (_four_bits if coarse else _eight_bits)(product.weight, dtype)
        rounded = Rounded(np.ascontiguousarray(codes.T), np.ascontiguousarray(scale.T))
        product.weight.copy_(torch.from_numpy(rounded.values().astype(np.float32)).T)
        found[rounded.values().tobytes()] = rounded
    return found


def _eight_bits(weight: Tensor, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """weight (rows, n) → codes of its shape, and a scale for each row."""
    scale = (weight.abs().amax(1) / 127).numpy().astype(dtype)
    scale[scale == 0] = 1
    return np.rint(weight.numpy() / scale.astype(np.float32)[:, None]).clip(-127, 127).astype(np.int8), scale


def _four_bits(weight: Tensor, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """weight (rows, n) → codes of its shape, and scales (rows, n / GROUP): of each group the clipping that errs least."""
    groups = weight.unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    best, codes, scale = torch.full_like(largest, torch.inf), torch.zeros_like(groups), torch.ones_like(largest)
    for factor in SHRUNK:
        tried = torch.from_numpy((largest * factor / 7).numpy().astype(dtype).astype(np.float32))
        tried[tried == 0] = 1
        rounded = (groups / tried[..., None]).round().clamp(-8, 7)
        error = (rounded * tried[..., None] - groups).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        codes, scale = torch.where(better[..., None], rounded, codes), torch.where(better, tried, scale)
    return codes.flatten(1).numpy().astype(np.int8), scale.numpy().astype(dtype)
