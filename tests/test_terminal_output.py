"""What commands do with streams that are closed or full, and with names that would move a terminal's cursor."""

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import scene
from PIL import Image

import fusioner_rt
from fusioner_rt import cli
from fusioner_rt.bundle import write_manifest
from fusioner_rt.interrupts import signals_heard
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.printable_text import printable, printable_lines

EVIL = "a\x1b]0;owned\x07\x7f\x9b31m\u202eb\nfusioner-rt: all is well\u2028\r" + os.fsdecode(b"\xff")
"""An escape sequence, DEL, a C1 control, text that runs backwards, line ends, and a byte that is no text."""
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes, /dev/full")


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(scene(41, 53)).save(path)
    return path


def by_shell(line: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def module(name: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-m", name, *map(str, arguments)])


@given(st.text())
def test_printable_text_is_one_line_without_control_and_keeps_what_is_plain(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(character) in HIDDEN and character not in "\u200c\u200d" for character in shown)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text
    assert printable_lines(text).count("\n") == text.count("\n")


@pytest.mark.parametrize("text", ["C:\\new\\tab", "naïve 東京 🙂", "می\u200cخواهم", "Screenshot 5.04\u202fPM.png", ""])
def test_what_is_plain_stays(text: str) -> None:
    assert printable(text) == text


def test_closed_and_full_streams_end_each_command_with_a_line_and_the_code(
    tiny_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    segment = module("fusioner_rt", "segment", photo, "--words", "cat", "--engine", tiny_bundle)
    missing = segment.replace("photo.png", "missing.png")
    full = "fusioner-rt: stdout: cannot be written (No space left on device); "
    closed = "fusioner-rt: stdout: is closed; "
    for line, code, told in (
        (f"{segment} >&-", 50, closed),
        (f"{segment} >/dev/full", 50, full),
        (f"{segment} 2>&-", 0, ""),
        (f"{segment} 2>/dev/full", 0, ""),
        (f"{segment} <&-", 0, ""),
        (f"{segment} <&- >&- 2>&-", 50, ""),
        (f"{segment} --json /dev/full", 50, "fusioner-rt: /dev/full: cannot be written (No space left on device); "),
        (f"{segment} --out /dev/full", 50, "fusioner-rt: /dev/full: cannot be written (it is a file); "),
        (f"{missing} 2>/dev/full", 10, ""),
        (f"{missing} 2>&-", 10, ""),
        (f"{segment} --nonsense 2>&-", 2, ""),
        (f"{segment} --nonsense 2>/dev/full", 2, ""),
        (
            f"{module('fusioner_rt', 'segment', '-', '--words', 'cat', '--engine', tiny_bundle)} <&-",
            2,
            "fusioner-rt: -: ",
        ),
    ):
        found, _, stderr = by_shell(line, tmp_path)
        assert found == code, (line, stderr)
        assert stderr.startswith(told), (line, stderr)
        assert bool(stderr) == bool(told), (line, stderr)
    for words in (["words"], ["info", "--engine", tiny_bundle], ["doctor", "--engine", tiny_bundle], ["--help"]):
        for redirected, told in ((">&-", closed), (">/dev/full", full)):
            found, _, stderr = by_shell(f"{module('fusioner_rt', *words)} {redirected}", tmp_path)
            assert found == 50, (words, redirected, stderr)
            assert stderr.startswith(told), (words, stderr)
            assert len(stderr.splitlines()) == 1


def test_no_file_takes_the_place_of_a_closed_stream(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """A library's complaint on descriptor 2 would otherwise go into whatever file is opened first."""
    script = (
        "import os, sys; from fusioner_rt.command_end import run_command\n"
        "def run():\n"
        "    stream = open('result', 'wb'); os.write(2, b'complaint'); stream.write(b'mine'); stream.close(); return 0\n"
        "sys.exit(run_command('test', run))"
    )
    assert by_shell(f"{shlex.join([sys.executable, '-c', script])} <&- 2>&-", tmp_path)[0] == 0
    assert (tmp_path / "result").read_bytes() == b"mine"


COMMANDS = {
    "export.add_plans": ["{folder}", "--backend", "tensorrt-rtx"],
    "training.train": ["demo", "--data", "{folder}"],
}
SLOWER = {
    "training.datasets": ["check", "{folder}"],
    "training.evaluate": ["{folder}", "--data", "{folder}"],
    "export.build_engine": ["--checkpoint", "{folder}"],
    "training.across": ["{folder}", "--data", "{folder}"],
    "training.table": [],
}


@pytest.mark.parametrize(
    ("program", "arguments"),
    [*COMMANDS.items(), *(pytest.param(*command, marks=pytest.mark.slow) for command in SLOWER.items())],
)
def test_other_commands_too_end_without_a_traceback_and_show_no_escapes(
    program: str, arguments: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / EVIL
    (folder / "images").mkdir(parents=True)
    line = module(program, *(argument.format(folder=folder) for argument in arguments))
    code, out, err = by_shell(line, ROOT)
    assert code
    for text in (out, err):
        assert printable_lines(text) == text
    lines = [line for line in err.splitlines() if not line.startswith("  ")]  # but for the stages of a build
    assert len(lines) <= 1
    if program not in ("training.datasets", "export.add_plans"):
        return  # they end in the same function, and take seconds to start
    for redirected in (">&-", ">/dev/full", "2>&-", "2>/dev/full"):
        found, _, told = by_shell(f"{line} {redirected}", ROOT)
        assert found in (50, code)
        assert len(told.splitlines()) <= 1


def assert_safe(said: Any) -> None:
    for text in (said.out, said.err):
        assert printable_lines(text) == text
        assert not any(line.startswith("fusioner-rt: all is well") for line in text.splitlines())


def test_names_that_would_move_the_cursor_are_escaped_and_the_json_holds_them(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    (folder / EVIL).mkdir(parents=True)
    good, bad, many = folder / f"{EVIL}.png", folder / EVIL / "bad.png", folder / f"{EVIL}.gif"
    shutil.copy(photo, good)
    bad.write_text("text")
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(many, save_all=True, append_images=frames[1:])
    out, masks = tmp_path / f"out{EVIL}", tmp_path / f"masks{EVIL}.json"
    command = ["segment", str(folder), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(out), "-vv"]
    with caplog.at_level(logging.DEBUG, "fusioner_rt"):
        assert cli.main([*command, "--json", str(masks)]) == 11
    said = capsys.readouterr()
    assert_safe(said)
    assert len(said.out.splitlines()) == 2
    assert "\\x1b]0;owned\\x07\\x7f\\x9b31m\\u202eb\\n" in said.out
    assert any("several frames" in record.getMessage() for record in caplog.records)
    assert all(printable(record.getMessage()) == record.getMessage() for record in caplog.records)
    named = {image["file_name"] for image in json.loads(masks.read_text())["images"]}
    assert named == {str(good), str(many)}


def test_arguments_manifests_caches_and_urls_are_escaped_too(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / f"bundle{EVIL}"
    shutil.copytree(tiny_bundle, bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    write_manifest(bundle, {**manifest, "name": EVIL.encode("utf-8", "replace").decode(), "created": "\x1b[2Jnow"})
    cache = tmp_path / f"cache{EVIL}"
    archive = tmp_path / "evil.tar.gz"
    subprocess.run(["tar", "czf", archive, "-C", bundle.parent, bundle.name], check=True)
    for command in (
        ["info", "--engine", str(bundle), "--cache", str(cache)],
        ["info", "--engine", str(bundle), "--cache", str(cache), "--json"],
        ["doctor", "--engine", str(bundle)],
        ["doctor", "--engine", str(bundle), "--json"],
        ["words", "--cache", str(cache)],
        ["words", "--cache", str(cache), "--clear"],
        ["fetch", f"http://localhost:1/{EVIL}#sha256={'0' * 64}"],
        ["fetch", str(archive), "--out", str(tmp_path / f"fetched{EVIL}")],
        ["fetch", f"{EVIL}.tar.gz"],
        ["segment", EVIL, "--words", EVIL],
        ["segment", EVIL, "--words", "cat", "--engine", EVIL],
        ["segment", "x.png", "--words-file", EVIL],
        ["segment", "x.png", "--words", "cat", "--threshold", EVIL, "--size", EVIL],
    ):
        cli.main(command)
        said = capsys.readouterr()
        assert said.out or said.err
        assert_safe(said)
    for command in ([EVIL], ["segment", "x.png", f"--{EVIL}"], ["segment", "x.png", "--words", "c", "--threads", EVIL]):
        with pytest.raises(SystemExit):
            cli.main(command)
        assert_safe(capsys.readouterr())


def test_signals_within_signals_are_heard_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_heard():
        outer = signal.getsignal(signal.SIGTERM)
        with signals_heard():
            assert signal.getsignal(signal.SIGTERM) is outer
        assert signal.getsignal(signal.SIGTERM) is outer is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_worker_does_not_hear_for_its_parent() -> None:
    with signals_heard():
        child = os.fork()
        if not child:
            os._exit(int(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_logs_filter_is_the_packages_own() -> None:
    assert fusioner_rt.PrintableRecords in {type(one) for one in logging.getLogger("fusioner_rt").filters}
