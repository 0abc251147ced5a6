"""Cache of word vectors, in memory and on disk: a word is encoded once per text encoder.

An entry's key is the hash of all that its vector depends on (prompts as tokens, text graph, precision), so entries never
become stale. One file holds one word:

    magic · length of the header · header (JSON, readable: the word, shape, dtype) · vector · sha256 of all before it

Files are written atomically, so processes may share the folder. A damaged file fails its sha256; it is removed, and its
word is encoded again. What is no file, a folder or a pipe by the name of an entry, is neither read nor removed.

In place of the folder there may be one file of many words (`vectors_file`), which is read and never written.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import struct
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_files import TEMPORARY, clear_temporaries, write_atomically
from ..cures import WRITABLE_CACHE
from ..errors import Spelled, WordVectorsInvalid
from ..regular_files import read_regular
from .vectors_file import WRITE_AGAIN, is_vectors_file, read_vectors, write_vectors

MAGIC = b"fusioner-rt word 1\n"
SUFFIX = ".word"
_MOST_BYTES = 1 << 24  # of an entry; a larger file is none
_REFUSALS = (PermissionError, NotADirectoryError, FileExistsError)  # the last two: the path is a file
_UNIT = 1e-3  # that the length of a vector in a file of vectors is off 1, at most


@dataclass(frozen=True)
class CachedWord:
    """The header of an entry on disk."""

    word: str
    prompts: int
    precision: str
    graph: str
    bytes: int
    written: float  # seconds since 1970; of a file of many words, the file


@dataclass(frozen=True)
class Taken:
    """What `TextCache.take` did. words: of the file. added; there: that were there; left: for which the folder had no room."""

    words: list[CachedWord]
    added: int
    there: int
    left: int


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

    def __init__(self, place: Path | None, memory_bytes: int = 16 << 20, disk_bytes: int = 64 << 20) -> None:
        """place: a folder, or a file that `export` wrote, which is never written. A file, None, or a folder that cannot be
        written (see `note`) keeps new vectors in memory only. Raises WordVectorsInvalid for a file that is none.
        """
        self.file = place if place is not None and is_vectors_file(place) else None
        self.folder = place if self.file is None else None
        self._shared = {} if self.file is None else read_vectors(self.file)
        self.note: str | None = None
        self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
        self._memory_bytes, self._memory_limit = 0, memory_bytes
        self._refused = False
        self._disk_bytes: int | None = None  # unknown until the folder is first written
        self._disk_limit = disk_bytes
        self._lock = threading.RLock()

    def of_the_same_place(self) -> "TextCache":
        """An empty one, for a forked process, where a thread of the parent may hold this one's lock. A file is not read again."""
        other = TextCache(self.folder, self._memory_limit, self._disk_limit)
        other.file, other._shared = self.file, self._shared
        return other

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
        entry = make_entry(vector, word, prompts, graph, precision)
        with self._lock:
            self._remember(key, vector)
            self._write(key, entry)

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
        return _sorted(word for _, _, word in self._stored())

    def export(self, path: Path, of: tuple[str, str] | None = None) -> list[CachedWord]:
        """Write the entries on disk as one file, for others to read; returns them, sorted by word.

        of: sha256 of the text graph and precision, whose entries alone are written. Raises OutputUnwritable, UsageError, and
        OSError where the folder cannot be read.
        """
        written, words = {}, []
        for key, content, word in self._stored():
            wanted = of in (None, (word.graph, word.precision)) and re.fullmatch("[0-9a-f]{64}", key)
            if wanted and _checked(content):
                written[key] = content
                words.append(word)
        write_vectors(path, written)
        return _sorted(words)

    def take(self, path: Path) -> Taken:
        """Add the entries of a file that `export` wrote to the folder, as many as it has room for. What is there stays.

        Raises WordVectorsInvalid before anything is added, and OSError where the folder cannot be written.
        """
        assert self.folder is not None
        taken = read_vectors(path)
        words = [given[0] for given in map(_checked, taken.values()) if given]
        if len(words) < len(taken):
            raise WordVectorsInvalid("an entry in it is no word's vector", WRITE_AGAIN, path)
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = sum(status.st_size for _, status in self._entries())
            added = there = 0
            for key, content in taken.items():
                if self._read(key) is not None:
                    there += 1
                elif held + len(content) <= self._disk_limit:
                    self._put_file(key, content)
                    held += len(content)
                    added += 1
            self._disk_bytes = None
        return Taken(_sorted(words), added, there, len(taken) - added - there)

    def clear(self) -> int:
        """Remove all vectors, in memory and in the folder, and what killed processes left. A file of vectors stays.

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

    def _stored(self) -> Iterator[tuple[str, bytes, CachedWord]]:
        """Key, content and header of every entry on disk, without damaged ones."""
        for key, content, written in self._contents():
            try:
                word, _ = _described(content, written)
            except ValueError:
                continue
            yield key, content, word

    def _contents(self) -> Iterator[tuple[str, bytes, float]]:
        """Key and content of what is on disk, and when it was written."""
        if self.file is not None:
            written = self.file.stat().st_mtime
            yield from ((key, content, written) for key, content in self._shared.items())
        for path, _ in self._entries():
            try:
                written, content = path.stat().st_mtime, read_regular(path, _MOST_BYTES)
            except (OSError, ValueError):
                continue
            yield path.name.removesuffix(SUFFIX), content, written

    def _read(self, key: str) -> np.ndarray | None:
        if (content := self._shared.get(key)) is not None:
            given = _checked(content)
            return given and given[1]
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
            self._put_file(key, content)
            self._disk_bytes += len(content)
            if self._disk_bytes > self._disk_limit:
                self._disk_bytes = self._evict()
            self.note = None
        except OSError as error:
            self._failed(error)

    def _put_file(self, key: str, content: bytes) -> None:
        write_atomically(self._path(key), lambda stream: stream.write(content))

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


def make_entry(vector: np.ndarray, word: str, prompts: int, graph: str, precision: str) -> bytes:
    """The bytes of an entry. vector: (t,). The arguments after it describe it."""
    header = {"word": word, "prompts": prompts, "graph": graph, "precision": precision, "shape": list(vector.shape)}
    return encode_entry(header, vector)


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
    try:
        start = len(MAGIC) + 4
        (length,) = struct.unpack_from("<I", body, len(MAGIC))
        header = json.loads(body[start : start + length])
        vector = np.frombuffer(body, "<f4", offset=start + length).astype(np.float32, copy=False)
        if list(vector.shape) != header["shape"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):  # of who wrote the digest, too
        raise ValueError("damaged cache entry") from None
    return header, vector


def _described(content: bytes, written: float) -> tuple[CachedWord, np.ndarray]:
    """What an entry says of itself, and its vector. Raises ValueError for damaged bytes."""
    header, vector = decode_entry(content)
    try:
        word, prompts, precision, graph = (header[name] for name in ("word", "prompts", "precision", "graph"))
        return CachedWord(str(word), int(prompts), str(precision), str(graph), len(content), written), vector
    except (KeyError, TypeError):
        raise ValueError("damaged cache entry") from None


def _checked(content: bytes) -> tuple[CachedWord, np.ndarray] | None:
    """Header and vector of an entry of a file of vectors; None where it is no word's: that has unit length, whoever wrote it."""
    try:
        word, vector = _described(content, 0)
    except ValueError:
        return None
    off = abs(np.linalg.norm(vector.astype(np.float64)) - 1)
    return (word, vector) if off <= _UNIT else None  # NaN is not


def _sorted(words: Iterable[CachedWord]) -> list[CachedWord]:
    return sorted(words, key=lambda entry: (entry.word.casefold(), entry.graph, entry.written))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
