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
from .cache import TextCache, cache_key
from .templates import fill
from .tokenizer import PromptTokenizer

_KEYS_REMEMBERED = 8192


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """words: K words. vectors: (K, t) float32, unit length, read-only."""

    words: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: np.ndarray


class TextEncoder:
    """Encodes words. The text graph is loaded for the first word that is not cached. Threads may share one."""

    def __init__(self, bundle: Bundle, load: Callable[[], TextGraph], cache: TextCache) -> None:
        """load: loads the text graph."""
        self._bundle, self._load, self.cache = bundle, load, cache
        self._keys: OrderedDict[tuple[str, tuple[str, ...]], str] = OrderedDict()
        self._lock = threading.Lock()
        self.calls = 0
        """Number of runs of the text graph."""

    def encode_words(self, words: list[str], templates: tuple[str, ...]) -> Vocabulary:
        """Encode words.

        Raises WordsInvalid where two words have the same tokens: the first would take all pixels of both. Raises
        WordUnreadable where all tokens of a word are unknown, and GraphUnusable.
        """
        with self._lock:  # threads with the same new word encode it once
            words_by_key: dict[str, str] = {}
            for word in words:
                other = words_by_key.setdefault(self._key(word, templates), word)
                if other != word:
                    raise WordsInvalid(
                        f"{other!r} and {word!r} are the same tokens to the text encoder of the bundle in "
                        f"{self._bundle.folder}, which cannot tell them apart",
                        "leave one out, or describe it otherwise",
                    )
            vectors = np.stack([self._vector(word, templates) for word in words])
        vectors.flags.writeable = False
        return Vocabulary(tuple(words), templates, vectors)

    def _vector(self, word: str, templates: tuple[str, ...]) -> np.ndarray:
        key = self._key(word, templates)
        if (vector := self.cache.get(key)) is not None:
            return vector
        vector = self._encode_prompts(self._tokenizer.ids(fill(templates, word)), word)
        self.cache.put(key, vector, word, len(templates), self._bundle.text_sha256, self._bundle.precision)
        return vector

    def _key(self, word: str, templates: tuple[str, ...]) -> str:
        if (key := self._keys.get((word, templates))) is None:
            prompts = fill(templates, word)
            self._tokenizer.check(word, prompts)
            ids = self._tokenizer.ids(prompts)
            key = cache_key(ids, self._bundle.text_sha256, self._bundle.precision)
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
        return PromptTokenizer(path, self._bundle.max_tokens, self._bundle.read_again(path))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
