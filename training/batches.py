"""Groups pictures into batches and reads them: cached features, randomly flipped, or augmented pictures.

A step's random draws depend only on the run's seed, the epoch and the step. So batches can be read ahead by any worker,
and an interrupted epoch is repeated exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fusioner_rt.errors import FusionerError
from fusioner_rt.preprocess import Preprocessing
from training.data import IGNORE, PictureMasks, read_picture
from training.distributed import Processes
from training.encoders import ImageEncoder
from training.feature_cache import LABEL_STRIDE, CachedPicture, FeatureCache, encoder_key, labels_of
from training.model import Fusioner
from training.recipe import Plan
from training.words import WordSampler

# A picture's pixels or encoder maps, (1, c, ·, ·) each, and its labels (H/2, W/2) int16.
Picture = tuple[list[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """This process's rows of a batch: b pictures, K words, targets at the decoder's resolution h×w.

    inputs: with `encoded` the frozen encoder's maps (b, c, ·, ·) float16, else normalised pixels (b, 3, H, W) float32.
    words (b, K, t), known (b, K, 1) of 0 and 1; targets (b, K, h, w) and valid (b, 1, h, w), float32 of 0 and 1.
    """

    inputs: list[Tensor]
    words: Tensor
    targets: Tensor
    valid: Tensor
    known: Tensor
    encoded: bool

    @torch.no_grad()
    def tokens(self, encoder: ImageEncoder) -> Tensor:
        """(b, h, w, c), unit length, without gradients: the encoder is frozen."""
        return encoder.assemble([level.float() for level in self.inputs]) if self.encoded else encoder(self.inputs[0])

    def weight(self) -> Tensor:
        """Number of (pixel, word) pairs in the loss."""
        return self.valid.sum() * self.targets.shape[1]

    def shown(self) -> Tensor:
        """Number of words with a region."""
        return ((self.targets * self.valid).amax((2, 3)) > 0).sum()

    def to(self, device: torch.device) -> Batch:
        inputs = [x.to(device) for x in self.inputs]
        words, targets, valid, known = (x.to(device) for x in (self.words, self.targets, self.valid, self.known))
        return replace(self, inputs=inputs, words=words, targets=targets, valid=valid, known=known)

    def parts(self, count: int) -> list[Batch]:
        """Splits the batch into at most `count` smaller ones, none empty."""
        size = math.ceil(len(self.words) / count)
        return [
            replace(self, inputs=list(inputs), words=words, targets=targets, valid=valid, known=known)
            for *inputs, words, targets, valid, known in zip(
                *(x.split(size) for x in (*self.inputs, self.words, self.targets, self.valid, self.known)), strict=True
            )
        ]


@dataclass(frozen=True)
class Job:
    """A batch to read."""

    names: list[str]
    epoch: int
    step: int

    def seed(self, plan: Plan, row: int) -> list[int]:
        """The seed of a picture's random draws."""
        return [plan.seed, self.epoch, self.step, row]


