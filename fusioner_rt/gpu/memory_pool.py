"""Pieces of memory that are kept between calls and come back when nobody holds them: allocating is slow, and on a GPU it
stops everything else.
"""

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .driver import Device

_NOBODYS = -1  # no stream's handle


class Piece(Protocol):
    """size: in bytes. close: frees it."""

    @property
    def size(self) -> int: ...

    def close(self) -> None: ...


P = TypeVar("P", bound=Piece)


class MemoryPool(Generic[P]):
    """Threads may share one. Pieces may be given back after it has closed, and from a garbage collection."""

    def __init__(self, device: Device, make: Callable[[Device, int, int], P], most: int) -> None:
        """make: a new piece, from the GPU, its bytes and a stream. most: bytes of all pieces, in use or idle."""
        self._device, self._make, self._most = device.again(), make, most
        self._idle: dict[tuple[int, int], list[P]] = defaultdict(list)  # by bytes and stream
        self._back: deque[tuple[P, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()

    def take(self, size: int, stream: int = 0) -> P | None:
        """A piece of `size` bytes, for work in the order of `stream`; None where `most` bytes are in use, or once closed.

        Raises GpuMemoryShort, CudaFailed.
        """
        with self._lock:
            if self._closed:
                return None
            self._collect()
            if held := self._idle[size, stream]:
                return held.pop()
            if self._bytes + size > self._most:
                self._free()
            if self._bytes + size > self._most:
                return None
            piece = self._make(self._device, size, stream)
            self._bytes += size
            return piece

    def give(self, piece: P, stream: int = 0, alone: bool = True) -> None:
        """For the next `take` with this size and stream, whose work comes after what the stream was given so far.

        alone: no other stream may still use it; else it is freed when there is time.
        """
        # no lock: a garbage collection may come while this thread holds it
        self._back.append((piece, stream if alone else _NOBODYS))
        if self._closed:
            self._end()

    def trim(self) -> bool:
        """Free what is idle; returns whether anything was."""
        with self._lock:
            self._collect()
            return self._free()

    def close(self) -> None:
        """Free what is idle; what is in use is freed when it is given back. Closing twice is fine."""
        with self._lock:
            self._closed = True
        self._end()

    def _end(self) -> None:
        while self._lock.acquire(blocking=False):  # who holds it looks again afterwards
            try:
                self._collect()
                try:
                    self._free()
                finally:
                    if not self._bytes:
                        self._device.close()
            finally:
                self._lock.release()
            if not self._back:
                return

    def _collect(self) -> None:
        while self._back:
            piece, stream = self._back.popleft()
            self._idle[piece.size, stream].append(piece)

    def _free(self) -> bool:
        with contextlib.ExitStack() as every:  # also where one of them cannot be freed
            idle = [piece for pieces in self._idle.values() for piece in pieces]
            self._idle.clear()
            for piece in idle:
                self._bytes -= piece.size
                every.callback(piece.close)
        return bool(idle)
