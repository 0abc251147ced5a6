"""`fusioner-rt fetch`: a bundle from the archive that a URL names, verified, and in its place whole or not at all.

Of an archive only what its manifest lists is written, under the names and with the sizes that the manifest has.
"""

import contextlib
import hashlib
import http.client
import ipaddress
import os
import re
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .archive import BROKEN, LIMIT, Archive, opened_archive, too_large
from .atomic_files import (
    check_replaceable,
    left_where_filled,
    unwritable,
    writable_folder,
)
from .bundle import Bundle, read_manifest
from .bundle_places import fetched_folder
from .errors import (
    ArchiveInvalid,
    FetchFailed,
    FusionerError,
    OutputUnwritable,
    UsageError,
    one_line,
)
from .manifest import MANIFEST
from .regular_files import open_regular
from .replaced_bundles import check_nothing_is_lost, holds_a_bundle
from .whole_folders import clear_left, replace_folder, unfinished_folder

SECONDS = 30.0
"""Without a byte, until a connection counts as broken."""
_CHUNK = 1 << 18
_NAMELESS = "fetched"  # until its manifest tells, a bundle has no name

Progress = Callable[[int, int | None], object]
"""Called with the bytes that have come, and how many are to come where that is known."""


@dataclass(frozen=True)
class Fetched:
    """sha256: of the archive. checked: whether it was compared. unchanged: the same bundle lay there already."""

    folder: Path
    name: str
    sha256: str
    checked: bool
    unchanged: bool

    @property
    def engine(self) -> str:
        """What `Session` and --engine take."""
        return self.name if self.folder == fetched_folder() / self.name else str(self.folder)


