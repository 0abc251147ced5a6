"""The mask head, defined once (paper 3.1.3; design section 4): every other implementation is held to this file.

Wanted, at any output size: the cosine between the bilinearly upsampled feature of a pixel and a word. Bilinear
upsampling is linear, so the numerator is an upsampled score map; and the squared length of an upsampled feature is a
quadratic form in its four neighbours, whose inner products are five low-resolution maps. Nothing of size H×W×d exists.

A bundle names one of two scorings, which make probabilities of cosines. "sigmoid" (the paper) judges each word alone:
sigmoid(cosine / temperature). "softmax" (training-free CLIP) compares all words of a picture:
exp(cosine / temperature) over the sum of that over the words.

Letters: B pictures, K words, H×W output, h×w features, d channels.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = torch.finfo(torch.float32).tiny
"""The least squared length a cosine is divided by; a zero feature therefore has cosine 0, hence
probability 0.5, or 1/K of K words by softmax."""

CANCELLED = 2.0**-22
"""Float32 cannot tell an upsampled feature shorter than sqrt(CANCELLED) of its neighbours from zero (their inner
products carry that rounding): below it the cosine fades to 0 instead of becoming noise."""


Features = TypeVar("Features")
"""Anything that stands for a feature map: a tensor, a NumPy array, the name of a value in a graph."""


def gram_pairs(f: Features, right: Features, down: Features, diagonal: Features) -> list[tuple[Features, Features]]:
    """The pairs of neighbours whose inner products are the five Gram maps, in the maps' order.

    f: the features. right, down, diagonal: the features shifted by one column, by one row, and by both.
    """
    return [(f, f), (f, right), (f, down), (f, diagonal), (right, down)]


class Taps(NamedTuple):
    """Where each output index falls between two input indices, exactly.

    first:    (n_out,) int64, the lower neighbour; the upper one is min(first + 1, n_in - 1).
    fraction: (n_out,) float64 in [0, 1), the upper neighbour's weight.
    """

    first: Tensor
    fraction: Tensor

    def matrix(self, size_in: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(n_out, size_in): the two-tap interpolation matrix; its rows sum to one."""
        matrix = torch.zeros(len(self.first), size_in, dtype=torch.float64)
        matrix.scatter_(1, self.first[:, None], (1 - self.fraction)[:, None])
        matrix.scatter_add_(1, (self.first + 1).clamp(max=size_in - 1)[:, None], self.fraction[:, None])
        return matrix.to(dtype)


def interpolation_taps(size_in: int, size_out: int) -> Taps:
    """Taps of bilinear interpolation with half-pixel centres (align_corners=False) and no antialiasing.

    Output i lies at ((2i+1)·size_in − size_out) / (2·size_out), clamped to [0, size_in − 1]. The division is done in
    integers: a float32 coordinate errs by 1e-5 at index 128, and with it the probability.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"sizes must be at least 1, got {size_in} and {size_out}")
    unit = 2 * size_out
    position = ((2 * torch.arange(size_out, dtype=torch.int64) + 1) * size_in - size_out).clamp(0, (size_in - 1) * unit)
    first = position // unit
    return Taps(first, (position - first * unit).double() / unit)


def score_maps(features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Low-resolution half of the mask head (paper 3.1.3; design section 4).

    features: (B, h, w, d) float16 or float32, not normalised.
    words:    (B, K, d), not normalised.
    Returns scores (B, K, h, w) = <f, t/|t|> and gram (B, 5, h, w) = <f,f>, <f,f_right>, <f,f_down>,
    <f,f_diagonal>, <f_right,f_down>, both float32; edges repeat the last row and column. Both are in units of the
    picture's largest feature value (scores by its first, gram by its second power): the cosine does not change,
    and float32 neither overflows nor underflows for features of any one magnitude.
    """
    features, words = features.float(), words.float()
    features = features / features.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=TINY)
    scores = torch.einsum("bhwd,bkd->bkhw", features, unit(words))

    right = torch.cat([features[:, :, 1:], features[:, :, -1:]], dim=2)
    down = torch.cat([features[:, 1:], features[:, -1:]], dim=1)
    diagonal = torch.cat([right[:, 1:], right[:, -1:]], dim=1)
    pairs = gram_pairs(features, right, down, diagonal)
    return scores, torch.stack([(one * other).sum(-1) for one, other in pairs], dim=1)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) to (..., H, W) with the exact taps, in the dtype of `maps`."""
    height, width = size
    rows = interpolation_taps(maps.shape[-2], height).matrix(maps.shape[-2], maps.dtype)
    columns = interpolation_taps(maps.shape[-1], width).matrix(maps.shape[-1], maps.dtype)
    return rows @ (maps @ columns.T)


def squared_length(gram: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared length of every upsampled feature: gram (B, 5, h, w) to (B, H, W).

    With x and y the taps' fractions, and per axis the weights (1-x)², x² and x(1-x) of a neighbour with itself, of the
    next one with itself, and of the pair:
        along = (1-x)² <f,f> + x² <f,f>_right + 2x(1-x) <f,f_right>                            for each row of f
        cross = (1-x)² <f,f_down> + x² <f,f_down>_right + x(1-x) (<f,f_diagonal> + <f_right,f_down>)
        length² = (1-y)² along + y² along_down + 2y(1-y) cross
    Never less than the rounding of its own terms (CANCELLED), nor than TINY.
    """
    itself, right, down, diagonal, crossed = gram.unbind(1)
    square_y, pair_y = quadratic_matrices(gram.shape[-2], size[0], gram.dtype)
    square_x, pair_x = quadratic_matrices(gram.shape[-1], size[1], gram.dtype)
    along = itself @ square_x.T + (2 * right) @ pair_x.T
    cross = down @ square_x.T + (diagonal + crossed) @ pair_x.T
    length = square_y @ along + 2 * pair_y @ cross
    return torch.maximum(length, CANCELLED * upsample(itself, size)).clamp(min=TINY)


