"""ONNX Runtime's CUDA in the emulated GPU: sessions whose arrays lie in its memory and whose work is its streams', done by
ONNX Runtime's CPU when a stream gets there. Sessions on the CPU are the real ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from emulated_gpu import EmulatedGpu, Work, at

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Binding:
    """What `io_binding` gives: shapes, dtypes and addresses by name; an output without an address is told its shape."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[tuple[int, ...], str, int]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], str, int] | None] = {}
        self.found: list[Any] = []

    def bind_input(self, name: str, device: str, ordinal: int, dtype: Any, shape: Any, pointer: int) -> None:
        assert (device, ordinal) == ("cuda", 0)
        self.inputs[name] = tuple(shape), np.dtype(dtype).name, pointer

    def bind_output(
        self, name: str, device: str, ordinal: int = 0, dtype: Any = None, shape: Any = None, pointer: int | None = None
    ) -> None:
        assert (device, ordinal) == ("cuda", 0)
        self.outputs[name] = None if pointer is None else (tuple(shape), np.dtype(dtype).name, pointer)

    def get_outputs(self) -> list[Any]:
        return self.found


class Value:
    def __init__(self, array: np.ndarray) -> None:
        self._shape = list(array.shape)

    def shape(self) -> list[int]:
        return self._shape


def install(patch: Any, gpu: EmulatedGpu) -> list[str]:
    """Returns the list that grows by "enqueued" or "waited" with every run on the GPU."""
    real, runs = onnxruntime.InferenceSession, []

    class Session:
        def __init__(self, model: Any, options: Any, providers: list[Any], **more: Any) -> None:
            chosen = providers[0]
            self.on_gpu = isinstance(chosen, tuple) and chosen[0] == CUDA
            self.stream = int(chosen[1].get("user_compute_stream", 0)) if self.on_gpu else 0
            self.session = real(model, options, providers=[CPU], **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if self.on_gpu else [CPU]

        def io_binding(self) -> Any:
            return Binding() if self.on_gpu else self.session.io_binding()

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            if not self.on_gpu:
                self.session.run_with_iobinding(binding, options)
                return

            def compute() -> None:
                inputs = {name: at(pointer, shape, dtype).copy()
                          for name, (shape, dtype, pointer) in binding.inputs.items()}  # fmt: skip
                found = self.session.run(list(binding.outputs), inputs)
                binding.found = [Value(array) for array in found]
                for array, bound in zip(found, binding.outputs.values(), strict=True):
                    if bound is not None:
                        shape, dtype, pointer = bound
                        at(pointer, shape, dtype)[:] = array

            every = [bound for bound in (*binding.inputs.values(), *binding.outputs.values()) if bound is not None]
            gpu.order.append(("engine", self.stream))
            gpu.submit(self.stream, Work("engine", compute, tuple((pointer, 1) for _, _, pointer in every)))
            waits = options is None or options.get_run_config_entry("disable_synchronize_execution_providers") != "1"
            runs.append("waited" if waits else "enqueued")
            if waits:
                gpu.finish(self.stream)

    patch.setattr(onnxruntime, "InferenceSession", Session)
    patch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    patch.setattr("fusioner_rt.onnx.runtime.driver_missing", lambda: None)
    patch.setattr("fusioner_rt.onnx.runtime._load_cuda_libraries", lambda module: None)
    patch.setattr("cuda.bindings.driver", gpu)
    return runs
