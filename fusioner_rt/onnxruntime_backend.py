"""Runs a bundle's graphs with ONNX Runtime, and says honestly on what they run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import build_command
from .errors import BackendUnavailable, GraphUnusable, one_line

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def providers(name: str, available: list[str]) -> list[str]:
    """Providers to ask ONNX Runtime for, best first.

    name: onnxruntime-cpu or onnxruntime-cuda. available: `onnxruntime.get_available_providers()`, what the installed
    package was built with (which does not say that this machine can run it). Raises BackendUnavailable.
    """
    if name == "onnxruntime-cpu":
        return [CPU]
    if CUDA not in available:
        raise BackendUnavailable(
            "backend onnxruntime-cuda: the installed ONNX Runtime was built without CUDA; replace it: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu, or choose onnxruntime-cpu"
        )
    return [CUDA, CPU]


class OnnxRuntime:
    """Loads graphs on one backend. Graphs may run in several threads at once."""

    def __init__(self, name: str, threads: int | None = None) -> None:
        """name: onnxruntime-cpu or onnxruntime-cuda. threads: CPU threads a graph may use, by default one per core.

        Raises BackendUnavailable.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"ONNX Runtime cannot be loaded ({error}); install it: pip install onnxruntime, or onnxruntime-gpu"
            ) from None
        self._module: Any = onnxruntime
        self._providers = providers(name, onnxruntime.get_available_providers())
        self._threads = threads

    def load(
        self, path: Path, content: bytes | None = None, threads: int | None = None, on_cpu: bool = False
    ) -> "Graph":
        """A graph ready to run. content: the file's bytes, where the caller has read them. threads: other than the
        backend's. on_cpu: there, whatever the backend is. Raises GraphUnusable, and BackendUnavailable where CUDA was
        asked for and does not start.
        """
        options = self._module.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, in words of our own
        if threads or self._threads:
            options.intra_op_num_threads = threads or self._threads
        try:
            session = self._module.InferenceSession(
                content or str(path), options, providers=[CPU] if on_cpu else self._providers
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise GraphUnusable(
                f"{path}: ONNX Runtime {self._module.__version__} cannot load it ({one_line(error)}); "
                f"rebuild the bundle: {build_command(path.parent)}"
            ) from None
        if not on_cpu and CUDA in self._providers and CUDA not in session.get_providers():
            # ONNX Runtime lists CUDA as available and, where driver or libraries are missing, runs on the CPU unasked.
            raise BackendUnavailable(
                "backend onnxruntime-cuda: ONNX Runtime could not start CUDA on this machine and fell back to the CPU; check "
                "nvidia-smi and the CUDA and cuDNN versions that onnxruntime-gpu wants, or choose onnxruntime-cpu"
            )
        return Graph(session, path)


class Graph:
    """One loaded ONNX graph; call it with arrays by input name, get arrays by output name."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises GraphUnusable where the graph refuses the inputs or runs out of memory."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in inputs.items())
            raise GraphUnusable(
                f"{self._path}: failed on {shapes} ({one_line(error)}); "
                f"rebuild the bundle: {build_command(self._path.parent)}"
            ) from None
