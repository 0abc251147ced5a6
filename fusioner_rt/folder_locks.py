"""Locks of folders, which the kernel frees when their process ends, be it by SIGKILL. They leave no file behind."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool | None]:
    """Hold a folder's lock until the block ends. The lock is the folder's, not its path's: it moves with it.

    Yields True; False where another process, or this one, holds it; None where the file system has no locks. Raises
    OSError where there is no folder.
    """
    if fcntl is None:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _held.add(handle)
    try:
        yield _lock(handle)
    finally:
        if handle in _held:  # a forked child has none
            _held.discard(handle)
            os.close(handle)


def _lock(handle: int) -> bool | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # NFS locks no folders
        return None
    return True


def _forget() -> None:
    """A forked child would hold its parent's locks after that was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
