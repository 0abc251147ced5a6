"""`Session.stream`: frames to results, in order, while frames are read, run and used side by side.

    frames ─► reader (a thread) ─► frames that wait ─► lanes (threads) ─► results that wait ─► the caller

At most `ahead` frames are between the reader and the caller. Of a live source only the newest frame waits, and only the newest result.
"""

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from .errors import (
    FusionerError,
    MemoryShort,
    PictureInvalid,
    PictureMissing,
    PictureTooLarge,
    PictureUnreadable,
    SizeOutsideProfile,
    UsageError,
)
from .memory_shortage import OF_A_SESSION, tells_shortage

if TYPE_CHECKING:
    from .gpu.device_segmentation import DeviceSegmentation
    from .results.instances import Instance
    from .results.segmentation import Segmentation

OF_A_FRAME = (PictureMissing, PictureUnreadable, PictureTooLarge, PictureInvalid, SizeOutsideProfile, MemoryShort)
"""Errors that say nothing of the next frame."""

_PATIENCE = 2.0  # seconds that closing waits for a source that gives no frame


@dataclass(frozen=True, eq=False)
class StreamedFrame:
    """A frame and what was found in it.

    index: of the frame among those that were read, from 0. frame: its pixels (H, W, 3) uint8 RGB, an array in GPU memory as it was
    given, or None where it could not be decoded. result: its masks, or None where it failed. error: why, or None. dropped: frames of a
    live source between the last one and this, which nobody saw. instances: with track=True, the connected parts of the result's words
    with their ids, largest first; else None.
    """

    index: int
    frame: Any
    result: "Segmentation | DeviceSegmentation | None"
    error: FusionerError | None
    dropped: int
    instances: "list[Instance] | None" = None


class Stopped(Exception):
    """Raised in a lane whose stream was closed."""


class Work(Protocol):
    """Of one frame. pixels: as in StreamedFrame."""

    pixels: Any

    def __call__(self) -> "Segmentation | DeviceSegmentation": ...


Prepare = Callable[[Any, Callable[[], None]], Work]


def streamed(
    frames: Iterable[Any], prepare: Prepare, lanes: int, ahead: int, live: bool
) -> Generator[StreamedFrame, None, None]:
    """Results in the order of `frames`; errors in place of frames are passed on. Closing it ends its threads.

    prepare: is called by the reader with each frame as soon as it is read, and with a function that raises Stopped once the stream is
        closed; what it returns is called by a lane.
    lanes: frames that run at once. ahead: most frames that are read and not yet used by the caller, of a source that is not live.
    """
    line = _Line(ahead, live)
    threads = [threading.Thread(target=line.read, args=(frames, prepare), name="fusioner-reader", daemon=True)]
    threads += [threading.Thread(target=line.run, name=f"fusioner-lane-{lane}", daemon=True) for lane in range(lanes)]
    del frames
    seen = -1
    try:
        _lines.add(line)
        _start(threads)
        while (next_one := line.next()) is not None:
            index, frame, result, error = next_one
            yield StreamedFrame(index, frame, result, error, index - seen - 1)
            seen = index
            del frame, result, error, next_one  # what the caller has let go is not kept
            if line.is_of_another_process:
                raise UsageError(
                    "a forked process has none of a stream's threads", "start the stream in the process that uses it"
                )
    finally:
        line.close()
        # Where garbage is collected in a thread of this very stream, it ends by itself.
        if not line.is_of_another_process and threading.current_thread() not in threads:
            for thread in threads:
                if thread.ident:
                    thread.join(_PATIENCE if thread is threads[0] else None)


