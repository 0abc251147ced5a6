"""From pictures to labels on a GPU: one plan of buffers and one CUDA graph per combination of shapes.

    picture uint8 ─ resize, normalise ─► pixels ─ engine ─► features, refined ─ measure, maps ─► scores, gram ─ labels
    └─ recorded for pictures in host memory ─┘└──────────────── recorded ──────────────────────────────┘

A path's first call gives the stream every step by itself, in which an engine readies its kernels; the second records what
stays the same from call to call: all up to the low-resolution maps, but for a caller's own picture. From then on a call is
one launch, with the label map after it, and allocates nothing on the GPU. Shapes that come once are never recorded.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..device_array import DeviceArray
from ..errors import CudaFailed, FusionerError, GpuMemoryShort
from .driver import Device, Event, Graph, Memory, PinnedArray, Stream
from .mask_head import CudaMaskHead
from .memory_pool import MemoryPool
from .preprocess import CudaPreprocess

_ALIGNMENT = 256
_KERNELS_ALIGNMENT = 16


class EngineContext(Protocol):
    """An engine ready for certain shapes. outputs: shapes of features and refined. workspace_bytes: what `place` gets."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def workspace_bytes(self) -> int: ...

    def place(self, pointers: Mapping[str, int], workspace: int) -> None:
        """Where pixels, words, features, refined and the workspace lie in device memory, a multiple of 256 each."""

    def recordable(self, stream: int) -> bool:
        """Whether work on the stream may be recorded, as far as the engine tells."""

    def enqueue(self, stream: int) -> None:
        """Give `stream` the work of one run, and return. Device's context is current."""


