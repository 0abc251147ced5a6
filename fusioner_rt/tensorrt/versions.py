"""TensorRT and TensorRT-RTX as one library: which module it is, and every call in which their versions differ.

Looked up in the bindings of TensorRT 10.3, 10.9, 10.16 and 11.4 and TensorRT-RTX 1.7
(tests/export/tensorrt/test_tensorrt_bindings.py):

                                         10.3, 10.9   10.16   11    RTX
    networks typed by their graph             asked for     always asked for (the flag is there in all)
    plans for GPUs that are not here          -      -      -     set_compute_capability; none set: those listed from 8.0 on
    plans for later GPUs                      AMPERE_PLUS         see above
    BuilderFlag.REQUIRE_USER_ALLOCATION       -      -      -     yes
    version-compatible plans, timing cache    yes    yes    yes   -
    get_engine_validity, is_stream_capturable -      -      -     yes
    create_runtime_config                     -      yes    yes   yes
    runtime cache, CUDA graph strategy        -      -      -     yes, of the runtime configuration

Alike in all: deserialize_cuda_engine(buffer), create_execution_context(strategy), set_device_memory(pointer, bytes),
device_memory_size_v2, get_device_memory_size_for_profile_v2(index), tensors by name, execute_async_v3.
"""

import contextlib
import importlib
import threading
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import (
    BackendUnavailable,
    CudaFailed,
    FusionerError,
    GpuMemoryShort,
    PlanForAnotherGpu,
    PlanForAnotherVersion,
    PlanUnusable,
    one_line,
)
from ..files import write_atomically
from ..gpu.driver import Device

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module by flavour; a flavour is also the name of the package that brings it, and of its backend."""
LEAST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 7)}
"""The oldest version whose calls are those made here."""

NOTHING_SAID = "no reason given"


def load(flavour: str) -> ModuleType:
    """The flavour's Python module. Raises BackendUnavailable where it is missing, broken or too old."""
    install = f"install it: pip install {flavour}"
    try:
        module = importlib.import_module(MODULES[flavour])
    except Exception as error:  # an ImportError, or whatever loading its libraries raises
        raise BackendUnavailable(
            f"the Python package {flavour} cannot be loaded ({one_line(error)})", install, subject=f"backend {flavour}"
        ) from None
    if not hasattr(module, "Runtime"):  # a folder of that name on the path imports as well
        raise BackendUnavailable(
            f"the module {module.__name__} found here is not TensorRT", install, subject=f"backend {flavour}"
        )
    least = LEAST[flavour]
    if version(module)[: len(least)] < least:
        raise BackendUnavailable(
            f"version {module.__version__} is installed, {'.'.join(map(str, least))} or newer is needed",
            f"update it: pip install --upgrade {flavour}",
            subject=f"backend {flavour}",
        )
    return module


def version(trt: ModuleType) -> tuple[int, ...]:
    """(11, 4, 0, 106)."""
    return tuple(int(part) for part in trt.__version__.split(".") if part.isdecimal())


class ErrorLog:
    """What TensorRT logged as an error, by the one logger of a process: a second one would be ignored."""

    def __init__(self, trt: ModuleType) -> None:
        errors: deque[str] = deque(maxlen=20)
        severe = trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR

        class Logger(trt.ILogger):  # type: ignore[name-defined]
            def log(self, severity: Any, msg: str) -> None:
                with contextlib.suppress(Exception):  # called from C++, in whichever thread
                    if severity in severe:
                        errors.append(msg)

        self._errors = errors
        self.logger = Logger()

    def take(self) -> str:
        """The errors since the last call, in one line; NOTHING_SAID without any."""
        said = [one_line(Exception(self._errors.popleft())) for _ in range(len(self._errors))]
        return "; ".join(dict.fromkeys(said)) or NOTHING_SAID


def error_log(trt: ModuleType) -> ErrorLog:
    """The process's log of this flavour, made at the first call. Its `logger` is for Builder, OnnxParser and Runtime."""
    with _lock:
        if trt.__name__ not in _logs:
            _logs[trt.__name__] = ErrorLog(trt)
        return _logs[trt.__name__]


_logs: dict[str, ErrorLog] = {}
_lock = threading.Lock()


def network_flags(trt: ModuleType) -> int:
    """Creation flags of a network that computes in the types its graph has."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(typed) if typed is not None else 0  # a version that knows no other mode need not name it


def known_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that plans can be built for without the GPU, such as "8.9"; none with full TensorRT."""
    names = (name[2:] for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM"))
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(names, key=int)]


