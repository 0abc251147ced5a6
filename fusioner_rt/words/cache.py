"""Cache of word vectors, in memory and on disk: a word is encoded once per text encoder.

An entry's key is the hash of all that its vector depends on (prompts as tokens, text graph, precision), so entries never
become stale. One file holds one word:

    magic · length of the header · header (JSON, readable: the word, shape, dtype) · vector · sha256 of all before it

Files are written atomically, so processes may share the folder. A damaged file fails its sha256; it is removed, and its
word is encoded again. What is no file, a folder or a pipe by the name of an entry, is neither read nor removed.
"""

import contextlib
import errno
import hashlib
import json
import os
import struct
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_files import TEMPORARY, clear_temporaries, write_atomically
from ..cures import WRITABLE_CACHE
from ..errors import Spelled
from ..regular_files import read_regular

MAGIC = b"fusioner-rt word 1\n"
SUFFIX = ".word"
_MOST_BYTES = 1 << 24  # of an entry; a larger file is none
_REFUSALS = (PermissionError, NotADirectoryError, FileExistsError)  # the last two: the path is a file


@dataclass(frozen=True)
class CachedWord:
    """The header of an entry on disk."""

    word: str
    prompts: int
    precision: str
    graph: str
    bytes: int
    written: float  # seconds since 1970


def default_folder() -> Path:
    """$FUSIONER_CACHE, else fusioner-rt in $XDG_CACHE_HOME, else ~/.cache/fusioner-rt."""
    if named := os.environ.get("FUSIONER_CACHE"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path(os.path.expanduser("~")) / ".cache") / "fusioner-rt"


def cache_key(token_ids: Sequence[Sequence[int]], graph_sha256: str, precision: str) -> str:
    """sha256 over the token ids of every prompt of a word, the text graph and its precision."""
    content = json.dumps([[list(map(int, prompt)) for prompt in token_ids], graph_sha256, precision])
    return hashlib.sha256(content.encode()).hexdigest()


