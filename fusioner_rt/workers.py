"""A thread pool for the tasks of a call."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Task = TypeVar("Task")


class Workers:
    """A pool of threads, started on first use. Threads may share one; a forked process starts its own."""

    def __init__(self, threads: int, name: str) -> None:
        """threads: tasks that run at once, of all callers together."""
        self.threads = threads
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0  # that the pool's threads belong to: a fork inherits none
        self._starting = threading.Lock()

    def run_all(self, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Call the function with each task. Raises the error of a task, once no other is running."""
        if self.threads == 1 or len(tasks) < 2:
            for task in tasks:
                function(task)
            return
        with self._starting:
            if self._pool is None or self._process != os.getpid():
                self._pool, self._process = ThreadPoolExecutor(self.threads, self._name), os.getpid()
            done: list[Future[None]] = []
            try:
                for task in tasks:  # `close` in another thread lets them finish
                    done.append(self._pool.submit(function, task))
            except BaseException:  # a thread that cannot be started; others may work for other callers
                for future in done:
                    future.cancel()
                raise
        try:
            for future in done:
                future.result()
        finally:
            for future in done:
                future.cancel()
            wait(done)

    def close(self) -> None:
        """End the threads. Another call starts new ones."""
        with self._starting:
            pool, self._pool = self._pool, None
        if pool is not None and self._process == os.getpid():
            pool.shutdown()
