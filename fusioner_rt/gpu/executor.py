"""Runs a bundle on a GPU: preprocessing, an engine for image_fusion, and the mask head."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ..bundle import Bundle
from ..check_finite import check_finite, not_finite
from ..cures import build_command
from ..device_array import DeviceArray
from ..errors import CudaFailed, FusionerError, GpuMemoryShort, KernelsUnusable, session_closed
from ..executor_interface import Answer, Clock, CpuSide, Request, TextGraph, Waiting
from ..words.owners import NameTables
from .driver import Device, Memory, PinnedArray
from .engine_interface import Engine
from .foreign_arrays import GpuArray
from .kernel_launcher import Kernels
from .mask_head import CudaMaskHead
from .memory_pool import MemoryPool
from .pipeline import Machinery, Pipeline, Shape, not_recorded
from .pipeline_pool import PipelinePool
from .preprocess import CudaPreprocess

_MIN_AGREEMENT = 0.999  # share of equal labels; some kernels sum in varying order
_POOLED = 256 << 20
"""Maximum bytes of page-locked memory for results, and of GPU memory for results: ten of 2048 x 2048 pixels."""


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


class GpuExecutor:
    """Executor over an engine on one GPU.

    The GPU resolves the labels of joint words. Independent words and probabilities, which need many times the memory, are
    resolved on the CPU from low-resolution maps.
    """

    def __init__(
        self, bundle: Bundle, kernels_folder: Path, device: Device, engine: Engine, cpu: Callable[[], CpuSide],
        text: Callable[[], TextGraph] | None = None, ready: Callable[[], None] = lambda: None,
        notes: Callable[[], Sequence[str | None]] = lambda: (), close: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """kernels_folder: the bundle's. device, engine: this object closes them. cpu: opens the CPU side on first use.
        text: loads the text graph; without it, or where it raises, words are encoded on the CPU. ready: called when the
        engine may have compiled kernels. notes: of the engine. close: called after the engine is closed.
        Raises KernelsUnusable, CudaFailed.
        """
        self._bundle, self.device = bundle, device
        self._open_cpu, self._load_text, self._engine_notes = cpu, text, notes
        with contextlib.ExitStack() as stack:
            stack.callback(device.close)
            stack.callback(close)
            stack.callback(engine.close)
            self._kernels = kernels = Kernels(kernels_folder, device, bundle.read)
            stack.callback(kernels.close)
            pinned = MemoryPool(device, lambda gpu, size, _: PinnedArray(gpu, (size,), "uint8"), _POOLED)
            stack.callback(pinned.close)
            results = MemoryPool(device, Memory, _POOLED)
            stack.callback(results.close)
            self._machinery = Machinery(
                device, engine, CudaPreprocess(kernels, bundle.preprocessing),
                CudaMaskHead(kernels, bundle.temperature, bundle.scoring), bundle.text_width, pinned, results, ready,
            )  # fmt: skip
            self._pipelines = PipelinePool(self._pipeline)
            stack.callback(self._pipelines.close)
            self._owned = stack.pop_all()
        self._loading = threading.Lock()
        self._text: TextGraph | None = None
        self._text_note = ""
        self._closed = False
        self._on_cpu: CpuSide | None = None

    @property
    def notes(self) -> list[str]:
        reason = self._machinery.not_recorded
        every = [
            not_recorded(reason) if reason else "", *self._pipelines.notes, self._text_note, *self._kernels.notes,
            *self._engine_notes(),
        ]  # fmt: skip
        return list(dict.fromkeys(note for note in every if note))

    @property
    def lanes(self) -> int:
        return 2  # one prepares the next picture

    def in_lanes(self) -> "GpuExecutor":
        return self

    @property
    def max_group(self) -> int:
        return min(self._machinery.engine.max_batch("pixels"), self._bundle.batch.max)

    def prepare(self, rgb: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """The picture itself: the GPU does the rest."""
        return rgb

    def group(self, waiting: Waiting) -> Hashable:
        return waiting.prepared.shape, waiting.size, waiting.joined

    def encode_pictures(self, group: Sequence[Waiting]) -> list[np.ndarray]:
        """The pictures themselves: the engine runs image encoder and fusion as one."""
        return [waiting.prepared for waiting in group]

    def encode_windows(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A window is a picture of the network's size. Any words do: the features do not depend on them."""
        height, width = crops[0].shape[:2]
        words = np.zeros((1, self._bundle.text_width), np.float32)
        shape = Shape(len(crops), len(crops), 1, (height, width), (height, width), None, host=True)
        with self._pipelines.pipeline(shape) as pipeline:
            return list(pipeline.run(crops, self._repeated(words, len(crops)), 0.0, ("features",))["features"])

    def run(self, group: Sequence[Waiting], request: Request, clock: Clock) -> list[Answer]:
        """The time of the GPU counts as image_fusion. The features of joined windows are compared with words on the CPU."""
        if group[0].joined:
            answers = []
            for index, waiting in enumerate(group):
                with clock("mask_head", index):
                    maps = self._cpu().maps(waiting.prepared[None], request.vectors[None])
                    check_finite(self._bundle, *maps)
                    answers.append(self._cpu().answer(maps, waiting.size, request))
            return answers
        if request.mode == "joint" and not request.probabilities:
            with clock("image_fusion"):
                results = self._run(group, request, group[0].size)
                if not results["finite"].all():
                    raise not_finite(self._bundle)
            return [
                Answer(labels, confidence, None)
                for labels, confidence in zip(results["labels"], results["confidence"], strict=True)
            ]
        answers = []
        with clock("image_fusion"):
            joint = self._run(group, request, None) if request.mode == "joint" else None
        for index, waiting in enumerate(group):
            if joint is not None:
                scores, gram = (joint[name][index : index + 1] for name in ("scores", "gram"))
            else:
                scores, gram = self._independent(waiting, request, clock, index)
            with clock("mask_head", index):
                check_finite(self._bundle, scores, gram)
                answers.append(self._cpu().answer((scores, gram), waiting.size, request))
        return answers

    def maps(self, group: Sequence[Waiting], request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        maps = self._run(group, request, None)
        return [(maps["scores"][index : index + 1], maps["gram"][index : index + 1]) for index in range(len(group))]

    def run_on(
        self, stream: int, picture: DeviceArray, input_size: tuple[int, int], request: Request,
        labels: DeviceArray, confidence: DeviceArray, names: NameTables | None = None,
    ) -> None:  # fmt: skip
        """Enqueue on a caller's stream: picture (P, H, W, 3) uint8 to labels (P, H', W') uint16 and confidence
        (P, H', W') float32 or float16. names: those that the labels are to number, where they are not the words.
        NaN features give NaN confidence. Raises KernelsUnusable where the bundle has no kernel for names.
        """
        if names is not None and f"names.{confidence.dtype}" not in self._kernels.record.names:
            raise KernelsUnusable(
                "the bundle was built before groups, background words and thresholds of words were known in GPU memory",
                f"build it again: {build_command(self._bundle.folder)}; or use segment",
                subject=self._bundle.kernels_folder,
            )
        pictures, height, width = picture.shape[:3]
        words = len(request.vectors)
        size = labels.shape[1], labels.shape[2]
        shape = Shape(pictures, pictures, words, (height, width), input_size, size, host=False)
        with self._pipelines.pipeline(shape) as pipeline:
            vectors = request.vectors if pictures == 1 else self._repeated(request.vectors, pictures)
            out = {"labels": labels, "confidence": confidence}
            pipeline.run_on(stream, picture, vectors, request.threshold, out, names)

    def new(self, shape: tuple[int, ...], dtype: str, stream: int) -> GpuArray:
        """An array to be filled on a stream. Raises GpuMemoryShort, CudaFailed."""
        return GpuArray(self._machinery.results, self.device, shape, dtype, stream)

    def text(self) -> TextGraph:
        """The text graph on the GPU if it loads, else the ONNX graph on the CPU."""
        with self._loading:
            if self._closed:
                raise session_closed()
            # a graph that does not load is tried once
            if self._text is None and self._load_text is not None and not self._text_note:
                try:
                    self._text = self._load_text()
                except FusionerError as error:
                    self._text_note = f"words are encoded on the CPU: {error}"
        return self._text or self._cpu().text()

    def load_rest(self) -> None:
        try:
            self._cpu().load_rest()
        except FusionerError:  # who asks for what it does is told
            pass

    def prove_recording(self, pictures: Sequence[Waiting], request: Request) -> None:
        """Run two pictures of one size: the first step by step, the second as a recording and again step by step. Where the
        two results differ, nothing is recorded any more, and `notes` says so.
        """
        first, second = pictures
        self._run([first], request, first.size)
        if not self._machinery.engine.records:
            return
        recorded = self._run([second], request, second.size)
        self._pipelines.clear()
        steps = self._run([second], request, second.size)
        self._pipelines.clear()
        same = (steps["labels"] == recorded["labels"]).mean() > _MIN_AGREEMENT
        if not (
            same and np.allclose(steps["confidence"], recorded["confidence"], atol=1 - _MIN_AGREEMENT, equal_nan=True)
        ):
            self._machinery.not_recorded = "the recording of a first picture gave other masks than its steps"

    def forget(self) -> None:
        self._pipelines.clear()

    def close(self) -> None:
        with contextlib.suppress(CudaFailed):  # the failed call has raised it
            with self._loading:
                self._closed, text, self._text = True, self._text, None
            self._pipelines.close()
            if isinstance(text, _Closable):
                text.close()
            if self._on_cpu is not None:
                self._on_cpu.close()
            self._owned.close()

    def _run(self, group: Sequence[Waiting], request: Request, size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        first, count = group[0], len(group)
        height, width = first.prepared.shape[:2]
        shape = Shape(count, count, len(request.vectors), (height, width), first.input_size, size, host=True)
        with self._pipelines.pipeline(shape) as pipeline:
            vectors = request.vectors if count == 1 else self._repeated(request.vectors, count)
            return pipeline.run([waiting.prepared for waiting in group], vectors, request.threshold)

    def _independent(
        self, waiting: Waiting, request: Request, clock: Clock, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """One picture with each word alone: scores (K, 1, h, w) and gram (K, 5, h, w). index: of the picture in its group."""
        height, width = waiting.prepared.shape[:2]
        parts, batch = [], min(self._machinery.engine.max_batch("words"), self._bundle.batch.max)
        for start in range(0, len(request.vectors), batch):
            words = request.vectors[start : start + batch, None]
            shape = Shape(1, len(words), 1, (height, width), waiting.input_size, None, host=True)
            with clock("image_fusion", index), self._pipelines.pipeline(shape) as pipeline:
                parts.append(pipeline.run([waiting.prepared], words, 0.0))
        scores, gram = (np.concatenate([part[name] for part in parts]) for name in ("scores", "gram"))
        return scores, gram

    def _repeated(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """(count, K, t), the same object for the same words, so that they are not copied to the GPU again."""
        with self._loading:
            if self._repeats is None or self._repeats[0] is not vectors or len(self._repeats[1]) != count:
                self._repeats = (vectors, np.repeat(vectors[None], count, axis=0))
            return self._repeats[1]

    _repeats: tuple[np.ndarray, np.ndarray] | None = None

    def _pipeline(self, shape: Shape) -> Pipeline:
        try:
            return Pipeline(self._machinery, shape)
        except GpuMemoryShort:
            if not self._machinery.results.trim():
                raise
            return Pipeline(self._machinery, shape)

    def _cpu(self) -> CpuSide:
        with self._loading:
            if self._on_cpu is None:
                self._on_cpu = self._open_cpu()
            return self._on_cpu
