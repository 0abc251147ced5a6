"""Aligns words with pictures before any mask is seen: ridge regression from text vectors to classifier rows.

An ImageNet classifier has one row per class name, in the space of the image encoder's head. Regressing the text vectors
of the 1000 names onto these rows maps any word into that space. This is the no-fusion baseline, and it initialises the
projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fusioner_rt.errors import FusionerError
from training.encoders import classifier_rows, readable_words
from training.feature_cache import word_vectors
from training.model import Fusioner

MIN_NAMES = 100  # fewer names do not span what pictures show


@dataclass(frozen=True)
class Alignment:
    """word → (word − text_mean) @ map: from t to a direction in the image head's space."""

    text_mean: Tensor  # (t,)
    map: Tensor  # (t, head width)
    axes: Tensor  # (head width, r): orthonormal principal directions of the class rows, largest first
    names: list[str]  # the ImageNet names that the text encoder can read: all 1000, or those in a table
    name_vectors: Tensor  # (names, t)
    rows: Tensor  # (names, head width): rows of the classifier

    def words(self, vectors: Tensor) -> Tensor:
        """(K, t) → (K, head width) unit directions."""
        return F.normalize((vectors - self.text_mean) @ self.map, dim=-1)

    def cosine(self, head: Tensor, vectors: Tensor) -> Tensor:
        """head (B, c, h, w), vectors (K, t) → (B, K, h, w): the no-fusion score."""
        return torch.einsum("bchw,kc->bkhw", F.normalize(head, dim=1), self.words(vectors))


def ridge(model: Fusioner, cache_folder: Path, strength: float = 30.0) -> Alignment:
    """The alignment of this model's encoders. EfficientNet-Lite only: its classifier rows are public.

    strength: of the ridge, in percent of the Gram matrix's mean diagonal. Raises FusionerError for too few names.
    """
    names, rows = classifier_rows(model.config.image_encoder)
    spoken = [name.split(" (")[0] for name in names]
    known = set(readable_words(model.text_encoder, spoken))
    kept = [i for i, name in enumerate(spoken) if name in known]
    if len(kept) < MIN_NAMES:
        raise FusionerError(
            f"{model.config.text_encoder} knows {len(kept)} of ImageNet's 1000 class names; "
            f"expected {MIN_NAMES} or more to align it with {model.config.image_encoder}",
            "take a text encoder with more words",
        )
    spoken, rows = [spoken[i] for i in kept], rows[kept]
    vectors = word_vectors(cache_folder, model, spoken)
    text_mean = vectors.mean(0)
    x = (vectors - text_mean).double()
    y = F.normalize(rows - rows.mean(0), dim=1).double()
    gram = x.T @ x
    regularised = gram + strength * gram.diagonal().mean() * 0.01 * torch.eye(len(gram), dtype=gram.dtype)
    _, _, axes = torch.linalg.svd(y, full_matrices=False)
    map_to_head = torch.linalg.solve(regularised, x.T @ y).float()
    return Alignment(text_mean, map_to_head, axes.T.float().contiguous(), spoken, vectors, rows)


@torch.no_grad()
def initialise(model: Fusioner, alignment: Alignment, tokens: Tensor) -> None:
    """Initialises both projections in one space: a pixel and its word have similar directions, channels unit variance.

    tokens: (n, c) sample of image tokens, for centring and scale.
    """
    d = model.config.width
    axes = alignment.axes[:, :d]
    for (norm, linear), sample, weight in (
        (model.project_pixels, tokens, F.pad(axes.T, (0, tokens.shape[1] - axes.shape[0]))),
        (model.project_words, alignment.name_vectors, (alignment.map @ axes).T),
    ):  # fmt: skip
        linear.weight[: len(weight)] = weight
        linear.bias.zero_()
        projected = linear(norm(sample))
        scale = projected[:, : len(weight)].std(0).mean()
        linear.weight[: len(weight)] /= scale
        linear.bias.copy_(-linear(norm(sample)).mean(0))
