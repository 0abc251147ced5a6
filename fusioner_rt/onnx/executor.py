"""Runs a bundle's ONNX graphs: the picture is prepared by Pillow, the mask head runs on the CPU.

On a CPU the picture goes through `image`, `fusion` and the decoder's graphs in turn, where the bundle has them; otherwise,
and on a GPU, through `image_fusion`, which is all of them in one.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np

from ..bundle import Bundle, build_command
from ..errors import GraphUnusable
from ..executor import Answer, Clock, Request, TextGraph, Waiting, untimed
from .decoder import Decoder, graph_names, of_strips
from .mask_head import MaskHead, cores
from .runtime import Graph, OnnxRuntime

_Maps: TypeAlias = tuple[np.ndarray, np.ndarray]


def _how(name: str) -> dict[str, Any]:
    """Many small calls, made from threads of our own, want graphs of one thread; and float32 that is float32 (not TF32)."""
    return {"threads": 1, "on_cpu": True} if name == "mask_tiles" or of_strips(name) else {}


class LoadedGraphs:
    """The graphs of a bundle, each loaded when first asked for, its bytes checked again then."""

    def __init__(self, bundle: Bundle, runtime: OnnxRuntime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()

    def load_now(self, *names: str) -> None:
        """Those checked a moment ago, when the bundle was opened."""
        for name in names:
            self.graphs[name] = self.runtime.load(self.bundle.graph(name), **_how(name))

    def __call__(self, name: str) -> Graph:
        """Raises BundleFileMissing, BundleFileAltered, GraphUnusable."""
        with self._loading:
            if name not in self.graphs:
                path = self.bundle.graph(name)
                content = self.bundle.read_again(path)
                if weights := self.bundle.weights(name):
                    self.bundle.read_again(weights)
                self.graphs[name] = self.runtime.load(path, content, **_how(name))
            return self.graphs[name]

    def mask_head(self, threads: int | None) -> MaskHead:
        """The mask head over these graphs."""

        tiles = _Later(self, "mask_tiles") if "mask_tiles" in self.bundle.manifest["graphs"] else None
        scores, labels, probabilities = (_Later(self, f"mask_{name}") for name in ("scores", "labels", "probabilities"))
        return MaskHead(scores, labels, probabilities, tiles, threads or cores())

    def close(self) -> None:
        with self._loading:
            self.graphs.clear()


class _Later:
    """A graph, found by its name whenever it is used: closing the graphs gives its memory back."""

    def __init__(self, graphs: LoadedGraphs, name: str) -> None:
        self._graphs, self._name = graphs, name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._graphs(self._name)(inputs)

    def channels(self, output: str) -> int:
        return self._graphs(self._name).channels(output)

    def fill(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        self._graphs(self._name).fill(inputs, outputs)


class OnnxRuntimeExecutor:
    """Executor over ONNX Runtime. Raises GraphUnusable, BackendUnavailable."""

    def __init__(self, bundle: Bundle, backend: str, threads: int | None, note: str | None = None) -> None:
        """backend: onnxruntime-cpu or onnxruntime-cuda. threads: per graph, by default one per core. note: for `notes`."""
        self._bundle, self.notes = bundle, [note] if note else []
        self._graphs = LoadedGraphs(bundle, OnnxRuntime(backend, threads))
        self._in_parts = bundle.in_parts and backend == "onnxruntime-cpu"
        decoder = graph_names(bundle.manifest["graphs"]) if self._in_parts else []
        labels = "mask_tiles" if "mask_tiles" in bundle.manifest["graphs"] else "mask_labels"
        first = ["image", "fusion"] if self._in_parts else ["image_fusion"]
        # the others wait until they are needed
        self._graphs.load_now(*first, *(decoder or ["mask_scores"]), labels)
        self._mask_head = self._graphs.mask_head(threads)
        self._decoder = (
            Decoder([_Later(self._graphs, name) for name in decoder], self._mask_head.workers) if decoder else None
        )

    @property
    def most(self) -> int:
        return self._bundle.batch.max

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """(3, h, w) float32."""
        return self._bundle.preprocessing(rgb, input_size)

    def group(self, waiting: Waiting) -> Hashable:
        return waiting.input_size

    def text(self) -> TextGraph:
        return self._graphs("text")

    def encode(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """(h', w', c) float32 tokens each; or the prepared pictures, where image_fusion runs as a whole."""
        if not self._in_parts:
            return [one.prepared for one in group]
        return [tokens.copy() for tokens in self._tokens(group, untimed)]  # which the others of a batch may outlive

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        seen = self._seen(group, clock)
        fuse = self._fuse_jointly if request.mode == "joint" else self._fuse_independently
        answers = []
        for index, maps in enumerate(fuse(seen, request.vectors, clock)):
            with clock("mask_head", index):
                answers.append(resolve(self._mask_head, maps, group[index].size, request))
        return answers

    def maps(self, group: Sequence[Waiting], request: Request) -> list[_Maps]:
        return self._fuse_jointly(self._seen(group, untimed), request.vectors, untimed)

    def close(self) -> None:
        self._graphs.close()
        self._mask_head.close()
        if self._decoder is not None:
            self._decoder.close()

    def _seen(self, group: Sequence[Waiting], clock: Clock) -> np.ndarray:
        return self._tokens(group, clock) if self._in_parts else np.stack([one.prepared for one in group])

    def _tokens(self, group: Sequence[Waiting], clock: Clock) -> np.ndarray:
        """(B, h', w', c): of those not yet encoded, from one run of the image graph."""
        new = [index for index, one in enumerate(group) if not one.encoded]
        tokens = [one.prepared for one in group]
        if new:
            with clock("image", *new):
                found = self._graphs("image")({"pixels": np.stack([tokens[index] for index in new])})["tokens"]
            if len(new) == len(group):
                return found
            for index, one in zip(new, found, strict=True):
                tokens[index] = one
        return np.stack(tokens)

    def _fuse_jointly(self, seen: np.ndarray, vectors: np.ndarray, clock: Clock) -> list[_Maps]:
        """seen: B pictures' tokens or pixels. Returns B pairs of scores (1, K, h', w') and gram (1, 5, h', w')."""
        scores, gram = self._fuse(seen, np.repeat(vectors[None], len(seen), axis=0), clock)
        return [(scores[index : index + 1], gram[index : index + 1]) for index in range(len(seen))]

    def _fuse_independently(self, seen: np.ndarray, vectors: np.ndarray, clock: Clock) -> list[_Maps]:
        """Every picture with each word alone. Returns B pairs of scores (K, 1, h', w') and gram (K, 5, h', w')."""
        every, most = [], self._bundle.batch.max
        for index in range(len(seen)):

            def of_this(stage: str, *members: int, index: int = index) -> AbstractContextManager[None]:
                return clock(stage, index)

            parts = [
                self._fuse(seen[index : index + 1], vectors[start : start + most, None], of_this)
                for start in range(0, len(vectors), most)
            ]
            every.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
        return every

    def _fuse(self, seen: np.ndarray, words: np.ndarray, clock: Clock) -> _Maps:
        """seen: tokens or pixels of P pictures, P = B or 1. words: (B, K, t). Returns scores and gram of B."""
        if not self._in_parts:
            with clock("image_fusion"):
                found = self._graphs("image_fusion")({"pixels": seen, "words": words})
            with clock("mask_head"):
                return self._scored(found["features"], found["refined"])
        with clock("fusion"):
            found = self._graphs("fusion")({"tokens": seen, "words": words})
        return self._maps(found["fused"], found["refined"], clock)

    def _maps(self, fused: np.ndarray, refined: np.ndarray, clock: Clock) -> _Maps:
        """fused: (B, h, w, d). refined: (B, K, d). Returns scores (B, K, h', w') and gram (B, 5, h', w'), all float32."""
        if self._decoder is None:
            with clock("mask_head"):
                return self._scored(fused, refined)
        with clock("decoder"):
            maps = self._decoder.maps(fused, refined)
            check_finite(self._bundle, *maps)
            return maps

    def _scored(self, features: np.ndarray, refined: np.ndarray) -> _Maps:
        scores, gram = self._mask_head.maps(features, refined)
        check_finite(self._bundle, scores, gram)
        return scores, gram


def resolve(head: MaskHead, maps: _Maps, size: tuple[int, int], request: Request) -> Answer:
    """Maps of one picture to labels; independent words are K pictures of one word each."""
    labels_of = head.labels if request.mode == "joint" else head.independent_labels
    labels, confidence = labels_of(*maps, size, request.threshold)
    every = head.probabilities(*maps, size).reshape(-1, *size) if request.probabilities else None
    return Answer(labels, confidence, every)


def check_finite(bundle: Bundle, *arrays: np.ndarray) -> None:
    """Raises GraphUnusable where a value is not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise not_finite(bundle)


def not_finite(bundle: Bundle) -> GraphUnusable:
    return GraphUnusable(
        f"computed values that are not finite, as {bundle.precision} may on some machines",
        f"rebuild it without --fp16: {build_command(bundle.folder, precision='fp32')}",
        subject=bundle.graph("image_fusion"),
    )
