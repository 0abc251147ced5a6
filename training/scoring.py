"""Scores masks on validation pictures with the paper's protocol: the words are the classes in the picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusioner_rt import Session
from kernels import reference
from training.alignment import Alignment
from training.data import IGNORE, PictureMasks
from training.feature_cache import FeatureCache
from training.metrics import ClassIoU
from training.model import Fusioner

# A picture's name, its words' class indices, and the size (H, W) of the truth → masks (K, H, W) bool.
Predictor = Callable[[str, list[int], tuple[int, int]], np.ndarray]


@torch.no_grad()
def score(predict: Predictor, data: PictureMasks, names: list[str], classes: list[int], label: str = "") -> ClassIoU:
    """Known-words protocol: each picture is asked for those of `classes` that its mask holds, and for nothing else.

    A progress bar is shown under `label`, where one is given.
    """
    result = ClassIoU(len(data.classes))
    for name in tqdm(names, desc=label, unit="picture", leave=False, disable=not label):
        truth = data.mask(name)
        asked = [index for index in present(truth) if index in classes]
        if asked:
            result.add(truth, predict(name, asked, (truth.shape[0], truth.shape[1])), asked)
    return result


def fusioner(model: Fusioner, cache: FeatureCache, vectors: Tensor, threshold: float = 0.5) -> Predictor:
    """The PyTorch model; vectors (classes, t)."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        features, words = model.fuse(cache.tokens([cache.get(name)]), vectors[asked][None])
        labels, _ = reference.resolve(*reference.score_maps(features, words), size, model.config.temperature, threshold)
        return _masks(labels[0].numpy(), len(asked))

    return predict


def deployed(session: Session, data: PictureMasks, threshold: float = 0.5) -> Predictor:
    """An engine bundle, through the runtime: from the picture's file on, nothing is shared with training."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        result = session.segment(data.picture(name), [data.words[i] for i in asked], size=size, threshold=threshold)
        return _masks(result.labels, len(asked))

    return predict


def aligned_cosine(alignment: Alignment, cache: FeatureCache, vectors: Tensor, threshold: float) -> Predictor:
    """No fusion, no decoder: the ridge-aligned cosine of the image head's features, upsampled (table 4, row B3)."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        cosine = alignment.cosine(cache.get(name).levels[0].float(), vectors[asked])
        cosine = F.interpolate(cosine, size=size, mode="bilinear", align_corners=False)[0]
        labels = torch.where(cosine.amax(0) > threshold, cosine.argmax(0) + 1, 0)
        return _masks(labels.numpy(), len(asked))

    return predict


def everything(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
    """Every pixel belongs to every word that was asked for."""
    return np.ones((len(asked), *size), bool)


def present(mask: np.ndarray) -> list[int]:
    """Class indices in a mask, without background and ignored pixels."""
    return [int(index) for index in np.unique(mask) if index not in (0, IGNORE)]


def _masks(labels: np.ndarray, count: int) -> np.ndarray:
    return labels[None] == np.arange(1, count + 1)[:, None, None]
