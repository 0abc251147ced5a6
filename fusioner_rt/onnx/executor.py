"""Runs a bundle's ONNX graphs. Pillow prepares the picture; the mask head runs on the CPU.

The CPU backend runs `image`, `fusion` and the decoder's graphs in turn. The GPU backend runs `image_fusion`, which is all
of them in one.
"""

import threading
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import numpy as np

from ..bundle import Bundle
from ..check_finite import check_finite, checked_answer
from ..executor_interface import Answer, Clock, Request, TextGraph, Waiting, untimed
from .decoder_in_strips import Decoder, graph_names
from .loaded_graphs import LoadedGraphs
from .runtime import OnnxRuntime

_MOST_LANES = 8  # each takes memory of its own
_Maps: TypeAlias = tuple[np.ndarray, np.ndarray]


class OnnxRuntimeExecutor:
    """Executor over ONNX Runtime. Raises GraphUnusable, BackendUnavailable."""

    def __init__(
        self, bundle: Bundle, backend: str, threads: int | None, note: str | None = None, cut_for: int | None = None
    ) -> None:
        """backend: onnxruntime-cpu or onnxruntime-cuda. threads: per graph, by default one per core. note: for `notes`.
        cut_for: as of `Decoder`."""
        self._bundle, self._backend, self.notes = bundle, backend, [note] if note else []
        self._graphs = LoadedGraphs(bundle, OnnxRuntime(backend, threads))
        self._in_parts = backend == "onnxruntime-cpu"
        decoder = graph_names(bundle.graphs) if self._in_parts else []
        first = ["image", "fusion"] if self._in_parts else ["image_fusion"]
        self._graphs.load_now(*first, *(decoder or ["mask_scores"]), "mask_tiles")
        self._mask_head = self._graphs.mask_head(threads)
        workers, graphs = self._mask_head.workers, list(map(self._graphs.later, decoder))
        self._decoder = Decoder(graphs, workers, cut_for) if decoder else None
        self._beside: OnnxRuntimeExecutor | None = None
        self._opening = threading.Lock()

    @property
    def max_group(self) -> int:
        return self._bundle.batch.max

    @property
    def lanes(self) -> int:
        if not self._in_parts:
            return 2  # one prepares the next picture
        return min(self._mask_head.workers.threads, _MOST_LANES)

    def in_lanes(self) -> "OnnxRuntimeExecutor":
        threads = self._mask_head.workers.threads
        if not self._in_parts or threads == 1:
            return self
        with self._opening:
            if self._beside is None:
                self._beside = OnnxRuntimeExecutor(self._bundle, self._backend, 1, cut_for=threads)
            return self._beside

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """The network input (3, h, w) float32."""
        return self._bundle.preprocessing(rgb, input_size)

    def group(self, waiting: Waiting) -> Hashable:
        return waiting.input_size, waiting.joined

    def text(self) -> TextGraph:
        return self._graphs("text")

    def load_rest(self) -> None:
        self._graphs.load_mask_head()

    def encode_pictures(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """(h', w', c) float32 tokens each, or the prepared pictures where image_fusion runs as a whole."""
        if not self._in_parts:
            return [waiting.prepared for waiting in group]
        return [tokens.copy() for tokens in self._tokens(group, untimed)]  # a copy does not hold the whole batch

    def encode_windows(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        pixels = np.stack([self.prepare(crop, crop.shape[:2]) for crop in crops])
        if self._in_parts:
            return list(self._graphs("image")({"pixels": pixels})["tokens"])
        # Any words: the features do not depend on them.
        words = np.zeros((len(pixels), 1, self._bundle.text_width), np.float32)
        return list(self._graphs("image_fusion")({"pixels": pixels, "words": words})["features"])

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        if group[0].joined:
            return [self._answer_joined(index, waiting, request, clock) for index, waiting in enumerate(group)]
        inputs = self._inputs(group, clock)
        fuse = self._fuse_jointly if request.mode == "joint" else self._fuse_independently
        answers = []
        for index, maps in enumerate(fuse(inputs, request.vectors, clock)):
            with clock("mask_head", index):
                answer = self._mask_head.answer(*maps, group[index].size, request)
                answers.append(checked_answer(self._bundle, answer))
        return answers

    def _answer_joined(self, index: int, waiting: Waiting, request: Request, clock: Clock) -> Answer:
        with clock("mask_head", index):
            maps = self._score(waiting.prepared[None], request.vectors[None])
            return checked_answer(self._bundle, self._mask_head.answer(*maps, waiting.size, request))

    def maps(self, group: Sequence[Waiting], request: Request) -> list[_Maps]:
        return self._fuse_jointly(self._inputs(group, untimed), request.vectors, untimed)

    def close(self) -> None:
        with self._opening:
            beside, self._beside = self._beside, None
        if beside is not None:
            beside.close()
        self._graphs.close()
        self._mask_head.close()
        if self._decoder is not None:
            self._decoder.close()

    def _inputs(self, group: Sequence[Waiting], clock: Clock) -> np.ndarray:
        """Tokens (B, h', w', c) or pixels (B, 3, h, w), whichever words are fused with."""
        return self._tokens(group, clock) if self._in_parts else np.stack([waiting.prepared for waiting in group])

    def _tokens(self, group: Sequence[Waiting], clock: Clock) -> np.ndarray:
        """(B, h', w', c). One run of the image graph encodes the pictures that are not encoded yet."""
        new = [index for index, waiting in enumerate(group) if not waiting.encoded]
        tokens = [waiting.prepared for waiting in group]
        if new:
            with clock("image", *new):
                encoded = self._graphs("image")({"pixels": np.stack([tokens[index] for index in new])})["tokens"]
            if len(new) == len(group):
                return encoded
            for index, picture_tokens in zip(new, encoded, strict=True):
                tokens[index] = picture_tokens
        return np.stack(tokens)

    def _fuse_jointly(self, inputs: np.ndarray, vectors: np.ndarray, clock: Clock) -> list[_Maps]:
        """inputs: of B pictures. Returns B pairs of scores (1, K, h', w') and gram (1, 5, h', w')."""
        scores, gram = self._fuse(inputs, np.repeat(vectors[None], len(inputs), axis=0), clock)
        return [(scores[index : index + 1], gram[index : index + 1]) for index in range(len(inputs))]

    def _fuse_independently(self, inputs: np.ndarray, vectors: np.ndarray, clock: Clock) -> list[_Maps]:
        """Fuse each picture with each word alone. Returns B pairs of scores (K, 1, h', w') and gram (K, 5, h', w')."""
        maps, batch = [], self._bundle.batch.max
        for index in range(len(inputs)):

            def picture_clock(stage: str, *members: int, index: int = index) -> AbstractContextManager[None]:
                return clock(stage, index)

            parts = [
                self._fuse(inputs[index : index + 1], vectors[start : start + batch, None], picture_clock)
                for start in range(0, len(vectors), batch)
            ]
            maps.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
        return maps

    def _fuse(self, inputs: np.ndarray, words: np.ndarray, clock: Clock) -> _Maps:
        """inputs: of P pictures, P = B or 1. words: (B, K, t). Returns scores and gram of B."""
        if not self._in_parts:
            with clock("image_fusion"):
                outputs = self._graphs("image_fusion")({"pixels": inputs, "words": words})
            with clock("mask_head"):
                return self._score(outputs["features"], outputs["refined"])
        with clock("fusion"):
            outputs = self._graphs("fusion")({"tokens": inputs, "words": words})
        return self._decode(outputs["fused"], outputs["refined"], clock)

    def _decode(self, fused: np.ndarray, refined: np.ndarray, clock: Clock) -> _Maps:
        """fused: (B, h, w, d). refined: (B, K, d). Returns scores (B, K, h', w') and gram (B, 5, h', w'), all float32."""
        if self._decoder is None:
            with clock("mask_head"):
                return self._score(fused, refined)
        with clock("decoder"):
            maps = self._decoder.maps(fused, refined)
            check_finite(self._bundle, *maps)
            return maps

    def _score(self, features: np.ndarray, refined: np.ndarray) -> _Maps:
        scores, gram = self._mask_head.maps(features, refined)
        check_finite(self._bundle, scores, gram)
        return scores, gram
