"""A pool of pipelines by shape. Each caller has one to itself; idle ones are kept, the least recently used are closed."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from ..errors import GpuMemoryShort, session_closed
from .pipeline import Pipeline, Shape

MAX_PIPELINES = 16


class PipelinePool:
    """Threads may share one. At most `max_pipelines` exist; where all are busy, callers wait."""

    def __init__(self, make: Callable[[Shape], Pipeline], max_pipelines: int = MAX_PIPELINES) -> None:
        """make: a new pipeline. Where it raises GpuMemoryShort, an idle pipeline is closed and it is called again."""
        self._make, self._max_pipelines = make, max_pipelines
        self._idle: OrderedDict[int, Pipeline] = OrderedDict()  # by identity, the least recently used first
        self._busy = 0
        self._starved = 0  # busy ones that wait for memory
        self._closed = False
        self._change = threading.Condition()
        self.notes: list[str] = []
        self.made = 0
        """Number of pipelines made so far."""

    @contextlib.contextmanager
    def pipeline(self, shape: Shape) -> Iterator[Pipeline]:
        """A pipeline for the shape, exclusive inside `with`, and closed where the block raises.

        Raises UsageError once closed, and the errors of `make`.
        """
        pipeline = self._take(shape)
        try:
            yield pipeline
        except BaseException:
            try:
                pipeline.close()
            finally:
                with self._change:
                    self._busy -= 1
                    self._change.notify_all()
            raise
        else:
            with self._change:
                self._busy -= 1
                if pipeline.note and pipeline.note not in self.notes:
                    self.notes.append(pipeline.note)
                self._idle[id(pipeline)] = pipeline
                self._change.notify_all()

    def clear(self) -> None:
        """Close the idle pipelines."""
        with self._change:
            while self._idle:
                self._idle.popitem()[1].close()

    def close(self) -> None:
        """Wait for the pipelines in use, and close all. Closing twice is fine."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: self._busy == 0)
        self.clear()

    def _take(self, shape: Shape) -> Pipeline:
        with self._change:
            while True:
                if self._closed:
                    raise session_closed()
                for key, pipeline in reversed(self._idle.items()):
                    if pipeline.shape == shape:
                        del self._idle[key]
                        self._busy += 1
                        return pipeline
                if self._busy + len(self._idle) >= self._max_pipelines:
                    if self._idle:
                        self._idle.popitem(last=False)[1].close()
                    else:
                        self._change.wait()
                    continue
                self._busy += 1
                break
        return self._new(shape)

    def _new(self, shape: Shape) -> Pipeline:
        """Make a pipeline outside the lock, as TensorRT-RTX may compile for it. It is counted as busy already."""
        while True:
            try:
                pipeline = self._make(shape)
            except BaseException as error:
                with self._change:
                    if isinstance(error, GpuMemoryShort):
                        if self._idle:
                            self._idle.popitem(last=False)[1].close()
                            continue
                        if self._busy > self._starved + 1:  # others will free memory; starved ones hold none
                            self._starved += 1
                            self._change.wait()
                            self._starved -= 1
                            continue
                    self._busy -= 1
                    self._change.notify_all()
                raise
            with self._change:
                self.made += 1
            return pipeline
