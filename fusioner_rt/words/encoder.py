"""Words to vectors: templates, tokenizer, text graph and cache put together (paper 3.1.1 and 6.2)."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..bundle import Bundle, build_command
from ..errors import GraphUnusable, WordsInvalid
from .cache import TextCache, cache_key
from .templates import fill
from .tokenizer import PromptTokenizer

_KEYS_REMEMBERED = 8192


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """words: K of them. vectors: (K, t) float32, unit length, read-only."""

    words: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: np.ndarray


class TextEncoder:
    """Turns words into vectors; the text graph is loaded, and run, for words that no cache knows. Thread-safe."""

    def __init__(
        self, bundle: Bundle, load: Callable[[], Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]],
        cache: TextCache,
    ) -> None:  # fmt: skip
        """load: returns the text graph, ready to run."""
        self._bundle, self._load, self.cache = bundle, load, cache
        self._tokenizer: PromptTokenizer | None = None
        self._keys: OrderedDict[tuple[str, tuple[str, ...]], str] = OrderedDict()
        self._lock = threading.Lock()
        self.calls = 0
        """How often the text graph was run."""

    def encode(self, words: list[str], templates: tuple[str, ...]) -> Vocabulary:
        """The words as a vocabulary.

        Raises WordsInvalid where two words are the same tokens to this bundle's encoder: the first would take every
        pixel of both, whatever they look like. Raises WordUnreadable where a word is unknown tokens alone, and
        GraphUnusable.
        """
        with self._lock:  # two threads wanting one new word encode it once
            known: dict[str, str] = {}
            for word in words:
                other = known.setdefault(self._key(word, templates), word)
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
        vector = self._encode(self._tokens().ids(fill(templates, word)), word)
        self.cache.put(key, vector, word, len(templates), self._bundle.text_sha256, self._bundle.precision)
        return vector

    def _key(self, word: str, templates: tuple[str, ...]) -> str:
        if (key := self._keys.get((word, templates))) is None:
            prompts = fill(templates, word)
            self._tokens().check(word, prompts)
            ids = self._tokens().ids(prompts)
            key = cache_key(ids, self._bundle.text_sha256, self._bundle.precision)
            self._keys[word, templates] = key
            if len(self._keys) > _KEYS_REMEMBERED:
                self._keys.popitem(last=False)
        return key

    def _encode(self, ids: list[list[int]], word: str) -> np.ndarray:
        """One run per word: what a vector is then never depends on which words it was encoded beside."""
        input_ids, mask = self._tokens().pad(ids)
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

    def _tokens(self) -> PromptTokenizer:
        if self._tokenizer is None:
            path = self._bundle.tokenizer
            self._tokenizer = PromptTokenizer(path, self._bundle.max_tokens, self._bundle.read_again(path))
        return self._tokenizer


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
