"""Atomic writes: a file is written under a temporary name in its folder, then renamed."""

import contextlib
import errno
import io
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputUnwritable

TEMPORARY = ".fusioner-tmp-"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "make room on its disk, or choose another"
STALE_SECONDS = 3600
"""Since a temporary file was written to, until its process counts as dead."""

_unfinished: set[str] = set()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file with `write`, which gets a binary stream. Replaces an existing file.

    Raises OSError where the folder cannot be written, and leaves no partial file.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    _unfinished.add(name)
    try:
        with _opened(handle) as stream:
            write(stream)
        os.chmod(name, 0o666 & ~_UMASK)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    finally:
        _unfinished.discard(name)


def remove_unfinished() -> None:
    """Remove the temporary files of writes that the end of this process cuts off."""
    for name in list(_unfinished):
        with contextlib.suppress(OSError):
            os.unlink(name)


class _File(io.FileIO):
    """A file that keeps its descriptor to itself: Pillow would write to that, and take half of a write for the whole."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def _opened(file: Path | int) -> IO[bytes]:
    return io.BufferedWriter(_File(file, "w"))


def write_result(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write_atomically` for a user's path: follows links, and writes into pipes and devices.

    Raises OutputUnwritable.
    """
    try:
        if is_special(path):
            with _opened(path) as stream:
                write(stream)
        else:
            write_atomically(Path(os.path.realpath(path)), write)
    except OSError as error:
        raise unwritable(path, error) from None


def write_json(path: Path, content: Any) -> None:
    """`write_result` of JSON. Raises OutputUnwritable."""
    text = json.dumps(content).encode()
    write_result(path, lambda stream: stream.write(text))


def check_replaceable(folder: Path) -> None:
    """Check a folder for `whole_folders.replace_folder` before the work starts. Raises OutputUnwritable."""
    if os.path.ismount(folder):
        raise OutputUnwritable(
            "is a mount point, and a bundle is replaced by renaming its folder",
            "mount the folder above it, or build in a copy and copy that here",
            subject=folder,
        )


@contextlib.contextmanager
def left_where_filled(*folders: Path) -> Iterator[None]:
    """Folders that the work makes, and those above them, go again where it fails and leaves them empty."""
    made = [
        place for folder in map(Path.absolute, folders) for place in (folder, *folder.parents) if not place.exists()
    ]
    try:
        yield
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()
        raise


def writable_folder(folder: Path) -> Path:
    """Make the folder if missing and write a test file. What killed processes left in it goes. Raises OutputUnwritable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=TEMPORARY, dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None
    clear_temporaries(folder)
    return folder


def clear_temporaries(folder: Path, age: float = STALE_SECONDS) -> None:
    """Remove temporary files whose process is dead: those not written to for `age` seconds, or written in the future."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if abs(time.time() - entry.stat(follow_symlinks=False).st_mtime) >= age:
                        os.unlink(entry.path)


def writable_place(path: Path) -> Path:
    """Check that `write_result` can write this file. Raises OutputUnwritable."""
    if not is_special(path):
        writable_folder(Path(os.path.realpath(path)).parent)
    return path


def is_special(path: Path) -> bool:
    """Whether the path is a pipe, terminal or device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def unwritable(path: Path, error: OSError) -> OutputUnwritable:
    reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
    cure = MAKE_ROOM if error.errno in DISK_IS_FULL else "choose a folder that exists and is writable"
    return OutputUnwritable(f"cannot be written ({reason})", cure, subject=path)


# Read once, at import: reading the umask means setting it, which affects other threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
