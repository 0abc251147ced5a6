"""The steps of benchmarks/gpu_check.py, each run in a process of its own.

A step takes where things lie and returns numbers; it raises Skipped with what it lacks. Anything else that it raises is a
failure, and so is a sentence under "wrong" beside the numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_proofs, gpu_timing
from benchmarks.gpu_proofs import MaskCase, Wrong
from fusioner_rt import Session, known_answer, ladder
from fusioner_rt.bundle import Bundle
from fusioner_rt.decode_picture import decode
from fusioner_rt.device_array import DTYPES, DeviceArray
from fusioner_rt.errors import (
    BackendUnavailable,
    FusionerError,
    PlanForAnotherGpu,
    PlanForAnotherVersion,
    PlanMissing,
    one_line,
)
from fusioner_rt.executor_interface import Waiting, untimed
from fusioner_rt.gpu.driver import Device
from fusioner_rt.gpu.kernel_contract import EXTRAS, SCORINGS, base_name
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.mask_head import CudaMaskHead
from fusioner_rt.preprocess import RESAMPLINGS

WORDS = "cat, sofa, person, dog"
PACKAGES = (
    "numpy", "pillow", "tokenizers", "cuda-core", "cuda-bindings", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt-rtx", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "pycuda",
)  # fmt: skip
NOT_HERE = (BackendUnavailable, PlanMissing, PlanForAnotherGpu, PlanForAnotherVersion)
"""What an engine raises that this machine or bundle has not got; any other error is one of ours, or of the engine."""
THREADS = 8
"""That segment beside each other."""
SAME = 0.99
"""Of the labels, between a plan in half precision and the CPU."""


class Skipped(Exception):
    """What a step needs is not here."""


@dataclass(frozen=True)
class Where:
    """bundle, pictures: folders. cache: of word vectors. emulated: the driver is the emulated one."""

    bundle: Path
    pictures: Path
    cache: Path
    emulated: bool

    def photographs(self) -> list[np.ndarray]:
        """(H, W, 3) uint8 each; small ones where a GPU is only emulated."""
        found = [decode(path) for path in sorted(self.pictures.glob("*.jpg"))]
        if not found:
            raise Skipped(f"{self.pictures} holds no .jpg")
        return [rgb[:61, :93] for rgb in found] if self.emulated else found


@dataclass(frozen=True)
class Step:
    """answers: the question in one line. seconds: its time-out. emulable: whether the emulated driver can run it."""

    run: Callable[[Where], dict[str, Any]]
    answers: str
    seconds: int
    emulable: bool


def versions(where: Where) -> dict[str, Any]:
    present, missing = {}, []
    for name in PACKAGES:
        try:
            present[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    with _device() as device:
        driver = device.driver.cuDriverGetVersion()
        with device.current():
            total = int(device.driver.cuMemGetInfo()[1])
        return {
            "gpu": device.name, "capability": ".".join(map(str, device.capability)),
            "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}", "memory_mb": total >> 20,
            "memory_pools": device.has_pools, "python": platform.python_version(), "system": platform.platform(),
            "packages": present, "missing": missing,
        }  # fmt: skip


def cubins(where: Where) -> dict[str, Any]:
    return _mask_heads(where, lambda kernels: kernels)


def ptx(where: Where) -> dict[str, Any]:
    return _mask_heads(where, gpu_proofs.ptx_alone)


def preprocess(where: Where) -> dict[str, Any]:
    cases = gpu_proofs.SMALL_RESIZES + ([] if where.emulated else gpu_proofs.LARGE_RESIZES)
    # the emulated kernels resize as the bundle does
    resamplings = (Bundle.open(where.bundle).preprocessing.resample,) if where.emulated else RESAMPLINGS
    with _kernels(where) as kernels:
        for resample in resamplings:
            gpu_proofs.preprocess(kernels, cases, resample)
    return {"cases": len(cases) * len(resamplings)}


def path(where: Where) -> dict[str, Any]:
    """The whole path with an engine that copies the CPU's features into place."""
    from benchmarks.stand_in_engine import StandInEngine
    from fusioner_rt.gpu.executor import GpuExecutor
    from fusioner_rt.onnx.cpu_fallback import OnnxCpuSide
    from fusioner_rt.onnx.loaded_graphs import LoadedGraphs
    from fusioner_rt.onnx.runtime import OnnxRuntime

    bundle = Bundle.open(where.bundle)
    request = known_answer.read(bundle).request
    pictures = where.photographs()[:2]
    graphs = LoadedGraphs(bundle, OnnxRuntime("onnxruntime-cpu"))
    with contextlib.closing(graphs.mask_head(None)) as head, _device() as device:
        engine = StandInEngine(bundle, device)
        with contextlib.closing(
            GpuExecutor(bundle, bundle.kernels_folder, device.again(), engine, lambda: OnnxCpuSide(bundle, None))
        ) as executor:

            def serve(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                """Scores and Gram maps of what is served."""
                found = engine.serve([rgb], bundle.preprocessing.input_size(*rgb.shape[:2]), request)
                return head.maps(found["features"], found["refined"])

            def host(rgb: np.ndarray, threshold: float = 0.5) -> Any:
                waiting = _waiting(bundle, executor, rgb)
                return executor.run([waiting], replace(request, threshold=threshold), untimed)[0]

            for rgb in pictures:
                maps = serve(rgb)
                for threshold in (0.5, 0.5, 0.7, 0.5, 0.6):
                    asked = replace(request, threshold=threshold)
                    _same(host(rgb, threshold), head.answer(*maps, rgb.shape[:2], asked), f"threshold {threshold}")
            if executor.notes:
                raise Wrong("; ".join(executor.notes))

            rgb = pictures[0]
            serve(rgb)
            first = host(rgb)
            host_call_ms = _replay(device, lambda: host(rgb), first, 5 if where.emulated else 200)
            _run_beside_each_other(lambda: host(rgb), first)
            _run_from_gpu_memory(device, executor, bundle, rgb, request, first)
            libraries = _libraries(executor, bundle, rgb, request, first.labels)
    return {"host_call_ms": host_call_ms, "libraries": libraries}


def sanitizer(where: Where) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    found = {}
    for name in ("memcheck", "racecheck"):
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, str(_command()), "--run", "sanitized"]
        done = subprocess.run([*command, *_arguments(where)], capture_output=True, text=True)
        if done.returncode:
            raise Wrong(f"{name}: {(done.stdout + done.stderr)[-1500:]}")
        found[name] = "clean"
    return found


