"""What is opened for reading is a regular file: nothing waits for a pipe's writer, or reads a device without end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_pictures import encoded
from PIL import Image

from fusioner_rt.cli import main
from fusioner_rt.errors import OutputUnwritable
from fusioner_rt.regular_files import NotRegular, open_regular, read_regular


@pytest.fixture(autouse=True)
def ten_seconds() -> Iterator[None]:
    """A test that waits for a pipe ends."""
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that are no regular files, by what they are called."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))  # its path may have 108 bytes
        yield {
            "a named pipe": tmp_path / "pipe", "a socket": tmp_path / "socket", "a folder": tmp_path,
            "a device": Path("/dev/zero"),
        }  # fmt: skip


def test_what_is_no_regular_file_is_called_by_its_kind_and_never_waited_for(
    special: dict[str, Path], tmp_path: Path
) -> None:
    for kind, path in special.items():
        (link := tmp_path / f"link to {kind}").symlink_to(path)
        for given in (path, link):
            with pytest.raises(NotRegular) as caught:
                open_regular(given)
            assert caught.value.strerror == f"it is {kind}, a regular file was expected"


def test_a_regular_file_is_read_also_by_a_link_and_no_longer_than_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")
    with open_regular(tmp_path / "file") as stream:
        assert os.get_inheritable(stream.fileno()) is False


def test_a_file_that_becomes_a_pipe_between_the_two_looks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    before = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path, **options: before)
    with pytest.raises(NotRegular):
        open_regular(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a folder", "a device"])
def test_no_command_waits_for_a_pipe_or_reads_a_device_that_it_is_given_as_a_file(
    special: dict[str, Path], kind: str, tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "out"
    picture.write_bytes(encoded(Image.new("RGB", (40, 30))))
    segment = ["segment", str(picture), "--engine", str(tiny_bundle), "--out", str(out)]

    assert main([*segment, "--words-file", str(special[kind])]) == 2
    assert f"cannot be read (it is {kind}, a regular file was expected)" in capsys.readouterr().err
    assert main(["fetch", str(special[kind]), "--out", str(tmp_path / "bundle")]) == 52
    assert f"it is {kind}" in capsys.readouterr().err

    out.mkdir()
    (out / "segment.partial").symlink_to(special[kind])
    assert main([*segment, "--words", "cat"]) == OutputUnwritable.exit_code
    assert capsys.readouterr().err.endswith(
        "is no record of fusioner-rt segment, which keeps one there; move it away\n"
    )
    (out / "segment.partial").rename(out / "data.yaml")
    assert main([*segment, "--words", "cat", "--yolo"]) == OutputUnwritable.exit_code
    assert "a data.yaml that --yolo did not write" in capsys.readouterr().err


def test_a_shells_pipe_is_read_as_a_file_of_words(tmp_path: Path, tiny_bundle: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(encoded(Image.new("RGB", (40, 30))))
    for script in ("--words-file <(echo cat; echo sofa)", "--words-file /dev/stdin < <(echo cat; echo sofa)"):
        command = f"{sys.executable} -m fusioner_rt segment {picture} --engine {tiny_bundle} --out {tmp_path / 'out'} {script}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
