"""Paths by shape, for many callers: each has one to itself while it runs, idle ones are kept, the least used go."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from ..errors import GpuMemoryShort, UsageError
from .pipeline import Path, Shape

MOST_PATHS = 16


class GpuPaths:
    """Safe to share between threads. At most `most` paths exist; who finds all of them busy waits for one."""

    def __init__(self, make: Callable[[Shape], Path], most: int = MOST_PATHS) -> None:
        """make: a new path; may raise GpuMemoryShort, then idle paths are given back and it is asked again."""
        self._make, self._most = make, most
        self._idle: OrderedDict[int, Path] = OrderedDict()  # by identity, the least recently used first
        self._busy = 0
        self._hungry = 0  # of the busy, those that wait for memory
        self._closed = False
        self._change = threading.Condition()
        self.notes: list[str] = []
        self.made = 0
        """How many paths were made since the start."""

    @contextlib.contextmanager
    def path(self, shape: Shape) -> Iterator[Path]:
        """A path for the shape, to oneself inside `with`. Raises UsageError once closed, and what making one raises.

        A path inside whose `with` something is raised is given back to the GPU.
        """
        path = self._take(shape)
        try:
            yield path
        except BaseException:
            try:
                path.close()
            finally:
                with self._change:
                    self._busy -= 1
                    self._change.notify_all()
            raise
        else:
            with self._change:
                self._busy -= 1
                if path.note and path.note not in self.notes:
                    self.notes.append(path.note)
                self._idle[id(path)] = path
                self._change.notify_all()

    def clear(self) -> None:
        """Give the idle ones back."""
        with self._change:
            while self._idle:
                self._idle.popitem()[1].close()

    def close(self) -> None:
        """Wait for paths in use, and give all back; closing twice is fine."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: self._busy == 0)
        self.clear()

    def _take(self, shape: Shape) -> Path:
        with self._change:
            while True:
                if self._closed:
                    raise UsageError("this session is closed", "open another")
                for key, path in reversed(self._idle.items()):
                    if path.shape == shape:
                        del self._idle[key]
                        self._busy += 1
                        return path
                if self._busy + len(self._idle) >= self._most:
                    if self._idle:
                        self._idle.popitem(last=False)[1].close()
                    else:
                        self._change.wait()
                    continue
                self._busy += 1
                break
        return self._new(shape)

    def _new(self, shape: Shape) -> Path:
        """Makes a path outside the lock, as TensorRT-RTX may compile for it; it is counted as busy already."""
        while True:
            try:
                path = self._make(shape)
            except BaseException as error:
                with self._change:
                    if isinstance(error, GpuMemoryShort):
                        if self._idle:
                            self._idle.popitem(last=False)[1].close()
                            continue
                        if self._busy > self._hungry + 1:  # others will give memory back; the hungry ones hold none
                            self._hungry += 1
                            self._change.wait()
                            self._hungry -= 1
                            continue
                    self._busy -= 1
                    self._change.notify_all()
                raise
            with self._change:
                self.made += 1
            return path
