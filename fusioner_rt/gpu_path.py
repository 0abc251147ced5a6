"""From pictures to labels on a GPU: one plan of buffers and one CUDA graph per combination of shapes.

    picture uint8 ─ resize, normalise ─► pixels ─ engine ─► features, refined ─ measure, maps ─► scores, gram ─► labels

A path's first call gives the stream every step by itself, in which TensorRT readies its kernels; the second records the
steps; from then on a call is one launch and allocates nothing on the GPU. Shapes that come once are never recorded.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .cuda_driver import Device, Event, Graph, Memory, PinnedArray, Stream
from .cuda_mask_head import CudaMaskHead, DeviceArray
from .cuda_preprocess import CudaPreprocess
from .errors import CudaFailed, FusionerError, GpuMemoryShort
from .tensorrt_engine import Engine

_ALIGNMENT = 256


@dataclass(frozen=True)
class Shape:
    """What a path is made for.

    pictures: P, beside batch B vocabularies of `words` words each: P = B, or 1 where a picture meets B vocabularies.
    picture: (H, W) of the pictures. input: (h, w) of the network's. size: (H, W) of the label maps, or None for a path
    that ends at the low-resolution maps. host: whether pictures come from host memory and results go there.
    """

    pictures: int
    batch: int
    words: int
    picture: tuple[int, int]
    input: tuple[int, int]
    size: tuple[int, int] | None
    host: bool


@dataclass
class Machinery:
    """What all paths of a session share. ready: called when a path has run for the first time, which readied kernels.

    not_recorded: why no path is to be recorded, or nothing.
    """

    device: Device
    engine: Engine
    preprocess: CudaPreprocess
    mask_head: CudaMaskHead
    ready: Callable[[], None]
    not_recorded: str = ""


class Path:
    """One path. Used by one caller at a time; `GpuPaths` sees to that. Raises GpuMemoryShort, CudaFailed, PlanUnusable.

    note: why the path is not a graph, where it could not be recorded: it then goes on step by step.
    """

    def __init__(self, machinery: Machinery, shape: Shape) -> None:
        self.shape, self.note = shape, ""
        self._machinery, self._device = machinery, machinery.device
        self._vectors: np.ndarray | None = None
        with contextlib.ExitStack() as stack:  # what was made is given back where a later step fails
            self._stream = stack.enter_context(Stream(self._device))
            self._plan = machinery.preprocess.plan(*shape.picture, shape.input)
            engine = machinery.engine
            inputs = {
                "pixels": (shape.pictures, 3, *shape.input),
                "words": (shape.batch, shape.words, engine.profiles[0]["words"].most[-1]),
            }
            self._context = engine.context(inputs, self._stream.handle)
            stack.callback(engine.give_back, self._context)
            self.arrays, self.bytes = self._layout(inputs)
            memory = stack.enter_context(self._allocated())
            self.arrays = {name: _moved(array, memory.pointer) for name, array in self.arrays.items()}
            tables = self.arrays["tables"]
            self._upload(tables, self._plan.tables)
            self._pinned: dict[str, PinnedArray] = {}
            for name in self._host_names():
                array = self.arrays[name]
                pinned = PinnedArray(self._device, array.shape, array.dtype)
                stack.callback(pinned.close)
                self._pinned[name] = pinned
            self._event = Event(self._device)
            stack.callback(self._event.close)
            tensors = ("pixels", "words", "features", "refined")
            self._context.place(
                {name: self.arrays[name].pointer for name in tensors}, self.arrays["activations"].pointer
            )
            self._graph: Graph | None = None
            self._calls = 0
            self._threshold = math.nan
            self._ready = False
            stack.callback(self._forget)
            self._stream.wait()  # other streams may use the tables from here on
            self._owned = stack.pop_all()

    def run(self, pictures: Sequence[np.ndarray], vectors: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
        """pictures: P of (H, W, 3) uint8. vectors: (B, K, t) float32; the same object means the same words as before.
        threshold: of the labels; another than before is recorded anew.

        Returns new arrays: labels (B, H, W) uint16 and confidence (B, H, W) float32, or scores (B, K, h, w) and gram
        (B, 5, h, w) float32 where the shape has no size.
        """
        stream = self._stream.handle
        staged = self._pinned["picture"].array
        for index, picture in enumerate(pictures):
            staged[index] = picture
        self._set_words(vectors, stream)
        self._launch(stream, threshold)
        self._stream.wait()
        if not self._ready:
            self._first_done()
        return {name: pinned.array.copy() for name, pinned in self._pinned.items() if name != "picture"}

    def run_on(
        self, stream: int, picture: DeviceArray, vectors: np.ndarray, threshold: float, out: dict[str, DeviceArray]
    ) -> None:
        """picture: (P, H, W, 3) uint8 on this GPU. out: labels and confidence, as `run` returns them, on this GPU.

        Returns at once: `stream` does the work, after what it was given before.
        """
        self._event.hold(stream)  # what another stream was last given with these buffers
        self._set_words(vectors, stream)
        try:
            self._copy(self.arrays["picture"], picture, stream)
            self._launch(stream, threshold)
            for name, array in out.items():
                self._copy(array, self.arrays[name], stream)
            self._event.record(stream)
        except BaseException:  # the stream may have been given work with these buffers that no event tells of
            with contextlib.suppress(CudaFailed), self._device.current():
                self._device.driver.cuStreamSynchronize(stream)
            raise

    def close(self) -> None:
        """Wait for what was launched, and give everything back; closing twice is fine."""
        owned, self._owned = self._owned, contextlib.ExitStack()
        # Of work that failed its caller was told, and the GPU takes no more: not even memory back.
        with contextlib.suppress(CudaFailed), owned, contextlib.suppress(CudaFailed):
            self._idle()

    def _layout(self, inputs: dict[str, tuple[int, ...]]) -> tuple[dict[str, DeviceArray], int]:
        """Every buffer at its offset in one piece of memory, and the piece's bytes."""
        shape, outputs = self.shape, self._context.outputs
        low, words = outputs["features"][1:3], shape.words
        float32 = {
            **inputs, **outputs, "scores": (shape.batch, words, *low), "gram": (shape.batch, 5, *low),
        }  # fmt: skip
        wanted: list[tuple[str, tuple[int, ...], str]] = [
            ("picture", (shape.pictures, *shape.picture, 3), "uint8"),
            ("tables", self._plan.tables.shape, "int32"),
            ("resized", (self._plan.workspace_bytes(shape.pictures),), "uint8"),
            *((name, edges, "float32") for name, edges in float32.items()),
            ("measured", (CudaMaskHead.workspace_bytes(outputs["features"], words),), "uint8"),
            ("activations", (max(1, self._context.workspace_bytes),), "uint8"),
        ]
        if shape.size is not None:
            wanted += [
                ("labels", (shape.batch, *shape.size), "uint16"),
                ("confidence", (shape.batch, *shape.size), "float32"),
            ]
        arrays, end = {}, 0
        for name, edges, dtype in wanted:
            array = DeviceArray(end, tuple(edges), dtype)
            arrays[name] = array
            end += -(-max(1, array.nbytes) // _ALIGNMENT) * _ALIGNMENT
        return arrays, end

    def _allocated(self) -> Memory:
        try:
            return Memory(self._device, self.bytes)
        except GpuMemoryShort as error:
            height, width = self.shape.picture
            raise GpuMemoryShort(
                f"{self.shape.batch} x {self.shape.words} words on {self.shape.pictures} pictures of {width}x{height} need "
                f"{self.bytes >> 20} MiB, {self._device} has {self._device.free_bytes >> 20} MiB free ({error}); give fewer "
                "pictures or words at once, or choose another backend"
            ) from None

    def _host_names(self) -> tuple[str, ...]:
        if not self.shape.host:
            return ()
        return ("picture", "labels", "confidence") if self.shape.size is not None else ("picture", "scores", "gram")

    def _forget(self) -> None:
        """The graph; no launch of it may still be running."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _idle(self) -> None:
        """Wait for what any stream was given with these buffers."""
        self._event.hold(self._stream.handle)
        self._stream.wait()

    def _record(self) -> None:
        """TensorRT asks for one call before this."""
        stream = self._stream.handle
        self._idle()
        if not self._ready:
            self._first_done()
        reason = self._machinery.not_recorded
        if not reason and not self._context.recordable(stream):
            reason = "TensorRT says that its work cannot be recorded"
        if not reason:
            try:
                self._graph = Graph(self._device, stream, lambda: self._steps(stream))
            except FusionerError as error:
                reason = str(error)
        if reason:
            self.note = not_recorded(reason)

    def _first_done(self) -> None:
        self._ready = True
        self._machinery.ready()

    def _launch(self, stream: int, threshold: float) -> None:
        if threshold != self._threshold:
            self._threshold, self._calls = threshold, 0
            self._idle()
            self._forget()
        self._calls += 1
        if self._calls == 2:
            self._record()
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._steps(stream)

    def _steps(self, stream: int) -> None:
        arrays, shape, head = self.arrays, self.shape, self._machinery.mask_head
        with self._device.current():
            if shape.host:
                self._move("picture", stream, to_gpu=True)
            self._machinery.preprocess.launch(
                arrays["picture"].pointer, shape.pictures, self._plan, arrays["tables"].pointer,
                arrays["resized"].pointer, arrays["pixels"].pointer, stream,
            )  # fmt: skip
            self._context.enqueue(stream)
            maps = arrays["scores"], arrays["gram"]
            head.maps(arrays["features"], arrays["refined"], arrays["measured"], *maps, stream)
            if shape.size is not None:
                head.labels(*maps, self._threshold, arrays["labels"], arrays["confidence"], stream)
            for name in self._host_names()[1:]:
                self._move(name, stream, to_gpu=False)

    def _move(self, name: str, stream: int, to_gpu: bool) -> None:
        array, pinned, driver = self.arrays[name], self._pinned[name], self._device.driver
        if to_gpu:
            driver.cuMemcpyHtoDAsync(array.pointer, pinned.pointer, array.nbytes, stream)
        else:
            driver.cuMemcpyDtoHAsync(pinned.pointer, array.pointer, array.nbytes, stream)

    def _set_words(self, vectors: np.ndarray, stream: int) -> None:
        if vectors is not self._vectors:
            self._upload(self.arrays["words"], vectors, stream)
            self._vectors = vectors

    def _upload(self, to: DeviceArray, array: np.ndarray, stream: int | None = None) -> None:
        array = np.ascontiguousarray(array, to.dtype)
        assert array.nbytes == to.nbytes
        with self._device.current():
            # from pageable memory the call returns once the bytes are on their way from a copy of the driver's
            self._device.driver.cuMemcpyHtoDAsync(
                to.pointer, array.ctypes.data, array.nbytes, self._stream.handle if stream is None else stream
            )

    def _copy(self, to: DeviceArray, source: DeviceArray, stream: int) -> None:
        with self._device.current():
            self._device.driver.cuMemcpyDtoDAsync(to.pointer, source.pointer, to.nbytes, stream)


def not_recorded(reason: str) -> str:
    """A note."""
    return f"CUDA graphs are not used, every step is launched by itself ({reason})"


def _moved(array: DeviceArray, start: int) -> DeviceArray:
    return DeviceArray(start + array.pointer, array.shape, array.dtype)
