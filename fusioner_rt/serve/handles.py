"""Encoded pictures that clients come back to with other words, by handles that nobody guesses."""

import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..encoder_output import EncodedPicture
from .errors import HandleGone, ServiceFull
from .settings import Settings

_HANDLE = re.compile(r"[A-Za-z0-9_-]{32}")
_FILE = re.compile(rf"{_HANDLE.pattern}\.(npz|new)")


@dataclass(frozen=True)
class Kept:
    """model: whose session encoded it."""

    model: str
    encoded: EncodedPicture

    @property
    def nbytes(self) -> int:
        return self.encoded.picture.nbytes + self.encoded.encoded.nbytes


class Handles(Protocol):
    """A store bounded by count, bytes and age; what was used least recently goes first. Threads may share it."""

    def put(self, kept: Kept) -> str:
        """Raises ServiceFull."""

    def get(self, handle: str) -> Kept:
        """Raises HandleGone."""

    def drop(self, handle: str) -> None:
        """Raises HandleGone."""

    def held(self) -> tuple[int, int]:
        """How many there are, and their bytes."""


def open_handles(settings: Settings) -> Handles:
    """The store of one process, or the one that several share."""
    return HandlesInFolder(settings, settings.shared) if settings.shared else HandlesInMemory(settings)


class HandlesInMemory:
    """`Handles` of one process."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._now, self._lock = settings, now, threading.Lock()
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._bytes = 0

    def put(self, kept: Kept) -> str:
        _check_size(kept, self._settings)
        handle = secrets.token_urlsafe(24)
        with self._lock:
            self._kept[handle] = self._now(), kept
            self._bytes += kept.nbytes
            self._prune()
        return handle

    def get(self, handle: str) -> Kept:
        with self._lock:
            self._prune()
            if handle not in self._kept:
                raise gone()
            kept = self._kept[handle][1]
            self._kept[handle] = self._now(), kept
            self._kept.move_to_end(handle)
            return kept

    def drop(self, handle: str) -> None:
        with self._lock:
            self._prune()
            if handle not in self._kept:
                raise gone()
            self._remove(handle)

    def held(self) -> tuple[int, int]:
        with self._lock:
            self._prune()
            return len(self._kept), self._bytes

    def _prune(self) -> None:
        oldest = self._now() - self._settings.handle_age
        while self._kept:
            handle, (used, _) = next(iter(self._kept.items()))
            if (
                used >= oldest
                and len(self._kept) <= self._settings.handles
                and self._bytes <= self._settings.handle_bytes
            ):
                return
            self._remove(handle)

    def _remove(self, handle: str) -> None:
        self._bytes -= self._kept.pop(handle)[1].nbytes


class HandlesInFolder:
    """`Handles` that processes share: a file each, by a name of their own. A file's time is that of its last use."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder

    def put(self, kept: Kept) -> str:
        _check_size(kept, self._settings)
        handle = secrets.token_urlsafe(24)
        encoded = kept.encoded
        facts = [kept.model, encoded.backend, encoded.picture_sha256, encoded.window]
        path = self._folder / f"{handle}.new"
        try:
            with open(path, "xb") as stream:
                np.savez(
                    stream, picture=encoded.picture, encoded=encoded.encoded,
                    input_size=np.array(encoded.input_size), facts=np.array(facts),
                )  # fmt: skip
            path.rename(self._path(handle))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ServiceFull(
                f"the encoded picture cannot be kept ({error.strerror})", "ask without keep, or send it again later"
            ) from None
        self._prune()
        return handle

    def get(self, handle: str) -> Kept:
        path = self._known(handle)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                model, backend, sha256, window = arrays["facts"].tolist()
                height, width = arrays["input_size"].tolist()
                encoded = EncodedPicture(
                    arrays["picture"], (height, width), arrays["encoded"], backend, sha256, window
                )  # fmt: skip
            os.utime(path)
        except FileNotFoundError:
            raise gone() from None
        return Kept(model, encoded)

    def drop(self, handle: str) -> None:
        try:
            self._known(handle).unlink()
        except FileNotFoundError:
            raise gone() from None

    def held(self) -> tuple[int, int]:
        files = self._files()
        return len(files), sum(size for _, size, _ in files)

    def _known(self, handle: str) -> Path:
        if not _HANDLE.fullmatch(handle):  # no path of the client's
            raise gone()
        self._prune()
        return self._path(handle)

    def _path(self, handle: str) -> Path:
        return self._folder / f"{handle}.npz"

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of each, the one used last first."""
        found = []
        for path in self._folder.glob("*"):  # also what a process that was killed has not finished
            if not _FILE.fullmatch(path.name):  # whoever named the folder may keep other files there
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # another process dropped it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return sorted(found, reverse=True)

    def _prune(self) -> None:
        oldest, count, total = time.time() - self._settings.handle_age, 0, 0
        for used, size, path in self._files():
            count, total = count + 1, total + size
            if used < oldest or count > self._settings.handles or total > self._settings.handle_bytes:
                path.unlink(missing_ok=True)


def gone() -> HandleGone:
    return HandleGone("there is no such encoded picture, or no longer", "encode the picture again", "handle")


def _check_size(kept: Kept, settings: Settings) -> None:
    if kept.nbytes > settings.handle_bytes or not settings.handles:
        raise ServiceFull(
            f"the encoded picture has {kept.nbytes / 1e6:.0f} MB, this service keeps {settings.handle_bytes / 1e6:.0f} MB",
            "send a smaller picture, or ask without keep",
        )
