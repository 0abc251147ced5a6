"""Chooses the words of a training picture: 1 to K, present and absent (design section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from training.alignment import Alignment
from training.data import IGNORE, PictureMasks
from training.encoders import readable_words
from training.feature_cache import FeatureCache, word_vectors
from training.model import Fusioner
from training.recipe import Plan

FREQUENT = 10  # regions with a word, from which on it is known
NEAR = 8  # nearest words, of which one is drawn


@dataclass
class Vocabulary:
    """The words of a data set: its classes first, at their mask index, then ImageNet names, if any.

    The image encoder's classifier may rename a class's region ("sorrel horse" for horse): the masks name a dozen
    classes, so trained words become hundreds.
    """

    words: list[str]
    vectors: Tensor  # (V, t); zeros for a class that the text encoder cannot read, which is never drawn
    classes: list[int]  # mask indices that occur in training pictures
    present: dict[str, list[int]]  # picture → its mask indices
    names: dict[tuple[str, int], list[int]]  # picture and class → ImageNet names of its region
    frequency: np.ndarray  # (V,) how often each word is present; absent words are drawn in this proportion
    first_name: int  # index of the first ImageNet name
    # class → indices of its further words, which follow the ImageNet names
    synonyms: dict[int, list[int]] = field(default_factory=dict)
    # picture → classes that it may show without a mask
    never_absent: dict[str, frozenset[int]] = field(default_factory=dict)
    # (V, t): in place of `vectors` where a word is taken for unknown (`alignment.initialise_residual`)
    unseen: Tensor | None = None

    @classmethod
    def collect(
        cls, model: Fusioner, data: PictureMasks, cache: FeatureCache, pictures: list[str], aligned: Alignment | None
    ) -> Vocabulary:
        """Reads every mask once; with `aligned`, the classifier also names its regions."""
        words = list(data.words)
        vectors, readable = class_vectors(cache.folder.parent, model, data)
        names: dict[tuple[str, int], list[int]] = {}
        present: dict[str, list[int]] = {}
        if aligned is not None:
            offset = len(words)
            words += aligned.names
            vectors = torch.cat([vectors, aligned.name_vectors])
            rows = F.normalize(aligned.rows, dim=1)
        frequency = np.zeros(len(words))
        for picture in tqdm(pictures, desc="words", unit="picture"):
            cached = cache.get(picture)
            present[picture] = [i for i in cached.labels.unique().tolist() if i in readable]
            for index in present[picture]:
                frequency[index] += 1
            if aligned is None:
                continue
            head = cached.levels[0].float()
            for index in present[picture]:
                mask = F.interpolate((cached.labels == index).float()[None, None], size=head.shape[2:], mode="area")
                if mask.sum() < 2:  # less than two cells of the stride-32 map: too small to name
                    continue
                pooled = (head * mask).sum((0, 2, 3)) / mask.sum()
                nearest = (rows @ pooled / pooled.norm()).topk(3).indices.tolist()
                names[picture, index] = [offset + i for i in nearest]
                frequency[names[picture, index]] += 1 / len(nearest)
        seen = sorted({index for indices in present.values() for index in indices})
        synonyms, further = _synonyms(model, data, len(words))
        if further:
            words += further
            vectors = torch.cat([vectors, word_vectors(cache.folder.parent, model, further)])
        hidden = {picture: data.never_absent(picture, present[picture]) for picture in pictures}
        return cls(words, vectors, seen, present, names, frequency, len(data.words), synonyms, hidden)

    def known(self) -> list[int]:
        """Indices of the words that training shows often: classes, their further words, and ImageNet names."""
        frequent = np.flatnonzero(self.frequency >= FREQUENT).tolist()
        return [*frequent, *(word for index in frequent for word in self.synonyms.get(index, ()))]


def _synonyms(model: Fusioner, data: PictureMasks, first: int) -> tuple[dict[int, list[int]], list[str]]:
    """Class → indices of its further words, from `first` on, and those words; only such as the text encoder can read."""
    known = set(readable_words(model.text_encoder, [word for words in data.synonyms.values() for word in words]))
    found: dict[int, list[int]] = {}
    further: list[str] = []
    for index, words in data.synonyms.items():
        for word in words:
            if word in known:
                found.setdefault(index, []).append(first + len(further))
                further.append(word)
    return found, further


def class_vectors(folder: Path, model: Fusioner, data: PictureMasks) -> tuple[Tensor, set[int]]:
    """A word vector per class (classes, t), and the indices above 0 of the classes that the text encoder can read.

    The others, which a table of names lacks, have rows of zeros.
    """
    known = set(readable_words(model.text_encoder, data.words))
    indices = [index for index, word in enumerate(data.words) if word in known]
    vectors = torch.zeros(len(data.words), model.text_encoder.width)
    vectors[indices] = word_vectors(folder, model, [data.words[index] for index in indices])
    return vectors, set(indices) - {0}


class Drawn(NamedTuple):
    """words (B, K, t), targets (B, K, H, W), valid (B, 1, H, W) and known (B, K, 1), float32; the last three 0 or 1."""

    words: Tensor
    targets: Tensor
    valid: Tensor
    known: Tensor


class WordSampler:
    """Draws the words and target maps of a batch; all of its pictures have the same K."""

    def __init__(self, vocabulary: Vocabulary, plan: Plan) -> None:
        self.vocabulary, self.plan = vocabulary, plan
        candidates = len(vocabulary.frequency) if plan.names else max(vocabulary.classes) + 1
        # Absent words are drawn in proportion to their presence. Drawn uniformly, a rare word would be learnt as "never
        # there", and with it the unseen words near it.
        self.frequency = vocabulary.frequency[:candidates]
        self.known = np.zeros(len(vocabulary.words), bool)
        self.known[vocabulary.known()] = True
        self.strangers = np.arange(vocabulary.first_name, len(vocabulary.frequency))
        classes = np.array(vocabulary.classes)
        unit = vocabulary.vectors[classes].numpy()
        self.nearest = {  # class → the other classes, the nearest first
            int(index): classes[order[1:]]
            for index, order in zip(classes, np.argsort(-unit @ unit.T, axis=1), strict=True)
        }

    def draw(self, pictures: list[str], labels: Tensor, random: np.random.Generator) -> Drawn:
        """labels (B, H, W) int16.

        The first word is present where the picture shows any class, but for a share `Plan.alone` of the pictures, all of
        whose words are absent. Each further word is absent with probability
        `Plan.absent`, or when no class of the picture is left. No two words of a picture have the same region.
        Words have no positions: a permutation of the words permutes the masks. A share `Plan.near` of the absent words is
        drawn from the NEAR classes that are nearest to one that is shown.

        Of a vocabulary with `unseen`, a share `Plan.unknown` of the words is not known, and every word that is shown seldom.

        With probability `Plan.strangers` a word is any ImageNet name, a stranger. In place of a present word its target
        is the region. In place of an absent word, which happens only while no region has a stranger, it is empty. So
        an unknown word learns to mean whatever stands out and has no better name.
        """
        max_ = self.plan.words
        count = max_ if self.plan.exact_words else int(random.integers(1, max_ + 1))
        words, targets = [], []
        for picture, mask in zip(pictures, labels, strict=True):
            left = list(random.permutation(self.vocabulary.present[picture]))
            shown = [int(index) for index in left]
            excluded = {w for i in left for w in (i, *self.vocabulary.names.get((picture, int(i)), ()))}
            excluded |= self.vocabulary.never_absent.get(picture, frozenset())
            if self.plan.alone and random.random() < self.plan.alone:
                left = []
            stranger_shown = False  # a region of this picture already has a stranger as its word
            for position in range(count):
                stranger = self._stranger(excluded, random)
                if left and (position == 0 or random.random() >= self.plan.absent):
                    index = int(left.pop())
                    stranger_shown |= stranger is not None
                    words.append(self._name(picture, index, random) if stranger is None else stranger)
                    targets.append(mask == index)
                else:
                    words.append(
                        self._absent(excluded, shown, random) if stranger is None or stranger_shown else stranger
                    )
                    targets.append(torch.zeros_like(mask, dtype=torch.bool))
                excluded.add(words[-1])
        shape = (len(pictures), count)
        vectors, known = self.vocabulary.vectors[words], torch.ones(len(words), 1)
        if self.vocabulary.unseen is not None:
            drawn = (random.random(len(words)) >= self.plan.unknown) & self.known[words]
            known = torch.from_numpy(drawn.astype(np.float32))[:, None]
            vectors = torch.where(known > 0, vectors, self.vocabulary.unseen[words])
        return Drawn(
            vectors.unflatten(0, shape), torch.stack(targets).unflatten(0, shape).float(),
            (labels != IGNORE)[:, None].float(), known.unflatten(0, shape),
        )  # fmt: skip

    def _name(self, picture: str, index: int, random: np.random.Generator) -> int:
        """A region's word: its class, by any of its words, or one of its ImageNet names."""
        names = self.vocabulary.names.get((picture, index))
        if names and random.random() < self.plan.names:
            return int(random.choice(names))
        further = self.vocabulary.synonyms.get(index)
        return int(random.choice([index, *further])) if further else index

    def _stranger(self, excluded: set[int], random: np.random.Generator) -> int | None:
        """With probability `Plan.strangers` an ImageNet name, None otherwise or where the picture excludes it."""
        if not len(self.strangers) or random.random() >= self.plan.strangers:
            return None
        word = int(random.choice(self.strangers))
        return None if word in excluded else word

    def _absent(self, excluded: set[int], shown: list[int], random: np.random.Generator) -> int:
        if self.plan.near and shown and random.random() < self.plan.near:
            close = [i for i in self.nearest[int(random.choice(shown))] if i not in excluded][:NEAR]
            if close:
                chances = self.frequency[close]
                return int(random.choice(close, p=chances / chances.sum()))
        chances = self.frequency.copy()
        chances[[i for i in excluded if i < len(chances)]] = 0
        if not chances.any():  # no other word is ever present: take the background's, which has no mask
            return 0
        return int(random.choice(len(chances), p=chances / chances.sum()))