def set_capabilities(trt: ModuleType, config: Any, capabilities: list[str]) -> None:
    """Build for these GPUs, each of `known_capabilities`; for none named, one plan for those of them from 8.0 on."""
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(member, index)


def require_own_memory(trt: ModuleType, config: Any) -> None:
    """Build plans that work in the memory given to them, so that their work can be recorded in a CUDA graph. TensorRT-RTX
    else allocates as it runs where tensors are larger than it holds memory for; with this such a build fails.
    """
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def check_plan(trt: ModuleType, runtime: Any, content: bytes, what: str, cure: str, other_gpu: str) -> str | None:
    """TensorRT's own look at a plan before it is loaded, where this version has one (RTX). what: names it in messages.
    other_gpu: the cure where this GPU is not one of the plan's.

    Returns a sentence where the plan is valid and not the best for this GPU. Raises PlanForAnotherVersion, PlanForAnotherGpu,
    GpuMemoryShort or PlanUnusable.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    log = error_log(trt)
    log.take()
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        return f"{what}: valid on this GPU, and TensorRT-RTX calls it suboptimal ({log.take()})"
    if validity != trt.EngineValidity.INVALID:
        return None
    found = trt.EngineInvalidityDiagnostics
    kinds: list[tuple[Any, type[FusionerError], str]] = [
        (found.VERSION_MISMATCH, PlanForAnotherVersion, f"was built with another version than {trt.__version__}"),
        (found.UNSUPPORTED_CC, PlanForAnotherGpu, "was built for other GPUs than this one"),
        (found.INSUFFICIENT_GPU_MEMORY, GpuMemoryShort, "needs more memory than this GPU has free"),
        (found.OLD_CUDA_DRIVER, PlanUnusable, "needs a newer NVIDIA driver"),
        (found.OLD_CUDA_RUNTIME, PlanUnusable, "needs a newer CUDA runtime"),
        (found.MALFORMED_ENGINE, PlanUnusable, "is no plan, or a damaged one"),
    ]
    for flag, kind, said in kinds:
        if int(diagnostics) & int(flag):
            raise kind(f"{said}", other_gpu if kind is PlanForAnotherGpu else cure, subject=what)
    raise PlanUnusable(f"TensorRT calls it invalid (diagnostics {int(diagnostics)}: {log.take()})", cure, subject=what)


class RuntimeCache:
    """The kernels TensorRT-RTX compiled on a GPU, kept in a file between processes; other flavours have none.

    note: what went wrong with the file, or None. A file of another driver, GPU or version is started afresh. Threads may
    share one; it must outlive the contexts made with it.
    """

    def __init__(self, path: Path | None, device: Device) -> None:
        """path: None keeps nothing."""
        self.path, self._device = path, device
        self.note: str | None = None
        self._cache: Any = None
        self._kept = b""
        self._lock = threading.Lock()

    def of(self, config: Any) -> Any:
        """The cache for a runtime configuration, read from the file the first time."""
        with self._lock, self._device.current():
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                with contextlib.suppress(OSError):
                    content = self.path.read_bytes() if self.path is not None else b""
                    if content and self._cache.deserialize(content):
                        self._kept = content
            return self._cache

    def save(self) -> None:
        """Write what was compiled since, whole or not at all; what goes wrong is a note."""
        if self.path is None:
            return
        with self._lock:
            try:
                with self._device.current():
                    serialized = self._cache.serialize() if self._cache is not None else None
                content = bytes(serialized) if serialized is not None else b""
                if content and content != self._kept:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(self.path, lambda stream: stream.write(content))
                    self._kept, self.note = content, None
            except (OSError, RuntimeError, CudaFailed) as error:
                self.note = (
                    f"what TensorRT-RTX compiled cannot be kept in {self.path} ({one_line(error)}): the next process compiles "
                    "again; name a writable folder with --cache, cache= or FUSIONER_CACHE"
                )

    def close(self) -> None:
        """Save, and let go of it; the contexts made with it must be gone. Closing twice is fine."""
        self.save()
        with self._lock, contextlib.suppress(CudaFailed), self._device.current():
            self._cache = None


def create_context(trt: ModuleType, engine: Any, cache: RuntimeCache | None) -> tuple[Any, Any]:
    """An execution context that works in memory given to it, and what must live as long. TensorRT-RTX compiles for its
    very shapes, and at once: what a captured graph holds is not replaced later.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(strategy), None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the whole path is captured, not the engine alone
    if cache is not None:
        config.set_runtime_cache(cache.of(config))
    return engine.create_execution_context(config), config


def recordable(context: Any, stream: int) -> bool:
    """Whether TensorRT lets a CUDA graph be made of its work, as far as this version tells before it is tried."""
    return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True