def sanitized(where: Where) -> dict[str, Any]:
    """What the sanitizer watches: a small case of every kernel that the bundle holds."""
    with _kernels(where) as kernels:
        for dtype in _dtypes(kernels):
            for words in (3, 40):
                case = MaskCase(dtype, words, 2, (5, 7), 64, (37, 123), _scoring(kernels))
                gpu_proofs.launched(kernels, case, *case.inputs())
        _names(kernels)
        gpu_proofs.preprocess(kernels, gpu_proofs.SMALL_RESIZES, "bicubic")
    return {}


def mask_head(where: Where) -> dict[str, Any]:
    """Both stages by replay of the shipped launcher, against a copy of the bytes that a label map writes."""
    rows = []
    with _kernels(where) as kernels:
        dtype = _smallest_dtype(kernels)
        for size in ((480, 854), (1080, 1920), (2048, 2048), (4096, 4096)):
            for words in (1, 20, 150):
                for kind in ("smooth", "random"):
                    case = MaskCase(dtype, words, 1, (128, 128), 256, size, _scoring(kernels))
                    rows.append(timed_mask_head(kernels, case, kind))
    return {"rows": rows}


def timed_mask_head(kernels: Kernels, case: MaskCase, kind: str) -> dict[str, Any]:
    """One cell. kind: random, where every word may win anywhere, or smooth, where eight regions have a word each."""
    device, head = kernels.device, CudaMaskHead(kernels, gpu_proofs.TEMPERATURE, case.scoring)
    features, words = case.inputs()
    if kind == "smooth":
        random = np.random.default_rng(0)
        seeds, places = random.random((8, 2)) * case.low, np.stack(np.mgrid[: case.low[0], : case.low[1]], axis=-1)
        region = np.square(places[:, :, None] - seeds).sum(axis=-1).argmin(axis=-1)
        features = gpu_proofs.rounded(
            (words[:, random.integers(case.words, size=8)][:, region] + 0.2 * features).astype(np.float32), case.dtype
        )
    written = int(np.prod(case.size)) * 6
    with gpu_proofs.on_gpu(device) as gpu:
        as_bytes = gpu_proofs.as_bytes(features, case.dtype)
        seen = [gpu.put(as_bytes, case.dtype, features.shape) for _ in range(gpu_timing.rotations(as_bytes.nbytes))]
        vectors = gpu.put(gpu_proofs.as_bytes(words, case.dtype), case.dtype, words.shape)
        workspace = gpu.new((CudaMaskHead.workspace_bytes(features.shape, case.words),), "uint8")
        maps = gpu.new((1, case.words, *case.low), "float32"), gpu.new((1, 5, *case.low), "float32")
        finite = gpu.new((1,), "int32")
        outputs = [
            (gpu.new((1, *case.size), "uint16"), gpu.new((1, *case.size), "float32"))
            for _ in range(gpu_timing.rotations(written))
        ]
        copied = [gpu.new((written,), "uint8") for _ in range(2 * gpu_timing.rotations(written))]
        stage_1, stage_2 = gpu_timing.mask_head_stages(
            device, head, seen, vectors, workspace, maps, finite, outputs, gpu_proofs.THRESHOLD
        )

        def copy(to: DeviceArray, source: DeviceArray) -> Callable[[int], Any]:
            def work(stream: int) -> None:
                with device.current():  # half of the bytes are read, half written: as many written as the labels
                    device.driver.cuMemcpyDtoDAsync(to.pointer, source.pointer, written, stream)

            return work

        pairs = zip(copied[::2], copied[1::2], strict=True)
        floor = gpu_timing.microseconds(device, [copy(*pair) for pair in pairs])
    return {
        "size": list(case.size), "words": case.words, "maps": kind, "dtype": case.dtype, "low": list(case.low),
        "stage_1_us": stage_1, "stage_2_us": stage_2, "copy_us": floor["p50_us"],
        "written_mb": round(written / 1e6, 1), "over_copy": round(stage_2 / floor["p50_us"], 2),
    }  # fmt: skip


