"""An engine for the GPU's path that computes nothing: it copies features and refined words, which the CPU computed for a
picture, to where an engine would have written them.

With it all but the engine is proved on a GPU without TensorRT or ONNX Runtime's CUDA: preparation, recordings, streams,
threads, the mask head and the way of the results.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from fusioner_rt.bundle import Bundle
from fusioner_rt.executor_interface import Request
from fusioner_rt.gpu.driver import Device, Memory
from fusioner_rt.onnx.runtime import OnnxRuntime

Shapes = Mapping[str, tuple[int, ...]]


class StandInEngine:
    """`serve` says what it gives next, for pictures and words of the shapes served."""

    records = True

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self._bundle, self._device = bundle, device
        self._graph = OnnxRuntime("onnxruntime-cpu").load(bundle.graph("image_fusion"))
        self._held: dict[tuple[tuple[int, ...], ...], dict[str, tuple[Memory, tuple[int, ...]]]] = {}
        self._lock = threading.Lock()

    def serve(self, pictures: list[np.ndarray], input_size: tuple[int, int], request: Request) -> dict[str, np.ndarray]:
        """Compute for these pictures, on the CPU, what a run of their shapes gives from now on; returns it."""
        pixels = np.stack([self._bundle.preprocessing(rgb, input_size) for rgb in pictures])
        words = np.repeat(request.vectors[None], len(pictures), axis=0)
        found = self._graph({"pixels": pixels, "words": words})
        with self._lock:
            held = self._held.setdefault((pixels.shape, words.shape), {})
            for name, array in found.items():
                if name not in held:
                    held[name] = Memory(self._device, array.nbytes), array.shape
                held[name][0].upload(array)
        return found

    def context(self, shapes: Shapes, stream: int) -> StandInContext:
        with self._lock:
            return StandInContext(self._device, self._held[shapes["pixels"], shapes["words"]])

    def give_back(self, context: StandInContext) -> None:
        pass

    def max_batch(self, name: str) -> int:
        return self._bundle.batch.max

    def close(self) -> None:
        while self._held:
            for memory, _ in self._held.popitem()[1].values():
                memory.close()


class StandInContext:
    workspace_bytes = 0

    def __init__(self, device: Device, held: Mapping[str, tuple[Memory, tuple[int, ...]]]) -> None:
        self._device, self._held = device, held
        self.outputs = {name: shape for name, (_, shape) in held.items()}

    def place(self, pointers: Mapping[str, int], workspace: int) -> None:
        self._pointers = pointers

    def recordable(self, stream: int) -> bool:
        return True

    def enqueue(self, stream: int) -> None:
        for name, (memory, _) in self._held.items():
            self._device.driver.cuMemcpyDtoDAsync(self._pointers[name], memory.pointer, memory.size, stream)
