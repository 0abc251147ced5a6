"""CPU work of a GPU backend: words without a plan, and masks that are too large for the GPU."""

import numpy as np

from ..bundle import Bundle
from ..check_finite import checked_answer
from ..executor_interface import Answer, Request, TextGraph
from .loaded_graphs import LoadedGraphs
from .runtime import OnnxRuntime


class OnnxCpuSide:
    """`executor_interface.CpuSide` over the bundle's ONNX graphs. Raises BackendUnavailable, GraphUnusable."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """threads: per graph, by default one per core."""
        self._graphs = LoadedGraphs(bundle, OnnxRuntime("onnxruntime-cpu", threads))
        self._mask_head = self._graphs.mask_head(threads)

    def text(self) -> TextGraph:
        return self._graphs("text")

    def load_rest(self) -> None:
        self._graphs.load_mask_head()

    def maps(self, features: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._mask_head.maps(features, refined)

    def answer(self, maps: tuple[np.ndarray, np.ndarray], size: tuple[int, int], request: Request) -> Answer:
        return checked_answer(self._graphs.bundle, self._mask_head.answer(*maps, size, request))

    def close(self) -> None:
        self._graphs.close()
        self._mask_head.close()