def torch_head(where: Where) -> dict[str, Any]:
    """The naive head in PyTorch, eager and compiled, at 1024² and 20 words; ours beside."""
    torch = _torch()

    def naive(features: Any, words: Any, size: tuple[int, int]) -> Any:
        up = torch.nn.functional.interpolate(features.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
        up = torch.nn.functional.normalize(up.float(), dim=1)
        words = torch.nn.functional.normalize(words.float(), dim=-1)
        probability = torch.sigmoid(torch.einsum("bdhw,bkd->bkhw", up, words) / gpu_proofs.TEMPERATURE)
        best, index = probability.max(dim=1)
        return torch.where(best > gpu_proofs.THRESHOLD, index + 1, 0).to(torch.uint8), best

    case = MaskCase("float16", 20, 1, (128, 128), 256, (1024, 1024))
    features, words = (torch.from_numpy(array).to("cuda", torch.float16) for array in case.inputs())
    rows = {}
    for name, run in (("eager", naive), ("compiled", torch.compile(naive))):
        for _ in range(3):
            run(features, words, case.size)
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        taken = []
        for _ in range(20):
            start.record()
            run(features, words, case.size)
            end.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(end) * 1e3)
        rows[f"{name}_us"] = round(float(np.median(taken)), 1)
    with _kernels(where) as kernels:
        case = replace(case, dtype=_smallest_dtype(kernels), scoring=_scoring(kernels))
        ours = timed_mask_head(kernels, case, "random")
    return {**rows, "ours_us": round(ours["stage_1_us"] + ours["stage_2_us"], 1), "ours": ours}


def engines(where: Where) -> dict[str, Any]:
    """Every rung of a GPU that can load: known answer, labels against the CPU's, opening, latency, memory."""
    found: dict[str, Any] = {}
    pictures = where.photographs()[: 1 if where.emulated else 3]
    with Session(where.bundle, backend="onnxruntime-cpu", cache=where.cache) as cpu:
        truth = [cpu.segment(rgb, WORDS).labels for rgb in pictures]
    with _device() as device:
        for name in ladder.LADDER[:-1]:
            compiled = Path(tempfile.mkdtemp())
            try:
                found[name] = _rung(where, device, name, pictures, truth, compiled)
            except NOT_HERE as error:
                found[name] = {"not": one_line(error)}
            except (FusionerError, Wrong) as error:
                found[name] = {"wrong": f"{type(error).__name__}: {one_line(error)}"}
            finally:
                shutil.rmtree(compiled, ignore_errors=True)
    if all("not" in one for one in found.values()):
        raise Skipped("; ".join(f"{name}: {one['not']}" for name, one in found.items()))
    wrong = [f"{name}: {one['wrong']}" for name, one in found.items() if "wrong" in one]
    return {**found, "wrong": "; ".join(wrong)} if wrong else found


