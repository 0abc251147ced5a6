"""Words to vectors by templates, tokenizer, text graph and cache (paper 3.1.1 and 6.2)."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..bundle import Bundle
from ..cures import build_command
from ..errors import GraphUnusable, WordsInvalid
from ..executor_interface import TextGraph
from .cache import TextCache, cache_key, make_entry
from .languages import english_of, script_of
from .parse import Asked
from .templates import fill
from .tokenizer import PromptTokenizer
from .turns import Turns

_KEYS_REMEMBERED = 8192
_NAMED = 5  # words in a note
_COMPARED = 2000  # words; time and memory grow with their square
_ALIKE = (
    0.2  # of the usual distance; MiniLM: cat and cats 0.08, sofa and couch 0.19, dog and puppy 0.28, cat and dog 0.7
)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """asked: names, their words and background words. vectors: (F, t) float32, of all F words, unit length, read-only."""

    asked: Asked
    templates: tuple[str, ...]
    vectors: np.ndarray

    def alike(self, known: np.ndarray) -> str | None:
        """A note of the two words, of different names, that the encoder tells apart least, where it hardly does; or None.

        known: (K, t) float32, vectors of words that mean different things. How far those lie apart differs between encoders.
        """
        owners = np.array(self.asked.owners)
        if len(owners) > _COMPARED or len(known) < 2:
            return None
        cosines = np.triu(_cosines(self.vectors), 1)
        cosines[owners[:, None] == owners] = 0
        one, other = np.unravel_index(int(cosines.argmax()), cosines.shape)
        usual = 1 - np.median(_cosines(known)[np.triu_indices(len(known), 1)])
        if 1 - cosines[one, other] > _ALIKE * usual:
            return None
        pair = [self.asked.words[one], self.asked.words[other]]
        cure = f"make them a group, {'|'.join(pair) + ', ...'!r} or [{pair}, ...]"
        if not owners[other]:
            cure = f"leave {pair[1]!r} out of the background words"
        return (
            f"{pair[0]!r} and {pair[1]!r} mean nearly the same to this text encoder (cosine {cosines[one, other]:.2f}) and "
            f"share their pixels at random: {cure}"
        )


class TextEncoder:
    """Encodes words. The text graph is loaded for the first word that is not cached. Threads may share one."""

    def __init__(self, bundle: Bundle, load: Callable[[], TextGraph], cache: TextCache) -> None:
        """load: loads the text graph."""
        self._bundle, self._load, self.cache = bundle, load, cache
        self._keys: OrderedDict[tuple[str, tuple[str, ...]], str] = OrderedDict()
        self._naming = threading.Lock()  # for `_keys`
        self._encoding = Turns()
        self.calls = 0
        """Number of runs of the text graph."""

    def load(self) -> None:
        """Load the text graph and the tokenizer."""
        self._load()
        _ = self._tokenizer

    def encode_words(
        self, asked: Asked, templates: tuple[str, ...], before_each: Callable[[], None] = lambda: None
    ) -> Vocabulary:
        """Encode all words that are asked for. before_each: is called before each run of the text graph, and may raise.

        Raises WordsInvalid where two words have the same tokens: the first would take all pixels of both. Raises
        WordUnreadable where all tokens of a word are unknown, and GraphUnusable.
        """
        words_by_key: dict[str, str] = {}
        keys = [self._key(word, templates) for word in asked.words]
        for key, word in zip(keys, asked.words, strict=True):
            other = words_by_key.setdefault(key, word)
            if other != word:
                raise WordsInvalid(
                    f"{other!r} and {word!r} are the same tokens to the text encoder of the bundle in "
                    f"{self._bundle.folder}, which cannot tell them apart",
                    "leave one out, or describe it otherwise",
                )
        vectors = np.stack([self._vector(key, word, templates, before_each) for key, word in words_by_key.items()])
        vectors.flags.writeable = False
        return Vocabulary(asked, templates, vectors)

    def entries(self, asked: Asked, templates: tuple[str, ...]) -> dict[str, bytes]:
        """The entries of words by key, as the cache has them on disk; what is not cached is encoded. Raises as `encode_words`."""
        found, of = {}, (len(templates), self._bundle.text_sha256, self._bundle.precision)
        for word in asked.words:
            key = self._key(word, templates)
            found[key] = make_entry(self._vector(key, word, templates, lambda: None), word, *of)
        return found

    def foreign(self, asked: Asked) -> str | None:
        """A note of the words that are of another language than English, as far as that can be told, or None.

        Of a word that is one token nothing is noted: the encoder may have met it often, as one of that language has.
        """
        found = []
        for word in asked.words:
            english, script = english_of(word), script_of(word)
            if (english or script) and len(self._tokenizer.pieces(word)) > 1:
                found.append(f"{word!r} ({english or f'{script} letters'})")
        if not found:
            return None
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return (
            f"{', '.join(found[:_NAMED])}{more} {'seem' if len(found) > 1 else 'seems'} to be of another language, which this "
            "text encoder reads in pieces that mean little to it: ask in English"
        )

    def _vector(self, key: str, word: str, templates: tuple[str, ...], before_each: Callable[[], None]) -> np.ndarray:
        if (vector := self._cached(key)) is not None:
            return vector
        with self._encoding:  # a word at a time, so that threads with new words take turns and encode the same one once
            if (vector := self._cached(key)) is not None:
                return vector
            before_each()
            vector = self._encode_prompts(self._tokenizer.ids(fill(templates, word)), word)
            self.cache.put(key, vector, word, len(templates), self._bundle.text_sha256, self._bundle.precision)
            return vector

    def _cached(self, key: str) -> np.ndarray | None:
        """A vector of the cache; one of another width, in a file that somebody else wrote, is none."""
        vector = self.cache.get(key)
        return vector if vector is not None and vector.shape == (self._bundle.text_width,) else None

    def _key(self, word: str, templates: tuple[str, ...]) -> str:
        with self._naming:
            key = self._keys.get((word, templates))
        if key is None:
            prompts = fill(templates, word)
            self._tokenizer.check(word, prompts)
            ids = self._tokenizer.ids(prompts)
            key = cache_key(ids, self._bundle.text_sha256, self._bundle.precision)
            with self._naming:  # not while tokenizing, which takes milliseconds a word
                self._keys[word, templates] = key
                if len(self._keys) > _KEYS_REMEMBERED:
                    self._keys.popitem(last=False)
        return key

    def _encode_prompts(self, ids: list[list[int]], word: str) -> np.ndarray:
        """The vector of a word, from the token ids of its prompts. One run per word: its batch holds no other words."""
        input_ids, mask = self._tokenizer.pad(ids)
        self.calls += 1
        prompts = self._load()({"input_ids": input_ids, "attention_mask": mask})["embeddings"].astype(np.float64)
        vector = _unit(_unit(prompts).mean(axis=0))
        if not np.isfinite(vector).all():
            raise GraphUnusable(
                f"gave no finite vector for {word!r}",
                f"rebuild the bundle without --fp16: {build_command(self._bundle.folder, precision='fp32')}",
                subject=self._bundle.graph("text"),
            )
        return vector.astype(np.float32)

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        path = self._bundle.tokenizer
        return PromptTokenizer(path, self._bundle.max_tokens, self._bundle.read(path))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """(K, K) of (K, t) unit vectors. Not by BLAS: numpy's ends the process where memory is short."""
    return np.einsum("kt,lt->kl", vectors, vectors, optimize=False)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
