"""Aligns words with pictures before any layer is trained: ridge regression from text vectors to directions of pixels.

An ImageNet classifier has one row per class name, in the space of the image encoder's head. Regressing the text vectors
of the 1000 names onto these rows maps any word into that space. This is the no-fusion baseline, and it initialises the
projections.

The aligned residual adds what the training masks tell: a class's direction is the mean token of its regions. It serves
encoders without a classifier, too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusioner_rt.errors import FusionerError
from training.encoders import classifier_rows, readable_words
from training.feature_cache import FeatureCache, word_vectors
from training.model import Fusioner

MIN_NAMES = 100  # fewer names do not span what pictures show
FOLDS = 5  # of classes, whose directions are fitted once more without their own regions
MIN_REGIONS = 3  # of a class: a mean of fewer is a picture's direction, not a name's
MAX_REGIONS = 300  # of a class; more do not move its mean
ROW_WEIGHT = 0.1
"""Of a classifier's row beside a class with regions, whose direction is the data's own."""


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
    _, _, axes = torch.linalg.svd(y, full_matrices=False)
    map_to_head = _ridge(x, y, strength)
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


@dataclass(frozen=True)
class Regions:
    """Mean tokens of the masks' regions, and their classes."""

    tokens: Tensor  # (n, c)
    classes: Tensor  # (n,) int64

    @classmethod
    def collect(cls, cache: FeatureCache, pictures: list[str], of: Collection[int]) -> Regions:
        """Of regions that cover a token's area, at most MAX_REGIONS a class, spread over the pictures. of: classes."""
        tokens: list[Tensor] = []
        classes: list[int] = []
        found: dict[int, int] = {}
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
        for place in tqdm(order, desc="regions", unit="picture"):
            cached = cache.get(pictures[place])
            wanted = [i for i in cached.labels.unique().tolist() if i in of and found.get(i, 0) < MAX_REGIONS]
            if not wanted:
                continue
            grid = cache.tokens([cached])[0].cpu()
            for index in wanted:
                area = (cached.labels == index).float()[None, None]
                area = F.interpolate(area, size=grid.shape[:2], mode="area")[0, 0]
                if area.sum() >= 1:
                    tokens.append((grid * area[..., None]).sum((0, 1)) / area.sum())
                    classes.append(index)
                    found[index] = found.get(index, 0) + 1
        return cls(torch.stack(tokens) if tokens else torch.zeros(0, 1), torch.tensor(classes, dtype=torch.int64))


@torch.no_grad()
def initialise_residual(
    model: Fusioner, regions: Regions, vectors: Tensor, rows: Alignment | None, strength: float = 10.0
) -> Tensor:
    """Gives the aligned residual its directions.

    A pixel's is its token, less the mean of all regions; a class's is the mean of its regions'. One ridge regression maps
    text vectors to these and, with ROW_WEIGHT, ImageNet's names to their rows, or every word to itself where pixels and
    words have one space (CLIP's). Both sides keep the principal axes.

    vectors (V, t), the classes' first. rows: of encoders that have a classifier. strength: as of `ridge`.
    Returns (V, t): vectors that the residual maps to the directions that classes would have without regions of their own.
    Raises FusionerError where there is too little to align with.
    """
    residual = model.aligned
    assert residual is not None
    present, counts = regions.classes.unique(return_counts=True)
    named = present[counts >= MIN_REGIONS].tolist()
    if rows is None and not model.one_space and len(named) < 2:
        raise FusionerError(
            f"{len(named)} classes have {MIN_REGIONS} regions or more; expected 2 or more to align words with",
            "train on more pictures, or without an aligned residual: --aligned 0",
        )
    centre = regions.tokens.mean(0) if named else torch.zeros(model.image_encoder.width)
    centred = F.normalize(regions.tokens - centre, dim=1)
    text, directions = _apart(model, vectors, rows, len(centre))
    text_mean = text.mean(0) if len(text) else vectors[named].mean(0)
    weight = torch.cat([torch.ones(len(named)), torch.full((len(text),), ROW_WEIGHT)]).sqrt()[:, None]
    own = [F.normalize(centred[regions.classes == index].mean(0, keepdim=True), dim=1) for index in named]
    x, y = (torch.cat([vectors[named], text]) - text_mean) * weight, torch.cat([*own, directions]) * weight
    axes = torch.linalg.svd(y, full_matrices=False).Vh[: residual.pixels.out_features]
    y = y @ axes.T
    text_map = _ridge(x, y, strength)
    for linear, to_axes, mean in ((residual.pixels, axes, centre), (residual.words, text_map.T, text_mean)):
        linear.weight.zero_()
        linear.weight[: len(to_axes)] = to_axes
        linear.bias.copy_(-linear.weight @ mean)
    unseen, back = vectors.clone(), torch.linalg.pinv(text_map)
    for fold in range(FOLDS):
        others = torch.ones(len(x), dtype=torch.bool)
        others[fold : len(named) : FOLDS] = False
        those = named[fold::FOLDS]
        unseen[those] += (vectors[those] - text_mean) @ (_ridge(x[others], y[others], strength) - text_map) @ back
    return unseen


def _apart(model: Fusioner, vectors: Tensor, rows: Alignment | None, width: int) -> tuple[Tensor, Tensor]:
    """Text vectors (n, t) and directions (n, width) that are known apart from the regions."""
    if rows is not None:
        of_head = F.normalize(rows.rows - rows.rows.mean(0), dim=1)
        return rows.name_vectors, F.pad(of_head, (0, width - of_head.shape[1]))  # the head's channels are the first
    if model.one_space:
        return vectors, F.normalize(vectors - vectors.mean(0), dim=1)
    return vectors[:0], torch.zeros(0, width)


def _ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """(t, c): x (n, t) @ it is near y (n, c). strength: in percent of the Gram matrix's mean diagonal."""
    x, y = x.double(), y.double()
    gram = x.T @ x
    regularised = gram + strength * gram.diagonal().mean() * 0.01 * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(regularised, x.T @ y).float()
