"""A GPU in host memory: the emulated driver with streams that can be recorded, its kernels done by their definitions,
and TensorRT whose plans name an ONNX graph that ONNX Runtime runs on the emulated memory.

What it proves is the runtime's side: which calls are made, in which order, on which memory, and that what comes out is
what the CPU backend gives. It says nothing of TensorRT itself or of a GPU's speed.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda.core.utils  # noqa: F401  # by the real bindings, before `install` replaces them
import numpy as np
import onnxruntime
import torch
from cuda.bindings import driver as real
from emulated_driver import OK, EmulatedDriver

from fusioner_rt.bundle import write_manifest
from fusioner_rt.gpu.resize_tables import resize, taps
from fusioner_rt.manifest import MANIFEST
from kernels import reference

VERSION = "1.7.1.116"
ERROR = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
RUBBISH = 255  # in every byte: no number as float32, 65535 as uint16
OWN = 1000  # handles from here on are of streams made here
WITHOUT_CONTEXT = {
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent", "cuCtxPopCurrent",
    "cuPointerGetAttribute", "cuLibraryGetKernel", "cuKernelGetFunction", "cuKernelGetParamInfo", "cuKernelSetAttribute",
}  # fmt: skip
HARMLESS = WITHOUT_CONTEXT - {"cuPointerGetAttribute"}
"""What still works once the context is lost."""


def _nothing() -> None:
    pass


def at(pointer: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer))).view(dtype).reshape(shape)


@dataclass(eq=False)
class Work:
    """One piece of a stream's work. memory, pinned: the bytes it uses, by first and length. graph, context: of what it
    is a launch. after: marks in other streams' work that it waits for.
    """

    name: str
    do: Callable[[], Any]
    memory: tuple[tuple[int, int], ...] = ()
    pinned: tuple[tuple[int, int], ...] = ()
    graph: int | None = None
    context: Any = None
    after: tuple[tuple[int, int], ...] = ()


class EmulatedGpu(EmulatedDriver):
    """Streams do what they were given as late as they may: when somebody waits for them, in no order but the one that
    streams and events demand. So work that was not waited for has not been done, or comes too late.

    order: what was given to which stream. free: bytes left on the GPU. wrong: what a real GPU would have answered with
    a crash or wrong values; each is also an AssertionError, which a caller may swallow.
    failing: the call that fails; "everything": the context is lost, as after an illegal address.
    failing_in_recordings: the call that fails while its thread records.
    replay_wrong: the step that graphs leave out ("engine", "upload", "resize", "labels" ...; True: the engine);
    left_out: how often.
    before: called ahead of a call of that name, or ahead of "engine" and "serialize", outside of every lock.
    workspace: bytes that a TensorRT context asks for.
    serialized: what the runtime cache gives for the number of contexts that have run.
    """

    CUevent_flags = real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUresult = real.CUresult

    def __init__(self, bundle: Path, capability: tuple[int, int] = (8, 0)) -> None:
        """bundle: whose kernels are launched."""
        self.before: dict[str, Callable[[], Any]] = {}
        self.failing_in_recordings = ""
        self.recorders: set[int] = set()  # threads
        self._lock = threading.RLock()
        self._here = threading.local()
        super().__init__(capability, self._launched)
        manifest = json.loads((bundle / MANIFEST).read_text())
        self.resample = manifest["preprocessing"]["resample"]
        self.names = {path.read_bytes() + b"\0": path.stem for path in (bundle / "kernels").rglob("*.[cp][ut][bx]*")}
        self.recorded: dict[int, list[Work]] = {}  # by stream
        self.recordable = self.engine_recordable = True
        self.replay_wrong: bool | str = False
        self.left_out = 0
        self.graphs: dict[int, list[Work]] = {}
        self.pinned: dict[int, Any] = {}
        self.events: dict[int, tuple[int, int] | None] = {}
        self.streams: set[int] = set()
        self.queues: dict[int, deque[Work]] = {}
        self.given: dict[int, int] = {}  # pieces of work, by stream
        self.retained = 0
        self.free = 8 << 30
        self.workspace = 12345
        self.pooled: set[int] = set()  # addresses that were allocated in a stream's order
        self.order: list[tuple[str, int]] = []
        self.wrong: list[str] = []
        self.serialized: Callable[[int], Any] = lambda contexts: b"compiled" * contexts
        self._made = 0
        self.dtype = ""  # in the name of the kernel that runs: of the features, the confidence or the resized pixels
        self.scoring = "sigmoid"  # likewise

    def expect_nothing_left(self) -> None:
        """As after a session was closed."""
        for held in (self.memory, self.pinned, self.streams, self.events):
            assert not held
        assert self.contexts == self.retained == 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu") or name in ("cuGetErrorName", "cuGetErrorString"):
            return found

        def called(*arguments: Any) -> Any:
            self.before.get(name, _nothing)()
            with self._lock:
                if self.failing == "everything" and name not in HARMLESS:
                    return (real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
                if self.recording and name == self.failing_in_recordings:
                    return (ERROR,)
                if not self.contexts and name not in WITHOUT_CONTEXT:
                    return (real.CUresult.CUDA_ERROR_INVALID_CONTEXT,)
                return found(*arguments)

        return called

    def expect(self, right: bool, what: str) -> None:
        """A law that a real GPU would not enforce."""
        if not right:
            self.wrong.append(what)
            raise AssertionError(what)

    # work
    def submit(self, stream: int, work: Work) -> None:
        """Queue it, or record it."""
        with self._lock:
            self._check_stream(stream)
            if int(stream) in self.recorded:
                self.recorded[int(stream)].append(work)
                return
            self.queues.setdefault(int(stream), deque()).append(work)
            self.given[int(stream)] = self.given.get(int(stream), 0) + 1

    def finish(self, stream: int, position: int | None = None) -> None:
        """Do a stream's work up to a position, or all, and before each piece what it waits for."""
        with self._lock:
            queue = self.queues.setdefault(int(stream), deque())
            position = self.given.get(int(stream), 0) if position is None else position
            while queue and self.given[int(stream)] - len(queue) < position:
                work = queue.popleft()
                for mark in work.after:
                    self.finish(*mark)
                self._do(work)

    def finish_all(self) -> None:
        """A piece of each stream in turn, and those who were given work last come first."""
        with self._lock:
            while any(self.queues.values()):
                for stream in reversed(list(self.queues)):
                    if queue := self.queues[stream]:
                        self.finish(stream, self.given[stream] - len(queue) + 1)

    def lay(self, array: np.ndarray, stream: int | None = None) -> int:
        """The address of an array of another library, filled now or by a stream's work."""
        pointer = int(EmulatedGpu.cuMemAlloc(self, array.nbytes)[1])
        content = array.tobytes()
        work = Work("fill", lambda: ctypes.memmove(pointer, content, len(content)), ((pointer, array.nbytes),))
        if stream is None:
            work.do()
        else:
            self.submit(stream, work)
        return pointer

    def queued(self) -> Iterator[Work]:
        """What has not been done yet."""
        return (work for queue in self.queues.values() for work in queue)

    def _do(self, work: Work) -> None:
        for pointer, size in work.memory:
            self._within(pointer, size)
        for pointer, size in work.pinned:
            self.expect(self._is_pinned(pointer, size), f"{work.name} uses pinned memory that is gone")
        work.do()

    def _is_pinned(self, pointer: int, size: int) -> bool:
        return any(start <= pointer and pointer + size <= start + len(held) for start, held in self.pinned.items())

    def _within(self, pointer: int, size: int) -> None:
        self.expect(
            any(start <= pointer and pointer + size <= start + len(piece) for start, piece in self.memory.items()),
            f"{size} bytes at {pointer:#x} are no memory of the GPU",
        )

    @property
    def recording(self) -> bool:
        """Whether this thread may not do what cannot be recorded (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)."""
        return threading.get_ident() in self.recorders

    # contexts
    @property
    def contexts(self) -> int:
        """How many are on this thread's stack."""
        return len(self._stack)

    @contexts.setter
    def contexts(self, count: int) -> None:
        assert count == 0

    @property
    def _stack(self) -> list[Any]:
        if not hasattr(self._here, "stack"):
            self._here.stack = []
        found: list[Any] = self._here.stack
        return found

    def cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        self.retained += 1
        return super().cuDevicePrimaryCtxRetain(device)

    def cuDevicePrimaryCtxRelease(self, device: Any) -> Any:
        self.expect(self.retained > 0, "a context is released that nobody holds")
        self.retained -= 1
        return (OK,)

    def cuCtxPushCurrent(self, context: Any) -> Any:
        self.expect(context is not None, "no context is pushed")
        if not self.retained:
            return (real.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,)
        self._stack.append(context)
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        return (OK, self._stack.pop()) if self._stack else (real.CUresult.CUDA_ERROR_INVALID_CONTEXT,)

    # memory: new memory holds rubbish, and freeing waits for all work, as CUDA's does
    def cuMemGetInfo(self) -> Any:
        return OK, self.free, 80 << 30

    def cuMemAlloc(self, size: int) -> Any:
        if self.recording:
            return (ERROR,)
        if size == 0:
            return (real.CUresult.CUDA_ERROR_INVALID_VALUE,)
        if size > self.free:
            return (real.CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        self.free -= size
        code, pointer = super().cuMemAlloc(size)
        self.memory[int(pointer)].fill(RUBBISH)
        return code, pointer

    def cuMemAllocAsync(self, size: int, stream: int) -> Any:
        self._check_stream(stream)
        if int(stream) in self.recorded:
            return (ERROR,)
        if size > self.free:
            return (real.CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        code, pointer = EmulatedGpu.cuMemAlloc(self, size)
        self.pooled.add(int(pointer))
        return code, pointer

    def cuCtxSynchronize(self) -> Any:
        if self.recording:
            return (ERROR,)
        self.finish_all()
        return (OK,)

    def cuMemFree(self, pointer: int) -> Any:
        if self.recording:
            return (ERROR,)
        if int(pointer) not in self.pooled:  # freeing pooled memory waits for nothing
            self.finish_all()
        self.pooled.discard(int(pointer))
        self.free += len(self.memory[int(pointer)])
        return super().cuMemFree(int(pointer))

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        if self.recording:
            return (ERROR,)
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, RUBBISH, size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cuMemFreeHost(self, pointer: int) -> Any:
        every = [part for work in self.queued() for part in work.pinned]
        size = len(self.pinned[pointer])
        self.expect(
            not any(pointer <= start < pointer + size for start, _ in every), "pinned memory is freed while it is used"
        )
        del self.pinned[pointer]
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(to, size)
        pinned = self._is_pinned(source, size)
        self.expect(pinned or int(stream) not in self.recorded, "a copy from pageable memory is recorded")
        if pinned:
            work = Work("upload", lambda: ctypes.memmove(to, source, size), ((to, size),), ((source, size),))
        else:  # the driver takes a copy before it returns
            staged = ctypes.string_at(source, size)
            work = Work("upload", lambda: ctypes.memmove(to, staged, size), ((to, size),))
        self.submit(stream, work)
        return (OK,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(source, size)
        pinned = self._is_pinned(to, size)
        self.expect(pinned or int(stream) not in self.recorded, "a copy to pageable memory is recorded")
        used = ((to, size),) if pinned else ()
        self.submit(stream, Work("download", lambda: ctypes.memmove(to, source, size), ((source, size),), used))
        if not pinned:  # the driver returns when it is there
            self.finish(stream)
        return (OK,)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(to, size)
        self._within(source, size)
        self.order.append(("copy", stream))
        used = ((to, size), (source, size))
        self.submit(stream, Work("copy", lambda: ctypes.memmove(to, source, size), used))
        return (OK,)

    def cuMemsetD8Async(self, to: int, value: int, size: int, stream: int) -> Any:
        self._within(to, size)
        self.submit(stream, Work("set", lambda: ctypes.memset(to, value, size), ((to, size),)))
        return (OK,)

    # streams, events, graphs
    def _next(self) -> int:
        self._made += 1
        return self._made

    def _check_stream(self, stream: int) -> None:
        """Numbers below OWN are streams of others."""
        self.expect(int(stream) < OWN or int(stream) in self.streams, f"stream {stream} was destroyed")

    def cuStreamCreate(self, flags: int) -> Any:
        self.streams.add(OWN + self._next())
        return OK, real.CUstream(OWN + self._made)

    def cuStreamDestroy(self, stream: int) -> Any:
        self._check_stream(stream)
        self.streams.remove(int(stream))  # what it was given it still does
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> Any:
        self._check_stream(stream)
        if int(stream) in self.recorded:
            return (ERROR,)
        self.finish(stream)
        return (OK,)

    def cuEventCreate(self, flags: int) -> Any:
        self.events[self._next()] = None
        return OK, real.CUevent(self._made)

    def cuEventRecord(self, event: Any, stream: int) -> Any:
        self._check_stream(stream)
        self.expect(int(event) in self.events, "an event is recorded that was destroyed")
        if int(stream) in self.recorded:
            return (ERROR,)  # it would become part of the graph, and mark nothing
        self.order.append(("record", stream))
        self.events[int(event)] = (int(stream), self.given.get(int(stream), 0))
        return (OK,)

    def cuStreamWaitEvent(self, stream: int, event: Any, flags: int) -> Any:
        self.expect(int(event) in self.events, "an event is waited for that was destroyed")
        if int(stream) in self.recorded:
            return (real.CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,)
        self.order.append(("wait", stream))
        mark = self.events[int(event)]
        if mark is not None:
            self.submit(stream, Work("wait", _nothing, after=(mark,)))
        return (OK,)

    def cuEventElapsedTime(self, first: Any, second: Any) -> Any:
        self.expect({int(first), int(second)} <= set(self.events), "an event is asked that was destroyed")
        return OK, 0.5

    def cuEventDestroy(self, event: Any) -> Any:
        del self.events[int(event)]
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert mode == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.recorders.add(threading.get_ident())
        self.recorded[int(stream)] = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        self.recorders.remove(threading.get_ident())
        recorded = self.recorded.pop(int(stream))
        if not self.recordable:
            return (real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,)
        self.graphs[self._next()] = recorded
        return OK, real.CUgraph(self._made)

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return OK, real.CUgraphExec(int(graph))

    def cuGraphDestroy(self, graph: Any) -> Any:
        return (OK,)

    def cuGraphLaunch(self, executable: Any, stream: int) -> Any:
        self.order.append(("launch", stream))
        missing = "engine" if self.replay_wrong is True else self.replay_wrong or "nothing"
        steps = [work for work in self.graphs[int(executable)] if not work.name.startswith(missing)]
        self.left_out += len(self.graphs[int(executable)]) - len(steps)

        def launch() -> None:
            for work in steps:
                self._do(work)

        memory, pinned = (
            tuple(part for work in steps for part in getattr(work, kind)) for kind in ("memory", "pinned")
        )
        self.submit(stream, Work("launch", launch, memory, pinned, int(executable)))
        return (OK,)

    def cuGraphExecDestroy(self, executable: Any) -> Any:
        running = any(work.graph == int(executable) for work in self.queued())
        self.expect(not running, "a graph is destroyed while it runs")
        self.graphs[int(executable)] = []
        return (OK,)

    def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:
        if self.recording:
            return (ERROR,)
        return super().cuLibraryLoadData(code, *options)

    def cuLibraryUnload(self, library: Any) -> Any:
        running = any(work.name in self.parameters or work.graph is not None for work in self.queued())
        self.expect(not running, "kernels are unloaded while they run")
        return super().cuLibraryUnload(library)

    # kernels, by their definitions
    def cuLaunchKernel(self, function: Any, *arguments: Any) -> Any:
        self.order.append(("kernel", arguments[7]))
        self._here.stream, kinds = arguments[7], arguments[8][1]
        self._here.pointers = [index for index, kind in enumerate(kinds[:-2]) if kind is ctypes.c_void_p]
        return super().cuLaunchKernel(function, *arguments)

    def _launched(self, code: bytes, grid: tuple[int, int], values: tuple) -> None:
        used = tuple((int(values[index]), 1) for index in self._here.pointers)
        symbol = next(symbol for symbol, loaded in self.kernels if loaded == code)
        for pointer, size in used:
            self._within(pointer, size)
        self.submit(self._here.stream, Work(symbol, lambda: self.compute(code, grid, values), used))

    def compute(self, code: bytes, grid: tuple[int, int], values: tuple) -> None:
        symbol = next(symbol for symbol, loaded in self.kernels if loaded == code)
        self.dtype = next(iter(self.names[code].split(".")[1:]), "")
        self.scoring = "softmax" if self.names[code].startswith("softmax_") else "sigmoid"
        getattr(self, symbol)(grid[1], *values)

    def contexts_of(self, work: Work) -> list[Any]:
        """TensorRT's, where the work is a graph."""
        return [step.context for step in self.graphs.get(work.graph or 0, ()) if step.context is not None]

    def measure_kernel(self, pictures: int, *values: Any) -> None:
        pass  # maps_kernel does it all

    def maps_kernel(self, pictures: int, features: int, words: int, *rest: Any) -> None:
        *_, scores, gram, finite, h, w, count, d = rest
        found = reference.score_maps(
            torch.from_numpy(at(features, (pictures, h, w, d), self.dtype).copy()),
            torch.from_numpy(at(words, (pictures, count, d), self.dtype).copy()),
        )
        at(scores, (pictures, count, h, w), "float32")[:] = found[0]
        at(gram, (pictures, 5, h, w), "float32")[:] = found[1]
        at(finite, (pictures,), "int32")[:] = [
            all(bool(maps[index].isfinite().all()) for maps in found) for index in range(pictures)
        ]

    def labels_kernel(self, pictures: int, scores: int, gram: int, labels: int, confidence: int, *rest: Any) -> None:
        h, w, count, height, width, _, inverse, threshold = rest
        maps = self._maps(pictures, scores, gram, count, h, w)
        found = reference.resolve(*maps, (height, width), 1 / inverse, threshold, self.scoring)
        at(labels, (pictures, height, width), "uint16")[:] = found[0]
        at(confidence, (pictures, height, width), self.dtype)[:] = found[1]

    def probabilities_kernel(self, pictures: int, scores: int, gram: int, out: int, *rest: Any) -> None:
        h, w, count, height, width, _, inverse = rest
        maps = self._maps(pictures, scores, gram, count, h, w)
        found = reference.probabilities(*maps, (height, width), 1 / inverse, self.scoring)
        at(out, (pictures, count, height, width), self.dtype)[:] = found

    def masks_kernel(self, pictures: int, scores: int, gram: int, out: int, *rest: Any) -> None:
        h, w, count, height, width, _, least = rest
        maps = self._maps(pictures, scores, gram, count, h, w)
        found = reference.masks(*maps, (height, width), 1.0, 1 / (1 + math.exp(-least)))  # that cosine's probability
        at(out, (pictures, count, height, -(-width // 32)), "int32")[:] = reference.pack(found)

    def softmax_masks_kernel(self, pictures: int, scores: int, gram: int, out: int, *rest: Any) -> None:
        h, w, count, height, width, _, inverse, threshold = rest
        maps = self._maps(pictures, scores, gram, count, h, w)
        found = reference.masks(*maps, (height, width), 1 / inverse, threshold, "softmax")
        at(out, (pictures, count, height, -(-width // 32)), "int32")[:] = reference.pack(found)

    def names_kernel(
        self, pictures: int, labels: int, confidence: int, owners: int, thresholds: int, pixels: int
    ) -> None:
        found = at(labels, (pictures, pixels), "uint16")
        count = int(found.max(initial=0)) + 1
        found[:] = at(owners, (count,), "uint16")[found]
        count = int(found.max(initial=0)) + 1
        sure = at(confidence, (pictures, pixels), self.dtype) > at(thresholds, (count,), "float32")[found]
        found[~sure] = 0

    def _maps(
        self, pictures: int, scores: int, gram: int, count: int, h: int, w: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.from_numpy(at(scores, (pictures, count, h, w), "float32").copy()),
            torch.from_numpy(at(gram, (pictures, 5, h, w), "float32").copy()),
        )

    def resize_rows_kernel(self, pictures: int, *values: Any) -> None:
        self._resize(pictures, 1, *values)

    def resize_columns_kernel(self, pictures: int, *values: Any) -> None:
        self._resize(pictures, 0, *values)

    def _resize(self, count: int, axis: int, source: int, first: int, weights: int, out: int, *rest: Any) -> None:
        gain, shift = np.array(rest[:3], np.float32), np.array(rest[3:6], np.float32)
        height, width, length, reach = rest[6:]
        pixels, shares = taps(height if axis == 0 else width, length, self.resample)
        for told, table in ((at(first, (length,), "int32"), pixels), (at(weights, (reach, length), "int32"), shares.T)):
            self.expect(np.array_equal(told, table), "a resize runs before its tables are there")
        after = (length, width) if axis == 0 else (height, length)
        for index in range(count):
            before = at(source + index * height * width * 3, (height, width, 3), "uint8")
            resized = resize(before, after, self.resample)
            if self.dtype == "float32":
                plane = (resized.astype(np.float32) * gain - shift).transpose(2, 0, 1)
                at(out + index * plane.nbytes, plane.shape, "float32")[:] = plane
            else:
                at(out + index * resized.nbytes, resized.shape, "uint8")[:] = resized


DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def tensorrt(gpu: EmulatedGpu, flavour: str = "tensorrt-rtx", version: str = VERSION) -> ModuleType:
    """A module that stands where TensorRT's does; its plans are those of `plan`."""
    module = ModuleType(flavour.replace("-", "_"))

    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    class ILogger:
        Severity: Any = None

    ILogger.Severity = Severity
    mode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    strategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    validity = enum.Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")

    class Diagnostics(enum.IntFlag):
        VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, OLD_CUDA_RUNTIME = 1, 2, 4, 8
        INSUFFICIENT_GPU_MEMORY, MALFORMED_ENGINE, CUDA_ERROR = 16, 32, 64

    class Context:
        def __init__(self, engine: Any, cache: Any) -> None:
            self.engine, self.shapes, self.addresses = engine, {}, {}
            self.cache, self.compiled = cache, False
            self.index, self.memory, self.ran = -1, (0, 0), False

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self.index = index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self.engine.get_tensor_profile_shape(name, self.index)
            self.shapes[name] = shape
            return all(low <= length <= high for low, length, high in zip(least, shape, most, strict=True))

        def infer_shapes(self) -> list[str]:
            inputs = {item.name: np.zeros(self.shapes[item.name], DTYPES[item.type])
                      for item in self.engine.session.get_inputs()}  # fmt: skip
            found = self.engine.session.run(None, inputs)
            names = [item.name for item in self.engine.session.get_outputs()]
            self.outputs = {name: array.shape for name, array in zip(names, found, strict=True)}
            return []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.outputs[name]

        def update_device_memory_size_for_shapes(self) -> int:
            return gpu.workspace

        def set_tensor_address(self, name: str, pointer: int) -> bool:
            assert pointer % 256 == 0
            self.addresses[name] = pointer
            return True

        def set_device_memory(self, pointer: int, size: int) -> None:
            assert pointer % 256 == 0
            gpu._within(pointer, size)
            self.memory = (pointer, size)

        def execute_async_v3(self, stream: int) -> bool:
            gpu.before.get("engine", _nothing)()
            assert gpu.contexts > 0, "no context is current"
            assert self.memory[1] >= gpu.workspace
            with gpu._lock:
                if int(stream) in gpu.recorded:
                    if not (self.ran and gpu.engine_recordable):
                        return False  # TensorRT wants one run before it is recorded
                    running = any(self in (work.context, *gpu.contexts_of(work)) for work in gpu.queued())
                    gpu.expect(not running, "a context is recorded while it runs")
                self.ran = True
                gpu.order.append(("engine", stream))
                used = tuple((pointer, 1) for pointer in self.addresses.values())
                used += (self.memory,) if gpu.workspace else ()
                gpu.submit(stream, Work("engine", self.compute, used, context=self))
            return True

        def compute(self) -> None:
            if self.cache is not None and not self.compiled:
                self.cache.used += 1
            self.compiled = True
            session = self.engine.session
            inputs = {item.name: at(self.addresses[item.name], self.shapes[item.name], DTYPES[item.type]).copy()
                      for item in session.get_inputs()}  # fmt: skip
            for item, array in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                at(self.addresses[item.name], array.shape, "float32")[:] = array

    class Config:
        dynamic_shapes_kernel_specialization_strategy = cuda_graph_strategy = cache = None

        def set_execution_context_allocation_strategy(self, chosen: Any) -> None:
            assert chosen is strategy.USER_MANAGED

        def create_runtime_cache(self) -> Any:
            return Cache()

        def set_runtime_cache(self, cache: Any) -> bool:
            self.cache = cache
            return True

    class Cache:
        """Holds what contexts compiled, each when it first ran."""

        def __init__(self) -> None:
            self.used = 0

        def serialize(self) -> Any:
            gpu.before.get("serialize", _nothing)()
            gpu.expect(gpu.contexts > 0, "the runtime cache is serialized without a context")
            return gpu.serialized(self.used)

        def deserialize(self, content: bytes) -> bool:
            gpu.expect(gpu.contexts > 0, "the runtime cache is read without a context")
            return content.startswith(b"compiled")

    class Engine:
        def __init__(self, described: dict[str, Any]) -> None:
            self.described = described
            self.session = onnxruntime.InferenceSession(described["graph"], providers=["CPUExecutionProvider"])
            inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
            self.tensors = {item.name: item for item in (*inputs, *outputs)}
            self.inputs = {item.name for item in inputs}
            self.num_io_tensors = len(self.tensors)
            self.num_optimization_profiles = len(described["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return mode.INPUT if name in self.inputs else mode.OUTPUT

        def get_tensor_dtype(self, name: str) -> str:
            return self.described.get("dtypes", {}).get(name, DTYPES[self.tensors[name].type])

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self.described["profiles"][index][name]]

        def get_device_memory_size_for_profile_v2(self, index: int) -> int:
            return int(self.described.get("workspace", 12345))

        def create_runtime_config(self) -> Any:
            return Config()

        def create_execution_context(self, chosen: Any) -> Any:
            assert isinstance(chosen, Config) if flavour == "tensorrt-rtx" else chosen is strategy.USER_MANAGED
            return Context(self, getattr(chosen, "cache", None))

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            assert gpu.contexts > 0, "no context is current"
            try:
                described = json.loads(content)
            except ValueError:
                self.logger.log(Severity.ERROR, "magicTag == expected\nfailed")
                return None
            return Engine(described)

    if flavour == "tensorrt-rtx":

        def get_engine_validity(self: Any, content: bytes) -> tuple[Any, int]:
            described = json.loads(content) if content.startswith(b"{") else {}
            found = described.get("diagnostics", 0)
            return (validity.INVALID if found else validity[described.get("validity", "VALID")]), found

        Runtime.get_engine_validity = get_engine_validity  # type: ignore[attr-defined]
        module.DynamicShapesKernelSpecializationStrategy = enum.Enum("S", "LAZY EAGER NONE")  # type: ignore[attr-defined]
        module.CudaGraphStrategy = enum.Enum("C", "DISABLED WHOLE_GRAPH_CAPTURE")  # type: ignore[attr-defined]
    module.__dict__.update(
        __version__=version, ILogger=ILogger, Runtime=Runtime, TensorIOMode=mode, EngineValidity=validity,
        ExecutionContextAllocationStrategy=strategy, EngineInvalidityDiagnostics=Diagnostics, nptype=lambda dtype: dtype,
    )  # fmt: skip
    return module


def planned_copy(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle, with plans of both graphs."""
    shutil.copytree(bundle, folder)
    for graph in ("image_fusion", "text"):
        plan(folder, graph)
    return folder


def plan(bundle: Path, graph: str, flavour: str = "tensorrt-rtx", version: str = VERSION, capability: str = "8.0+",
         profiles: list[dict[str, Any]] | None = None, **more: Any) -> None:  # fmt: skip
    """Give a bundle a plan of a graph."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    ranges, letters = manifest["profiles"], {"K": "words", "B": "batch", "P": "batch", "H": "size", "W": "size"}
    every = {**{letter: ranges[name] for letter, name in letters.items()},
             "N": {"min": 1, "opt": 2, "max": 256}, "L": {"min": 1, "opt": 8, "max": 64}}  # fmt: skip
    inputs = manifest["graphs"][graph]["inputs"]
    whole = {name: [[every[edge][bound] if isinstance(edge, str) else edge for edge in shape]
                    for bound in ("min", "opt", "max")] for name, (_, shape) in inputs.items()}  # fmt: skip
    file = f"{graph}.{flavour}-{capability}.plan"
    described = {"graph": str((bundle / f"{graph}.onnx").absolute()), "profiles": profiles or [whole], **more}
    (bundle / file).write_text(json.dumps(described))
    manifest["engines"].append({"file": file, "graph": graph, "flavour": flavour, "version": version,
                                "compute_capability": capability, "version_compatible": False,
                                "precision": manifest["precision"]})  # fmt: skip
    write_manifest(bundle, manifest)


def install(patch: Any, gpu: EmulatedGpu, flavour: str = "tensorrt-rtx", version: str = VERSION) -> ModuleType:
    """Put the GPU and TensorRT where the runtime looks for them."""
    from fusioner_rt.tensorrt import versions

    module = tensorrt(gpu, flavour, version)
    patch.setitem(sys.modules, module.__name__, module)
    patch.setattr(versions, "_logs", {})
    patch.setattr("cuda.bindings.driver", gpu)
    return module
