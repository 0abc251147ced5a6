"""What a cell's labels should be: the model in float64, every feature interpolated exactly, on some rows of pixels.

Of label maps up to `ROWS` pixels high every row is compared, of others `ROWS` of them, first and last among them; of a
batch the first and the last picture.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.latency_candidates import THRESHOLD, Job, pictures
from kernels import reference
from training import checkpoint

ROWS = 65
Row = dict[str, Any]


class Truth:
    """Features and refined words of a cell's pictures in float64, and how much plain float32 errs from them.

    words_winning: how many words win somewhere; a model in which one wins everywhere would hide errors.
    plain: `confidence_error` of the labels that float32 features give.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.set_num_threads(job.threads)
        model = checkpoint.load(job.files.checkpoint)
        how, words = job.files.preprocessing(), torch.from_numpy(job.vectors())[None]
        everyone = pictures(job)
        self.which = sorted({0, job.batch - 1})
        self._exact: list[tuple[Tensor, Tensor]] = []
        self._temperature = model.config.temperature
        pixels = [torch.from_numpy(how(everyone[index]))[None] for index in self.which]
        with torch.inference_mode():
            plain = [model(one, words) for one in pixels]
            model = copy.deepcopy(model).double()
            for one, _rounded in zip(pixels, plain, strict=True):
                features, refined = model(one.double(), words.double())
                self._exact.append(self._confidences(features, refined))
        own = [self._confidences(features.double(), refined.double()) for features, refined in plain]
        self.plain = max(float((a - b).abs().max()) for (a, _), (b, _) in zip(own, self._exact, strict=True))
        found = torch.cat([torch.where(best > THRESHOLD, every.argmax(-1) + 1, 0).flatten()
                           for best, every in self._exact])  # fmt: skip
        self.words_winning = len(found[found > 0].unique())
        self.channels, self.low = plain[0][0].shape[-1], max(plain[0][0].shape[1:3])

    def rows(self) -> list[int]:
        edge = self.job.output
        return sorted({round(part * (edge - 1) / (ROWS - 1)) for part in range(ROWS)})

    def _confidences(self, features: Tensor, refined: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, W) of the best word and (rows, W, K) of all, float64, of one picture."""
        edge, words = self.job.output, F.normalize(refined[0], dim=-1)
        down, across = (
            reference.interpolation_taps(size, edge).matrix(size, torch.float64) for size in features.shape[1:3]
        )
        every = []
        for row in self.rows():
            pixels = across @ torch.einsum("h,hwd->wd", down[row], features[0])
            every.append(torch.sigmoid(F.normalize(pixels, dim=1) @ words.T / self._temperature))
        stacked = torch.stack(every)
        return stacked.amax(-1), stacked

    def tolerance(self) -> float:
        """Twice what float32 features err, and what rounding in a float32 head explains (benchmarks.mask_head.tolerance)."""
        eps = float(torch.finfo(torch.float32).eps)
        return 2 * self.plain + (8 + self.channels**0.5 + 4 * self.low) * eps / (4 * self._temperature)

    def compare(self, labels: np.ndarray, confidence: np.ndarray) -> Row:
        """labels_agree: share of compared pixels labelled as in float64. error_max: of the confidence.

        shortfall: error_max, or by how much the probability of a label is below the best one, or beyond the threshold
        on the wrong side: it forgives ties that rounding decides.
        """
        agree, errors, shortfalls = [], [], []
        for index, (best, every) in zip(self.which, self._exact, strict=True):
            label = torch.from_numpy(labels[index][self.rows()].astype(np.int64))
            error = (torch.from_numpy(confidence[index][self.rows()]).double() - best).abs()
            own = every.gather(-1, (label - 1).clamp(min=0)[..., None])[..., 0]
            lost = torch.where(label > 0, best.clamp(min=THRESHOLD) - own, best - THRESHOLD)
            agree.append((label == torch.where(best > THRESHOLD, every.argmax(-1) + 1, 0)).double().mean())
            errors.append(error.max())
            shortfalls.append(torch.maximum(error, lost).nan_to_num(1.0).max())
        return {
            "labels_agree": float(torch.stack(agree).mean()), "error_max": float(torch.stack(errors).max()),
            "shortfall": float(torch.stack(shortfalls).max()), "explained": self.tolerance(),
            "words_winning": self.words_winning,
        }  # fmt: skip