class Batches(ABC):
    """The batches of every epoch, for one process. Subclasses read the pictures."""

    encoded: bool

    def __init__(
        self,
        data: PictureMasks,
        names: list[str],
        model: Fusioner,
        sampler: WordSampler,
        plan: Plan,
        processes: Processes,
    ) -> None:
        self.names, self.sampler, self.plan, self.processes = names, sampler, plan, processes
        self.may_flip, self.weight = data.may_flip, data.weight
        decoder = model.config.decoder
        # Cells of the decoder's map per token and edge. The mask head's upsampling is not part of the loss.
        self.scale = 2 ** (len(decoder) - 1) if decoder else 1
        self.stride = model.image_encoder.stride

    @abstractmethod
    def buckets(self) -> list[list[str]]:
        """Groups of pictures that can share a batch."""

    @abstractmethod
    def read(self, name: str, seed: list[int]) -> Picture:
        """A picture's inputs and labels; random draws depend on `seed` only."""

    def plan_epoch(self, epoch: int) -> list[list[str]]:
        """The picture names of an epoch's batches, in random order; every picture occurs once, or as often as its set's
        weight says: of a weight of 2.5 twice, and every other one three times.
        """
        random = np.random.default_rng([self.plan.seed, epoch])
        size, batches = self.plan.batch, []
        for bucket in self.buckets():
            drawn = self._drawn(bucket, epoch)
            order = random.permutation(len(drawn))
            batches += [[drawn[i] for i in order[start : start + size]] for start in range(0, len(drawn), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def steps(self) -> int:
        """Number of batches in an epoch."""
        return sum(math.ceil(len(self._drawn(bucket, 0)) / self.plan.batch) for bucket in self.buckets())

    def _drawn(self, bucket: list[str], epoch: int) -> list[str]:
        """The names of a bucket, each as often as its weight says; equally many in every epoch."""
        by_weight: dict[float, list[str]] = {}
        for name in bucket:
            by_weight.setdefault(self.weight(name), []).append(name)
        drawn = []
        for weight, names in by_weight.items():
            for index, name in enumerate(names):
                place = (index + epoch) % len(names)  # who is drawn once more, or at all, takes turns
                drawn += [name] * (math.floor((place + 1) * weight) - math.floor(place * weight))
        return drawn

    def epoch(self, epoch: int, steps: int, workers: int) -> Iterator[Batch]:
        """The first `steps` batches of an epoch. workers: threads or processes that read ahead; 0 reads on demand."""
        jobs = [Job(names, epoch, step) for step, names in enumerate(self.plan_epoch(epoch)[:steps])]
        return self.read_ahead(jobs, workers) if workers else map(self.load, jobs)

    def read_ahead(self, jobs: list[Job], workers: int) -> Iterator[Batch]:
        """Threads suffice here: file reads and tensor copies release the interpreter lock."""
        pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        waiting: deque[Future[Batch]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(self.load, job))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def load(self, job: Job) -> Batch:
        """This process's rows of a batch."""
        return self.join(job, [self.read(job.names[row], job.seed(self.plan, row)) for row in self.rows(job)])

    def rows(self, job: Job) -> list[int]:
        """The rows that this process computes. Without any, row 0, which then counts nowhere: all join each step."""
        return list(self.processes.rows(len(job.names))) or [0]

    def join(self, job: Job, pictures: list[Picture]) -> Batch:
        """Batches the pictures of `rows` with their words. Every process draws words for the whole batch."""
        rows, counts = self.rows(job), bool(self.processes.rows(len(job.names)))
        labels = torch.full((len(job.names), *pictures[0][1].shape), IGNORE, dtype=pictures[0][1].dtype)
        for row, (_, own_labels) in zip(rows, pictures, strict=True):
            labels[row] = own_labels
        random = np.random.default_rng([self.plan.seed, job.epoch, job.step])
        words, targets, valid, known = self.sampler.draw(job.names, self._at_cells(labels), random)
        if self.plan.word_noise:
            noise = torch.from_numpy(random.standard_normal(words.shape).astype(np.float32))
            words = F.normalize(words + self.plan.word_noise * noise / math.sqrt(words.shape[-1]), dim=-1)
        inputs = [torch.cat(levels) for levels in zip(*(inputs for inputs, _ in pictures), strict=True)]
        return Batch(inputs, words[rows], targets[rows], valid[rows] * counts, known[rows], self.encoded)

    def _at_cells(self, labels: Tensor) -> Tensor:
        """labels (B, H/2, W/2) → (B, h, w) at the centres of the decoder's cells.

        The loss is computed there: on a CPU the last upsampling would take much of a step's time.
        """
        rows, columns = (self._centres(length) for length in labels.shape[1:])
        return labels[:, rows][..., columns]

    def _centres(self, length: int) -> Tensor:
        cells = length * LABEL_STRIDE // self.stride * self.scale
        return ((torch.arange(cells) + 0.5) * length / cells).long()


class CachedBatches(Batches):
    """Batches from cached features, each picture randomly flipped (augment "flip") or not ("none")."""

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
        super().__init__(cache.data, names, model, sampler, plan, processes)
        self.cache = cache
        sizes: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            sizes.setdefault(cache.size(name), []).append(name)
        self._buckets = list(sizes.values())

    def buckets(self) -> list[list[str]]:
        return self._buckets

    def read(self, name: str, seed: list[int]) -> Picture:
        flip = self.plan.augment == "flip" and bool(np.random.default_rng(seed).integers(2)) and self.may_flip(name)
        picture = self.cache.get(name, flip)
        return picture.levels, picture.labels


class LiveBatches(Batches):
    """Batches from pictures, augmented and encoded in every step (augment "full"), at one square network size.

    Processes read ahead, not threads: augmentation holds the interpreter lock and seeds torch's global generator.
    """

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
        super().__init__(data, names, model, sampler, plan, processes)
        self.pictures = AugmentedPictures(data, model.preprocessing())
        self._loader: DataLoader[Any] | None = None

    def buckets(self) -> list[list[str]]:
        return [self.names]

    def read(self, name: str, seed: list[int]) -> Picture:
        return _picture(self.pictures[name, seed])

    def read_ahead(self, jobs: list[Job], workers: int) -> Iterator[Batch]:
        if self._loader is None:  # created once: its processes persist over epochs
            self._keys: list[tuple[str, list[int]]] = []
            self._loader = DataLoader(
                self.pictures, batch_size=None, sampler=cast(Any, self._keys), num_workers=workers, collate_fn=_identity,
                persistent_workers=True, prefetch_factor=math.ceil(2 * self.plan.batch / workers),
            )  # fmt: skip
        self._keys[:] = [(job.names[row], job.seed(self.plan, row)) for job in jobs for row in self.rows(job)]
        pictures = iter(self._loader)
        for job in jobs:
            yield self.join(job, [_picture(next(pictures)) for _ in self.rows(job)])


@dataclass(frozen=True)
class AugmentedPictures(Dataset[Any]):
    """(name, seed) → normalised pixels (1, 3, H, W) and labels (H/2, W/2), or the error that occurred."""

    data: PictureMasks
    preprocessing: Preprocessing

    def __getitem__(self, key: tuple[str, list[int]]) -> tuple[np.ndarray, np.ndarray] | FusionerError:
        from training.augment import Strengths, augment

        name, seed = key
        size = self.preprocessing.input_size(self.preprocessing.side, self.preprocessing.side)
        try:
            rgb, mask = read_picture(self.data, name)
            strengths = Strengths() if self.data.may_flip(name) else Strengths(flip=0)
            rgb, mask = augment(rgb.copy(), mask, size, np.random.default_rng(seed), strengths)
        except FusionerError as error:  # a DataLoader would re-raise it with a traceback as its text
            return error
        return self.preprocessing(rgb, size)[None], labels_of(mask, size)


def _identity(sample: Any) -> Any:
    """collate_fn of the DataLoader; a lambda cannot be pickled."""
    return sample


def _picture(sample: tuple[np.ndarray, np.ndarray] | FusionerError) -> Picture:
    if isinstance(sample, FusionerError):
        raise sample
    pixels, labels = sample
    return [torch.from_numpy(pixels)], torch.from_numpy(labels)


class MaskLabels(FeatureCache):
    """A feature cache without features: only labels, for the words of pictures that are encoded in every step."""

    def get(self, name: str, flip: bool = False) -> CachedPicture:
        mask = self.data.mask(name)
        labels = torch.from_numpy(labels_of(mask, self.preprocessing.input_size(*mask.shape)))
        return CachedPicture([], labels.flip(1) if flip else labels)


class EncoderOnDevice:
    """The frozen encoder on a device, with its maps on the CPU for a feature cache."""

    def __init__(self, encoder: ImageEncoder, device: torch.device) -> None:
        self.encoder, self.device = encoder, device

    def extract(self, pixels: Tensor) -> list[Tensor]:
        return [level.cpu() for level in self.encoder.extract(pixels.to(self.device))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return self.encoder.assemble([level.to(self.device) for level in levels])


def feature_cache(
    folder: Path, data: PictureMasks, model: Fusioner, device: torch.device, live: bool = False
) -> FeatureCache:
    """The cache of this model's features; with `live`, of labels only."""
    kind = MaskLabels if live else FeatureCache
    encoder = cast(ImageEncoder, EncoderOnDevice(model.image_encoder, device))
    return kind(folder, data, encoder, encoder_key(model), model.preprocessing())