@tells_shortage(OF_A_SESSION)
def _start(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()


class _Line:
    """Frames and results that wait. All methods may be called by any thread."""

    def __init__(self, ahead: int, live: bool) -> None:
        self._ahead, self._live, self._process = ahead, live, os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Work | FusionerError]] = deque()
        self._running: set[int] = set()
        self._done: dict[int, _Done] = {}
        self._next = 0  # index of the next result for the caller
        self._ended = self._closed = False
        self._failure: BaseException | None = None  # of the source

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is a forked one, which has no thread of the line, and may have its lock held for ever."""
        return os.getpid() != self._process

    def read(self, frames: Iterable[Any], prepare: Prepare) -> None:
        """The reader's thread."""
        failure: BaseException | None = None
        try:
            source = enumerate(frames)
            while self._has_room() and (read := next(source, None)) is not None:
                index, frame = read
                work = frame if isinstance(frame, FusionerError) else _prepared(prepare, frame, self._check)
                del frame, read
                self._put(index, work)
                del work
        except Stopped:
            pass
        except BaseException as error:
            failure = error
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify_all()

    def run(self) -> None:
        """A lane's thread."""
        while (taken := self._take()) is not None:
            index, work = taken
            pixels, result, of_frame = None, None, True
            error: BaseException | None = None
            if isinstance(work, FusionerError):
                error = work
            else:
                try:
                    result = work()
                except Stopped:
                    return
                except OF_A_FRAME as raised:
                    error = raised.with_traceback(None)  # which keeps arrays
                except BaseException as raised:
                    error, of_frame = raised, False
                pixels = work.pixels
            del taken, work
            self._give(index, (pixels, result, error, of_frame))
            del pixels, result, error

    def next(self) -> tuple[int, Any, Any, Any] | None:
        """The caller's next frame, or None after the last. Raises what is no error of a frame."""
        with self._changed:
            while True:
                index = min(self._done, default=-1) if self._live else self._next
                if index in self._done:
                    break
                if not (self._waiting or self._running) and self._ended:
                    if self._failure is not None:
                        raise self._failure
                    return None
                self._changed.wait()
            frame, result, error, of_frame = self._done.pop(index)
            self._next = index + 1
            self._changed.notify_all()
        if error is not None and not of_frame:
            raise error
        return index, frame, result, error

    def close(self) -> None:
        if self.is_of_another_process:
            return
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._done.clear()
            self._changed.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise Stopped

    def _has_room(self) -> bool:
        """Waits until another frame may be read. Returns False once the stream is closed."""
        with self._changed:
            while not (self._live or self._closed):
                if len(self._waiting) + len(self._running) + len(self._done) < self._ahead:
                    break
                self._changed.wait()
            return not self._closed

    def _put(self, index: int, work: Work | FusionerError) -> None:
        with self._changed:
            if self._live:
                self._waiting.clear()
            if not self._closed:
                self._waiting.append((index, work))
                self._changed.notify_all()

    def _take(self) -> tuple[int, Work | FusionerError] | None:
        with self._changed:
            while not self._closed and not self._waiting:
                if self._ended:
                    return None
                self._changed.wait()
            if self._closed:
                return None
            index, work = self._waiting.popleft()
            self._running.add(index)
            return index, work

    def _give(self, index: int, done: "_Done") -> None:
        with self._changed:
            self._running.discard(index)
            newest = max(self._done, default=self._next - 1)
            if self._closed or (self._live and index < newest):  # another lane was faster with a newer one
                return
            if self._live:
                self._done.clear()
            self._done[index] = done
            self._changed.notify_all()


def _prepared(prepare: Prepare, frame: Any, check: Callable[[], None]) -> Work | FusionerError:
    try:
        return prepare(frame, check)
    except OF_A_FRAME as error:
        return error.with_traceback(None)


def _close_all() -> None:
    """Before Python ends: a lane in the middle of a run would find its graphs gone."""
    open_ones = list(_lines)
    for line in open_ones:
        line.close()
    end = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if thread.name.startswith("fusioner-lane") and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


_Done = tuple[Any, Any, BaseException | None, bool]
"""Pixels, result, error, and whether that is the frame's own."""

_lines: "WeakSet[_Line]" = WeakSet()
atexit.register(_close_all)
