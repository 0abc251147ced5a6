"""Multi-head attention as plain MatMul and Softmax, so that exported graphs hold operators that every backend has."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def self_attention(query_key_value: Tensor, heads: int) -> Tensor:
    """query, key and value side by side (B, L, 3 · width) → attended values (B, L, width)."""
    query, key, value = (split_heads(x, heads) for x in query_key_value.chunk(3, dim=-1))
    weights = torch.softmax((query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2), dim=-1)
    return merge_heads(weights @ value)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, width) → (B, heads, L, width / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, c) → (B, L, heads · c)."""
    return x.transpose(1, 2).flatten(2)
