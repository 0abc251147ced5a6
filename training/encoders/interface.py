"""The interfaces of frozen encoders, as training and export use them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class ImageEncoder(Protocol):
    """nn.Module: pixels (B, 3, H, W) normalised → tokens (B, h, w, width) of unit length."""

    width: int
    stride: int  # pixels per token
    multiple: int  # H and W must be multiples of this
    side: int  # default input side, pixels
    mean: tuple[float, ...]  # of the 0..1 range, per channel
    std: tuple[float, ...]

    def extract(self, pixels: Tensor) -> list[Tensor]: ...
    def assemble(self, levels: list[Tensor]) -> Tensor: ...
    def __call__(self, pixels: Tensor) -> Tensor: ...
    def eval(self) -> ImageEncoder: ...
    def requires_grad_(self, requires_grad: bool = True) -> ImageEncoder: ...


class TextEncoder(Protocol):
    """nn.Module: input_ids and attention_mask (N, L) int64 → (N, width) of unit length."""

    width: int
    max_tokens: int
    tokenizer_file: Path
    templates: tuple[str, ...] | None  # the only ones it can read; None: any template

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor: ...
    def eval(self) -> TextEncoder: ...
    def requires_grad_(self, requires_grad: bool = True) -> TextEncoder: ...
