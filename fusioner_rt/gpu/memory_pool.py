"""A pool of memory pieces, reused between calls: allocation is slow, and on a GPU it blocks other work."""

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .driver import Device

_NO_STREAM = -1  # not a stream's handle


class Piece(Protocol):
    """A piece of memory. size: in bytes."""

    @property
    def size(self) -> int: ...

    def close(self) -> None: ...


P = TypeVar("P", bound=Piece)


class MemoryPool(Generic[P]):
    """Threads may share one. Pieces may be given back after `close`, and by the garbage collector."""

    def __init__(self, device: Device, make: Callable[[Device, int, int], P], max_bytes: int) -> None:
        """make: a new piece, by GPU, bytes and stream. max_bytes: of all pieces, in use or idle."""
        self._device, self._make, self._max_bytes = device.again(), make, max_bytes
        self._idle: dict[tuple[int, int], list[P]] = defaultdict(list)  # by bytes and stream
        self._returned: deque[tuple[P, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()

    def take(self, size: int, stream: int = 0) -> P | None:
        """A piece of `size` bytes for work on `stream`; None where `max_bytes` are in use, or once closed.

        Raises GpuMemoryShort, CudaFailed.
        """
        with self._lock:
            if self._closed:
                return None
            self._collect()
            if idle := self._idle[size, stream]:
                return idle.pop()
            if self._bytes + size > self._max_bytes:
                self._free()
            if self._bytes + size > self._max_bytes:
                return None
            piece = self._make(self._device, size, stream)
            self._bytes += size
            return piece

    def give(self, piece: P, stream: int = 0, alone: bool = True) -> None:
        """Return a piece for the next `take` with this size and stream, whose work runs after the stream's work so far.

        alone: no other stream uses it. Otherwise it is freed later and not reused.
        """
        # without the lock: the garbage collector may call this while the thread holds it
        self._returned.append((piece, stream if alone else _NO_STREAM))
        if self._closed:
            self._end()

    def trim(self) -> bool:
        """Free the idle pieces. Returns whether there were any."""
        with self._lock:
            self._collect()
            return self._free()

    def close(self) -> None:
        """Free the idle pieces; pieces in use are freed when they are given back. Closing twice is fine."""
        with self._lock:
            self._closed = True
        self._end()

    def _end(self) -> None:
        while self._lock.acquire(blocking=False):  # another holder checks again when it is done
            try:
                self._collect()
                try:
                    self._free()
                finally:
                    if not self._bytes:
                        self._device.close()
            finally:
                self._lock.release()
            if not self._returned:
                return

    def _collect(self) -> None:
        while self._returned:
            piece, stream = self._returned.popleft()
            self._idle[piece.size, stream].append(piece)

    def _free(self) -> bool:
        with contextlib.ExitStack() as stack:  # frees all, also where one raises
            idle = [piece for pieces in self._idle.values() for piece in pieces]
            self._idle.clear()
            for piece in idle:
                self._bytes -= piece.size
                stack.callback(piece.close)
        return bool(idle)
