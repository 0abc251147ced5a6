"""BERT-shaped text encoders (MiniLM-L6, BERT-base, BERT-large), frozen: `bert:NAME_OR_FOLDER[:cls|mean]`.

A folder holds config.json, model.safetensors and tokenizer.json; a name is a hub repository with these files, such as
bert-base-uncased. `mean` (the default) averages the last layer over all tokens, `cls` takes its first token. The paper
does not say how it pools BERT; sentence encoders of this shape were trained with the average.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.encoders.attention import merge_heads, split_heads
from training.encoders.released import WeightsUnfit, fit, read_state

POOLINGS = ("mean", "cls")
HEADS = ("pooler.", "cls.")
"""Prefixes of the pretraining heads' parameters (next sentence, masked words), which the encoder lacks."""


class Bert(nn.Module):
    """Token ids → one unit vector per prompt: the mean over its tokens (sentence-transformers' rule), or its first token.

    Parameter names are those of the released files.
    """

    templates = None  # any

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
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
        self.pooling = pooling
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
    def from_files(cls, config: Path, weights: Path | None, tokenizer: Path, pooling: str = "mean") -> Bert:
        """From files; without `weights` they are random. Raises WeightsUnfit for files of another architecture."""
        try:
            values = json.loads(config.read_text())
            activation, positions = values.get("hidden_act", "gelu"), values.get("position_embedding_type", "absolute")
            if (activation, positions) != ("gelu", "absolute"):
                raise ValueError("its activation or its positions are not BERT's")
            model = cls(
                values["vocab_size"], values["hidden_size"], values["num_hidden_layers"], values["num_attention_heads"],
                values["intermediate_size"], values["max_position_embeddings"], values["layer_norm_eps"], tokenizer,
                max_tokens=min(64, values["max_position_embeddings"]), pooling=pooling,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsUnfit(f"{config} does not describe a BERT ({error!r})", "name another folder") from None
        if weights is not None:
            fit(model, encoder_state(read_state(weights)), str(weights))
        return model

    def drop_unread_positions(self) -> None:
        """No prompt is longer than `max_tokens`."""
        positions = self.embeddings["position_embeddings"]
        positions.weight = nn.Parameter(positions.weight[: self.max_tokens], requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (N, L) int64 → (N, width) float32, unit length."""
        # Positions by a slice, not a lookup by arange: a simpler graph.
        x = self.embeddings["word_embeddings"](input_ids) + self.embeddings["token_type_embeddings"].weight[0]
        x = self.embeddings["LayerNorm"](x + self.embeddings["position_embeddings"].weight[: input_ids.shape[1]])
        mask = attention_mask.to(x.dtype)
        bias = (1 - mask)[:, None, None, :] * -1e4  # fits float16, and exp(-1e4) is 0 in every precision
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        pooled = x[:, 0] if self.pooling == "cls" else (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1)


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's parameters in a released state dict: without the prefix `bert.` and the heads, and with LayerNorm's
    gamma and beta (of the first releases) renamed weight and bias.
    """
    own = {name.removeprefix("bert."): value for name, value in state.items()}
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in own.items()
    }
    # position_ids is a constant buffer in some releases.
    return {n: v for n, v in renamed.items() if not n.startswith(HEADS) and not n.endswith("embeddings.position_ids")}


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
