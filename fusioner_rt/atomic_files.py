"""Atomic writes: a file is written under a temporary name in its folder, then renamed."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputUnwritable

TEMPORARY = ".fusioner-tmp-"

_unfinished: set[str] = set()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file with `write`, which gets a binary stream. Replaces an existing file.

    Raises OSError where the folder cannot be written, and leaves no partial file.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    _unfinished.add(name)
    try:
        with os.fdopen(handle, "wb") as stream:
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


def write_result(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write_atomically` for a user's path: follows links, and writes into pipes and devices.

    Raises OutputUnwritable.
    """
    try:
        if is_special(path):
            with open(path, "wb") as stream:
                write(stream)
        else:
            write_atomically(Path(os.path.realpath(path)), write)
    except OSError as error:
        raise unwritable(path, error) from None


def write_json(path: Path, content: Any) -> None:
    """`write_result` of JSON. Raises OutputUnwritable."""
    text = json.dumps(content).encode()
    write_result(path, lambda stream: stream.write(text))


def replace_folder(new: Path, folder: Path) -> None:
    """Move the folder `new` to `folder`. The old folder is deleted after the move, or restored where it fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        os.replace(folder, old / "old")
        try:
            os.replace(new, folder)
        except BaseException:
            os.replace(old / "old", folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Check a folder for `replace_folder` before the work starts. Raises OutputUnwritable."""
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
    """Make the folder if missing and write a test file. Raises OutputUnwritable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=TEMPORARY, dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


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
    return OutputUnwritable(
        f"cannot be written ({reason})", "choose a folder that exists and is writable", subject=path
    )


# Read once, at import: reading the umask means setting it, which affects other threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
