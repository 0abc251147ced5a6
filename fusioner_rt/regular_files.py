"""Regular files, read: a pipe would wait for its writer, and a device may never end."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

_PIPED = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/self/fd/\d+")
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class NotRegular(OSError):
    """What the path leads to is no regular file. strerror: what it is, and what was expected."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, unless it is a folder, pipe, socket or device, or a link to one. Never waits.

    Raises OSError, of which NotRegular.
    """
    check_regular(path)  # before it is opened: opening a device may already do something
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(path, flags | getattr(os, "O_NONBLOCK", 0)), "rb")
    try:
        _check(os.fstat(stream.fileno()), path)  # it may have been replaced since
    except BaseException:
        stream.close()
        raise
    return stream


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises OSError, of which NotRegular, and ValueError for a longer one."""
    with open_regular(path) as stream:
        content = stream.read(most + 1) or b""  # None: a file of the kernel's that waits
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError, of which NotRegular where the path leads to what is no regular file."""
    _check(os.stat(path), path)


def is_shells_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pipe that a shell made for this process, as for <(COMMAND): something writes to it."""
    return bool(_PIPED.fullmatch(os.fspath(path))) and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def _check(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise NotRegular(0, f"it is {kind}, a regular file was expected", os.fspath(path))
