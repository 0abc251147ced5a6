"""Archives as they come from a network: .tar.gz, .tgz, .tar and .zip, told by content, bounded, of plain files alone."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO

from .errors import ArchiveInvalid
from .manifest import MANIFEST
from .manifest_document import LARGEST as LARGEST_MANIFEST

LIMIT = 16 << 30
"""Bytes of an archive, and of what it unpacks to."""
BROKEN = (
    tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RecursionError,
    ValueError,
)  # fmt: skip
"""What reading an archive raises where it is broken. RecursionError: tarfile, of a chain of headers."""

_MEMBERS, _LARGEST_READ = 20_000, 1 << 20
_ANOTHER = "ask whoever offers it for another"
_KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file: download the file itself",
    b"<": "a web page",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf": "a 7z archive",
}


@dataclass(frozen=True)
class Archive:
    """name: for messages. sizes: bytes of its files, by their path, in their order. open: opens one of them."""

    name: str
    sizes: dict[str, int]
    open: Callable[[str], IO[bytes]]

    def folder_of_manifest(self) -> str:
        """ "" or the folder's name and a slash. Raises ArchiveInvalid where no folder is a bundle's, or several are."""
        places = [path.removesuffix(MANIFEST) for path in self.sizes if PurePosixPath(path).name == MANIFEST]
        near = [place for place in places if place.count("/") <= 1]
        if "" in near or len(near) == 1:
            return "" if "" in near else near[0]
        if near:
            found = f"holds several bundles: {', '.join(place.rstrip('/') for place in near)}"
        elif places:
            found = f"holds its {MANIFEST} in {places[0]}"
        elif any(PurePosixPath(path).name == "weights.safetensors" for path in self.sizes):
            found = "holds a checkpoint and no bundle"
        else:
            found = f"holds no {MANIFEST}"
        raise ArchiveInvalid(f"{found}, one bundle at the top or in one folder was expected", _ANOTHER, self.name)

    def check(self, path: str, size: int) -> None:
        """Raises ArchiveInvalid where a file is missing or has another size."""
        if (there := self.sizes.get(path)) != size:
            found = "is not in it" if there is None else f"has {there} bytes in it"
            raise ArchiveInvalid(f"{path} {found}, the manifest says {size} bytes", _ANOTHER, subject=self.name)

    def read(self, path: str) -> bytes:
        """A small file."""
        if self.sizes[path] > LARGEST_MANIFEST:
            raise ArchiveInvalid(f"{path} in it has {self.sizes[path]} bytes", _ANOTHER, subject=self.name)
        with self.open(path) as stream:
            return stream.read()

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """Paths as they follow in the archive: a compressed one is read once so."""
        wanted = set(paths)
        return [path for path in self.sizes if path in wanted]


def too_large(name: str) -> ArchiveInvalid:
    return ArchiveInvalid(f"has more than {LIMIT >> 30} GiB or {_MEMBERS} files, unpacked", _ANOTHER, subject=name)


@contextmanager
def opened_archive(packed: Path, name: str) -> Iterator[Archive]:
    """Raises ArchiveInvalid where it is none, too large, or holds what is no plain file in it; and BROKEN."""
    with open(packed, "rb") as stream:
        head = stream.read(512)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            with zipfile.ZipFile(stream) as zipped:
                files = _plain(
                    name,
                    (
                        (info.filename, info.file_size, info.is_dir(), _is_plain(info), info)
                        for info in zipped.infolist()
                    ),
                )
                yield Archive(
                    name, {path: info.file_size for path, info in files.items()}, lambda path: zipped.open(files[path])
                )
            return
        stream.seek(0)
        plain: Any = gzip.GzipFile(fileobj=stream) if head.startswith(b"\x1f\x8b") else stream
        if plain.read(262)[257:] != b"ustar":
            kind = next((kind for start, kind in _KINDS.items() if head.lstrip().startswith(start)), None)
            found = f"is {kind}" if kind else "is no archive" if head else "is empty"
            raise ArchiveInvalid(
                f"{found}; a .tar.gz, .tgz, .tar or .zip of a bundle was expected", "check the URL", name
            )
        plain.seek(0)
        with tarfile.open(fileobj=_Bounded(plain), mode="r:") as tarred:  # type: ignore[call-overload]
            members = _plain(name, ((one.name, one.size, one.isdir(), one.isreg(), one) for one in tarred))
            yield Archive(
                name, {path: one.size for path, one in members.items()}, lambda path: tarred.extractfile(members[path])
            )
        while plain.read(_LARGEST_READ):  # gzip's own checksum comes last
            if plain.tell() > 2 * LIMIT:
                raise too_large(name)


def _plain(name: str, members: Iterable[tuple[str, int, bool, bool, Any]]) -> dict[str, Any]:
    """The files of an archive by their path. members: path, bytes, whether it is a folder, or a plain file, and itself.

    Raises ArchiveInvalid as soon as one is no plain file below the archive's folder, or all are too large.
    """
    files: dict[str, Any] = {}
    total = 0
    for count, (path, size, is_folder, is_file, member) in enumerate(members, 1):
        total += max(size, 0)
        if total > LIMIT or count > _MEMBERS:
            raise too_large(name)
        inside = PurePosixPath(path).as_posix()
        if ".." in PurePosixPath(path).parts or "\\" in path or path.startswith("/") or PureWindowsPath(path).anchor:
            raise ArchiveInvalid(f"holds {path!r}, which would lie outside the bundle", "do not use it", subject=name)
        if is_folder:
            continue
        if not is_file or size < 0:
            raise ArchiveInvalid(
                f"holds {path!r}, which is no plain file, but a link, a device or encrypted", _ANOTHER, name
            )
        if inside in files:
            raise ArchiveInvalid(f"holds {path!r} twice", "do not use it", subject=name)
        files[inside] = member
    return files


def _is_plain(info: zipfile.ZipInfo) -> bool:
    kind = info.external_attr >> 28  # of Unix: 8 is a file, 0 unknown
    encrypted = info.flag_bits & 1
    return kind in (0, 8) and not encrypted and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Bounded:
    """A stream for tarfile, which reads headers whole that say they have gigabytes, and seeks as far as they say."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.tell = stream, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        if not 0 <= position <= 2 * LIMIT:
            raise tarfile.ReadError(f"a file at {position}")
        return self._stream.seek(position)
