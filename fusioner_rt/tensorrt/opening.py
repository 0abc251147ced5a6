"""Opens a bundle's TensorRT plans on a GPU (`gpu_executor`)."""

import contextlib
import hashlib
from pathlib import Path

from .. import plans
from ..bundle import Bundle
from ..executor import TextGraph
from ..gpu.driver import Device
from ..gpu.executor import GpuExecutor, kernels_folder
from . import versions as library
from .engine import Engine, PlanGraph


def open_plans(bundle: Bundle, flavour: str, threads: int | None, cache: Path | None) -> tuple[GpuExecutor, str]:
    """On the first GPU this process sees; returns also what runs, in words.

    flavour: tensorrt or tensorrt-rtx. threads: of what runs on the CPU. cache: folder for what TensorRT-RTX compiles for
    this GPU, or None. Raises BackendUnavailable, PlanMissing, PlanForAnotherGpu, PlanForAnotherVersion, PlanUnusable,
    GpuMemoryShort, KernelsUnusable, CudaFailed.
    """
    trt = library.load(flavour)
    version = str(trt.__version__)
    kernels_folder(bundle)  # known to be missing now rather than when the plan is loaded
    with contextlib.ExitStack() as stack:
        device = Device()
        stack.callback(device.close)

        def choose(graph: str) -> plans.Plan:
            return plans.choose(bundle, flavour, graph, version, device.capability, str(device))

        def text() -> TextGraph:
            return PlanGraph(Engine(bundle, choose("text"), device, kept), device)

        plan = choose("image_fusion")
        kept = library.RuntimeCache(_cache_file(version, device, cache) if flavour == "tensorrt-rtx" else None, device)
        stack.callback(kept.close)
        engine = Engine(bundle, plan, device, kept)
        stack.pop_all()
    executor = GpuExecutor(
        bundle, device, engine, text, threads, kept.save, lambda: [engine.note, kept.note], kept.close
    )
    return executor, f"{plan.file.name} on {device}, {plans.FLAVOURS[flavour]} {version}"


def _cache_file(version: str, device: Device, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    name = hashlib.sha256(f"{version} {device}".encode()).hexdigest()[:16]
    return folder / f"tensorrt-rtx-{name}.cache"
