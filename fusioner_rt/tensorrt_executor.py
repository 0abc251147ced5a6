"""Runs a bundle's TensorRT plans, with the picture's preparation and the mask head on the GPU beside them."""

import contextlib
import hashlib
import threading
from collections.abc import Hashable, Sequence
from pathlib import Path as FilePath

import numpy as np

from . import plans
from . import tensorrt_library as library
from .bundle import Bundle
from .cuda_driver import Device
from .cuda_kernels import Kernels
from .cuda_mask_head import CudaMaskHead, DeviceArray
from .cuda_preprocess import CudaPreprocess
from .errors import CudaFailed, FusionerError, KernelsUnusable, UsageError
from .executor import Answer, Clock, Request, TextGraph, Waiting
from .gpu_path import Machinery, Path, Shape, not_recorded
from .gpu_paths import GpuPaths
from .mask_head import MaskHead
from .onnxruntime_backend import OnnxRuntime
from .onnxruntime_executor import LoadedGraphs, check_finite, resolve
from .tensorrt_engine import Engine, PlanGraph

_SAME = 0.999  # of the labels; some kernels add up in any order


class TensorRTExecutor:
    """Executor over TensorRT or TensorRT-RTX, on the first GPU this process sees.

    Labels of joint words come from the GPU whole. Independent words and probabilities, which are rarer and many times
    as large, leave it as low-resolution maps and are resolved on the CPU, in bounded memory.
    """

    def __init__(self, bundle: Bundle, flavour: str, threads: int | None, cache: FilePath | None) -> None:
        """flavour: tensorrt or tensorrt-rtx. threads: of what runs on the CPU. cache: folder for what TensorRT-RTX
        compiles for this GPU, or None. Raises BackendUnavailable, PlanMissing,
        PlanForAnotherGpu, PlanForAnotherVersion, PlanUnusable, GpuMemoryShort, KernelsUnusable, CudaFailed.
        """
        self._bundle, self._threads = bundle, threads
        self._trt = library.load(flavour)
        folder = kernels_folder(bundle)
        with contextlib.ExitStack() as stack:
            self.device = Device()
            stack.callback(self.device.close)
            plan = self._choose(flavour, "image_fusion")
            kernels = Kernels(folder, self.device)
            stack.callback(kernels.close)
            self._cache = library.RuntimeCache(self._cache_file(flavour, cache), self.device)
            stack.callback(self._cache.close)  # after the contexts are gone
            self._engine = engine = Engine(bundle, plan, self.device, self._cache)
            stack.callback(engine.close)
            temperature = float(bundle.manifest["temperature"])
            preprocess, mask_head = CudaPreprocess(kernels, bundle.preprocessing), CudaMaskHead(kernels, temperature)
            self._machinery = Machinery(self.device, engine, preprocess, mask_head, self._cache.save)
            self._paths = GpuPaths(lambda shape: Path(self._machinery, shape))
            stack.callback(self._paths.close)
            self._owned = stack.pop_all()
        self.description = f"{plan.file.name} on {self.device}, {plans.FLAVOURS[flavour]} {self._trt.__version__}"
        self._flavour = flavour
        self._loading = threading.Lock()
        self._text: TextGraph | None = None
        self._text_note = ""
        self._closed = False
        self._on_cpu: tuple[LoadedGraphs, MaskHead] | None = None

    @property
    def notes(self) -> list[str]:
        reason = self._machinery.not_recorded
        every = [
            self._engine.note,
            not_recorded(reason) if reason else "",
            *self._paths.notes,
            self._text_note,
            self._cache.note,
        ]
        return list(dict.fromkeys(note for note in every if note))

    @property
    def most(self) -> int:
        return min(self._engine.most("pixels"), self._bundle.batch.max)

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """The picture itself: the GPU does the rest."""
        return rgb

    def group(self, waiting: Waiting) -> Hashable:
        return waiting.prepared.shape, waiting.size

    def encode(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """The pictures themselves: a plan runs image encoder and fusion as one."""
        return [waiting.prepared for waiting in group]

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        """The GPU's work is one launch: its whole time counts as image_fusion."""
        if request.mode == "joint" and not request.probabilities:
            with clock("image_fusion"):
                found = self._run(group, request, group[0].size)
                if np.isnan(found["confidence"].min()):
                    check_finite(self._bundle, found["confidence"])
            return [
                Answer(labels, confidence, None)
                for labels, confidence in zip(found["labels"], found["confidence"], strict=True)
            ]
        answers = []
        with clock("image_fusion"):
            joint = self._run(group, request, None) if request.mode == "joint" else None
        for index, waiting in enumerate(group):
            if joint is not None:
                scores, gram = (joint[name][index : index + 1] for name in ("scores", "gram"))
            else:
                with clock("image_fusion", index):
                    scores, gram = self._independent(waiting, request)
            with clock("mask_head", index):
                check_finite(self._bundle, scores, gram)
                answers.append(resolve(self._cpu()[1], (scores, gram), waiting.size, request))
        return answers

    def maps(self, group: Sequence[Waiting], request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        found = self._run(group, request, None)
        return [(found["scores"][index : index + 1], found["gram"][index : index + 1]) for index in range(len(group))]

    def run_on(
        self, stream: int, picture: DeviceArray, input_size: tuple[int, int], request: Request,
        labels: DeviceArray, confidence: DeviceArray,
    ) -> None:  # fmt: skip
        """Device arrays in and out, on a caller's stream: picture (P, H, W, 3) uint8, labels (P, H', W') uint16,
        confidence (P, H', W') float32. Returns at once. Features that are no numbers give a confidence that is none.
        """
        pictures, height, width = picture.shape[:3]
        words = len(request.vectors)
        size = labels.shape[1], labels.shape[2]
        shape = Shape(pictures, pictures, words, (height, width), input_size, size, host=False)
        with self._paths.path(shape) as path:
            vectors = request.vectors if pictures == 1 else self._repeated(request.vectors, pictures)
            path.run_on(stream, picture, vectors, request.threshold, {"labels": labels, "confidence": confidence})

    def text(self) -> TextGraph:
        """The text plan where the bundle has one that loads here, else the ONNX graph on the CPU."""
        with self._loading:
            if self._closed:
                raise UsageError("this session is closed; open another")
            if self._text is None and not self._text_note:  # a plan that does not load is not tried for every word
                try:
                    engine = Engine(self._bundle, self._choose(self._flavour, "text"), self.device, self._cache)
                except FusionerError as error:
                    self._text_note = f"words are encoded on the CPU: {error}"
                else:
                    self._text = PlanGraph(engine, self.device)
        return self._text or self._cpu()[0]("text")

    def prove_recording(self, pictures: Sequence[Waiting], request: Request) -> None:
        """Run two pictures of one size: one step by step, the other as the recording that this readied, and that again
        step by step. Where its masks differ, nothing is recorded any more, and `notes` says so.
        """
        first, second = pictures
        self._run([first], request, first.size)
        recorded = self._run([second], request, second.size)
        self._paths.clear()
        steps = self._run([second], request, second.size)
        self._paths.clear()
        same = (steps["labels"] == recorded["labels"]).mean() > _SAME
        if not (same and np.allclose(steps["confidence"], recorded["confidence"], atol=1 - _SAME, equal_nan=True)):
            self._machinery.not_recorded = "the recording of a first picture gave other masks than its steps"

    def forget(self) -> None:
        self._paths.clear()

    def close(self) -> None:
        with contextlib.suppress(CudaFailed):  # of a GPU that failed, its caller was told
            with self._loading:
                self._closed, text, self._text = True, self._text, None
            self._paths.close()
            if isinstance(text, PlanGraph):
                text.close()
            if self._on_cpu is not None:
                graphs, head = self._on_cpu
                graphs.close()
                head.close()
            self._owned.close()

    def _run(self, group: Sequence[Waiting], request: Request, size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        first, count = group[0], len(group)
        height, width = first.prepared.shape[:2]
        shape = Shape(count, count, len(request.vectors), (height, width), first.input_size, size, host=True)
        with self._paths.path(shape) as path:
            vectors = request.vectors if count == 1 else self._repeated(request.vectors, count)
            return path.run(
                [waiting.prepared for waiting in group], vectors, request.threshold if size is not None else 0.0
            )

    def _independent(self, waiting: Waiting, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """One picture with each word alone: scores (K, 1, h, w) and gram (K, 5, h, w)."""
        height, width = waiting.prepared.shape[:2]
        parts, most = [], min(self._engine.most("words"), self._bundle.batch.max)
        for start in range(0, len(request.vectors), most):
            words = request.vectors[start : start + most, None]
            shape = Shape(1, len(words), 1, (height, width), waiting.input_size, None, host=True)
            with self._paths.path(shape) as path:
                parts.append(path.run([waiting.prepared], words, 0.0))
        scores, gram = (np.concatenate([part[name] for part in parts]) for name in ("scores", "gram"))
        return scores, gram

    def _repeated(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """(count, K, t): the same object for the same words, which are then not copied to the GPU again."""
        with self._loading:
            held = self._repeats
            if held is None or held[0] is not vectors or len(held[1]) != count:
                held = self._repeats = (vectors, np.repeat(vectors[None], count, axis=0))
            return held[1]

    _repeats: tuple[np.ndarray, np.ndarray] | None = None

    def _choose(self, flavour: str, graph: str) -> plans.Plan:
        gpu = str(self.device)
        return plans.choose(self._bundle, flavour, graph, str(self._trt.__version__), self.device.capability, gpu)

    def _cache_file(self, flavour: str, folder: FilePath | None) -> FilePath | None:
        if flavour != "tensorrt-rtx" or folder is None:
            return None
        name = hashlib.sha256(f"{self._trt.__version__} {self.device}".encode()).hexdigest()[:16]
        return folder / f"tensorrt-rtx-{name}.cache"

    def _cpu(self) -> tuple[LoadedGraphs, MaskHead]:
        with self._loading:
            if self._on_cpu is None:
                graphs = LoadedGraphs(self._bundle, OnnxRuntime("onnxruntime-cpu", self._threads))
                self._on_cpu = graphs, graphs.mask_head(self._threads)
            return self._on_cpu


def kernels_folder(bundle: Bundle) -> FilePath:
    """The bundle's compiled kernels. Raises KernelsUnusable where it has none."""
    if "kernels" not in bundle.manifest:
        raise KernelsUnusable(
            f"{bundle.folder}: holds no compiled kernels, which TensorRT plans are run with; rebuild it without --kernels "
            f"none: {bundle.build_command()}"
        )
    folder: FilePath = (bundle.folder / bundle.manifest["kernels"]["abi"]).parent
    return folder
