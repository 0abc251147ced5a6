"""TensorRT and TensorRT-RTX as one library: the module, and all calls that differ between versions.

From the bindings of TensorRT 10.3, 10.9, 10.16 and 11.4 and TensorRT-RTX 1.7
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

The same in all: deserialize_cuda_engine(buffer), create_execution_context(strategy), set_device_memory(pointer, bytes),
device_memory_size_v2, get_device_memory_size_for_profile_v2(index), tensors by name, execute_async_v3.
"""

import contextlib
import importlib
import threading
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import (
    BackendUnavailable,
    FusionerError,
    GpuMemoryShort,
    PlanForAnotherGpu,
    PlanForAnotherVersion,
    PlanUnusable,
    one_line,
)
from ..memory_shortage import is_shortage

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module by flavour. The flavour is also the name of its package and backend."""
LEAST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 7)}
"""The oldest supported versions."""

NOTHING_SAID = "no reason given"


def load(flavour: str) -> ModuleType:
    """The flavour's Python module. Raises BackendUnavailable where it is missing, broken or too old."""
    install = f"install it: pip install {flavour}"
    try:
        module = importlib.import_module(MODULES[flavour])
    except Exception as error:  # an ImportError, or any error of loading its libraries
        if is_shortage(error):
            raise
        raise BackendUnavailable(
            f"the Python package {flavour} cannot be loaded ({one_line(error)})", install, subject=f"backend {flavour}"
        ) from None
    if not hasattr(module, "Runtime"):  # any folder of that name imports too
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
    """The version as numbers, (11, 4, 0, 106)."""
    return tuple(int(part) for part in trt.__version__.split(".") if part.isdecimal())


class ErrorLog:
    """Errors that TensorRT logged. TensorRT uses one logger per process and ignores others."""

    def __init__(self, trt: ModuleType) -> None:
        errors: deque[str] = deque(maxlen=20)
        severe = trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR

        class Logger(trt.ILogger):  # type: ignore[name-defined]
            def log(self, severity: Any, msg: str) -> None:
                with contextlib.suppress(Exception):  # called from C++, in any thread
                    if severity in severe:
                        errors.append(msg)

        self._errors = errors
        self.logger = Logger()

    def take(self) -> str:
        """The errors since the last call, in one line, or NOTHING_SAID."""
        messages = [one_line(Exception(self._errors.popleft())) for _ in range(len(self._errors))]
        return "; ".join(dict.fromkeys(messages)) or NOTHING_SAID


def error_log(trt: ModuleType) -> ErrorLog:
    """The process's log of a flavour. Its `logger` is for Builder, OnnxParser and Runtime."""
    with _lock:
        if trt.__name__ not in _logs:
            _logs[trt.__name__] = ErrorLog(trt)
        return _logs[trt.__name__]


_logs: dict[str, ErrorLog] = {}
_lock = threading.Lock()


def network_flags(trt: ModuleType) -> int:
    """Creation flags of a strongly typed network."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(typed) if typed is not None else 0  # a version without the flag has no other mode


def known_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that plans can be built for without the GPU, such as "8.9"; empty for full TensorRT."""
    names = (name[2:] for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM"))
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(names, key=int)]


def set_capabilities(trt: ModuleType, config: Any, capabilities: list[str]) -> None:
    """Build for these GPUs, from `known_capabilities`. An empty list builds one plan for those from 8.0 on."""
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(member, index)


def require_own_memory(trt: ModuleType, config: Any) -> None:
    """Build plans that allocate no memory as they run, so that a CUDA graph can record them. With this flag TensorRT-RTX
    fails to build a plan that would allocate for large tensors.
    """
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def check_plan(trt: ModuleType, runtime: Any, content: bytes, name: str, cure: str, other_gpu: str) -> str | None:
    """Let TensorRT check a plan before loading it (TensorRT-RTX only). name: of the plan, for messages. other_gpu: the
    cure for a plan of another GPU.

    Returns a warning where the plan is suboptimal on this GPU, or None. Raises PlanForAnotherVersion, PlanForAnotherGpu,
    GpuMemoryShort or PlanUnusable.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    log = error_log(trt)
    log.take()
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        return f"{name}: valid on this GPU, and TensorRT-RTX calls it suboptimal ({log.take()})"
    if validity != trt.EngineValidity.INVALID:
        return None
    flags = trt.EngineInvalidityDiagnostics
    kinds: list[tuple[Any, type[FusionerError], str]] = [
        (flags.VERSION_MISMATCH, PlanForAnotherVersion, f"was built with another version than {trt.__version__}"),
        (flags.UNSUPPORTED_CC, PlanForAnotherGpu, "was built for other GPUs than this one"),
        (flags.INSUFFICIENT_GPU_MEMORY, GpuMemoryShort, "needs more memory than this GPU has free"),
        (flags.OLD_CUDA_DRIVER, PlanUnusable, "needs a newer NVIDIA driver"),
        (flags.OLD_CUDA_RUNTIME, PlanUnusable, "needs a newer CUDA runtime"),
        (flags.MALFORMED_ENGINE, PlanUnusable, "is no plan, or a damaged one"),
    ]
    for flag, kind, found in kinds:
        if int(diagnostics) & int(flag):
            raise kind(found, other_gpu if kind is PlanForAnotherGpu else cure, subject=name)
    raise PlanUnusable(f"TensorRT calls it invalid (diagnostics {int(diagnostics)}: {log.take()})", cure, subject=name)


def create_context(trt: ModuleType, engine: Any, cache_of: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """An execution context with user-managed memory, and its configuration or None, which must live as long.

    cache_of: returns the runtime cache of a configuration. TensorRT-RTX compiles for the exact shapes at once, so that a
    recorded kernel is never replaced later.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(strategy), None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the pipeline records the whole path
    if cache_of is not None:
        config.set_runtime_cache(cache_of(config))
    return engine.create_execution_context(config), config


def recordable(context: Any, stream: int) -> bool:
    """Whether TensorRT allows recording its work on the stream; versions that cannot tell answer True."""
    return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True
