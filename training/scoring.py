"""Scores a predictor's masks against the truth (paper 4.1).

A predictor is a function over the PyTorch model, an engine bundle or a baseline. The protocol chooses the words that it
is asked for in a picture:
  known   (the paper's) the scored classes that the picture shows: measures shapes against the background.
  all     every scored class in every picture, shown or not: a wrong class costs IoU, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusioner_rt import Session
from fusioner_rt.session import Mode, Window
from kernels import mask_head, reference
from training import windows
from training.alignment import Alignment
from training.data import PictureMasks, decode_as, present
from training.feature_cache import FeatureCache
from training.metrics import ClassIoU
from training.model import Fusioner

Predictor = Callable[[str, list[int], tuple[int, int]], np.ndarray]
"""A picture's name, the class indices of its K words, the truth's size (H, W) → labels (H, W), n for word n and 0 for
none; or masks (K, H, W) bool, which may overlap."""

CropPredictor = Callable[[np.ndarray, list[int]], np.ndarray]
"""A crop (h, w, 3) uint8 RGB, the class indices of its K words → probabilities (K, h, w) float32."""

CHUNK = 8  # words fused at a time in independent mode


def score(
    predict: Predictor, data: PictureMasks, names: list[str], classes: list[int], label: str = "", words: str = "known"
) -> ClassIoU:
    """Pixel counts of a predictor. words: the protocol, "known" or "all". label: of a progress bar; "" shows none."""
    result = ClassIoU(len(data.classes))
    for name, truth, asked in questions(data, names, classes, words, label):
        _add(result, truth, predict(name, asked, (truth.shape[0], truth.shape[1])), asked)
    return result


def score_each(
    predict: Callable[[str, list[int], tuple[int, int]], Sequence[np.ndarray]],
    candidates: int,
    data: PictureMasks,
    names: list[str],
    classes: list[int],
    label: str = "",
    words: str = "known",
) -> list[ClassIoU]:
    """`score` for a predictor that returns one result per candidate."""
    results = [ClassIoU(len(data.classes)) for _ in range(candidates)]
    for name, truth, asked in questions(data, names, classes, words, label):
        maps = predict(name, asked, (truth.shape[0], truth.shape[1]))
        for result, labels in zip(results, maps, strict=True):
            _add(result, truth, labels, asked)
    return results


def questions(
    data: PictureMasks, names: list[str], classes: list[int], words: str, label: str = ""
) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    """For each picture with words: its name, its truth (H, W), and the class indices of its words."""
    scored = set(classes)
    for name in tqdm(names, desc=label, unit="picture", leave=False, disable=not label):
        truth = data.mask(name)
        asked = classes if words == "all" else [index for index in present(truth) if index in scored]
        if asked:
            yield name, truth, asked


def fusioner(
    model: Fusioner, cache: FeatureCache, vectors: Tensor, threshold: float = 0.5, mode: Mode = "joint"
) -> Predictor:
    """The PyTorch model over cached features of whole pictures; vectors (classes, t)."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        tokens = cache.tokens([cache.get(name)])
        best, labels = None, torch.zeros(1, *size, dtype=torch.int64)
        for first, scores, gram in _maps(model, tokens, vectors[asked], mode):
            if mode == "joint":
                found, _ = mask_head.resolve(scores, gram, size, model.config.temperature, threshold)
                return found[0].cpu().numpy().astype(np.int64)
            # Each word fused alone has its own pixel features, of other lengths: compare cosines, as the runtime does.
            scores, gram = scores.cpu(), gram.cpu()
            cosine = reference.upsample(scores, size)[:, 0] / reference.squared_length(gram, size).sqrt()
            highest, index = cosine.amax(0, keepdim=True), cosine.argmax(0, keepdim=True) + 1 + first
            better = highest > best if best is not None else torch.ones_like(highest, dtype=torch.bool)
            best = torch.where(better, highest, best) if best is not None else highest
            labels = torch.where(better, index, labels)
        assert best is not None
        return torch.where(torch.sigmoid(best / model.config.temperature) > threshold, labels, 0)[0].numpy()

    return torch.no_grad()(predict)


