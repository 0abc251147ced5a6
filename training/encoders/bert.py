"""BERT-shaped text encoders (MiniLM-L6, BERT-base, BERT-large), frozen, read from a safetensors file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bert(nn.Module):
    """Token ids → one unit vector per prompt by mean pooling over the tokens (sentence-transformers' rule for MiniLM).

    Attention is plain MatMul and Softmax, so the graph exports to operators every backend has.
    Parameter names are those of the released files, so loading is a plain strict load_state_dict.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        positions: int,
        eps: float,
        tokenizer_file: Path,
        max_tokens: int = 64,
    ) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.tokenizer_file, self.max_tokens = tokenizer_file, max_tokens
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary, width),
                "position_embeddings": nn.Embedding(positions, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(width, heads, inner, eps) for _ in range(layers))})

    @classmethod
    def from_folder(cls, folder: Path, weights: bool = True) -> Bert:
        """A folder as Hugging Face lays it out: config.json, model.safetensors, tokenizer.json."""
        from safetensors.torch import load_file

        c = json.loads((folder / "config.json").read_text())
        model = cls(
            c["vocab_size"], c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["intermediate_size"],
            c["max_position_embeddings"], c["layer_norm_eps"], folder / "tokenizer.json",
        )  # fmt: skip
        if weights:
            state = {
                name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()
            }
            # The pooler serves next-sentence prediction and the ids are a constant: neither is part of the encoder.
            state = {
                n: v
                for n, v in state.items()
                if not n.startswith(("pooler.", "cls.")) and not n.endswith("position_ids")
            }
            model.load_state_dict(state, strict=True)
        return model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (N, L) int64 → (N, width) float32, unit length."""
        # A slice of the table rather than a lookup by arange: the same numbers, and a simpler graph.
        x = self.embeddings["word_embeddings"](input_ids) + self.embeddings["token_type_embeddings"].weight[0]
        x = self.embeddings["LayerNorm"](x + self.embeddings["position_embeddings"].weight[: input_ids.shape[1]])
        mask = attention_mask.to(x.dtype)
        bias = (1 - mask)[:, None, None, :] * -1e4  # fits float16, and exp(-1e4) is 0 in every precision
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        pooled = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=eps)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        inner, output = self.attention["self"], self.attention["output"]
        query, key, value = (split_heads(inner[name](x), self.heads) for name in ("query", "key", "value"))
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias, dim=-1)
        x = output["LayerNorm"](x + output["dense"](merge_heads(weights @ value)))
        return self.output["LayerNorm"](x + self.output["dense"](F.gelu(self.intermediate["dense"](x))))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, width) → (B, heads, L, width / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, c) → (B, L, heads · c)."""
    return x.transpose(1, 2).flatten(2)
