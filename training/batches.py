"""Which pictures make a batch, and how a batch is read: cached features in a random flip, or augmented pictures.

A step's draws depend on the run's seed, the epoch and the step alone. So batches are read ahead, by threads, and come out
the same however many there are; and an epoch that a kill cut short is repeated exactly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusioner_rt.pictures import decode
from training.data import IGNORE, DataError, PictureMasks
from training.distributed import Processes
from training.encoders import ImageEncoder
from training.feature_cache import LABEL_STRIDE, CachedPicture, FeatureCache, nearest
from training.model import Fusioner
from training.recipe import Plan
from training.words import WordSampler


@dataclass(frozen=True)
class Batch:
    """A process's rows of a batch: b pictures, K words, targets at the decoder's resolution h×w.

    inputs: the frozen encoder's maps (b, c, ·, ·) float16, or one (b, 3, H, W) float32 of normalised pixels.
    words (b, K, t); targets (b, K, h, w) and valid (b, 1, h, w), float32 of 0 and 1.
    """

    inputs: list[Tensor]
    words: Tensor
    targets: Tensor
    valid: Tensor
    encoded: bool

    @torch.no_grad()
    def tokens(self, encoder: ImageEncoder) -> Tensor:
        """(b, h, w, c), unit length. The encoder is frozen: nothing is kept for a backward pass."""
        return encoder.assemble([level.float() for level in self.inputs]) if self.encoded else encoder(self.inputs[0])

    def weight(self) -> Tensor:
        """How many (pixel, word) pairs count in the loss."""
        return self.valid.sum() * self.targets.shape[1]

    def to(self, device: torch.device) -> Batch:
        inputs = [x.to(device) for x in self.inputs]
        words, targets, valid = (x.to(device) for x in (self.words, self.targets, self.valid))
        return replace(self, inputs=inputs, words=words, targets=targets, valid=valid)

    def parts(self, count: int) -> list[Batch]:
        """At most `count` smaller batches, none of them empty."""
        size = math.ceil(len(self.words) / count)
        return [
            replace(self, inputs=list(inputs), words=words, targets=targets, valid=valid)
            for *inputs, words, targets, valid in zip(
                *(x.split(size) for x in (*self.inputs, self.words, self.targets, self.valid)), strict=True
            )
        ]


class Batches:
    """The batches of every epoch, for one process. Subclasses say how a picture is read."""

    encoded: bool

    def __init__(
        self, names: list[str], model: Fusioner, sampler: WordSampler, plan: Plan, processes: Processes
    ) -> None:
        self.names, self.sampler, self.plan, self.processes = names, sampler, plan, processes
        decoder = model.config.decoder
        # Cells of the decoder's map to a token's edge: the last upsampling is the mask head's, and not in the loss.
        self.scale = 2 ** (len(decoder) - 1) if decoder else 1
        self.stride = model.image_encoder.stride

    def buckets(self) -> list[list[str]]:
        """Pictures that can share a batch."""
        raise NotImplementedError

    def read(self, name: str, random: np.random.Generator) -> tuple[list[Tensor], Tensor]:
        """The encoder's inputs or maps of a picture, (1, c, ·, ·) each, and its labels (H/2, W/2) int16."""
        raise NotImplementedError

    def plan_epoch(self, epoch: int) -> list[list[str]]:
        """The names of each of an epoch's batches, in random order; every picture once."""
        random = np.random.default_rng([self.plan.seed, epoch])
        size, batches = self.plan.batch, []
        for bucket in self.buckets():
            order = random.permutation(len(bucket))
            batches += [[bucket[i] for i in order[start : start + size]] for start in range(0, len(bucket), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def steps(self) -> int:
        """Batches of an epoch."""
        return sum(math.ceil(len(bucket) / self.plan.batch) for bucket in self.buckets())

    def epoch(self, epoch: int, steps: int, workers: int) -> Iterator[Batch]:
        """The first `steps` batches of an epoch, read ahead by `workers` threads (0: read when asked for)."""
        jobs = list(enumerate(self.plan_epoch(epoch)[:steps]))
        if not workers:
            yield from (self.load(names, epoch, step) for step, names in jobs)
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        waiting: deque[Future[Batch]] = deque()
        try:
            for step, names in jobs:
                waiting.append(pool.submit(self.load, names, epoch, step))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def load(self, names: list[str], epoch: int, step: int) -> Batch:
        """This process's rows. Every process draws for the whole batch, and reads its own pictures only."""
        random = np.random.default_rng([self.plan.seed, epoch, step])
        children = random.spawn(len(names))  # a generator a picture
        own = self.processes.rows(len(names))
        rows = list(own) or [0]  # a process without rows computes one that does not count: all must take part in a step
        pictures = {row: self.read(names[row], children[row]) for row in rows}
        inputs = [torch.cat(levels) for levels in zip(*(pictures[row][0] for row in rows), strict=True)]
        elsewhere = torch.full_like(pictures[rows[0]][1], IGNORE)
        labels = torch.stack([pictures[row][1] if row in pictures else elsewhere for row in range(len(names))])
        words, targets, valid = self.sampler.draw(names, self._at_cells(labels), random)
        if self.plan.word_noise:
            noise = torch.from_numpy(random.standard_normal(words.shape).astype(np.float32))
            words = F.normalize(words + self.plan.word_noise * noise / math.sqrt(words.shape[-1]), dim=-1)
        return Batch(inputs, words[rows], targets[rows], valid[rows] * bool(own), self.encoded)

    def _at_cells(self, labels: Tensor) -> Tensor:
        """(B, H/2, W/2) → labels at the centres of the decoder's cells.

        The loss is taken there: the last upsampling would cost a step much of its time on a CPU.
        """
        rows, columns = (self._centres(length) for length in labels.shape[1:])
        return labels[:, rows][..., columns]

    def _centres(self, length: int) -> Tensor:
        cells = length * LABEL_STRIDE // self.stride * self.scale
        return ((torch.arange(cells) + 0.5) * length / cells).long()


class CachedBatches(Batches):
    """From cached features, each picture in a random flip (augment "flip") or as it is ("none")."""

    encoded = True

    def __init__(
        self,
        cache: FeatureCache,
        names: list[str],
        model: Fusioner,
        sampler: WordSampler,
        plan: Plan,
        processes: Processes,
    ) -> None:
        super().__init__(names, model, sampler, plan, processes)
        self.cache = cache
        sizes: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            sizes.setdefault(cache.size(name), []).append(name)
        self._buckets = list(sizes.values())

    def buckets(self) -> list[list[str]]:
        return self._buckets

    def read(self, name: str, random: np.random.Generator) -> tuple[list[Tensor], Tensor]:
        picture = self.cache.get(name, self.plan.augment == "flip" and bool(random.integers(2)))
        return picture.levels, picture.labels


class LiveBatches(Batches):
    """From pictures, augmented and encoded in every step (augment "full"), at one network size: square."""

    encoded = False

    def __init__(
        self,
        data: PictureMasks,
        names: list[str],
        model: Fusioner,
        sampler: WordSampler,
        plan: Plan,
        processes: Processes,
    ) -> None:
        super().__init__(names, model, sampler, plan, processes)
        self.data, self.preprocessing = data, model.preprocessing()
        self.size = self.preprocessing.input_size(self.preprocessing.side, self.preprocessing.side)

    def buckets(self) -> list[list[str]]:
        return [self.names]

    def read(self, name: str, random: np.random.Generator) -> tuple[list[Tensor], Tensor]:
        from training.augment import augment

        rgb, mask = augment(*read_picture(self.data, name), self.size, random)
        pixels = torch.from_numpy(self.preprocessing(rgb, self.size))[None]
        return [pixels], _labels(mask, self.size)


class MaskLabels(FeatureCache):
    """A feature cache's labels without features: what words need to know of pictures that are encoded in every step."""

    def get(self, name: str, flip: bool = False) -> CachedPicture:
        mask = self.data.mask(name)
        labels = _labels(mask, self.preprocessing.input_size(*mask.shape))
        return CachedPicture([], labels.flip(1) if flip else labels)


class EncoderOnDevice:
    """The frozen encoder for a feature cache, whose maps are the CPU's."""

    def __init__(self, encoder: ImageEncoder, device: torch.device) -> None:
        self.encoder, self.device = encoder, device

    def extract(self, pixels: Tensor) -> list[Tensor]:
        return [level.cpu() for level in self.encoder.extract(pixels.to(self.device))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return self.encoder.assemble([level.to(self.device) for level in levels])


def feature_cache(
    folder: Path, data: PictureMasks, model: Fusioner, device: torch.device, live: bool = False
) -> FeatureCache:
    """The cache of this model's features; with `live`, one that gives labels alone."""
    kind = MaskLabels if live else FeatureCache
    encoder = cast(ImageEncoder, EncoderOnDevice(model.image_encoder, device))
    return kind(folder, data, encoder, model.config.encoder_sha256["image"], model.preprocessing())


def read_picture(data: PictureMasks, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and (H, W) int16. Raises DataError where the two differ in size."""
    rgb, mask = decode(data.picture(name)), data.mask(name)
    if mask.shape != rgb.shape[:2]:
        raise DataError(
            f"the mask of {name} has {mask.shape[1]}×{mask.shape[0]} pixels, its picture {rgb.shape[1]}×{rgb.shape[0]} "
            "as a viewer shows it; they must agree"
        )
    return rgb, mask


def _labels(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A mask at LABEL_STRIDE of a network input's size (H, W)."""
    return torch.from_numpy(nearest(mask, (size[0] // LABEL_STRIDE, size[1] // LABEL_STRIDE)))
