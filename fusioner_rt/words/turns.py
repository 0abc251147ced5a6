"""A lock that threads get in the order in which they came."""

import threading
from collections import deque
from types import TracebackType


class Turns:
    """Used as a context. A thread that gives it back and wants it again stands behind those that wait."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._waiting: deque[object] = deque()  # the first has it

    def __enter__(self) -> None:
        mine = object()
        with self._change:
            self._waiting.append(mine)
            try:
                self._change.wait_for(lambda: self._waiting[0] is mine)
            except BaseException:  # an interrupt
                self._waiting.remove(mine)
                self._change.notify_all()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._waiting.popleft()
            self._change.notify_all()
