"""Opens one backend of the ladder and compares it with the bundle's known answer."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import known_answer
from .bundle import Bundle
from .errors import BackendUnavailable, GraphUnusable, KernelsUnusable, SizeOutsideProfile, one_line
from .executor_interface import CpuSide, Executor, RecordingExecutor, Request, Waiting, untimed


def open_rung(
    bundle: Bundle, name: str, threads: int | None, cache: Path | None = None
) -> tuple[Executor, str, str | None]:
    """Open a backend. Returns its executor, a description of what runs, and why it was not compared with the known
    answer, or None.

    name: one of `ladder.LADDER`. threads: per graph on the CPU. cache: folder for compiled kernels, or None.
    Raises the error that keeps it from running, or AnswerWrong.
    """
    if name == "onnxruntime-cpu":
        from .onnx.executor import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor(bundle, name, threads), "ONNX Runtime, CPU", None
    executor, description = (
        open_graphs(bundle, threads) if name == "onnxruntime-cuda" else open_plans(bundle, name, threads, cache)
    )
    return executor, description, _prove(bundle, name, executor)


def open_plans(bundle: Bundle, flavour: str, threads: int | None, cache: Path | None) -> tuple[Executor, str]:
    """Open TensorRT plans. flavour: tensorrt or tensorrt-rtx."""
    from .tensorrt.preflight import of_flavour

    of_flavour(bundle, flavour, "image_fusion")  # raise PlanMissing before importing TensorRT
    from .tensorrt.open_plans import open_plans

    return open_plans(bundle, flavour, lambda: _cpu_side(bundle, threads), cache)


def open_graphs(bundle: Bundle, threads: int | None) -> tuple[Executor, str]:
    """Open the ONNX graphs on the first GPU this process sees. Without the bundle's kernels or cuda-bindings, the CPU
    prepares pictures and makes masks, and a note says so.
    """
    from .gpu.driver import Device
    from .gpu.executor import GpuExecutor
    from .gpu.onnxruntime_engine import OnnxRuntimeEngine
    from .onnx.executor import OnnxRuntimeExecutor
    from .onnx.loaded_graphs import LoadedGraphs, load
    from .onnx.runtime import OnnxRuntime

    name, description = "onnxruntime-cuda", "ONNX Runtime, CUDA"
    runtime = OnnxRuntime(name, threads)
    try:
        kernels = bundle.kernels_folder
        device = Device()
    except (KernelsUnusable, BackendUnavailable) as error:
        note = f"pictures are prepared and masks made on the CPU: {error}"
        return OnnxRuntimeExecutor(bundle, name, threads, note), description
    with contextlib.ExitStack() as stack:
        stack.callback(device.close)
        engine = OnnxRuntimeEngine(bundle, lambda stream: load(bundle, runtime, "image_fusion", stream=stream), device)
        stack.pop_all()
    graphs = LoadedGraphs(bundle, runtime)
    executor = GpuExecutor(
        bundle, kernels, device, engine, lambda: _cpu_side(bundle, threads), lambda: graphs("text"), close=graphs.close
    )
    return executor, f"{description} on {device}"


def _cpu_side(bundle: Bundle, threads: int | None) -> CpuSide:
    from .onnx.cpu_fallback import OnnxCpuSide

    return OnnxCpuSide(bundle, threads)


def _prove(bundle: Bundle, name: str, executor: Executor) -> str | None:
    """Run the pictures of the known answer and compare: a loaded backend may lack kernels or memory, or compute wrongly.

    Where the plan's profiles do not hold the known answer, pictures of noise are run; returns a sentence that says so.
    Otherwise returns None. Closes the executor and raises AnswerWrong or the error of a run.
    """
    try:
        answer, unproved = known_answer.read(bundle), None
        try:
            _run(executor, answer.waiting(executor), answer.request)
            known_answer.compare(bundle, answer, executor, name)
        except SizeOutsideProfile as error:
            unproved = f"{name} was not compared with a known answer: {error}"
            _run(executor, *_noise(bundle, executor))
        if isinstance(executor, RecordingExecutor):
            executor.forget()
        return unproved
    except GraphUnusable as error:  # its cure is to rebuild; here the machine may be at fault
        executor.close()
        raise BackendUnavailable(
            f"a first picture failed ({one_line(error)})", "choose another backend", subject=f"backend {name}"
        ) from None
    except BaseException:
        executor.close()
        raise


def _noise(bundle: Bundle, executor: Executor) -> tuple[list[Waiting], Request]:
    """Two pictures of noise and one word."""
    side, channels = bundle.size.opt, bundle.text_width
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = [Waiting(executor.prepare(rgb, (side, side)), (side, side), (side, side)) for rgb in noise]
    return pictures, Request(np.full((1, channels), channels**-0.5, np.float32), 0.5, "joint", False)


def _run(executor: Executor, pictures: Sequence[Waiting], request: Request) -> None:
    """Run one picture, or two where the executor records its work."""
    if isinstance(executor, RecordingExecutor):
        executor.prove_recording(pictures[:2], request)
    else:
        executor.run(pictures[:1], request, untimed)