class TextCache:
    """Vectors by key, in bounded memory and disk space, least recently used evicted first. Threads may share one."""

    def __init__(self, folder: Path | None, memory_bytes: int = 16 << 20, disk_bytes: int = 64 << 20) -> None:
        """folder: None, or a folder that cannot be written (see `note`), keeps vectors in memory only."""
        self.folder = folder
        self.note: str | None = None
        self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
        self._memory_bytes, self._memory_limit = 0, memory_bytes
        self._refused = False
        self._disk_bytes: int | None = None  # unknown until the folder is first written
        self._disk_limit = disk_bytes
        self._lock = threading.RLock()

    def get(self, key: str) -> np.ndarray | None:
        """The (t,) float32 vector, read-only, or None if it is not cached."""
        with self._lock:
            if (vector := self._memory.get(key)) is not None:
                self._memory.move_to_end(key)
                return vector
            if (vector := self._read(key)) is not None:
                self._remember(key, vector)
            return vector

    def put(self, key: str, vector: np.ndarray, word: str, prompts: int, graph: str, precision: str) -> None:
        """Cache a (t,) vector. The arguments after it only describe the entry."""
        vector = np.array(vector, np.float32)
        vector.flags.writeable = False
        header = {"word": word, "prompts": prompts, "graph": graph, "precision": precision, "shape": list(vector.shape)}
        with self._lock:
            self._remember(key, vector)
            self._write(key, encode_entry(header, vector))

    def check_writable(self) -> None:
        """Make the folder if missing and write a test file. `note` tells of a failure."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(prefix=TEMPORARY, dir=self.folder) as stream:
                stream.write(b"word")
        except OSError as error:
            self._failed(error)

    def words(self) -> list[CachedWord]:
        """The entries on disk, sorted by word, without damaged ones."""
        entries = []
        for path, _ in self._entries():
            try:
                status, content = path.stat(), read_regular(path, _MOST_BYTES)
                header, _ = decode_entry(content)
                entries.append(
                    CachedWord(
                        str(header["word"]), int(header["prompts"]), str(header["precision"]), str(header["graph"]),
                        len(content), status.st_mtime,
                    )
                )  # fmt: skip
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return sorted(entries, key=lambda entry: (entry.word.casefold(), entry.graph, entry.written))

    def clear(self) -> int:
        """Remove all vectors, in memory and on disk, and what killed processes left.

        Returns the number of entries removed. Raises OSError for the first that cannot be, after the others.
        """
        with self._lock:
            self._memory.clear()
            self._memory_bytes, self._disk_bytes = 0, None
            removed, failed = 0, None
            for path, _ in self._entries():
                try:
                    path.unlink(missing_ok=True)
                    removed += 1
                except OSError as error:
                    failed = failed or error
            if self.folder is not None:
                clear_temporaries(self.folder)
            if failed is not None:
                raise failed
            return removed

    def _remember(self, key: str, vector: np.ndarray) -> None:
        if (old := self._memory.pop(key, None)) is not None:
            self._memory_bytes -= old.nbytes
        self._memory[key] = vector
        self._memory_bytes += vector.nbytes
        while self._memory_bytes > self._memory_limit and len(self._memory) > 1:
            self._memory_bytes -= self._memory.popitem(last=False)[1].nbytes

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / (key + SUFFIX)

    def _read(self, key: str) -> np.ndarray | None:
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            content = read_regular(path, _MOST_BYTES)
        except (OSError, ValueError):
            return None
        try:
            vector = decode_entry(content)[1]
        except ValueError:
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # eviction is by last use
        return vector

    def _write(self, key: str, content: bytes) -> None:
        if self.folder is None or self._refused:
            return
        try:
            if self._disk_bytes is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._disk_bytes = self._evict()
            write_atomically(self._path(key), lambda stream: stream.write(content))
            self._disk_bytes += len(content)
            if self._disk_bytes > self._disk_limit:
                self._disk_bytes = self._evict()
            self.note = None
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Note a failed write. A folder without permission is not tried again; a full disk or a removed folder is."""
        self._refused = isinstance(error, _REFUSALS) or error.errno == errno.EROFS
        self._disk_bytes = None
        found = (
            f"the cache folder {self.folder} cannot be written ({error.strerror or error}): words are kept in "
            "memory alone and encoded again by the next process"
        )
        self.note = Spelled(f"{found}; {WRITABLE_CACHE}", f"{found}; {WRITABLE_CACHE.command}")

    def _evict(self) -> int:
        """Remove the least recently used files of a full folder until a tenth is free. Returns the bytes left."""
        assert self.folder is not None
        clear_temporaries(self.folder)
        files = [(status.st_mtime, status.st_size, path) for path, status in self._entries()]
        total = sum(size for _, size, _ in files)
        if total > self._disk_limit:
            for _, size, path in sorted(files):
                _remove(path)
                total -= size
                if total <= self._disk_limit * 9 // 10:
                    break
        return total

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """What has the name of an entry and is a file, or a link, with its own status."""
        found: list[tuple[Path, os.stat_result]] = []
        if self.folder is None or not self.folder.is_dir():
            return found
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and (entry.is_symlink() or entry.is_file()):
                    with contextlib.suppress(FileNotFoundError):  # removed by another process
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found


def encode_entry(header: dict[str, Any], vector: np.ndarray) -> bytes:
    """The bytes of an entry. vector: (t,), stored as little-endian float32."""
    content = json.dumps(header, ensure_ascii=False).encode()
    body = MAGIC + struct.pack("<I", len(content)) + content + vector.astype("<f4").tobytes()
    return body + hashlib.sha256(body).digest()


def decode_entry(content: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Header and (t,) float32 vector, read-only. Raises ValueError for damaged bytes."""
    body, digest = content[:-32], content[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("damaged cache entry")
    start = len(MAGIC) + 4
    (length,) = struct.unpack_from("<I", body, len(MAGIC))
    header = json.loads(body[start : start + length])
    vector = np.frombuffer(body, "<f4", offset=start + length).astype(np.float32, copy=False)
    if list(vector.shape) != header["shape"]:
        raise ValueError("damaged cache entry")
    return header, vector


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
