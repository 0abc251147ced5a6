"""Kills a process by SIGKILL before its n-th step in a folder: every moment that differs on disk, by its number."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_at(moment: int, folder: Path, stepped: Callable[[], object] = lambda: None) -> None:
    """From now on this process counts its steps: what it opens, makes, renames and removes below `folder`.

    stepped: called with each.
    """
    left, below = moment, os.path.realpath(folder)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if not any(isinstance(one, str | os.PathLike) and os.fspath(one).startswith(below) for one in arguments):
            return
        stepped()
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed_at(moment: int, folder: Path, work: Callable[[], object]) -> bool:
    """Whether `work` in a forked child was killed before its step of that number."""
    child = os.fork()
    if child == 0:
        kill_at(moment, folder)
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
