"""The aligned residual: what the frozen features say of a word, beside what the trained layers say.

A frozen encoder's features know more names than masks were ever drawn for; layers trained on those masks forget them. So a
pixel keeps a direction in a space that it shares with words, `training.alignment` computes it, and the model's score is
the weighted sum of two cosines and an offset:

  score = (cosine of fused pixel and refined word + β · cosine of aligned pixel and word − o) / length

It is the cosine of concatenated vectors, so no mask head knows of it: pixels [f, √β a, √o, 0], words [t, √β a, −√o, z], of
unit parts. z lengthens an unknown word's vector and so scales its score: what a threshold of a half marks stays, for that asks for a
score above 0, but where a known word is marked too, that one more often has the pixel. Between pixels all channels are
interpolated.

The fusion gets evidence with each word: the mean of the pixels nearest to the word's direction, and how near they are.
A word that is close to none of the training's names is fused by its evidence alone: of its vector the trained layers know
nothing, and they would call it absent. Training shows some words in this way, with the directions that they would have
had without masks of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 20.0  # of the attention that gathers evidence: logits a unit of cosine
KNOWN_FROM, KNOWN_AT = 2 / 3, 5 / 6
"""Nearness of a word's vector to the nearest trained name's: up to the first it is unknown, from the second on known.

Nearness is 1 for equal vectors, and 0 at the mean cosine of different names, which text encoders do not agree on: of
MiniLM's it is about 0.4, so that the bounds are cosines of 0.8 and 0.9.
"""


class Aligned(NamedTuple):
    """pixels (P, h, w, r) and words (B, K, r), unit; known (B, K, 1) from 0 to 1."""

    pixels: Tensor
    words: Tensor
    known: Tensor


BESIDE = 2
"""Channels beside the directions' axes: of the offset, and the one that pixels have none of."""


class AlignedResidual(nn.Module):
    """Tokens and word vectors to their directions, evidence and channels of the score.

    width: of the fusion. channels: of the score, with those `BESIDE` the axes. `names` (N, t) are the known words' vectors;
    N is what training or a checkpoint says. common: the mean cosine of different names. trusted and yielding: factors of
    what the residual says of unknown words, and of their whole score, 1 in training. Training's unknown words have better
    directions than words will have that no training showed: among its names are near ones. So it leaves them too little
    weight; how much is seen on sets that a training leaves out. With more weight they win over known words, unless they yield.
    """

    names: Tensor
    common: Tensor
    trusted: Tensor
    yielding: Tensor

    def __init__(self, image_width: int, text_width: int, width: int, channels: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(image_width, channels - BESIDE)
        self.words = nn.Linear(text_width, channels - BESIDE)
        self.register_buffer("names", torch.zeros(1, text_width))  # zeros are near no word
        self.register_buffer("common", torch.tensor(0.0))
        self.register_buffer("trusted", torch.tensor(1.0))
        self.register_buffer("yielding", torch.tensor(1.0))
        self.prototype = nn.Linear(width, width)
        self.nearness = nn.Linear(1, width)
        self.unknown = nn.Parameter(torch.zeros(width))  # in place of an unknown word's projected vector
        # √β and √o of known and of unknown words; pixels have the first
        self.root_weight = nn.Parameter(torch.full((2,), 2.0**0.5))
        self.root_offset = nn.Parameter(torch.full((2,), 0.2**0.5))

    def forward(self, tokens: Tensor, words: Tensor, known: Tensor | None = None) -> Aligned:
        """tokens (P, h, w, c), words (B, K, t), known (B, K, 1): by default by the words' vectors."""
        pixels, directions = (F.normalize(x, dim=-1) for x in (self.pixels(tokens), self.words(words)))
        return Aligned(pixels, directions, self.known(words) if known is None else known)

    def keep(self, names: Tensor) -> None:
        """names: (N, t) unit vectors of the words that are known from now on."""
        self.names = names.clone()
        if len(names) > 1:
            self.common.copy_(((names @ names.T).sum() - len(names)) / (len(names) * (len(names) - 1)))

    def known(self, words: Tensor) -> Tensor:
        """words (B, K, t), unit → (B, K, 1) from 0 to 1."""
        nearest = ((words @ self.names.T).amax(-1, keepdim=True) - self.common) / (1 - self.common)
        return ((nearest - KNOWN_FROM) / (KNOWN_AT - KNOWN_FROM)).clamp(0, 1)

    def with_evidence(self, aligned: Aligned, pixels: Tensor, words: Tensor) -> Tensor:
        """The words' tokens of the fusion: projected pixels (B, h·w, d) and words (B, K, d) → (B, K, d)."""
        cosine = aligned.words @ aligned.pixels.flatten(1, 2).transpose(1, 2)  # (B, K, h·w)
        nearest = torch.softmax(SHARPNESS * cosine, dim=-1)
        nearness = (nearest * cosine).sum(-1, keepdim=True)
        spoken = aligned.known * words + (1 - aligned.known) * self.unknown
        # transposed, as threads then share out its rows: shared out by columns, its sums are rounded in another order
        mean = (pixels.transpose(1, 2) @ nearest.transpose(1, 2)).transpose(1, 2)
        return spoken + self.prototype(mean) + self.nearness(nearness)

    def channels(self, aligned: Aligned) -> tuple[Tensor, Tensor]:
        """Of pixels (P, h, w, channels) and words (B, K, channels)."""
        known, unknown = aligned.known, 1 - aligned.known
        weight = known * self.root_weight[0] + unknown * self.root_weight[1] * self.trusted
        offset = known * self.root_offset[0] + unknown * self.root_offset[1] / self.trusted
        length = (1 + weight.square() + offset.square()).sqrt()
        lengthens = unknown * length * (self.yielding**-2 - 1).sqrt()
        pixels = aligned.pixels * self.root_weight[0]
        constant = self.root_offset[:1].expand(*pixels.shape[:-1], 1)
        return (
            torch.cat([pixels, constant, torch.zeros_like(constant)], -1),
            torch.cat([aligned.words * weight, -offset, lengthens], -1),
        )
