"""A folder that the replicas of a deployment share on their node. It goes with the last of them."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from ..atomic_files import unwritable
from ..folder_locks import locked

_PREFIX = "fusioner-rt-ray-"
_OURS = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")


class NodeFolder:
    """Of one user alone. Whoever uses it holds a lock, which the kernel frees when the process is killed."""

    def __init__(self, name: str, parent: Path | None = None) -> None:
        """name: 32 hexadecimal digits that nobody guesses, so that no other user makes it first. parent: by default the system's for temporary files.

        Removes what replicas left there that were all killed. Raises OutputUnwritable.
        """
        parent = parent or Path(tempfile.gettempdir())
        self.path = parent / f"{_PREFIX}{name}"
        try:
            for other in parent.glob(f"{_PREFIX}*"):
                if other != self.path and _OURS.fullmatch(other.name):
                    _remove_unused(other)
            while not self._enter():  # it was removed before the lock was ours
                pass
        except OSError as error:
            raise unwritable(self.path, error) from None

    def leave(self) -> None:
        """Remove it where nobody else uses it."""
        os.close(self._lock)
        _remove_unused(self.path)

    def _enter(self) -> bool:
        with contextlib.suppress(FileExistsError):  # exist_ok would raise it where it is removed meanwhile
            self.path.mkdir(mode=0o700)
        try:
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        held = os.fstat(self._lock)
        if held.st_uid != os.getuid():
            os.close(self._lock)
            raise PermissionError(1, "another user made it")
        try:
            if os.path.samestat(held, self.path.stat()):
                return True
        except FileNotFoundError:
            pass
        os.close(self._lock)
        return False


def _remove_unused(folder: Path) -> None:
    """Remove a folder of this user that no process holds the lock of."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with locked(folder) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # another process removed it
        return