def peer(where: Where) -> dict[str, Any]:
    """What a good engineer would write: the whole model through torch.compile with CUDA graphs, in float16, scores at low
    resolution and upsampled; labels of that are not exact, and its error is told.
    """
    torch = _torch()
    try:
        from training import checkpoint
    except ImportError as error:
        raise Skipped(
            f"the model cannot be built here ({one_line(error)}); it takes a checkout with .[train]"
        ) from None
    folder = where.bundle.parent / "checkpoint"
    if not folder.is_dir():
        raise Skipped(f"{folder}: there is no checkpoint beside the bundle")
    bundle, answer = Bundle.open(where.bundle), known_answer.read(Bundle.open(where.bundle))
    try:
        model = checkpoint.load(folder)
    except (FusionerError, ImportError) as error:
        raise Skipped(f"the encoders' weights are not here: {one_line(error)}") from None
    model = model.eval().to("cuda", torch.float16)
    words = torch.from_numpy(answer.vectors)[None].to("cuda", torch.float16)
    rgb = where.photographs()[0]
    size, input_size = rgb.shape[:2], bundle.preprocessing.input_size(*rgb.shape[:2])
    pixels = torch.from_numpy(bundle.preprocessing(rgb, input_size))[None].to("cuda", torch.float16)

    @torch.no_grad()
    def whole(pixels: Any, words: Any) -> Any:
        features, refined = model(pixels, words)
        unit = [torch.nn.functional.normalize(one.float(), dim=-1) for one in (features, refined)]
        scores = torch.einsum("bhwd,bkd->bkhw", *unit)
        up = torch.nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        best, index = torch.sigmoid(up / gpu_proofs.TEMPERATURE).max(dim=1)
        return torch.where(best > gpu_proofs.THRESHOLD, index + 1, 0).to(torch.uint8), best

    run = torch.compile(whole, mode="reduce-overhead")
    for _ in range(5):
        labels = run(pixels, words)[0].cpu().numpy()[0]
    taken = []
    for _ in range(100):
        start = time.perf_counter()
        ready = torch.from_numpy(bundle.preprocessing(rgb, input_size))[None].to("cuda", torch.float16)
        run(ready, words)[0].cpu()
        taken.append((time.perf_counter() - start) * 1e3)
    with Session(where.bundle, backend="onnxruntime-cpu", cache=where.cache) as cpu:
        exact = cpu._executor.run([_waiting(bundle, cpu._executor, rgb)], answer.request, untimed)[0].labels
    return {
        "picture": list(size), "words": len(answer.words), "peer_p50_ms": round(float(np.median(taken)), 3),
        "peer_labels_off": round(float((labels != exact).mean()), 5), "ours": "see the step engines",
    }  # fmt: skip


STEPS = {
    "versions": Step(versions, "what is here: GPU, driver, packages", 30, True),
    "cubins": Step(cubins, "do the bundle's cubins compute what the mask head is defined to be?", 90, True),
    "ptx": Step(ptx, "does their PTX, for GPUs without a cubin and older drivers?", 60, True),
    "preprocess": Step(preprocess, "does preprocessing give Pillow's bits?", 60, True),
    "path": Step(
        path, "does the whole path, with a stand-in for the engine, give the CPU's masks, again and again?", 90, True
    ),
    "mask_head": Step(mask_head, "how long do both stages take, against a copy?", 90, False),
    "engines": Step(engines, "which engines load, are right, and how fast are they?", 150, True),
    "torch_head": Step(torch_head, "how long does the naive head take in PyTorch?", 90, False),
    "peer": Step(peer, "how long does the whole model take through torch.compile with CUDA graphs?", 150, False),
    "sanitizer": Step(sanitizer, "do memcheck and racecheck find anything?", 120, False),
}
"""In their order: what is worth most comes first."""


@contextlib.contextmanager
def _device() -> Iterator[Device]:
    with contextlib.closing(Device()) as device:
        yield device


@contextlib.contextmanager
def _kernels(where: Where) -> Iterator[Kernels]:

    with _device() as device, contextlib.closing(Kernels(Bundle.open(where.bundle).kernels_folder, device)) as kernels:
        yield kernels


def _dtypes(kernels: Kernels) -> list[str]:
    """Of the features that the bundle has kernels for."""
    return [name.partition(".")[2] for name in kernels.record.names if name.startswith("measure.")]


def _smallest_dtype(kernels: Kernels) -> str:
    """Of the features that the bundle has kernels for, the one with fewest bytes."""
    return min(_dtypes(kernels), key=DTYPES.__getitem__)


