"""Pictures to labels on a GPU, with one set of buffers and one CUDA graph per combination of shapes.

    picture uint8 ─ resize, normalise ─► pixels ─ engine ─► features, refined ─ measure, maps ─► scores, gram ─ labels, names
    └─ recorded for pictures in host memory ─┘└──────────────── recorded ──────────────────────────────┘

The first call of a pipeline runs every step by itself; the engine may compile kernels then. The second call records the
steps up to the low-resolution maps, except the preparation of a picture in a caller's GPU memory. Later calls launch the
recording and then compute the label map; they allocate nothing on the GPU. Shapes that occur once are never recorded.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..device_array import DeviceArray
from ..errors import CudaFailed, FusionerError, GpuMemoryShort
from ..words.owners import NameTables
from .cuda_graph import CudaGraph
from .driver import Device, Event, Memory, PinnedArray, Stream
from .engine_interface import Engine, EngineContext
from .kernel_contract import ALIGNMENT
from .mask_head import CudaMaskHead
from .memory_pool import MemoryPool
from .preprocess import CudaPreprocess

_ALIGNMENT = 256


@dataclass(frozen=True)
class Shape:
    """Shapes of a pipeline.

    pictures: P. batch: B vocabularies of `words` words each; P = B, or P = 1 for one picture with B vocabularies.
    picture: (H, W) of the pictures. input: (h, w) of the network's input. size: (H, W) of the label maps, or None for a
    pipeline that ends at the low-resolution maps. host: whether pictures and results are in host memory.
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
    """What all pipelines of a session share.

    channels: t of a word vector. pinned: page-locked memory for results on the host. results: memory on the GPU.
    ready: called after the first run of a pipeline, which may have compiled kernels. not_recorded: why no pipeline is
    recorded, or "".
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


class Pipeline:
    """One pipeline, for one caller at a time (`PipelinePool`). Raises GpuMemoryShort, CudaFailed, PlanUnusable.

    note: why the pipeline could not be recorded and runs step by step, or "".
    """

    def __init__(self, machinery: Machinery, shape: Shape) -> None:
        self.shape, self.note = shape, ""
        self._machinery, self._device = machinery, machinery.device
        self._vectors: np.ndarray | None = None
        self._names: NameTables | None = None
        with contextlib.ExitStack() as stack:  # frees everything where a later step fails
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
            memory = stack.enter_context(self._allocate())
            self.arrays = {name: _moved(array, memory.pointer) for name, array in self.arrays.items()}
            self._upload(self.arrays["tables"], self._plan.tables)
            if shape.host:
                self._staged = PinnedArray(self._device, (shape.pictures, *shape.picture, 3), "uint8")
                stack.callback(self._staged.close)
            self._event = Event(self._device)
            stack.callback(self._event.close)
            tensors = ("pixels", "words", "features", "refined")
            self._context.place(
                {name: self.arrays[name].pointer for name in tensors}, self.arrays["activations"].pointer
            )
            self._graph: CudaGraph | None = None
            self._calls = 0
            self._ready = False
            stack.callback(self._forget)
            self._stream.wait()  # other streams may use the tables from here on
            self._owned = stack.pop_all()

    def run(
        self,
        pictures: Sequence[np.ndarray],
        vectors: np.ndarray,
        threshold: float,
        wanted: Sequence[str] = ("scores", "gram"),
    ) -> dict[str, np.ndarray]:
        """pictures: P of (H, W, 3) uint8. vectors: (B, K, t) float32; the same object means the same words as before.
        threshold: of the labels. wanted: of `arrays`, what to return where the shape has no size.

        Returns new arrays: labels (B, H, W) uint16, confidence (B, H, W) float32 and finite (B,) int32, 0 for a picture
        with non-finite maps. Where the shape has no size: scores (B, K, h, w) and gram (B, 5, h, w) float32.
        """
        stream = self._stream.handle
        for index, picture in enumerate(pictures):
            self._staged.array[index] = picture
        self._set_words(vectors, stream)
        try:
            self._launch(stream, self.arrays["picture"].pointer)
            names = wanted
            if self.shape.size is not None:
                names = ("labels", "confidence", "finite")
                self._machinery.mask_head.labels(
                    self.arrays["scores"], self.arrays["gram"], threshold, self.arrays["labels"],
                    self.arrays["confidence"], stream,
                )  # fmt: skip
            results = {name: self._download(self.arrays[name], stream) for name in names}
        except BaseException:
            with contextlib.suppress(CudaFailed):
                self._stream.wait()  # before the results' memory is reused
            raise
        self._stream.wait()
        if not self._ready:
            self._first_done()
        return results

    def run_on(
        self, stream: int, picture: DeviceArray, vectors: np.ndarray, threshold: float, out: dict[str, DeviceArray],
        names: NameTables | None = None,
    ) -> None:  # fmt: skip
        """picture: (P, H, W, 3) uint8 on this GPU. out: labels and confidence, as `run` returns them, on this GPU. names:
        those that the labels are to number, or None where they are the words.

        Enqueues the work on `stream`. Picture and results are used in place, or through a copy where an address is not a
        multiple of 16.
        """
        self._event.hold(stream)  # wait for other streams that use these buffers
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
                if names is not None:
                    self._set_names(names, stream)
                    tables = self.arrays["owners"], self.arrays["thresholds"]
                    self._machinery.mask_head.names(results["labels"], results["confidence"], *tables, stream)
                for name, array in out.items():
                    if results[name] is not array:
                        self._copy(array, results[name], stream)
            self._event.record(stream)
        except BaseException:  # the stream may use these buffers, and no event marks that
            with contextlib.suppress(CudaFailed), self._device.current():
                self._device.driver.cuStreamSynchronize(stream)
            raise

    def close(self) -> None:
        """Wait for all work, and free everything. Closing twice is fine."""
        owned, self._owned = self._owned, contextlib.ExitStack()
        # a GPU that failed in an earlier call refuses even this
        with contextlib.suppress(CudaFailed), owned, contextlib.suppress(CudaFailed):
            self._wait()

    def _layout(self, inputs: dict[str, tuple[int, ...]]) -> tuple[dict[str, DeviceArray], int]:
        """All buffers, with offsets as pointers, and their bytes together."""
        shape, outputs = self.shape, self._context.outputs
        low, words = outputs["features"][1:3], shape.words
        float32 = {
            **inputs, **outputs, "scores": (shape.batch, words, *low), "gram": (shape.batch, 5, *low),
        }  # fmt: skip
        buffers: list[tuple[str, tuple[int, ...], str]] = [
            ("tables", self._plan.tables.shape, "int32"),
            ("resized", (self._plan.workspace_bytes(shape.pictures),), "uint8"),
            *((name, edges, "float32") for name, edges in float32.items()),
            ("finite", (shape.batch,), "int32"),
            ("measured", (CudaMaskHead.workspace_bytes(outputs["features"], words),), "uint8"),
            ("activations", (max(1, self._context.workspace_bytes),), "uint8"),
        ]
        if shape.host:
            buffers.append(("picture", (shape.pictures, *shape.picture, 3), "uint8"))
        else:
            buffers += [("owners", (words + 1,), "uint16"), ("thresholds", (words + 1,), "float32")]
        if shape.host and shape.size is not None:
            buffers += [
                ("labels", (shape.batch, *shape.size), "uint16"),
                ("confidence", (shape.batch, *shape.size), "float32"),
            ]
        arrays, end = {}, 0
        for name, edges, dtype in buffers:
            array = DeviceArray(end, tuple(edges), dtype)
            arrays[name] = array
            end += -(-max(1, array.nbytes) // _ALIGNMENT) * _ALIGNMENT
        return arrays, end

    def _allocate(self) -> Memory:
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
        """Close the CUDA graph. No launch may be running."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _wait(self) -> None:
        """Wait for the work of all streams on these buffers."""
        self._event.hold(self._stream.handle)
        self._stream.wait()

    def _record(self) -> None:
        """Record the steps. TensorRT needs a call before this."""
        if not self._machinery.engine.records:
            return
        stream = self._stream.handle
        self._wait()
        if not self._ready:
            self._first_done()
        reason = self._machinery.not_recorded
        if not reason and not self._context.recordable(stream):
            reason = "the engine says that its work cannot be recorded"
        if not reason:
            try:
                self._graph = CudaGraph(self._device, stream, lambda: self._steps(stream))
            except FusionerError as error:
                reason = str(error)
        if reason:
            self.note = not_recorded(reason)

    def _first_done(self) -> None:
        self._ready = True
        self._machinery.ready()

    def _launch(self, stream: int, picture: int) -> None:
        """Enqueue the work from the pictures, at an address, to scores and gram."""
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
        """Enqueue the steps that are recorded. Their addresses and numbers never change."""
        arrays = self.arrays
        with self._device.current():
            if self.shape.host:
                picture = arrays["picture"]
                self._device.driver.cuMemcpyHtoDAsync(picture.pointer, self._staged.pointer, picture.nbytes, stream)
                self._prepare(stream, picture.pointer)
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

    def _download(self, array: DeviceArray, stream: int) -> np.ndarray:
        """A new host array, filled in the order of the stream. Page-locked, unless that memory is used up."""
        result = host_array(self._machinery.pinned, array.shape, array.dtype)
        with self._device.current():
            self._device.driver.cuMemcpyDtoHAsync(result.ctypes.data, array.pointer, array.nbytes, stream)
        return result

    def _aligned(self, array: DeviceArray, stream: int, stack: contextlib.ExitStack) -> DeviceArray:
        """The array, or new memory of its size where the kernels do not accept its address."""
        if array.pointer % ALIGNMENT == 0:
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

    def _set_names(self, names: NameTables, stream: int) -> None:
        if self._names is None or not self._names.same(names):
            self._names = None  # neither, where the second upload fails
            self._upload(self.arrays["owners"], names.owners, stream)
            self._upload(self.arrays["thresholds"], names.thresholds, stream)
            self._names = names

    def _upload(self, to: DeviceArray, array: np.ndarray, stream: int | None = None) -> None:
        array = np.ascontiguousarray(array, to.dtype)
        assert array.nbytes == to.nbytes
        with self._device.current():
            # the driver copies pageable memory before the call returns
            self._device.driver.cuMemcpyHtoDAsync(
                to.pointer, array.ctypes.data, array.nbytes, self._stream.handle if stream is None else stream
            )

    def _copy(self, to: DeviceArray, source: DeviceArray, stream: int) -> None:
        with self._device.current():
            self._device.driver.cuMemcpyDtoDAsync(to.pointer, source.pointer, to.nbytes, stream)


class _Lent:
    """Page-locked memory of numpy arrays, given back with the last of them."""

    def __init__(self, pool: MemoryPool[PinnedArray], piece: PinnedArray) -> None:
        self._pool, self._piece = pool, piece
        self.__array_interface__ = piece.array.__array_interface__

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter shutdown, or on a GPU that failed
            self._pool.give(self._piece)


def host_array(pool: MemoryPool[PinnedArray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A new array, in the pool's memory if any is left. It may outlive the pool."""
    piece = pool.take(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    if piece is None:
        return np.empty(shape, dtype)
    return np.asarray(_Lent(pool, piece)).view(dtype).reshape(shape)


def not_recorded(reason: str) -> str:
    """The note of a pipeline that is not recorded."""
    return f"CUDA graphs are not used, every step is launched by itself ({reason})"


def _moved(array: DeviceArray, start: int) -> DeviceArray:
    return DeviceArray(start + array.pointer, array.shape, array.dtype)
