"""The graphs of a bundle, each loaded when it is first used."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..cpu_cores import cores
from .decoder_in_strips import of_strips
from .external_weights import Buffer
from .mask_head import MaskHead
from .runtime import Graph, OnnxRuntime

_MASK_HEAD = ("mask_scores", "mask_tiles", "mask_probabilities")


class LoadedGraphs:
    """The graphs of a bundle by name. What is loaded are the bytes that were hashed then."""

    def __init__(self, bundle: Bundle, runtime: OnnxRuntime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()

    def load_now(self, *names: str) -> None:
        """Load graphs; the weights that they share are read once. Raises as a call."""
        weights: dict[Path, Buffer] = {}
        for name in names:
            self.graphs[name] = load(self.bundle, self.runtime, name, weights, **_load_options(name))

    def __call__(self, name: str) -> Graph:
        """Raises BundleFileMissing, BundleFileAltered, GraphUnusable."""
        with self._loading:
            if name not in self.graphs:
                self.load_now(name)
            return self.graphs[name]

    def load_mask_head(self) -> None:
        """Load its graphs now. Raises as a call."""
        for name in _MASK_HEAD:
            self(name)

    def later(self, name: str) -> "LateGraph":
        return LateGraph(self, name)

    def mask_head(self, threads: int | None) -> MaskHead:
        """The mask head over these graphs."""
        scores, tiles, probabilities = map(self.later, _MASK_HEAD)
        return MaskHead(scores, tiles, probabilities, threads or cores(), scoring=self.bundle.scoring)

    def close(self) -> None:
        with self._loading:
            self.graphs.clear()


class LateGraph:
    """A graph that is looked up whenever it is used, so that closing the graphs gives its memory back."""

    def __init__(self, graphs: LoadedGraphs, name: str) -> None:
        self._graphs, self._name = graphs, name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._graphs(self._name)(inputs)

    def channels(self, output: str) -> int:
        return self._graphs(self._name).channels(output)

    def fill(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        self._graphs(self._name).fill(inputs, outputs)


def load(
    bundle: Bundle, runtime: OnnxRuntime, name: str, weights: dict[Path, Buffer] | None = None, **options: Any
) -> Graph:
    """Load a graph of a bundle. weights: what was read already, to be added to. options: of `OnnxRuntime.load`.

    Raises BundleFileMissing, BundleFileAltered, GraphUnusable.
    """
    entry, weights = bundle.graphs[name], {} if weights is None else weights
    if entry.weights and entry.weights not in weights:
        weights[entry.weights] = bundle.read_weights(entry.weights)
    own = {entry.weights: weights[entry.weights]} if entry.weights else {}
    return runtime.load(entry.file, bundle.read(entry.file), own, **options)


def _load_options(name: str) -> dict[str, Any]:
    """Graphs that our own threads call for tiles, bands and strips get one thread; but for bands on the CPU: there float32 is not TF32."""
    if name == "mask_probabilities":
        return {"threads": 1}
    return {"threads": 1, "on_cpu": True} if name == "mask_tiles" or of_strips(name) else {}
