"""What label maps should be: float64 arithmetic that interpolates every feature exactly, on some rows of pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.latency_models import THRESHOLD
from kernels import reference

if TYPE_CHECKING:
    from benchmarks.latency_candidates import Job

MAX_ROWS = 65


def spread_rows(edge: int, rows: int) -> list[int]:
    """Indices of `rows` rows of an edge, or all where it has fewer. The first and the last are among them."""
    return sorted({round(part * (edge - 1) / (rows - 1)) for part in range(rows)})


def probabilities(features: Tensor, words: Tensor, size: int, rows: Sequence[int], temperature: float) -> Tensor:
    """(rows, size, K) from features (h, w, d) and words (K, d) of length one."""
    down, across = (
        reference.interpolation_taps(edge, size).matrix(edge, torch.float64).to(features.device)
        for edge in features.shape[:2]
    )
    found = []
    for row in rows:
        pixels = across @ torch.einsum("h,hwd->wd", down[row], features)
        found.append(torch.sigmoid(F.normalize(pixels, dim=1) @ words.T / temperature))
    return torch.stack(found)


def errors(labels: Tensor, confidence: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compares pixels with their probabilities `exact` (..., K).

    Returns three values a pixel: whether its label is another one, the error of its confidence, and its shortfall. The
    shortfall is that error, or how far the label's probability lies below the best one, or beyond the threshold on the
    wrong side. It forgives ties that rounding decides.
    """
    best, word = exact.max(dim=-1)
    error = (confidence - best).abs()
    own = exact.gather(-1, (labels - 1).clamp(min=0)[..., None])[..., 0]
    lost = torch.where(labels > 0, best.clamp(min=THRESHOLD) - own, best - THRESHOLD)
    otherwise = labels != torch.where(best > THRESHOLD, word + 1, 0)
    return otherwise, error, torch.maximum(error, lost).nan_to_num(1.0)


def rounding(eps: float, temperature: float, channels: int = 0, low: int = 0) -> float:
    """The probability error that roundings of a cosine explain, times the sigmoid's slope of 1/(4τ).

    A head whose interpolation also rounds coordinates says how many channels and low-resolution rows it has.
    """
    return (8 + channels**0.5 + 4 * low) * eps / (4 * temperature)


class Truth:
    """A latency cell in float64: the first and the last picture of its batch, `MAX_ROWS` rows of each."""

    def __init__(self, job: Job) -> None:
        from training import checkpoint

        torch.set_num_threads(job.threads)
        model = checkpoint.load(job.files.checkpoint)
        prepare, words = job.files.preprocessing(), torch.from_numpy(job.vectors())[None]
        self._output, self._temperature = job.output, model.config.temperature
        self._rows = spread_rows(job.output, MAX_ROWS)
        self._compared = sorted({0, job.batch - 1})
        pictures = job.pictures()
        pixels = [torch.from_numpy(prepare(pictures[index]))[None] for index in self._compared]
        with torch.inference_mode():
            plain = [model(one, words) for one in pixels]
            model = copy.deepcopy(model).double()
            self._exact = [self._probabilities(*model(one.double(), words.double())) for one in pixels]
        self._plain_error = max(
            float((self._probabilities(*maps).amax(-1) - exact.amax(-1)).abs().max())
            for maps, exact in zip(plain, self._exact, strict=True)
        )
        features = plain[0][0]
        self._channels, self._low = features.shape[-1], max(features.shape[1:3])

    def _probabilities(self, features: Tensor, refined: Tensor) -> Tensor:
        words = F.normalize(refined[0].double(), dim=-1)
        return probabilities(features[0].double(), words, self._output, self._rows, self._temperature)

    def words_winning(self) -> int:
        """How many words win somewhere. A model in which one wins everywhere would hide errors."""
        return len(torch.cat([exact.argmax(-1)[exact.amax(-1) > THRESHOLD] for exact in self._exact]).unique())

    def tolerance(self) -> float:
        """Twice what float32 features err, and what rounding in a float32 head explains."""
        eps = float(torch.finfo(torch.float32).eps)
        return 2 * self._plain_error + rounding(eps, self._temperature, self._channels, self._low)

    def compare(self, labels: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
        """labels_agree: the share of compared pixels labelled as in float64. error_max: of the confidence."""
        found = [
            errors(
                torch.from_numpy(labels[index][self._rows].astype(np.int64)),
                torch.from_numpy(confidence[index][self._rows]).double(),
                exact,
            )
            for index, exact in zip(self._compared, self._exact, strict=True)
        ]
        otherwise, error, shortfall = (torch.stack(pixels) for pixels in zip(*found, strict=True))
        return {
            "labels_agree": float((~otherwise).double().mean()), "error_max": float(error.max()),
            "shortfall": float(shortfall.max()), "explained": self.tolerance(), "words_winning": self.words_winning(),
        }  # fmt: skip