def fetch(
    url: str,
    sha256: str | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Download, verify and unpack a bundle.

    url: http, https, file, or a path. It may end in #sha256=HEX.
    sha256: the archive's, in hexadecimal. http needs it, unless this machine serves it.
    out: the bundle's folder, by default that of its name in `fetched_folder`.
    force: replace the bundle that `out` holds. Nothing else is ever replaced, nor files that its manifest does not list.

    Raises FetchFailed, ArchiveInvalid, OutputUnwritable, UsageError, and as `Bundle.open` for the bundle in it.
    """
    source = _Source.parse(url, sha256)
    if out is not None:
        clear_left(Path(os.path.realpath(out)))
        _check_place(out := Path(os.path.realpath(out)), force=True)
    parent = out.parent if out else fetched_folder()
    with (
        left_where_filled(parent),
        unfinished_folder(writable_folder(parent) / _NAMELESS) as temporary,
    ):
        packed, unpacked = temporary / "archive", temporary / "bundle"
        digest = _download(source, packed, progress)
        if source.sha256 not in (None, digest):
            raise ArchiveInvalid(
                f"has sha256 {digest}, {source.sha256} was expected", "do not use it; check both", subject=source.name
            )
        bundle = _unpack(packed, unpacked, source.name)
        folder = out or parent / _as_folder(bundle, source.name)
        clear_left(folder)
        _check_place(folder, force=True)
        unchanged = _is_same(unpacked, folder)
        if not unchanged:
            _check_place(folder, force)
            check_nothing_is_lost(folder, unpacked)
            try:
                replace_folder(unpacked, folder)
            except OSError as error:
                raise unwritable(folder, error) from None
    return Fetched(folder, bundle, digest, source.sha256 is not None, unchanged)


def _check_place(folder: Path, force: bool) -> None:
    """Check that a bundle may be put there. force: in place of another. Raises OutputUnwritable."""
    check_replaceable(folder)
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (holds_a_bundle(folder) or (folder.is_dir() and folder.parent == fetched_folder())):
        raise OutputUnwritable(
            "is there already and is no bundle", "choose another place with --out DIR", subject=folder
        )
    if not force:
        raise OutputUnwritable(
            "is there already and holds another bundle", "replace it with --force, or choose --out DIR", subject=folder
        )


def _is_same(new: Path, old: Path) -> bool:
    """Whether the old folder holds the new one's bundle, unharmed."""
    try:
        Bundle.open(old)
        return (old / MANIFEST).read_bytes() == (new / MANIFEST).read_bytes()
    except (FusionerError, OSError):
        return False


def _as_folder(bundle: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", bundle, re.ASCII):
        raise ArchiveInvalid(
            f"holds a bundle called {bundle[:100]!r}, which names no folder", "choose one with --out DIR", subject=name
        )
    return bundle


@dataclass(frozen=True)
class _Source:
    """url: to open. name: for messages, without what may be secret. sha256: expected, or None."""

    url: str
    name: str
    sha256: str | None

    @classmethod
    def parse(cls, given: str, sha256: str | None) -> "_Source":
        mark = "#" if "://" in given else "(?i:#(?=sha256=))"  # a path may hold a #
        address, *fragments = re.split(mark, given, maxsplit=1)
        fragment = "".join(fragments)
        if "://" not in given:
            address = Path(os.path.abspath(address)).as_uri()
        try:
            parts = urllib.parse.urlsplit(address)
            host = parts.hostname or "" if parts.port != 0 else ""
        except ValueError as error:
            raise UsageError(f"is no URL ({error})", "give one, such as https://HOST/demo.tar.gz", given) from None
        if parts.username is not None:
            raise UsageError(
                "the URL holds a name and password", "download the archive with another tool, and fetch the file"
            )
        name = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        if parts.scheme not in ("http", "https", "file") or (parts.scheme != "file" and not host):
            raise UsageError("is no URL of http, https or a file", "give one, or a path", subject=name)
        if parts.scheme == "file":
            name = urllib.request.url2pathname(parts.path)
        pinned = fragment[len("sha256=") :] if fragment.lower().startswith("sha256=") else None
        if fragment and pinned is None:
            raise UsageError(
                f"ends in {f'#{fragment}'[:100]!r}, #sha256=HEX was expected",
                "write it so, or leave it out",
                subject=name,
            )
        for digest in (pinned, sha256):
            if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise UsageError(f"sha256 {digest!r} is none", "give 64 digits of 0 to 9 and a to f")
        digests = {digest.lower() for digest in (pinned, sha256) if digest is not None}
        if len(digests) > 1:
            raise UsageError("the URL has another sha256 than --sha256", "give one of them")
        if parts.scheme == "http" and not digests and not _is_local(host):
            raise UsageError(
                "http can be altered on its way", "give the archive's --sha256 HEX, or a URL of https", subject=name
            )
        return cls(address, name, next(iter(digests), None))


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows https; http from http alone, and without a digest on this machine alone."""

    def __init__(self, has_digest: bool) -> None:
        self._has_digest = has_digest

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        here, there = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
        trusted = here.scheme != "https" and (self._has_digest or _is_local(there.hostname or ""))
        if there.scheme != "https" and not (there.scheme == "http" and trusted):
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(source: _Source, packed: Path, progress: Progress) -> str:
    """Write what the URL gives to a file. Returns its sha256."""
    digest, done = hashlib.sha256(), 0
    opener = urllib.request.build_opener(_Redirects(source.sha256 is not None))
    request = urllib.request.Request(source.url, headers={"User-Agent": f"fusioner-rt/{__version__}"})
    try:
        if source.url.startswith("file:"):
            open_regular(urllib.request.url2pathname(urllib.parse.urlsplit(source.url).path)).close()
        answer = opener.open(request, timeout=SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failure(source, error) from None
    with answer, _disk(packed):
        total = _length(answer)
        if (total or 0) > LIMIT:
            raise too_large(source.name)
        if (free := shutil.disk_usage(packed.parent).free) < (total or 0):
            raise OutputUnwritable(
                f"has {free / 1e6:.0f} MB free, the archive has {(total or 0) / 1e6:.0f} MB",
                "make room, or choose another disk with --out DIR", subject=packed.parent.parent,
            )  # fmt: skip
        with open(packed, "wb") as stream:
            while chunk := _next(answer, source, done):
                done += len(chunk)
                if done > LIMIT:
                    raise too_large(source.name)
                digest.update(chunk)
                stream.write(chunk)
                progress(done, total)
    if total is not None and done != total:
        raise FetchFailed(f"the connection ended after {done} of {total} bytes", "try again", subject=source.name)
    return digest.hexdigest()


def _next(answer: Any, source: _Source, done: int) -> bytes:
    try:
        chunk: bytes = answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        found = f"the connection broke after {done} bytes ({_reason(error)})"
        raise FetchFailed(found, "try again", subject=source.name) from None
    return chunk


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the disk refuses, as an error."""
    try:
        yield
    except BROKEN:
        raise
    except OSError as error:
        raise unwritable(path, error) from None


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else None


def _failure(source: _Source, error: Exception) -> FetchFailed:
    cause = getattr(error, "reason", error)
    cause = cause if isinstance(cause, Exception) else error
    if isinstance(error, urllib.error.HTTPError):
        if place := 300 <= error.code < 400 and error.headers.get("Location"):
            scheme = urllib.parse.urlsplit(place).scheme
            found = f"is redirected to {scheme or 'itself'}, which is not followed"
            return FetchFailed(found, "give the URL that it leads to, if you trust it", subject=source.name)
        why = {
            401: ", it wants a password",
            403: ", it is not for everyone",
            404: ", it has no such file",
            407: ", the proxy wants one",
        }
        found, cure = f"the server answers {error.code} {error.msg}{why.get(error.code, '')}", "check the URL"
        return FetchFailed(found, cure if error.code < 500 else "try again later", subject=source.name)
    if source.url.startswith("file:"):
        return FetchFailed(f"cannot be read ({_reason(cause)})", "give an archive's path", subject=source.name)
    host = urllib.parse.urlsplit(source.url).netloc
    proxy = _proxy(source.url)
    through = f" through the proxy {proxy}" if proxy else ""
    if isinstance(cause, TimeoutError):
        return FetchFailed(f"{host} sent nothing for {SECONDS:.0f} s{through}", "try again", subject=source.name)
    if isinstance(cause, socket.gaierror):
        found = (
            f"there is no host {host} that can be found from here" if not proxy else f"the proxy {proxy} is not found"
        )
    else:
        found = f"{host} cannot be reached{through} ({_reason(cause)})"
    cure = "check HTTP_PROXY and HTTPS_PROXY" if proxy else "check the URL and the network, or set HTTPS_PROXY"
    return FetchFailed(found, f"{cure}; or download it elsewhere, and fetch the file", subject=source.name)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _proxy(url: str) -> str:
    """The proxy of a URL, without its password, or ""."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return urllib.request.getproxies().get(parts.scheme, "").rpartition("@")[2].rpartition("//")[2]


def _unpack(packed: Path, folder: Path, name: str) -> str:
    """Write the bundle of an archive to a new folder, and verify it. Returns its name. name: the archive's, for messages."""
    try:
        with opened_archive(packed, name) as archive:
            return _write_bundle(archive, folder)
    except BROKEN as error:
        raise ArchiveInvalid(f"is a broken archive ({one_line(error)})", "download it again", subject=name) from None
    except (ArchiveInvalid, OutputUnwritable):
        raise
    except FusionerError as error:  # of the bundle, which lies in a folder that will be gone
        inside = Path(str(error.subject or folder / MANIFEST)).relative_to(folder)
        cure = "update fusioner-rt" if error.cure.startswith("update") else "ask whoever made it for a whole one"
        raise type(error)(f"{inside} in it: {error.found}", cure, subject=name) from None


def _write_bundle(archive: Archive, folder: Path) -> str:
    top = archive.folder_of_manifest()
    with _disk(folder):
        folder.mkdir()
        (folder / MANIFEST).write_bytes(archive.read(top + MANIFEST))
    bundle = Bundle.of(folder, read_manifest(folder))
    members = {top + file.relative_to(folder).as_posix(): file for file in bundle.files}
    for member, file in members.items():
        archive.check(member, bundle.files[file].bytes)
    for member in archive.in_order(members):
        file = members[member]
        with _disk(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as stream, open(file, "wb") as written:
                shutil.copyfileobj(stream, written, _CHUNK)
    return Bundle.open(folder).name
