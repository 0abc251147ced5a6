"""The record of a `segment` run: which pictures are done, and what belongs in --json, so that --resume goes on.

Lines of JSON: first what was asked, then one per picture that is done, in the order in which they were done. Each has its
checksum. A line that a kill cut off or a disk harmed, and what follows it, does not count.
"""

import contextlib
import json
import logging
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..atomic_files import unwritable
from ..errors import OutputUnwritable, UsageError
from ..regular_files import NotRegular, check_regular

_FORMAT = "fusioner-rt segment, unfinished"
_CHECKSUM = "crc32"
_log = logging.getLogger("fusioner_rt")
Entry = dict[str, Any]


class RunRecord:
    """An open record. done: entries by picture and result name."""

    def __init__(self, path: Path, asked: Mapping[str, Any], resume: bool) -> None:
        """asked: what a run must have in common with the one that it goes on with, by option.

        Where another run writes this record, this one goes without. Raises UsageError, OutputUnwritable.
        """
        self.path, self.done = path, dict[tuple[str, str], Entry]()
        self._stream: IO[bytes] | None = None
        self._ours = False
        try:
            with contextlib.suppress(FileNotFoundError):
                check_regular(path)
            stream = open(path, "a+b")  # noqa: SIM115
        except NotRegular:
            raise self._no_record() from None
        except OSError as error:
            raise unwritable(path, error) from None
        if not _lock(stream):
            stream.close()
            if resume:
                raise UsageError("is of a run that is still at work", "wait for it, or end it", subject=path)
            _log.warning("another run writes %s; this one cannot be resumed", path)
            return
        try:
            kept = self._read(stream, asked, resume)
            stream.truncate(kept)
        except BaseException:
            stream.close()
            raise
        self._stream, self._ours = stream, True
        if not kept:
            try:
                self._append({"format": _FORMAT, "asked": asked})
            except OutputUnwritable:
                self.close(finished=True)
                raise

    @property
    def is_ours(self) -> bool:
        """Whether no other run writes this record."""
        return self._ours

    def add(self, picture: str, name: str, entry: Entry) -> None:
        """Add a picture that is done. name: of its results. Raises OutputUnwritable."""
        entry = {"picture": picture, "name": name, **entry}
        self._append(entry)
        self.done[picture, name] = entry

    def _no_record(self) -> OutputUnwritable:
        return OutputUnwritable(
            "is no record of fusioner-rt segment, which keeps one there", "move it away", subject=self.path
        )

    def close(self, finished: bool) -> None:
        """finished: nothing is left to go on with."""
        if self._ours and finished:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._ours = False
        if self._stream:
            self._stream.close()
            self._stream = None

    def _append(self, line: Entry) -> None:
        if self._stream:
            try:
                self._stream.write(json.dumps({**line, _CHECKSUM: _checksum(line)}).encode() + b"\n")
                self._stream.flush()
            except OSError as error:
                with contextlib.suppress(OSError):  # what is buffered would be tried again
                    self._stream.close()
                self._stream = None
                raise unwritable(self.path, error) from None

    def _read(self, stream: IO[bytes], asked: Mapping[str, Any], resume: bool) -> int:
        """Read what is done. Returns the bytes to keep. Raises UsageError, OutputUnwritable."""
        stream.seek(0)
        first = stream.readline()
        if not _begins_a_record(first):
            raise self._no_record()
        if not resume:
            return 0
        before = _parsed(first).get("asked")
        if not isinstance(before, dict):
            found = (
                "the record of the run that was interrupted here is harmed"
                if first
                else "no run of this command was interrupted here"
            )
            _log.warning("%s; it begins with the first picture", found)
            return 0
        if other := differing(before, asked):
            raise UsageError(
                f"the run to go on with had other {', '.join(other)}",
                "give what it had, or leave out --resume to begin anew",
                subject=self.path,
            )
        kept = len(first)
        for line in stream:
            entry = _parsed(line)
            if not _is_entry(entry):
                break
            self.done[entry["picture"], entry["name"]] = entry
            kept += len(line)
        return kept


def differing(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The options in which two runs differ. before: as JSON gave it back: tuples are lists."""
    now = json.loads(json.dumps(asked))
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _is_entry(line: Entry) -> bool:
    kinds: dict[str, Any] = {"picture": str, "name": str, "saved": dict, "coco": (dict, type(None))}
    return all(isinstance(line.get(name, ...), kind) for name, kind in kinds.items()) and "read" in line


def state(path: str) -> list[int] | None:
    """What changes when a file is written: its size and time. None of what is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None


def size_of(path: Path) -> int | None:
    """The bytes of a file, or None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _parsed(line: bytes) -> Entry:
    """A whole line, as it was written, or nothing."""
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line) if line.endswith(b"\n") else None
        if isinstance(entry, dict) and entry.pop(_CHECKSUM, None) == _checksum(entry):
            return entry
    return {}


def _checksum(line: Entry) -> int:
    return zlib.crc32(json.dumps(line).encode())


def _begins_a_record(line: bytes) -> bool:
    """Whether it is a record's first line, or as much of it as a full disk or a kill left."""
    start = json.dumps({"format": _FORMAT}).encode()[:-1]
    return start[: len(line)] == line[: len(start)]


def _lock(stream: IO[bytes]) -> bool:
    """Whether no other run holds the file. Where a system has no such locks, none does."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