def _scoring(kernels: Kernels) -> str:
    """The bundle's."""
    return next(name for name, prefix in SCORINGS.items() if f"{prefix}labels.float32.few" in kernels.record.names)


def _names(kernels: Kernels) -> None:
    """Bundles built earlier have no such kernel."""
    if "names.float32" in kernels.record.names:
        gpu_proofs.names(kernels)


def _mask_heads(where: Where, chosen: Callable[[Kernels], Kernels]) -> dict[str, Any]:
    found = []
    with _kernels(where) as kernels:
        kernels = chosen(kernels)
        shapes: list[Mapping[str, Any]] = [
            {}, {"low": (5, 7), "size": (37, 123), "channels": 64}, {"low": (1, 1), "size": (5, 33), "channels": 16},
            {"low": (64, 64), "size": (1024, 1024), "channels": 64}, {"low": (30, 40), "size": (11, 13), "channels": 32},
        ]  # fmt: skip
        if where.emulated:
            shapes = shapes[1:3]
        for dtype in _dtypes(kernels):
            for words in (1, 20, 150):
                for at, shape in enumerate(shapes):
                    case = MaskCase(dtype, words, **shape, scoring=_scoring(kernels))
                    if words > 20:  # the definition takes seconds where it has tens of millions of values
                        case = replace(case, size=(min(case.size[0], 259), min(case.size[1], 387)))
                    elif at == 0:
                        case = replace(case, pictures=2)
                    repeats = 2 if where.emulated else 50 if at == 0 else 3
                    found.append(gpu_proofs.mask_head(kernels, case, repeats))
        _names(kernels)
        notes = kernels.notes
    worst = max(found, key=lambda one: one["error"] / one["allowed"])
    held = {base_name(name) for name in kernels.record.names}
    not_held = [extra for extra, names in EXTRAS.items() if not set(names) <= held]
    return {"cases": len(found), **worst, "features": _dtypes(kernels), "bundle_holds_no": not_held, "notes": notes}


def _rung(
    where: Where, device: Device, name: str, pictures: list[np.ndarray], truth: list[np.ndarray], compiled: Path
) -> dict[str, Any]:
    """One backend: opened twice, the second time with what the first compiled."""
    shutil.copytree(where.cache, compiled, dirs_exist_ok=True)
    opened, free = [], device.free_bytes
    for _ in range(2):
        start = time.perf_counter()
        session = Session(where.bundle, backend=name, cache=compiled)
        opened.append(round(time.perf_counter() - start, 2))
        if len(opened) == 1:
            session.close()
    with session:
        session.set_vocabulary(WORDS)
        agreement = [
            float((session.segment(rgb).labels == labels).mean()) for rgb, labels in zip(pictures, truth, strict=True)
        ]
        if min(agreement) < SAME:
            raise Wrong(f"{name}: {min(agreement):.2%} of the labels are the CPU's, {SAME:.0%} are needed")
        rgb, taken = pictures[0], []
        for turn in range(5 if where.emulated else 205):
            start = time.perf_counter()
            session.segment(rgb)
            if turn >= 3:
                taken.append((time.perf_counter() - start) * 1e3)
        middle, slow = np.percentile(taken, (50, 99))
        return {
            "what": session.backend.why, "notes": session.notes,
            "recorded": not any("CUDA graphs are not used" in note for note in session.notes), "agreement": round(min(agreement), 5),
            "open_cold_s": opened[0], "open_warm_s": opened[1], "picture": list(rgb.shape[:2]),
            "p50_ms": round(float(middle), 3), "p99_ms": round(float(slow), 3),
            "stages_ms": session.segment(rgb).timing, "gpu_mb": (free - device.free_bytes) >> 20,
        }  # fmt: skip


def _replay(device: Device, call: Callable[[], Any], first: Any, turns: int) -> float:
    """Milliseconds of a call. Raises Wrong where a result differs from the first, or where calls take memory."""
    free, start = device.free_bytes, time.perf_counter()
    for turn in range(turns):
        again = call()
        if not (np.array_equal(again.labels, first.labels) and np.array_equal(again.confidence, first.confidence)):
            raise Wrong(f"replay {turn + 1} differs from the first")
        del again
    taken = round((time.perf_counter() - start) / turns * 1e3, 3)
    if device.free_bytes != free:
        raise Wrong(f"{turns} replays changed the free memory from {free} to {device.free_bytes} bytes")
    return taken


