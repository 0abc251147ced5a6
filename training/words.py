"""Which words a training picture is asked for: present ones and absent ones, 1..K (design section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class Vocabulary:
    """The words of a data folder: its classes first, at their mask index, then any ImageNet names.

    A class may go by the name that the image encoder's own classifier gives to what the mask shows ("sorrel horse"
    for horse): hundreds of words with true masks, where the masks name a dozen.
    """

    words: list[str]
    vectors: Tensor  # (V, t); zeros for a class whose word the text encoder cannot read: it is never asked for
    classes: list[int]  # mask indices that occur in training
    present: dict[str, list[int]]  # picture → mask indices in it
    names: dict[tuple[str, int], list[int]]  # picture and class → other words for it
    frequency: np.ndarray  # (V,) how often each word is present: absent words are drawn from it
    first_name: int  # where the further names begin

    @classmethod
    def collect(
        cls, model: Fusioner, data: PictureMasks, cache: FeatureCache, pictures: list[str], aligned: Alignment | None
    ) -> Vocabulary:
        """Reads every mask once; with `aligned`, names its regions by the classifier too."""
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
                if mask.sum() < 2:  # fewer than two whole cells of the stride-32 map: too small to be named
                    continue
                pooled = (head * mask).sum((0, 2, 3)) / mask.sum()
                best = (rows @ pooled / pooled.norm()).topk(3).indices.tolist()
                names[picture, index] = [offset + i for i in best]
                frequency[names[picture, index]] += 1 / len(best)
        seen = sorted({index for indices in present.values() for index in indices})
        return cls(words, vectors, seen, present, names, frequency, len(data.words))


def class_vectors(folder: Path, model: Fusioner, data: PictureMasks) -> tuple[Tensor, set[int]]:
    """A word vector for every class (classes, t), and the indices above 0 of those whose word can be read.

    A table of names may lack some of them: their rows are zeros.
    """
    known = set(readable_words(model.text_encoder, data.words))
    indices = [index for index, word in enumerate(data.words) if word in known]
    vectors = torch.zeros(len(data.words), model.text_encoder.width)
    vectors[indices] = word_vectors(folder, model, [data.words[index] for index in indices])
    return vectors, set(indices) - {0}


class WordSampler:
    """Draws words and their target maps for a batch; the same K for all of its pictures."""

    def __init__(self, vocabulary: Vocabulary, plan: Plan) -> None:
        self.vocabulary, self.plan = vocabulary, plan
        own = max(vocabulary.classes) + 1
        classes = len(vocabulary.words) if plan.names else own
        # In proportion, so that every word is absent as often for each time it is present. Words that are hardly ever
        # present would otherwise be learnt as "never", and with them their unseen neighbours.
        self.frequency = vocabulary.frequency[:classes]
        self.strangers = np.arange(vocabulary.first_name, len(vocabulary.words))

    def draw(self, pictures: list[str], labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """labels (B, H, W) int16 → words (B, K, t), targets (B, K, H, W) float32, valid (B, 1, H, W) float32.

        The first word is present, wherever a picture has any class; each of the others is absent with the chance
        `Plan.absent`, and also where the picture has no more classes. No two words of a picture stand for one region.
        Their order carries nothing: words have no positions, so a permutation of them permutes the masks.

        With the chance `Plan.strangers` a word is any name at all. Alone, it stands for the region; beside the region's
        own name, for nothing: an unknown word means what stands out and has no better name.
        """
        most = self.plan.words
        count = most if self.plan.exact_words else int(random.integers(1, most + 1))
        words, targets = [], []
        for picture, map_ in zip(pictures, labels, strict=True):
            left = list(random.permutation(self.vocabulary.present[picture]))
            excluded = {w for i in left for w in (i, *self.vocabulary.names.get((picture, int(i)), ()))}
            strange = False  # whether a region already goes by a stranger
            for position in range(count):
                stranger = self._stranger(excluded, random)
                if left and (position == 0 or random.random() >= self.plan.absent):
                    index = int(left.pop())
                    strange |= stranger is not None
                    words.append(self._name(picture, index, random) if stranger is None else stranger)
                    targets.append(map_ == index)
                else:
                    words.append(self._absent(excluded, random) if stranger is None or strange else stranger)
                    targets.append(torch.zeros_like(map_, dtype=torch.bool))
                excluded.add(words[-1])
        shape = (len(pictures), count)
        vectors = self.vocabulary.vectors[words].unflatten(0, shape)
        return vectors, torch.stack(targets).unflatten(0, shape).float(), (labels != IGNORE)[:, None].float()

    def _name(self, picture: str, index: int, random: np.random.Generator) -> int:
        """The word that a region goes by: its class, or a name that the classifier gives it."""
        names = self.vocabulary.names.get((picture, index))
        return int(random.choice(names)) if names and random.random() < self.plan.names else index

    def _stranger(self, excluded: set[int], random: np.random.Generator) -> int | None:
        """Any name that is not the picture's own; None where no stranger is asked for."""
        if not len(self.strangers) or random.random() >= self.plan.strangers:
            return None
        word = int(random.choice(self.strangers))
        return None if word in excluded else word

    def _absent(self, excluded: set[int], random: np.random.Generator) -> int:
        chances = self.frequency.copy()
        chances[[i for i in excluded if i < len(chances)]] = 0
        if not chances.any():  # nothing else is ever present: the background's name has no mask either
            return 0
        return int(random.choice(len(chances), p=chances / chances.sum()))