class Engine(Protocol):
    """What runs image_fusion on a GPU. Threads may share it, each with contexts of its own.

    records: whether its work can become part of a CUDA graph at all.
    """

    records: bool

    def context(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> Any:
        """An EngineContext for pixels (P, 3, h, w) and words (B, K, t); `stream` may be given work for it."""

    def give_back(self, context: Any) -> None:
        """For the next caller of `context` with its shapes."""

    def most(self, name: str) -> int:
        """The largest first dimension that an input may have."""

    def close(self) -> None:
        """Contexts in use must have been given back; closing twice is fine."""


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
    """What all paths of a session share.

    channels: t of a word vector. pinned: page-locked memory for results on the host. results: memory on the GPU.
    ready: called when a path has run for the first time, which readied kernels. not_recorded: why no path is to be
    recorded, or nothing.
    """

    device: Device
    engine: Engine
    preprocess: CudaPreprocess
    mask_head: CudaMaskHead
    channels: int
    pinned: MemoryPool[PinnedArray]
    results: MemoryPool[Memory]
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
                "words": (shape.batch, shape.words, machinery.channels),
            }
            self._context: EngineContext = engine.context(inputs, self._stream.handle)
            stack.callback(engine.give_back, self._context)
            self.arrays, self.bytes = self._layout(inputs)
            memory = stack.enter_context(self._allocated())
            self.arrays = {name: _moved(array, memory.pointer) for name, array in self.arrays.items()}
            tables = self.arrays["tables"]
            self._upload(tables, self._plan.tables)
            if shape.host:
                self._staged = PinnedArray(self._device, (shape.pictures, *shape.picture, 3), "uint8")
                stack.callback(self._staged.close)
            self._event = Event(self._device)
            stack.callback(self._event.close)
            tensors = ("pixels", "words", "features", "refined")
            self._context.place(
                {name: self.arrays[name].pointer for name in tensors}, self.arrays["activations"].pointer
            )
            self._graph: Graph | None = None
            self._calls = 0
            self._ready = False
            stack.callback(self._forget)
            self._stream.wait()  # other streams may use the tables from here on
            self._owned = stack.pop_all()

    def run(self, pictures: Sequence[np.ndarray], vectors: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
        """pictures: P of (H, W, 3) uint8. vectors: (B, K, t) float32; the same object means the same words as before.
        threshold: of the labels.

        Returns new arrays: labels (B, H, W) uint16, confidence (B, H, W) float32 and finite (B,) int32, 0 where a
        picture's maps are not; or scores (B, K, h, w) and gram (B, 5, h, w) float32 where the shape has no size.
        """
        stream = self._stream.handle
        for index, picture in enumerate(pictures):
            self._staged.array[index] = picture
        self._set_words(vectors, stream)
        try:
            self._launch(stream, self.arrays["picture"].pointer)
            names: tuple[str, ...] = ("scores", "gram")
            if self.shape.size is not None:
                names = ("labels", "confidence", "finite")
                self._machinery.mask_head.labels(
                    self.arrays["scores"], self.arrays["gram"], threshold, self.arrays["labels"],
                    self.arrays["confidence"], stream,
                )  # fmt: skip
            found = {name: self._downloaded(self.arrays[name], stream) for name in names}
        except BaseException:
            with contextlib.suppress(CudaFailed):
                self._stream.wait()  # before the results' memory may go to another call
            raise
        self._stream.wait()
        if not self._ready:
            self._first_done()
        return found

    def run_on(
        self, stream: int, picture: DeviceArray, vectors: np.ndarray, threshold: float, out: dict[str, DeviceArray]
    ) -> None:
        """picture: (P, H, W, 3) uint8 on this GPU. out: labels and confidence, as `run` returns them, on this GPU.

        Returns at once: `stream` does the work, after what it was given before. Picture and results are read and
        written where they lie, or through a copy where an address is no multiple of 16.
        """
        self._event.hold(stream)  # what another stream was last given with these buffers
        self._set_words(vectors, stream)
        try:
            with contextlib.ExitStack() as stack:
                source = self._aligned(picture, stream, stack)
                if source is not picture:
                    self._copy(source, picture, stream)
                self._launch(stream, source.pointer)
                results = {name: self._aligned(array, stream, stack) for name, array in out.items()}
                maps = self.arrays["scores"], self.arrays["gram"]
                self._machinery.mask_head.labels(*maps, threshold, results["labels"], results["confidence"], stream)
                for name, array in out.items():
                    if results[name] is not array:
                        self._copy(array, results[name], stream)
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
            ("tables", self._plan.tables.shape, "int32"),
            ("resized", (self._plan.workspace_bytes(shape.pictures),), "uint8"),
            *((name, edges, "float32") for name, edges in float32.items()),
            ("finite", (shape.batch,), "int32"),
            ("measured", (CudaMaskHead.workspace_bytes(outputs["features"], words),), "uint8"),
            ("activations", (max(1, self._context.workspace_bytes),), "uint8"),
        ]
        if shape.host:
            wanted.append(("picture", (shape.pictures, *shape.picture, 3), "uint8"))
        if shape.host and shape.size is not None:
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
                f"{self.shape.batch} x {self.shape.words} words on {self.shape.pictures} pictures of "
                f"{width}x{height} need {self.bytes >> 20} MiB, {self._device} has "
                f"{self._device.free_bytes >> 20} MiB free ({error})",
                "give fewer pictures or words at once, or choose another backend",
            ) from None

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
        if not self._machinery.engine.records:
            return
        stream = self._stream.handle
        self._idle()
        if not self._ready:
            self._first_done()
        reason = self._machinery.not_recorded
        if not reason and not self._context.recordable(stream):
            reason = "the engine says that its work cannot be recorded"
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

    def _launch(self, stream: int, picture: int) -> None:
        """From the pictures at an address to scores and gram."""
        self._calls += 1
        if self._calls == 2:
            self._record()
        if not self.shape.host:
            self._prepare(stream, picture)
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._steps(stream)

    def _steps(self, stream: int) -> None:
        """What is recorded: no address and no number in it changes from call to call."""
        arrays = self.arrays
        with self._device.current():
            if self.shape.host:
                to = arrays["picture"]
                self._device.driver.cuMemcpyHtoDAsync(to.pointer, self._staged.pointer, to.nbytes, stream)
                self._prepare(stream, to.pointer)
            self._context.enqueue(stream)
            self._machinery.mask_head.maps(
                arrays["features"], arrays["refined"], arrays["measured"], arrays["scores"], arrays["gram"],
                arrays["finite"], stream,
            )  # fmt: skip

    def _prepare(self, stream: int, picture: int) -> None:
        """Resize and normalise."""
        arrays = self.arrays
        self._machinery.preprocess.launch(
            picture, self.shape.pictures, self._plan, arrays["tables"].pointer, arrays["resized"].pointer,
            arrays["pixels"].pointer, stream,
        )  # fmt: skip

    def _downloaded(self, array: DeviceArray, stream: int) -> np.ndarray:
        """A new array in host memory, filled when the stream gets there: page-locked, unless callers hold much of that."""
        found = host_array(self._machinery.pinned, array.shape, array.dtype)
        with self._device.current():
            self._device.driver.cuMemcpyDtoHAsync(found.ctypes.data, array.pointer, array.nbytes, stream)
        return found

    def _aligned(self, array: DeviceArray, stream: int, stack: contextlib.ExitStack) -> DeviceArray:
        """The array, or memory of its size where the kernels do not take its address."""
        if array.pointer % _KERNELS_ALIGNMENT == 0:
            return array
        memory = self._machinery.results.take(array.nbytes, stream)
        if memory is None:
            memory = stack.enter_context(Memory(self._device, array.nbytes, stream))
        else:
            stack.callback(self._machinery.results.give, memory, stream)
        return DeviceArray(memory.pointer, array.shape, array.dtype)

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


class _Lent:
    """Page-locked memory that numpy arrays look at; it goes back when the last of them is gone."""

    def __init__(self, pool: MemoryPool[PinnedArray], piece: PinnedArray) -> None:
        self._pool, self._piece = pool, piece
        self.__array_interface__ = piece.array.__array_interface__

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter shutdown, or on a GPU that failed
            self._pool.give(self._piece)


def host_array(pool: MemoryPool[PinnedArray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A new array, in the pool's memory where it has some left; it may outlive the pool."""
    piece = pool.take(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    if piece is None:
        return np.empty(shape, dtype)
    return np.asarray(_Lent(pool, piece)).view(dtype).reshape(shape)


def not_recorded(reason: str) -> str:
    """A note."""
    return f"CUDA graphs are not used, every step is launched by itself ({reason})"


def _moved(array: DeviceArray, start: int) -> DeviceArray:
    return DeviceArray(start + array.pointer, array.shape, array.dtype)