def _run_beside_each_other(call: Callable[[], Any], first: Any) -> None:
    together = threading.Barrier(THREADS)

    def beside_others(_: int) -> Any:
        together.wait(30)
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(beside_others, range(THREADS)):
            _same(found, first, "of a thread")


def _run_from_gpu_memory(
    device: Device, executor: Any, bundle: Bundle, rgb: np.ndarray, request: Any, first: Any
) -> None:
    from fusioner_rt.gpu.device_segmentation import segment_on_device

    with gpu_proofs.on_gpu(device) as gpu:
        for shift in (0, 4):  # at an odd address it goes through a copy
            whole = gpu.put(np.concatenate([np.zeros(shift, np.uint8), rgb.ravel()]), "uint8")
            frame = DeviceArray(whole.pointer + shift, rgb.shape, "uint8")
            for _ in range(3):
                found = segment_on_device(executor, bundle, frame, ("",), request, None, gpu.stream, None)
            if not np.array_equal(found.labels.numpy(), first.labels):
                raise Wrong("labels of a picture in GPU memory differ from those of the same one from the host")


def _libraries(executor: Any, bundle: Bundle, rgb: np.ndarray, request: Any, labels: np.ndarray) -> dict[str, str]:
    """Frames of PyTorch and CuPy in, results read by them."""
    from fusioner_rt.gpu.device_segmentation import segment_on_device

    found = {}
    for name in ("torch", "cupy"):
        try:
            module = importlib.import_module(name)
            if name == "torch" and not module.cuda.is_available():
                raise ImportError("built for the CPU")
        except Exception as error:  # of whatever kind a broken installation raises
            found[name] = f"not here ({one_line(error)})"
            continue
        if name == "torch":
            stream = module.cuda.Stream()
            with module.cuda.stream(stream):
                frame = module.from_numpy(rgb).cuda(non_blocking=True)
                for _ in range(3):
                    result = segment_on_device(executor, bundle, frame, ("",), request, None, stream.cuda_stream, None)
                read = [
                    module.from_dlpack(result.labels).cpu().numpy(),
                    module.as_tensor(result.labels, device="cuda").cpu().numpy(),
                ]
        else:
            with module.cuda.Stream(non_blocking=True) as stream:
                frame = module.asarray(rgb)
                for _ in range(3):
                    result = segment_on_device(executor, bundle, frame, ("",), request, None, stream.ptr, None)
                read = [
                    module.asnumpy(module.from_dlpack(result.labels)),
                    module.asnumpy(module.asarray(result.labels)),
                ]
        if not all(np.array_equal(one, labels) for one in read):
            raise Wrong(f"{name} reads other labels than the host")
        found[name] = f"{module.__version__}: DLPack and __cuda_array_interface__, in and out"
    return found


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise Skipped("PyTorch is not installed") from None
    if not torch.cuda.is_available():
        raise Skipped(f"the installed PyTorch {torch.__version__} is built for the CPU")
    return torch


def _waiting(bundle: Bundle, executor: Any, rgb: np.ndarray) -> Waiting:
    height, width = rgb.shape[:2]
    input_size = bundle.preprocessing.input_size(height, width)
    return Waiting(executor.prepare(rgb, input_size), input_size, (height, width))


def _same(found: Any, expected: Any, what: str) -> None:
    """Equal but for the rounding of maps: both are made of the same features."""
    share = float((found.labels == expected.labels).mean())
    off = float(np.abs(found.confidence - expected.confidence).max())
    if share < 0.999 or not off <= 1e-4:
        raise Wrong(f"{what}: {share:.3%} of the labels are the CPU's, confidence is off by {off:.2g}")


def _command() -> Path:
    return Path(__file__).with_name("gpu_check.py")


def _arguments(where: Where) -> list[str]:
    return ["--bundle", str(where.bundle), "--pictures", str(where.pictures), "--cache", str(where.cache)]


def emulate(where: Where, scratch: Path) -> Where:
    """Put the emulated driver, and a plan that it runs, where the runtime looks for the real ones. scratch: a folder that
    all steps share.
    """
    emulation = Path(__file__).resolve().parents[1] / "tests" / "emulation"
    sys.path.insert(0, str(emulation))
    import emulated_gpu
    import pytest

    folder = scratch / "bundle"
    if not folder.is_dir():
        shutil.copytree(where.bundle, folder)
        emulated_gpu.plan(folder, "image_fusion")
    gpu = emulated_gpu.EmulatedGpu(folder)
    emulated_gpu.install(pytest.MonkeyPatch(), gpu)  # for the rest of this process
    return replace(where, bundle=folder)