def fusioner_classwise(
    model: Fusioner, cache: FeatureCache, vectors: Tensor, threshold: float = 0.5, mode: Mode = "joint"
) -> Predictor:
    """`fusioner` with one mask per word (paper 3.1.3): (K, H, W), may overlap."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        tokens = cache.tokens([cache.get(name)])
        parts = [
            mask_head.probabilities(scores, gram, size, model.config.temperature).flatten(0, 1) > threshold
            for _, scores, gram in _maps(model, tokens, vectors[asked], mode)
        ]
        return torch.cat(parts).cpu().numpy()

    return torch.no_grad()(predict)


def fusioner_crops(model: Fusioner, vectors: Tensor, mode: Mode = "joint") -> CropPredictor:
    """The PyTorch model, with its encoder, on crops."""
    preprocessing = model.preprocessing()

    def predict(rgb: np.ndarray, asked: list[int]) -> np.ndarray:
        pixels = torch.from_numpy(preprocessing(rgb))[None].to(_device(model))
        size = (rgb.shape[0], rgb.shape[1])
        parts = [
            mask_head.probabilities(scores, gram, size, model.config.temperature).flatten(0, 1)
            for _, scores, gram in _maps(model, model.encode(pixels), vectors[asked], mode)
        ]
        return torch.cat(parts).cpu().numpy()

    return torch.no_grad()(predict)


def deployed(
    session: Session,
    data: PictureMasks,
    threshold: float = 0.5,
    mode: Mode = "joint",
    background: str | None = None,
    window: Window = "whole",
    classwise: bool = False,
) -> Predictor:
    """An engine bundle through the runtime; it shares no code with training from the picture's file on.

    background, window: as of `Session.segment`. classwise: one mask per word, (K, H, W), which may overlap.
    """

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        words = [data.words[i] for i in asked]
        result = session.segment(
            data.picture(name), words, size=size, threshold=threshold, mode=mode, probabilities=classwise,
            background=background, window=window,
        )  # fmt: skip
        return result.labels if result.probabilities is None else result.probabilities > threshold

    return predict


def deployed_crops(
    session: Session, data: PictureMasks, mode: Mode = "joint", background: str | None = None
) -> CropPredictor:
    """An engine bundle on crops."""

    def predict(rgb: np.ndarray, asked: list[int]) -> np.ndarray:
        words = [data.words[i] for i in asked]
        result = session.segment(rgb, words, mode=mode, probabilities=True, background=background)
        assert result.probabilities is not None
        return result.probabilities

    return predict


def sliding(crops: CropPredictor, data: PictureMasks, threshold: float = 0.5, scale: float = 2.0) -> Predictor:
    """Overlapping windows (training/windows.py) over a predictor of crops."""

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        rgb = decode_as(data, name, size)
        return windows.label(rgb, len(asked), lambda crop: crops(crop, asked), threshold, scale)

    return predict


def aligned_cosine(
    alignment: Alignment, cache: FeatureCache, vectors: Tensor, thresholds: Sequence[float], classwise: bool = False
) -> Callable[[str, list[int], tuple[int, int]], list[np.ndarray]]:
    """Baseline without fusion and decoder: the upsampled ridge-aligned cosine of the image head (table 4, row B3).

    Labels (H, W) per threshold on the cosine; masks (K, H, W) with `classwise`.
    """

    def predict(name: str, asked: list[int], size: tuple[int, int]) -> list[np.ndarray]:
        cosine = alignment.cosine(cache.get(name).levels[0].float(), vectors[asked])
        cosine = F.interpolate(cosine, size=size, mode="bilinear", align_corners=False)[0]
        if classwise:
            return [(cosine > threshold).numpy() for threshold in thresholds]
        highest, labels = cosine.amax(0), cosine.argmax(0) + 1
        return [torch.where(highest > threshold, labels, 0).numpy() for threshold in thresholds]

    return predict


def everything(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
    """Baseline: every pixel belongs to every word."""
    return np.ones((len(asked), *size), bool)


def _add(result: ClassIoU, truth: np.ndarray, prediction: np.ndarray, asked: list[int]) -> None:
    (result.add if prediction.ndim == 3 else result.add_labels)(truth, prediction, asked)


def _maps(model: Fusioner, tokens: Tensor, words: Tensor, mode: Mode) -> Iterator[tuple[int, Tensor, Tensor]]:
    """tokens (1, h, w, c), words (K, t) → (position of the first word, mask head's scores, gram).

    Joint: once, with scores (1, K, h', w') and gram (1, 5, h', w'). Independent: for CHUNK words at a time, with scores
    (n, 1, h', w') and gram (n, 5, h', w').
    """
    words = words.to(_device(model))
    tokens = tokens.to(_device(model))
    batches = [words[None]] if mode == "joint" else words[:, None].split(CHUNK)
    for number, batch in enumerate(batches):
        yield number * CHUNK, *mask_head.score_maps(*model.fuse(tokens, batch))


def _device(model: Fusioner) -> torch.device:
    return model.norm.weight.device
