"""Bundles by URL, from a server on this machine: what arrives is the whole bundle, or nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kills import killed_at

from fusioner_rt import archive, fetch_bundle
from fusioner_rt.bundle import find_bundle, write_manifest
from fusioner_rt.cli import main
from fusioner_rt.errors import (
    ArchiveInvalid,
    BundleFileAltered,
    BundleVersionUnknown,
    FetchFailed,
    FusionerError,
    ManifestInvalid,
    OutputUnwritable,
    UsageError,
)
from fusioner_rt.fetch_bundle import fetch
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.manifest_document import with_digest

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(made_bundle: Path) -> Files:
    """A bundle's files by their path."""
    return read(made_bundle)


def read(folder: Path) -> Files:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def tarred(files: Files, mode: str = "w:gz", top: str = "", more: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as packed:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(top + name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
        for entry in more:
            packed.addfile(entry)  # its header alone
    return stream.getvalue()


def zipped(files: Files, top: str = "", more: tuple[tuple[str | zipfile.ZipInfo, bytes], ...] = ()) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(top + name, content)
        for entry, content in more:
            packed.writestr(entry, content)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` by its path, but for what `_Handler` does with some paths."""

    content: dict[str, bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest if "://" in rest else f"/{rest}")
            self.end_headers()
        elif kind == "silent":
            time.sleep(0.6)
        elif kind in ("short", "endless"):
            content = self.server.content[rest]
            self.send_response(200)
            if kind == "short":
                self.send_header("Content-Length", str(len(content) + 7))
            self.end_headers()
            self.wfile.write(content)
        elif content := self.server.content.get(self.path[1:], b""):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            self.send_error(int(kind) if kind.isdecimal() else 404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(files: Files) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as serving:
        serving.content = {"demo.tar.gz": tarred(files)}
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of bundles; the current folder is an empty one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FUSIONER_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "data/fusioner-rt/bundles"


@pytest.fixture
def offer(server: Server) -> Callable[[bytes], str]:
    """Puts an archive on the server, and tells its URL."""

    def put(content: bytes) -> str:
        server.content["offered"] = content
        return f"{server.url}/offered"

    return put


def refused(kind: type[FusionerError], says: str | None, url: str, *, data: Path, **options: object) -> None:
    """Fetching fails, in one line, and leaves nothing, not even a folder."""
    with pytest.raises(kind, match=says) as caught:
        fetch(url, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.cure
    assert not data.parents[1].exists()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("top", ["", "./", "bundle/", "./any name/"])
@pytest.mark.parametrize(
    "pack",
    [
        tarred,
        lambda files, top: tarred(files, "w", top),
        zipped,
        lambda files, top: tarred(dict(reversed(files.items())), top=top),
    ],
)
def test_a_bundle_arrives_as_it_was_packed(
    files: Files, top: str, pack: Callable[..., bytes], offer: Callable[[bytes], str], data: Path
) -> None:
    content = pack({**files, "README": b"not in the manifest"}, top=top)
    fetched = fetch(offer(content))
    assert (fetched.folder, fetched.engine, fetched.sha256) == (
        data / "demo",
        "demo",
        hashlib.sha256(content).hexdigest(),
    )
    assert read(data / "demo") == files
    assert find_bundle() == find_bundle("demo") == data / "demo"
    assert [child.name for child in data.iterdir()] == ["demo"]


def test_redirects_chunks_files_and_paths_lead_there_too(
    files: Files, server: Server, data: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "a #1.tar.gz"
    packed.write_bytes(server.content["demo.tar.gz"])
    urls = (f"{server.url}/to/demo.tar.gz", f"{server.url}/endless/demo.tar.gz", packed.as_uri(), str(packed))
    for number, url in enumerate(urls):
        assert fetch(url, out=Path(f"new/{number}")).folder == Path.cwd() / f"new/{number}"
        assert read(Path(f"new/{number}")) == files
    assert not data.exists()


def test_a_digest_is_compared_whichever_way_it_is_given(files: Files, server: Server, data: Path) -> None:
    url = f"{server.url}/demo.tar.gz"
    right, wrong = hashlib.sha256(server.content["demo.tar.gz"]).hexdigest(), "0" * 64
    refused(ArchiveInvalid, f"has sha256 {right}, {wrong} was expected", url, sha256=wrong, data=data)
    refused(ArchiveInvalid, right, f"{url}#sha256={wrong}", data=data)
    refused(UsageError, "another sha256", f"{url}#sha256={wrong}", sha256=right, data=data)
    for none in ("", "12", "g" * 64):
        refused(UsageError, "64 digits", url, sha256=none, data=data)
        refused(UsageError, "64 digits", f"{url}#sha256={none}", data=data)
    assert not fetch(url, out=Path("unchecked")).checked
    assert fetch(url, right.upper()).checked
    assert fetch(f"{url}#sha256={right}").unchanged
    assert fetch(f"{url}#SHA256={right}").checked
    assert fetch(f"{url}#").unchanged


def test_a_pin_that_is_not_understood_is_refused_and_a_query_is_none(files: Files, server: Server, data: Path) -> None:
    url, wrong = f"{server.url}/demo.tar.gz", "0" * 64
    refused(ArchiveInvalid, "was expected", f"{url}#SHA256={wrong}", data=data)
    for pin in (f"sha-256={wrong}", wrong, f"sha512={wrong}", f"x&sha256={wrong}", "readme"):
        refused(UsageError, "ends in '#.*', #sha256=HEX was expected", f"{url}#{pin}", data=data)
    asked = f"asked?sha256={wrong}"
    server.content[asked] = server.content["demo.tar.gz"]
    assert not fetch(f"{server.url}/{asked}", out=Path("new")).checked
    assert read(Path("new")) == files
    Path("demo.tar.gz").write_bytes(server.content["demo.tar.gz"])
    with pytest.raises(ArchiveInvalid, match="was expected"):
        fetch(f"demo.tar.gz#SHA256={wrong}")


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("absent.tar.gz", FetchFailed, "answers 404 Not Found, it has no such file; check the URL"),
        ("401", FetchFailed, "answers 401 .*password"),
        ("503", FetchFailed, "answers 503 .*later"),
        ("short/demo.tar.gz", FetchFailed, r"ended after (\d+) of \d+ bytes; try again"),
        ("to/file:///etc/hostname", FetchFailed, "redirected to file, which is not followed"),
        ("to/ftp://127.0.0.1/demo.tar.gz", FetchFailed, "redirected to ftp, which is not followed"),
        ("to/to/to/to", FetchFailed, "404"),
        ("silent", FetchFailed, "sent nothing for 0 s; try again"),
    ],
)
def test_a_server_that_does_not_give_it(
    path: str, kind: type[FusionerError], says: str, server: Server, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_bundle, "SECONDS", 0.3)
    refused(kind, says, f"{server.url}/{path}", data=data)


def test_http_of_another_host_is_followed_with_a_digest_alone(server: Server, data: Path) -> None:
    digest = hashlib.sha256(server.content["demo.tar.gz"]).hexdigest()
    for host in ("models.invalid", "127.evil.invalid", "localhost.invalid"):
        url = f"{server.url}/to/http://{host}/demo.tar.gz"
        refused(FetchFailed, "redirected to http, which is not followed", url, data=data)
        refused(FetchFailed, "no host", url, sha256=digest, data=data)
        refused(FetchFailed, "no host", f"{server.url}/to/https://{host}/demo.tar.gz", data=data)
    fetch(f"{server.url}/to/http://localhost:{server.server_port}/demo.tar.gz")


def test_hosts_and_proxies_that_cannot_be_reached(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(FetchFailed, f"{closed} cannot be reached .*refused", f"http://{closed}/demo.zip", data=data)
        monkeypatch.setenv("https_proxy", f"http://me:secret@{closed}")
        with pytest.raises(FetchFailed, match=f"through the proxy {closed} .*check HTTP_PROXY") as caught:
            fetch("https://models.invalid/demo.zip?token=secret")
        assert "secret" not in str(caught.value)
    monkeypatch.delenv("https_proxy")
    refused(FetchFailed, "no host models.invalid", "https://models.invalid/demo.zip", data=data)
    request = urllib.request.Request("https://here/demo.zip")
    with pytest.raises(urllib.error.HTTPError):
        fetch_bundle._Redirects(True).redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://here/demo.zip")


@pytest.mark.parametrize(
    "url",
    ["ftp://here/x", "data:,x://", "https:///x", "https://[x", "https://h:port/x", "https://me:secret@h/x", "http://h/x",
     "http://127.evil.invalid/x", "file://"],
)  # fmt: skip
def test_urls_that_are_not_asked(url: str, data: Path) -> None:
    refused(FetchFailed if url == "file://" else UsageError, None, url, data=data)


def test_files_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    refused(FetchFailed, "cannot be read .*No such file", "absent.tar.gz", data=data)
    refused(FetchFailed, "cannot be read", str(tmp_path), data=data)


NOT_ARCHIVES = {
    "empty": b"",
    "text": b"hello",
    "a web page": b"\n<!DOCTYPE html><html>Sign in</html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "xz": b"\xfd7zXZ\0",
    "compressed text": gzip.compress(b"hello" * 999),
    "half a header": b"\x1f\x8b\x08",
    "zip of nothing": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("content", NOT_ARCHIVES.values(), ids=NOT_ARCHIVES.keys())
def test_what_is_no_archive_of_a_bundle_is_called_what_it_is(
    content: bytes, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "file").write_bytes(content)
    name = str(request.node.callspec.id)
    says = name if name in ("empty", "a web page", "Git LFS pointer", "xz") else None
    refused(ArchiveInvalid, says, str(tmp_path / "file"), data=data)


def test_archives_without_one_bundle(files: Files, offer: Callable[[bytes], str], data: Path) -> None:
    without = {name: content for name, content in files.items() if name != MANIFEST}
    for pack in (tarred, zipped):
        refused(ArchiveInvalid, "holds no manifest.json", offer(pack(without)), data=data)
        refused(
            ArchiveInvalid,
            "in models/demo/",
            offer(pack(files, top="models/demo/")),
            data=data,
        )
        two = {**{f"a/{name}": content for name, content in files.items()}, f"b/{MANIFEST}": b""}
        refused(ArchiveInvalid, "several bundles: a, b", offer(pack(two)), data=data)
        checkpoint = {"config.json": b"{}", "weights.safetensors": b""}
        refused(ArchiveInvalid, "a checkpoint and no bundle", offer(pack(checkpoint)), data=data)


EMPTY = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}


def test_bundles_that_are_not_whole(files: Files, offer: Callable[[bytes], str], data: Path) -> None:
    def changed(name: str, content: bytes | None) -> bytes:
        new = {**files, name: content}
        return tarred({name: content for name, content in new.items() if content is not None})

    manifest = json.loads(files[MANIFEST])
    newer = json.dumps({**manifest, "format_version": 99}).encode()
    outside = json.dumps(with_digest({**manifest, "files": {**manifest["files"], "../x": EMPTY}})).encode()
    unnamed = json.dumps(with_digest({**manifest, "name": "../x"})).encode()
    refused(ArchiveInvalid, "text.onnx is not in it", offer(changed("text.onnx", None)), data=data)
    refused(ArchiveInvalid, "text.onnx has 3 bytes in it", offer(changed("text.onnx", b"abc")), data=data)
    other = bytes(len(files["text.onnx"]))
    refused(BundleFileAltered, "text.onnx in it: its content", offer(changed("text.onnx", other)), data=data)
    refused(ManifestInvalid, "manifest.json in it: is not JSON", offer(changed(MANIFEST, b"{")), data=data)
    refused(ManifestInvalid, "lies outside", offer(changed(MANIFEST, outside)), data=data)
    refused(BundleVersionUnknown, "version 99.*; update fusioner-rt", offer(changed(MANIFEST, newer)), data=data)
    refused(ArchiveInvalid, "names no folder; choose one with --out", offer(changed(MANIFEST, unnamed)), data=data)
    assert fetch(offer(changed(MANIFEST, unnamed)), out=Path("named")).name == "../x"


def special(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        special("../outside"),
        special("/tmp/outside"),
        special("bundle/../../outside"),
        special("..\\outside"),
        special("C:\\outside"),
        special("link", tarfile.SYMTYPE, "/etc/hostname"),
        special("text.onnx", tarfile.LNKTYPE, "weights.bin"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("../folder", tarfile.DIRTYPE),
        special("text.onnx"),
        special("./text.onnx"),
        special("zeros", size=archive.LIMIT),
    ],
    ids=lambda entry: entry.name,
)
def test_archives_that_mean_harm(
    entry: tarfile.TarInfo, files: Files, offer: Callable[[bytes], str], data: Path
) -> None:
    refused(ArchiveInvalid, None, offer(tarred(files, more=(entry,))), data=data)
    named = zipfile.ZipInfo(entry.name)
    if not entry.isreg() and not entry.isdir():
        named.external_attr = {tarfile.SYMTYPE: 0o120777, tarfile.CHRTYPE: 0o020666}.get(entry.type, 0o010666) << 16
    if not entry.size:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the duplicate
            packed = zipped(files, more=((named, b"x"),))
        refused(ArchiveInvalid, None, offer(packed), data=data)


def test_headers_of_gigabytes_are_not_read(files: Files, offer: Callable[[bytes], str], data: Path) -> None:
    header = special("pax", tarfile.XHDTYPE, size=3 << 30)
    refused(ArchiveInvalid, "a header of 3221225472 bytes", offer(tarred({}, more=(header,)) + bytes(99)), data=data)


def test_a_chain_of_headers_is_a_broken_archive(offer: Callable[[bytes], str], data: Path) -> None:
    record = b"8 a=bcd\n"
    header = special("pax", tarfile.XHDTYPE, size=len(record)).tobuf() + record.ljust(512, b"\0")
    refused(ArchiveInvalid, "is a broken archive", offer(3000 * header + bytes(1024)), data=data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pack=st.sampled_from([tarred, zipped]), place=st.floats(0, 1), change=st.one_of(st.none(), st.integers(1, 255)))
def test_a_cut_or_altered_archive_gives_the_same_bundle_or_nothing(
    pack: Callable[[Files], bytes],
    place: float,
    change: int | None,
    files: Files,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(pack(files))
    at = min(int(place * len(content)), len(content) - 1)
    if change is None:
        del content[at:]
    else:
        content[at] ^= change
    folder = tmp_path_factory.mktemp("altered")
    (folder / "archive").write_bytes(content)
    try:
        fetch(str(folder / "archive"), out=folder / "new/demo")
    except FusionerError:
        assert [file.name for file in folder.iterdir()] == ["archive"]
    else:
        assert read(folder / "new/demo") == files


def test_only_a_bundle_is_replaced_and_only_where_that_is_asked(files: Files, server: Server, data: Path) -> None:
    url = f"{server.url}/demo.tar.gz"
    for out, content in (("mine", {"thesis.txt": b"mine"}), ("other", {MANIFEST: b'{"name": "an app"}'})):
        Path(out).mkdir()
        for name, text in content.items():
            Path(out, name).write_bytes(text)
        for force in (False, True):
            with pytest.raises(OutputUnwritable, match="is there already and is no bundle"):
                fetch(url, out=Path(out), force=force)
        assert read(Path(out)) == content
    Path("file").write_text("")
    with pytest.raises(OutputUnwritable, match="no bundle"):
        fetch(url, out=Path("file"), force=True)
    Path("empty").mkdir()
    fetch(url, out=Path("empty"))
    other = Path("empty") / "text.onnx"
    other.write_bytes(b"harmed")
    with pytest.raises(OutputUnwritable, match="--force"):
        fetch(url, out=Path("empty"))
    assert other.read_bytes() == b"harmed"
    fetch(url, out=Path("empty"), force=True)
    assert read(Path("empty")) == files


def test_force_removes_no_file_that_the_manifest_does_not_list(files: Files, server: Server, data: Path) -> None:
    url = f"{server.url}/demo.tar.gz"
    folder = fetch(url).folder
    whole = (folder / MANIFEST).read_bytes()
    (folder / "notes").mkdir()
    (folder / "notes/mine.txt").write_text("mine")
    (folder / "link").symlink_to(folder.parent, target_is_directory=True)
    assert fetch(url, force=True).unchanged
    for manifest in (json.dumps({**json.loads(whole), "created": "then"}).encode(), b"{", b"[]"):
        (folder / MANIFEST).write_bytes(manifest)
        with pytest.raises(OutputUnwritable, match=r"holds link, notes/mine\.txt, which would be removed"):
            fetch(url, force=True)
        assert (folder / "notes/mine.txt").read_text() == "mine"
    (folder / "link").unlink()
    (folder / "notes/mine.txt").unlink()
    fetch(url, force=True)
    assert read(folder) == files


def test_a_plan_that_the_manifest_lists_is_the_bundles_own(files: Files, server: Server, data: Path) -> None:
    url = f"{server.url}/demo.tar.gz"
    folder = fetch(url).folder
    (folder / "image.plan").write_bytes(b"plan")
    write_manifest(folder, json.loads(files[MANIFEST]))
    with pytest.raises(OutputUnwritable, match="replace it with --force"):
        fetch(url)
    fetch(url, force=True)
    assert read(folder) == files


def test_a_fetched_bundle_is_fetched_again_however_it_was_harmed(files: Files, server: Server, data: Path) -> None:
    url = f"{server.url}/demo.tar.gz"
    for content in (b"{", b"[]", b'{"format": "fusioner-rt bundle", "format_version": 99}'):
        (fetch(url).folder / MANIFEST).write_bytes(content)
        with pytest.raises(OutputUnwritable, match="replace it with --force"):
            fetch(url)
        fetch(url, force=True)
        assert read(data / "demo") == files
    assert fetch(url).unchanged


def test_an_interrupt_leaves_nothing(server: Server, data: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        assert list(data.glob(".fetched.unfinished-*/archive"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/demo.tar.gz", progress=interrupt)
    assert not data.parents[1].exists()


@pytest.mark.parametrize("named", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_fetch_that_is_killed_at_any_moment_leaves_the_old_bundle_or_the_new(
    named: bool, files: Files, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "new.tar").write_bytes(tarred(files, "w"))
    older = {name: content for name, content in files.items() if name != MANIFEST}
    older[MANIFEST] = files[MANIFEST] + b"\n"
    moments, seen = 0, set()
    while True:
        out = tmp_path / "bundles" / str(moments) / "demo" if named else data / "demo"
        shutil.rmtree(out, ignore_errors=True)
        for name, content in older.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        again = partial(fetch, str(tmp_path / "new.tar"), out=out if named else None, force=True)
        killed = killed_at(moments, out.parent, again)
        assert read(out) in (older, files)
        seen.add(read(out) == files)
        left = [path.name for path in out.parent.iterdir() if path != out]
        caplog.clear()
        again()
        assert [str(record.msg).split(" is removed")[0] for record in caplog.records] == [
            str(out.parent / name) for name in sorted(left)
        ]
        assert read(out) == files
        assert list(out.parent.iterdir()) == [out]
        moments += 7  # of about 150
        if not killed:
            break
    assert moments > 100
    assert seen == {True, False}


def test_a_full_disk_is_one_line_and_leaves_nothing(files: Files, tmp_path: Path) -> None:
    """The process may write files of 4 kB: what the system refuses then is what a full disk refuses."""
    (tmp_path / "demo.tar").write_bytes(tarred(files, "w"))
    program = (
        "import resource, sys; from fusioner_rt.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "sys.exit(main(['fetch', 'demo.tar', '--out', 'new/demo']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == OutputUnwritable.exit_code
    assert "cannot be written (File too large)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["demo.tar"]


def test_the_command_says_what_came_and_how_it_is_used(
    server: Server, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, digest = f"{server.url}/demo.tar.gz", hashlib.sha256(server.content["demo.tar.gz"]).hexdigest()
    assert main(["fetch", url]) == 0
    out = capsys.readouterr().out
    assert f"{digest} (not compared" in out
    assert "--engine demo" in out
    assert main(["fetch", url, "--sha256", digest]) == 0
    assert "as expected" in capsys.readouterr().out
    assert main(["fetch", f"{server.url}/absent"]) == FetchFailed.exit_code
    assert main(["fetch", url, "--sha256", "0" * 64]) == ArchiveInvalid.exit_code
    assert capsys.readouterr().err.count("\n") == 2


def test_the_commands_help_names_the_exit_codes_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    told = capsys.readouterr().out.split("exit code: ")[1]
    kinds = (FetchFailed, ArchiveInvalid, ManifestInvalid, BundleFileAltered, OutputUnwritable)
    assert re.findall(r"\d+", told) == [str(kind.exit_code) for kind in kinds]


def test_an_empty_place_is_no_path(server: Server, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fetch", f"{server.url}/demo.tar.gz", "--out", ""])
    assert caught.value.code == 2
    assert "'' is no path" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []
