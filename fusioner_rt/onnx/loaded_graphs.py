"""The graphs of a bundle, each loaded when it is first used."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..cpu_cores import cores
from .decoder_in_strips import of_strips
from .mask_head import MaskHead
from .runtime import Graph, OnnxRuntime


class LoadedGraphs:
    """The graphs of a bundle by name. The bytes of one that is loaded late are checked again then."""

    def __init__(self, bundle: Bundle, runtime: OnnxRuntime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()

    def load_now(self, *names: str) -> None:
        """Load graphs that were checked a moment ago, when the bundle was opened."""
        for name in names:
            self.graphs[name] = self.runtime.load(self.bundle.graph(name), **_load_options(name))

    def __call__(self, name: str) -> Graph:
        """Raises BundleFileMissing, BundleFileAltered, GraphUnusable."""
        with self._loading:
            if name not in self.graphs:
                entry = self.bundle.graphs[name]
                content = self.bundle.read_again(entry.file)
                if entry.weights:
                    self.bundle.read_again(entry.weights)
                self.graphs[name] = self.runtime.load(entry.file, content, **_load_options(name))
            return self.graphs[name]

    def later(self, name: str) -> "LateGraph":
        return LateGraph(self, name)

    def mask_head(self, threads: int | None) -> MaskHead:
        """The mask head over these graphs."""
        scores, tiles, probabilities = (self.later(f"mask_{name}") for name in ("scores", "tiles", "probabilities"))
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


def _load_options(name: str) -> dict[str, Any]:
    """Graphs that our own threads call for tiles and strips get one thread, on the CPU: there float32 is not TF32."""
    return {"threads": 1, "on_cpu": True} if name == "mask_tiles" or of_strips(name) else {}
