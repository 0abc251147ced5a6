"""Opens a bundle's TensorRT plans on a GPU."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from ..bundle import Bundle
from ..executor_interface import CpuSide, TextGraph
from ..gpu.driver import Device
from ..gpu.executor import GpuExecutor
from ..plans import FLAVOURS, Plan
from . import preflight, versions
from .loaded_plan import Engine, PlanGraph
from .runtime_cache import RuntimeCache


def open_plans(bundle: Bundle, flavour: str, cpu: Callable[[], CpuSide], cache: Path | None) -> tuple[GpuExecutor, str]:
    """Open plans on the first GPU this process sees. Returns the executor and a description of what runs.

    flavour: tensorrt or tensorrt-rtx. cpu: opens the CPU side. cache: folder for kernels that TensorRT-RTX compiles, or
    None. Raises BackendUnavailable, PlanMissing, PlanForAnotherGpu, PlanForAnotherVersion, PlanUnusable, GpuMemoryShort,
    KernelsUnusable, CudaFailed.
    """
    version = str(versions.load(flavour).__version__)
    kernels = bundle.kernels_folder  # raise KernelsUnusable before the plan is loaded
    with contextlib.ExitStack() as stack:
        device = Device()
        stack.callback(device.close)

        def choose(graph: str) -> Plan:
            return preflight.choose(bundle, flavour, graph, version, device.capability, str(device))

        def text() -> TextGraph:
            return PlanGraph(Engine(bundle, choose("text"), device, compiled), device)

        plan = choose("image_fusion")
        compiled = RuntimeCache(_cache_file(version, device, cache) if flavour == "tensorrt-rtx" else None, device)
        stack.callback(compiled.close)
        engine = Engine(bundle, plan, device, compiled)
        stack.pop_all()
    executor = GpuExecutor(
        bundle, kernels, device, engine, cpu, text, compiled.save, lambda: [engine.note, compiled.note], compiled.close
    )
    return executor, f"{plan.file.name} on {device}, {FLAVOURS[flavour]} {version}"


def _cache_file(version: str, device: Device, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    name = hashlib.sha256(f"{version} {device}".encode()).hexdigest()[:16]
    return folder / f"tensorrt-rtx-{name}.cache"
