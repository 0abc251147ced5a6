"""Folders that are put in place whole: filled under a hidden name beside it, then exchanged with what lies there."""

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .atomic_files import unwritable
from .folder_locks import locked

_UNFINISHED, _REPLACED = "unfinished", "replaced"
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD
_log = logging.getLogger("fusioner_rt")

Say = Callable[[str], object]


@contextlib.contextmanager
def unfinished_folder(place: Path, say: Say = _log.warning) -> Iterator[Path]:
    """A new folder beside `place`, to be filled and given to `replace_folder`. What lies at its path is removed at the end.

    First goes what killed processes left (`clear_left`). Raises OutputUnwritable.
    """
    with contextlib.ExitStack() as locks:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            clear_left(place, say)
            folder = _beside(place, _UNFINISHED, locks)
        except OSError as error:
            raise unwritable(place.parent, error) from None
        try:
            yield folder
        finally:
            _remove(folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Move the folder `new` to `folder`. At no time is there no folder; the old one lies at `new` then, or is gone.

    Where the file system cannot exchange two paths there is none between two renames, and a process that is killed
    between them leaves the old folder to `clear_left`. Raises OSError, and leaves the old folder where it was.
    """
    if not folder.exists():
        try:
            os.replace(new, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
    if _exchange(new, folder):
        return
    with contextlib.ExitStack() as locks:
        kept = _beside(folder, _REPLACED, locks)
        try:
            os.replace(folder, kept / "old")
            os.replace(new, folder)
        except BaseException:
            if not os.path.lexists(folder):
                os.replace(kept / "old", folder)
            raise
        finally:
            _remove(kept)


def clear_left(place: Path, say: Say = _log.warning) -> None:
    """Remove what killed processes left beside `place`, or put back what one had moved away. say: told of each.

    What belongs to a process that lives is locked, and stays.
    """
    ours = re.compile(rf"\.{re.escape(place.name)}\.({_UNFINISHED}|{_REPLACED})-[a-z0-9_]{{8}}")
    try:
        left = {entry: found[1] for entry in sorted(os.listdir(place.parent)) if (found := ours.fullmatch(entry))}
    except OSError:
        return
    for name, kind in left.items():
        folder = place.parent / name
        with contextlib.suppress(OSError), locked(folder) as free:
            if not free:
                continue
            if kind == _REPLACED and not os.path.lexists(place):
                with contextlib.suppress(FileNotFoundError):  # it was killed before it moved anything
                    os.replace(folder / "old", place)
                    say(f"{place} is put back: a process that was killed had moved it away")
            _remove(folder)
            if not os.path.lexists(folder):
                say(f"{folder} is removed: a process that was killed left it")


def _beside(place: Path, kind: str, locks: contextlib.ExitStack) -> Path:
    """A new folder beside `place`, which `locks` holds locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.{kind}-", dir=place.parent))
        with contextlib.suppress(FileNotFoundError):
            if locks.enter_context(locked(folder)) is not False and folder.exists():
                return folder
        # `clear_left` of another process met it before it was locked.


def _remove(path: Path) -> None:
    if path.is_symlink():  # it lay in the folder's place
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths at once; False where system or file system cannot."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            return bool(ctypes.CDLL(None).renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
        if sys.platform == "darwin":
            return bool(ctypes.CDLL(None).renamex_np(*paths, _EXCHANGE) == 0)
    except AttributeError:  # an older C library
        pass
    return False