def quadratic_matrices(size_in: int, size_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(size_out, size_in) each: squared taps, and the product of both taps at the lower neighbour."""
    taps = interpolation_taps(size_in, size_out)
    pair = torch.zeros(size_out, size_in, dtype=torch.float64)
    pair.scatter_(1, taps.first[:, None], (taps.fraction * (1 - taps.fraction))[:, None])
    return taps.matrix(size_in, torch.float64).square().to(dtype), pair.to(dtype)


def probabilities(
    scores: Tensor, gram: Tensor, size: tuple[int, int], temperature: float, scoring: str = "sigmoid"
) -> Tensor:
    """One probability map per word: (B, K, H, W) float32, sigmoid(cosine / temperature) or its softmax over K."""
    length = squared_length(gram, size).sqrt()
    return scored(upsample(scores / temperature, size) / length[:, None], scoring)


def scored(logits: Tensor, scoring: str) -> Tensor:
    """Probabilities of cosines over the temperature, (B, K, ...) each. scoring: "sigmoid" or "softmax"."""
    return torch.softmax(logits, dim=1) if scoring == "softmax" else torch.sigmoid(logits)


def resolve(
    scores: Tensor,
    gram: Tensor,
    size: tuple[int, int],
    temperature: float,
    threshold: float,
    scoring: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Label map and confidence at output resolution, from the maps of `score_maps`.

    Returns labels (B, H, W) int64, n for word n counted from 1 where its probability is the largest and exceeds
    `threshold`, else 0 (background); a tie goes to the word named first. And confidence (B, H, W) float32, the
    probability of the best word, background or not. All words of a pixel share one length, so the best word is found
    without it. The best word's softmax is 1 / Σ exp((score - best score) / (temperature · length)): no exponential
    overflows, and of K words it is at least 1/K.
    """
    upsampled = upsample(scores, size)
    best, length = upsampled.amax(dim=1), squared_length(gram, size).sqrt()
    if scoring == "softmax":
        behind = (upsampled - best[:, None]) / temperature / length[:, None]
        confidence = 1 / behind.exp().sum(dim=1)
    else:
        confidence = torch.sigmoid(best / temperature / length)
    # argmax, unlike max, promises the first index of a tie
    return torch.where(confidence > threshold, upsampled.argmax(dim=1) + 1, 0), confidence


def masks(
    scores: Tensor,
    gram: Tensor,
    size: tuple[int, int],
    temperature: float,
    threshold: float,
    scoring: str = "sigmoid",
) -> Tensor:
    """(B, K, H, W) bool: where a word's probability exceeds the threshold, be it the best word or not."""
    return probabilities(scores, gram, size, temperature, scoring) > threshold


def pack(masks: Tensor) -> Tensor:
    """(..., W) bool to (..., ⌈W/32⌉) int32: bit x % 32 of element x // 32 is pixel x; those beyond W are 0."""
    width = masks.shape[-1]
    bits = F.pad(masks, (0, -width % 32)).unflatten(-1, (-1, 32)).long() << torch.arange(32)
    packed = bits.sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def unpack(packed: Tensor, width: int) -> Tensor:
    """What `pack` packed: (..., ⌈W/32⌉) int32 to (..., W) bool."""
    bits = packed[..., None] >> torch.arange(32, dtype=torch.int32, device=packed.device) & 1
    return bits.flatten(-2)[..., :width].bool()


def naive_probabilities(
    features: Tensor, words: Tensor, size: tuple[int, int], temperature: float, scoring: str = "sigmoid"
) -> Tensor:
    """For proof only: upsample all d channels, normalise, multiply. Runs in the dtype of `features`, whatever it costs.

    features (B, h, w, d), words (B, K, d), both of one floating dtype; returns (B, K, H, W) of that dtype.
    """
    upsampled = F.normalize(upsample(features.movedim(-1, 1), size), dim=1, eps=TINY)
    return scored(torch.einsum("bdhw,bkd->bkhw", upsampled, unit(words)) / temperature, scoring)


def unit(vectors: Tensor) -> Tensor:
    """(..., d) scaled to length one; the zero vector stays zero. Safe for lengths whose square would overflow."""
    vectors = vectors / vectors.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    return F.normalize(vectors, dim=-1, eps=TINY)
