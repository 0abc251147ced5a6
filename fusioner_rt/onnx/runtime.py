"""Runs a bundle's graphs with ONNX Runtime, without a silent fallback to the CPU.

onnxruntime-gpu lists CUDA as available on any machine. It falls back to the CPU where the driver or libraries are missing,
and after a failed run on the GPU. Both are errors here.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..cpu_cores import bound_cores, cores
from ..cures import CUDA_LIBRARIES, build_command
from ..device_array import DeviceArray
from ..errors import BackendUnavailable, GpuMemoryShort, GraphUnusable, one_line
from ..hardware import driver_missing
from ..memory_shortage import is_shortage
from .external_weights import Buffer, ExternalTensor, external_tensors

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_CUDA_OPTIONS = {"use_tf32": "0"}  # TF32 would round float32 inputs


def built_with_cuda() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA; it may still not run here."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return CUDA in onnxruntime.get_available_providers()


def providers(name: str, available: list[str]) -> list[str]:
    """The providers of a backend, best first.

    name: onnxruntime-cpu or onnxruntime-cuda. available: `onnxruntime.get_available_providers()`, which lists what the
    package was built with, not what this machine can run. Raises BackendUnavailable.
    """
    if name == "onnxruntime-cpu":
        return [CPU]
    if CUDA not in available:
        raise BackendUnavailable(
            "the installed ONNX Runtime was built without CUDA",
            f"replace it: pip uninstall onnxruntime && {CUDA_LIBRARIES}, or choose onnxruntime-cpu",
            subject="backend onnxruntime-cuda",
        )
    return [CUDA, CPU]


class OnnxRuntime:
    """Loads graphs on one backend. Threads may share a loaded graph."""

    def __init__(self, name: str, threads: int | None = None) -> None:
        """name: onnxruntime-cpu or onnxruntime-cuda. threads: CPU threads a graph may use, by default one per core.

        Raises BackendUnavailable.
        """
        self._module = _module(
            CUDA_LIBRARIES if name == "onnxruntime-cuda" else "pip install onnxruntime, or onnxruntime-gpu"
        )
        self._providers = providers(name, self._module.get_available_providers())
        self._threads = threads
        if CUDA in self._providers:
            if missing := driver_missing():
                raise BackendUnavailable(
                    f"there is no NVIDIA driver ({missing})",
                    "install it, or choose onnxruntime-cpu",
                    subject="backend onnxruntime-cuda",
                )
            _load_cuda_libraries(self._module)

    def load(
        self, path: Path, content: bytes | None = None, weights: Mapping[Path, Buffer] | None = None,
        threads: int | None = None, on_cpu: bool = False, stream: int | None = None,
    ) -> "Graph":  # fmt: skip
        """Load a graph. content: the file's bytes, if already read. weights: the content of the files that may hold its
        weights, by default of those beside it that it names. threads: instead of the backend's. on_cpu: load on the CPU in
        any case. stream: a CUDA stream for all work of the graph. Of what was given, nothing is needed once it is loaded.
        Raises GraphUnusable, and BackendUnavailable where CUDA does not start.
        """
        options = self._module.SessionOptions()
        options.log_severity_level = 4  # errors are raised, not logged
        try:
            content = path.read_bytes() if content is None else content
            given = self._give_weights(options, path, external_tensors(content), weights)
        except (OSError, ValueError) as error:
            raise self._refused(path, error) from None
        # spinning threads of one graph would take cores from the next graph and from other processes
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not (threads := threads or self._threads) and cores() < bound_cores():
            threads = cores()  # ONNX Runtime counts cores by affinity alone
        if threads:
            options.intra_op_num_threads = threads
        cuda = CUDA in self._providers and not on_cpu
        stream_option = {} if stream is None else {"user_compute_stream": str(stream)}
        chosen: list[Any] = [(CUDA, {**_CUDA_OPTIONS, **stream_option}), CPU] if cuda else [CPU]
        try:
            # without enable_fallback=0 a failure on the GPU, here or in a run, moves the graph to the CPU
            session = self._module.InferenceSession(content, options, chosen, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions have no common base
            if is_shortage(error):
                raise _short(error, path, cuda) from None
            if cuda and self._loads_on_cpu(path, content, weights):
                raise self._no_cuda(one_line(error)) from None
            raise self._refused(path, error) from None
        del given  # copied by now
        if cuda and CUDA not in session.get_providers():
            raise self._no_cuda(f"it fell back to the CPU{_missing_library(self._module)}")
        return Graph(session, path, self._module)

    def _give_weights(
        self, options: Any, path: Path, tensors: list[ExternalTensor], weights: Mapping[Path, Buffer] | None
    ) -> list[Any]:
        """Give the values that lie in other files, and return them: they must live until the graph is loaded.

        Raises GraphUnusable for a file that may not hold any, ValueError.
        """
        values = []
        if weights is None:
            beside = {path.parent / tensor.file for tensor in tensors if tensor.file == Path(tensor.file).name}
            weights = {file: file.read_bytes() for file in beside}
        for tensor in tensors:
            if (file := path.parent / tensor.file) not in weights or not tensor.outer:
                listed = ", ".join(place.name for place in weights) or "none"
                raise GraphUnusable(
                    f"keeps {tensor.name} in the file {tensor.file!r}, weights were expected in the file that the manifest "
                    f"lists for it, {listed}",
                    f"rebuild the bundle: {build_command(path.parent)}",
                    subject=path,
                )
            values.append(self._module.OrtValue.ortvalue_from_numpy(tensor.of(weights[file])))
        if values:
            options.add_external_initializers([tensor.name for tensor in tensors], values)
        return values

    def _refused(self, path: Path, error: Exception) -> GraphUnusable:
        return GraphUnusable(
            f"ONNX Runtime {self._module.__version__} cannot load it ({one_line(error)})",
            f"rebuild the bundle: {build_command(path.parent)}",
            subject=path,
        )

    def _loads_on_cpu(self, path: Path, content: bytes, weights: Mapping[Path, Buffer] | None) -> bool:
        """Whether the graph itself can be loaded."""
        try:
            self.load(path, content, weights, on_cpu=True)
        except GraphUnusable:
            return False
        return True

    def _no_cuda(self, reason: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"ONNX Runtime {self._module.__version__} could not start CUDA on this machine ({reason})",
            f"check nvidia-smi, get CUDA's and cuDNN's libraries ({CUDA_LIBRARIES}), or choose onnxruntime-cpu",
            subject="backend onnxruntime-cuda",
        )


class Graph:
    """A loaded ONNX graph: called with arrays by input name, returns arrays by output name."""

    def __init__(self, session: Any, path: Path, module: Any) -> None:
        """module: onnxruntime."""
        self._session, self._path, self._module = session, path, module
        self._outputs = _ByName(path, {output.name: output.shape for output in session.get_outputs()})

    def channels(self, output: str) -> int:
        """The last dimension of an output, which the graph fixes."""
        *_, last = self._outputs[output] or [None]
        if not isinstance(last, int):
            raise GraphUnusable(
                f"leaves the length of {output} open", f"rebuild the bundle: {build_command(self._path.parent)}",
                subject=self._path,
            )  # fmt: skip
        return last

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises GraphUnusable where the inputs do not fit, MemoryError or GpuMemoryShort where memory is short."""
        try:
            values = self._session.run(list(self._outputs), dict(inputs))
        except Exception as error:
            raise self._failed(inputs, error) from None
        return _ByName(self._path, zip(self._outputs, values, strict=True))

    def fill(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Run on the CPU and write the outputs into the arrays given. All arrays are contiguous. Raises GraphUnusable."""
        try:
            binding = self._session.io_binding()
            for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
                for name, array in arrays.items():
                    if not array.flags.c_contiguous:  # ONNX Runtime reads its memory as contiguous
                        raise ValueError(f"{name} is not contiguous")
                    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise self._failed({**inputs, **outputs}, error) from None

    def output_shapes(self, inputs: Mapping[str, DeviceArray]) -> dict[str, tuple[int, ...]]:
        """Output shapes, found by a run. inputs: in GPU memory, of any content. Raises GraphUnusable."""
        try:
            binding = self._bound(inputs, {})
            for name in self._outputs:
                binding.bind_output(name, "cuda")
            self._session.run_with_iobinding(binding)
            return {
                name: tuple(value.shape()) for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
            }
        except Exception as error:
            raise self._failed(inputs, error) from None

    def on_gpu(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Callable[[], None]:
        """A function that enqueues the graph on its stream, with these arrays. Raises GraphUnusable, as it does."""
        options = self._module.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # readers of the stream wait
        try:
            binding = self._bound(inputs, outputs)
        except Exception as error:
            raise self._failed({**inputs, **outputs}, error) from None

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:
                raise self._failed({**inputs, **outputs}, error) from None

        return run

    def _bound(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Any:
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cuda", 0, np.dtype(array.dtype).type, array.shape, array.pointer)
        return binding

    def _failed(self, arrays: Mapping[str, np.ndarray | DeviceArray], error: Exception) -> Exception:
        if is_shortage(error):
            return _short(error, self._path, CUDA in self._session.get_providers())
        shapes = ", ".join(f"{name} {value.shape}" for name, value in arrays.items())
        return GraphUnusable(
            f"failed on {shapes} ({one_line(error)})",
            f"rebuild the bundle: {build_command(self._path.parent)}",
            subject=self._path,
        )


class _ByName(dict[str, Any]):
    """Outputs of a graph. Raises GraphUnusable for one that it does not have."""

    def __init__(self, path: Path, values: Any) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> None:
        raise GraphUnusable(
            f"gives {', '.join(self)}, and no {name}",
            f"rebuild the bundle: {build_command(self._path.parent)}",
            subject=self._path,
        )


def _short(error: Exception, path: Path, cuda: bool) -> Exception:
    """A shortage of memory. cuda: the graph is one on the GPU, where ONNX Runtime does not say whose memory it is."""
    if cuda and not isinstance(error, MemoryError):
        return GpuMemoryShort(
            f"ONNX Runtime needs more memory than this GPU has free ({one_line(error)})",
            "fewer pictures, words or pixels need less; nvidia-smi lists what else uses the GPU",
            subject=path,
        )
    return MemoryError(f"{path.name}: {one_line(error)}")


def _module(install: str) -> Any:
    """Import ONNX Runtime. install: the command for the error's cure. Raises BackendUnavailable."""
    try:
        import onnxruntime
    except Exception as error:  # an ImportError, or any error of a broken installation
        if is_shortage(error):
            raise
        raise BackendUnavailable(
            f"ONNX Runtime cannot be loaded ({one_line(error)})", f"install it: {install}"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # what remains after removing one of two packages
        raise BackendUnavailable(
            "ONNX Runtime is installed in part",
            "remove what is left and install one of its packages: pip uninstall onnxruntime "
            "onnxruntime-gpu && pip install onnxruntime, or onnxruntime-gpu",
        )
    return onnxruntime


def _load_cuda_libraries(module: ModuleType) -> None:
    """Load CUDA's libraries from pip packages, where ONNX Runtime does not look."""
    beside = Path(str(module.__file__)).parents[1] / "nvidia"
    if hasattr(module, "preload_dlls") and beside.is_dir():
        with contextlib.redirect_stdout(sys.stderr):  # it prints missing libraries
            module.preload_dlls()


def _missing_library(module: ModuleType) -> str:
    """The library that ONNX Runtime's CUDA provider does not find. Call after ONNX Runtime has tried to load it."""
    part = Path(str(module.__file__)).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if part.is_file():
        try:
            ctypes.CDLL(str(part))
        except OSError as error:
            return f": {error}"
    return ""
