"""Runs a bundle's graphs with ONNX Runtime, and says honestly on what they run."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import build_command
from .errors import BackendUnavailable, GraphUnusable, one_line

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
REQUESTS = ("auto", "onnxruntime", "onnxruntime-cpu", "onnxruntime-cuda")


@dataclass(frozen=True)
class Backend:
    """requested: what the caller named; effective: what runs; why: one sentence that leads from one to the other."""

    requested: str
    effective: str
    why: str


def choose(requested: str, available: list[str]) -> tuple[list[str], str]:
    """Providers to ask ONNX Runtime for, best first, and why.

    requested: one of REQUESTS. available: `onnxruntime.get_available_providers()`, what the installed package was
    built with (which does not say that this machine can run it). Raises BackendUnavailable.
    """
    if requested in ("tensorrt", "tensorrt-rtx"):
        raise BackendUnavailable(
            f"backend {requested}: this version does not run TensorRT plans; choose one of {', '.join(REQUESTS)}"
        )
    if requested not in REQUESTS:
        raise BackendUnavailable(f"backend {requested!r} is unknown; choose one of {', '.join(REQUESTS)}")
    if requested == "onnxruntime-cpu":
        return [CPU], "the CPU was asked for"
    if CUDA in available:
        return [CUDA, CPU], "CUDA is in the installed ONNX Runtime"
    if requested == "onnxruntime-cuda":
        raise BackendUnavailable(
            "backend onnxruntime-cuda: the installed ONNX Runtime was built without CUDA; replace it: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu, or choose onnxruntime-cpu"
        )
    return [CPU], "the installed ONNX Runtime was built without CUDA"


class OnnxRuntime:
    """Loads graphs on one backend. Graphs may run in several threads at once."""

    def __init__(self, requested: str = "auto", threads: int | None = None) -> None:
        """threads: CPU threads a graph may use, by default one per core. Raises BackendUnavailable."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"ONNX Runtime cannot be loaded ({error}); install it: pip install onnxruntime, or onnxruntime-gpu"
            ) from None
        self._module: Any = onnxruntime
        self._providers, self._why = choose(requested, onnxruntime.get_available_providers())
        self._threads = threads
        self._requested = requested
        self._effective: str | None = None
        self._lock = threading.Lock()

    @property
    def backend(self) -> Backend:
        """Requested and effective; the latter is known once a graph has been loaded."""
        return Backend(self._requested, self._effective or "nothing loaded yet", self._why)

    def load(
        self, path: Path, content: bytes | None = None, threads: int | None = None, on_cpu: bool = False
    ) -> "Graph":
        """A graph ready to run. content: the file's bytes, where the caller has read them. threads: other than the
        backend's. on_cpu: there, whatever the backend is. Raises GraphUnusable, or BackendUnavailable where CUDA was
        insisted on and is not.
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
        if not on_cpu:
            with self._lock:
                self._note_effective(session.get_providers())
        return Graph(session, path)

    def _note_effective(self, providers: list[str]) -> None:
        effective = "onnxruntime-cuda" if CUDA in providers else "onnxruntime-cpu"
        if effective == "onnxruntime-cpu" and CUDA in self._providers:
            # ONNX Runtime lists CUDA as available and, where driver or libraries are missing, runs on the CPU unasked.
            found = "ONNX Runtime could not start CUDA on this machine and fell back to the CPU"
            cure = "check nvidia-smi and the CUDA and cuDNN versions that onnxruntime-gpu wants"
            if self._requested == "onnxruntime-cuda":
                raise BackendUnavailable(f"backend onnxruntime-cuda: {found}; {cure}, or choose onnxruntime-cpu")
            self._why = f"{found}; {cure}"
            self._providers = [CPU]
        self._effective = effective


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
