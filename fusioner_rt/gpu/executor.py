"""Runs a bundle on a GPU: an engine for image_fusion, with the picture's preparation and the mask head beside it."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path as FilePath
from typing import Protocol, runtime_checkable

import numpy as np

from ..bundle import Bundle
from ..device_array import DeviceArray
from ..errors import CudaFailed, FusionerError, GpuMemoryShort, KernelsUnusable, UsageError
from ..executor import Answer, Clock, Request, TextGraph, Waiting
from ..onnx.executor import LoadedGraphs, check_finite, not_finite, resolve
from ..onnx.mask_head import MaskHead
from ..onnx.runtime import OnnxRuntime
from .arrays import GpuArray
from .driver import Device, Memory, PinnedArray
from .kernels import Kernels
from .mask_head import CudaMaskHead
from .memory_pool import MemoryPool
from .pipeline import Engine, Machinery, Path, Shape, not_recorded
from .pipeline_pool import GpuPaths
from .preprocess import CudaPreprocess

_SAME = 0.999  # of the labels; some kernels add up in any order
_POOLED = 256 << 20
"""Bytes of page-locked memory that results may hold, and of GPU memory kept for results: ten of 2048 x 2048 pixels."""


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


class GpuExecutor:
    """Executor over an engine on one GPU.

    Labels of joint words come from the GPU whole. Independent words and probabilities, which are rarer and many times
    as large, leave it as low-resolution maps and are resolved on the CPU, in bounded memory.
    """

    def __init__(
        self, bundle: Bundle, device: Device, engine: Engine, text: Callable[[], TextGraph] | None = None,
        threads: int | None = None, ready: Callable[[], None] = lambda: None,
        notes: Callable[[], Sequence[str | None]] = lambda: (), close: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """device, engine: become this object's. text: loads the text graph; what it raises is a note, and words are then
        encoded on the CPU, as without it. threads: of what runs on the CPU. ready: called when the engine may have
        compiled something. notes: of the engine. close: called when the engine is closed.
        Raises KernelsUnusable, CudaFailed.
        """
        self._bundle, self._threads, self.device = bundle, threads, device
        self._load_text, self._engine_notes = text, notes
        with contextlib.ExitStack() as stack:
            stack.callback(device.close)
            stack.callback(close)
            stack.callback(engine.close)
            self._kernels = kernels = Kernels(kernels_folder(bundle), device)
            stack.callback(kernels.close)
            temperature = float(bundle.manifest["temperature"])
            pinned = MemoryPool(device, lambda gpu, size, _: PinnedArray(gpu, (size,), "uint8"), _POOLED)
            stack.callback(pinned.close)
            results = MemoryPool(device, Memory, _POOLED)
            stack.callback(results.close)
            self._machinery = Machinery(
                device, engine, CudaPreprocess(kernels, bundle.preprocessing), CudaMaskHead(kernels, temperature),
                bundle.manifest["graphs"]["image_fusion"]["inputs"]["words"][1][-1], pinned, results, ready,
            )  # fmt: skip
            self._paths = GpuPaths(self._path)
            stack.callback(self._paths.close)
            self._owned = stack.pop_all()
        self._loading = threading.Lock()
        self._text: TextGraph | None = None
        self._text_note = ""
        self._closed = False
        self._on_cpu: tuple[LoadedGraphs, MaskHead] | None = None

    @property
    def notes(self) -> list[str]:
        reason = self._machinery.not_recorded
        every = [
            not_recorded(reason) if reason else "", *self._paths.notes, self._text_note, *self._kernels.notes,
            *self._engine_notes(),
        ]  # fmt: skip
        return list(dict.fromkeys(note for note in every if note))

    @property
    def most(self) -> int:
        return min(self._machinery.engine.most("pixels"), self._bundle.batch.max)

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """The picture itself: the GPU does the rest."""
        return rgb

    def group(self, waiting: Waiting) -> Hashable:
        return waiting.prepared.shape, waiting.size

    def encode(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """The pictures themselves: the engine runs image encoder and fusion as one."""
        return [waiting.prepared for waiting in group]

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        """The GPU's work is one launch: its whole time counts as image_fusion."""
        if request.mode == "joint" and not request.probabilities:
            with clock("image_fusion"):
                found = self._run(group, request, group[0].size)
                if not found["finite"].all():
                    raise not_finite(self._bundle)
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
        confidence (P, H', W') float32 or float16. Returns at once. NaN features give NaN confidence.
        """
        pictures, height, width = picture.shape[:3]
        words = len(request.vectors)
        size = labels.shape[1], labels.shape[2]
        shape = Shape(pictures, pictures, words, (height, width), input_size, size, host=False)
        with self._paths.path(shape) as path:
            vectors = request.vectors if pictures == 1 else self._repeated(request.vectors, pictures)
            path.run_on(stream, picture, vectors, request.threshold, {"labels": labels, "confidence": confidence})

    def new(self, shape: tuple[int, ...], dtype: str, stream: int) -> GpuArray:
        """An array that a stream's work will fill. Raises GpuMemoryShort, CudaFailed."""
        return GpuArray(self._machinery.results, self.device, shape, dtype, stream)

    def text(self) -> TextGraph:
        """The GPU's text graph where there is one that loads here, else the ONNX graph on the CPU."""
        with self._loading:
            if self._closed:
                raise UsageError("this session is closed", "open another")
            # what does not load is not tried for every word
            if self._text is None and self._load_text is not None and not self._text_note:
                try:
                    self._text = self._load_text()
                except FusionerError as error:
                    self._text_note = f"words are encoded on the CPU: {error}"
        return self._text or self._cpu()[0]("text")

    def prove_recording(self, pictures: Sequence[Waiting], request: Request) -> None:
        """Run two pictures of one size: one step by step, the other as the recording that this readied, and that again
        step by step. Where its masks differ, nothing is recorded any more, and `notes` says so.
        """
        first, second = pictures
        self._run([first], request, first.size)
        if not self._machinery.engine.records:
            return
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
            if isinstance(text, _Closable):
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
            return path.run([waiting.prepared for waiting in group], vectors, request.threshold)

    def _independent(self, waiting: Waiting, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """One picture with each word alone: scores (K, 1, h, w) and gram (K, 5, h, w)."""
        height, width = waiting.prepared.shape[:2]
        parts, most = [], min(self._machinery.engine.most("words"), self._bundle.batch.max)
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

    def _path(self, shape: Shape) -> Path:
        try:
            return Path(self._machinery, shape)
        except GpuMemoryShort:
            if not self._machinery.results.trim():
                raise
            return Path(self._machinery, shape)

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
            "holds no compiled kernels, which a GPU runs pictures and masks with",
            f"rebuild it without --kernels none: {bundle.build_command()}",
            subject=bundle.folder,
        )
    folder: FilePath = (bundle.folder / bundle.manifest["kernels"]["abi"]).parent
    return folder
