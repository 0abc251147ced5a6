"""Signals that ask a command to end: the first ends it in order, the second at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from .atomic_files import remove_unfinished

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PATIENCE = 0.5  # seconds that the second signal leaves for an end in order

_NO_SIGNAL = 0

_heard: list[int] = []
_before: dict[int, Any] = {}


class Interrupted(KeyboardInterrupt):
    """A signal asked this command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """130 of SIGINT, 143 of SIGTERM, 129 of SIGHUP."""
    return interrupt.exit_code if isinstance(interrupt, Interrupted) else 128 + signal.SIGINT


def raise_if_interrupted() -> None:
    """For between two steps: a library that swallows exceptions in a callback may have swallowed `Interrupted`."""
    if _heard:
        raise Interrupted(_heard[0])


@contextlib.contextmanager
def signals_heard() -> Iterator[None]:
    """While this lasts, SIGINT, SIGTERM and SIGHUP raise `Interrupted`, but for those that are ignored, as by nohup.

    A second signal ends the process, also where a library computes and Python hears nothing. For the main thread; in another,
    and within another such block, nothing changes.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in _ENDING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _before[number] = signal.signal(number, _hear)
    listening, heard = os.pipe()
    os.set_blocking(heard, False)
    waker = signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_at_second, args=(listening,), name="fusioner-signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waker)
        _forget()
        with contextlib.suppress(BlockingIOError):
            os.write(heard, bytes([_NO_SIGNAL]))  # a forked worker may hold this end too, so closing it tells nothing
        watcher.join()
        os.close(heard)
        os.close(listening)


def _hear(number: int, _: FrameType | None) -> None:
    _heard.append(number)
    raise Interrupted(number)


def _end_at_second(listening: int) -> None:
    count = 0
    while (read := os.read(listening, 1))[0] != _NO_SIGNAL:
        count += read[0] in _before
        if count == 2:
            time.sleep(_PATIENCE)
            remove_unfinished()
            os._exit(128 + read[0])


def _forget() -> None:
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _heard.clear()


def _forget_in_child() -> None:
    """A forked worker is ended by whom forked it, and its signals are not those of this process."""
    if _before:
        with contextlib.suppress(ValueError):  # forked in a thread
            signal.set_wakeup_fd(-1)
            _forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
