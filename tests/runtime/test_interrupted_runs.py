"""`fusioner-rt segment` that is ended in the middle, and goes on with --resume."""

import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import scene
from PIL import Image

from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.cli import main
from fusioner_rt.commands.run_record import RunRecord

COUNT = 16
Command = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which two share a stem, in folders."""
    folder = tmp_path_factory.mktemp("run") / "photos"
    (folder / "deeper").mkdir(parents=True)
    for number in range(COUNT):
        place = folder / "deeper" if number % 5 == 4 else folder
        Image.fromarray(np.roll(scene(41, 53), 3 * number, axis=1)).save(
            place / f"p{number // 2 * 2 if number % 5 == 4 else number:02}.png"
        )
    assert len(list(folder.rglob("*.png"))) == COUNT
    return folder


@pytest.fixture
def command(photos: Path, tiny_bundle: Path, tmp_path: Path) -> Command:
    """Arguments of a run into tmp_path/NAME, with its masks in tmp_path/NAME.json."""

    def arguments(name: str, *more: str, words: str = "cat, sofa") -> list[str]:
        files = ["--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]
        return [
            "segment",
            str(photos),
            "--words",
            words,
            "--engine",
            str(tiny_bundle),
            "--threshold",
            "0",
            *files,
            *more,
        ]

    return arguments


@pytest.fixture
def whole(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> bytes:
    """The masks of a run that nothing ended."""
    assert main(command("whole")) == 0
    capsys.readouterr()
    assert not (tmp_path / "whole.json.partial").exists()
    return (tmp_path / "whole.json").read_bytes()


def hearing() -> None:
    """A background job's children ignore interrupts unless told otherwise."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hearing,
        **options,
    )


def ended(arguments: list[str], sent: int, after: int, wait: float = 0.0) -> tuple[int, str]:
    """A run that gets a signal after some lines and seconds. Returns its exit code and what it told."""
    with started(arguments) as process:
        assert process.stdout
        for _ in range(after):
            assert process.stdout.readline()
        time.sleep(wait)
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    return process.returncode, told


def names(document: bytes) -> list[str]:
    return [Path(image["file_name"]).name for image in json.loads(document)["images"]]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sent: sent.name)
def test_an_ended_run_writes_what_is_done_and_goes_on_to_the_same_bytes(
    command: Command, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    code, told = ended(command("ended", "--yolo"), sent, after=5)
    assert code == 128 + sent
    (line,) = told.splitlines()
    partial = (tmp_path / "ended.json").read_bytes()
    done = len(names(partial))
    assert 5 <= done < COUNT
    assert line == (
        f"fusioner-rt: interrupted; {done} of {COUNT} pictures are done and in {tmp_path / 'ended.json'}; "
        "the same command with --resume goes on"
    )
    assert (tmp_path / "ended" / "data.yaml").exists()
    overlays = {path: path.stat().st_mtime_ns for path in (tmp_path / "ended").glob("*.overlay.jpg")}
    assert main(command("ended", "--yolo", "--resume")) == 0
    said = capsys.readouterr()
    assert said.err == f"fusioner-rt: note: {done} of {COUNT} pictures are done already\n"
    assert len(said.out.splitlines()) == COUNT - done
    assert (tmp_path / "ended.json").read_bytes() == whole
    assert sum(path.stat().st_mtime_ns == before for path, before in overlays.items()) >= done
    assert not (tmp_path / "ended.json.partial").exists()
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("signals", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_after_any_signals_at_any_moments_the_run_goes_on_to_the_same_bytes(
    command: Command, whole: bytes, tmp_path: Path, signals: int
) -> None:
    chance = random.Random(18)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
    for _ in range(signals):
        sent = chance.choice(list(codes))
        more = ["--resume"] if (tmp_path / "any.json.partial").exists() else []
        code, _ = ended(command("any", *more), sent, after=chance.randrange(1, 3), wait=chance.random() / 50)
        assert code in (codes[sent], 0)
    resumed = main(command("any", "--resume"))
    assert resumed == 0
    assert (tmp_path / "any.json").read_bytes() == whole
    left = {path.name for path in (tmp_path / "any").iterdir() if not path.name.startswith(TEMPORARY)}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_kill_in_the_middle_of_a_line_of_the_record_costs_that_picture_alone(
    command: Command, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = ended(command("cut"), signal.SIGKILL, after=6)
    assert code == -9
    assert not (tmp_path / "cut.json").exists()
    record = tmp_path / "cut.json.partial"
    lines = record.read_bytes().splitlines(keepends=True)
    for kept, cut in ((len(lines) - 1, 40), (3, 1), (0, 9), (0, 0)):
        record.write_bytes(b"".join(lines[:kept]) + lines[kept][:cut])
        copy = record.read_bytes()
        code = main(command("cut", "--resume"))
        told = capsys.readouterr().err
        assert code == 0, told
        done = max(0, kept - 1)
        assert (f"{done} of {COUNT} pictures are done already" in told) == bool(done)
        assert ("it begins with the first picture" in told) == (not kept), copy
        assert (tmp_path / "cut.json").read_bytes() == whole


def test_a_line_of_the_record_that_is_not_as_it_was_written_costs_that_picture_and_those_after_it(
    command: Command, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = ended(command("harmed"), signal.SIGKILL, after=6)
    assert code == -9
    record = tmp_path / "harmed.json.partial"
    lines = record.read_bytes().splitlines(keepends=True)
    count = lines[3].index(b'"counts": "') + 13
    flipped = lines[3][:count] + bytes([lines[3][count] ^ 1]) + lines[3][count + 1 :]
    for number, line in (
        (3, flipped), (3, b'{"picture": "p00.png"}\n'), (3, b"[1]\n"), (3, b'{"a":' * 100_000 + b"\n"), (3, bytes(300)),
        (0, lines[0].replace(b'"asked"', b'"asker"')), (0, lines[0][:45] + b"\n"),
    ):  # fmt: skip
        record.write_bytes(b"".join([*lines[:number], line, *lines[number + 1 :]]))
        code = main(command("harmed", "--resume"))
        told = capsys.readouterr().err
        assert code == 0, told
        assert (f"{number - 1} of {COUNT} pictures are done already" in told) == (number > 0)
        assert ("is harmed; it begins with the first picture" in told) == (number == 0)
        assert (tmp_path / "harmed.json").read_bytes() == whole


def test_only_the_same_run_goes_on(
    command: Command, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(command("other"), signal.SIGTERM, after=3)
    record = (tmp_path / "other.json.partial").read_bytes()
    for more, words, found in (
        ([], "cat, dog", "had other --words"),
        (["--instances", "--threads", "1"], "cat, sofa", "had other --instances, --threads"),
        (["--size", "20x30"], "cat, sofa", "had other --size"),
    ):
        assert main(command("other", "--resume", *more, words=words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert found in line
        assert "leave out --resume to begin anew" in line
        assert (tmp_path / "other.json.partial").read_bytes() == record
    (tmp_path / "mine.json.partial").write_text("notes of mine\n")
    assert main(command("mine")) == 50
    assert (tmp_path / "mine.json.partial").read_text() == "notes of mine\n"


def test_what_changed_since_is_done_again_and_failures_are_tried_again(
    photos: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        Image.fromarray(scene(41, 53)).save(folder / f"{name}.png")
    (folder / "b.png").write_text("text")
    out = tmp_path / "out"
    command = ["segment", str(folder), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(out), "--labels"]
    assert main(command) == 11
    Image.fromarray(scene(50, 50)).save(folder / "a.png")
    (out / "d.labels.png").unlink()
    capsys.readouterr()
    assert main([*command, "--resume"]) == 11
    said = capsys.readouterr()
    assert [Path(line.split(":")[0]).name for line in said.out.splitlines()] == ["a.png", "d.png"]
    assert "2 of 4 pictures are done already" not in said.err
    assert "1 of 4 pictures are done already" in said.err
    assert Image.open(out / "a.labels.png").size == (50, 50)
    Image.fromarray(scene(41, 53)).save(folder / "b.png")
    assert main([*command, "--resume"]) == 0
    assert [Path(line.split(":")[0]).name for line in capsys.readouterr().out.splitlines()] == ["b.png"]
    assert not (out / "segment.partial").exists()


BLOCKED = """
import ctypes, sys
from pathlib import Path
from fusioner_rt.atomic_files import write_atomically
from fusioner_rt.command_end import run_command
def blocked(stream):  # as in a library that computes: Python hears no signal
    stream.write(b"half")
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    print("blocked", flush=True)
    lock(mutex)
sys.exit(run_command("test", lambda: write_atomically(Path(sys.argv[1]), blocked)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's mutex")
def test_a_second_signal_ends_at_once_and_leaves_no_half_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, str(file)], stdout=subprocess.PIPE, text=True, preexec_fn=hearing
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "blocked\n"
        assert len(list(file.parent.iterdir())) == 1
        time.sleep(0.5)  # until it is
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 130
        finally:
            process.kill()
    assert not list(file.parent.iterdir())


SWALLOWED = """
import signal, sys
from fusioner_rt.command_end import run_command
from fusioner_rt.errors import BackendUnavailable
def run():
    try:
        signal.raise_signal(int(sys.argv[1]))
    except KeyboardInterrupt:
        raise getattr(sys.modules["builtins"], sys.argv[2], BackendUnavailable)("initialization failed") from None
sys.exit(run_command("test", run))
"""


@pytest.mark.parametrize("error", ["ImportError", "ModuleNotFoundError", "OSError", "BackendUnavailable"])
def test_an_interrupt_that_a_library_tells_in_its_own_words_is_one(error: str) -> None:
    """As an import does that a signal meets in a module of C."""
    told = subprocess.run(
        [sys.executable, "-c", SWALLOWED, str(int(signal.SIGTERM)), error],
        capture_output=True, text=True, preexec_fn=hearing,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (143, "test: interrupted\n")


AT_AN_IMPORT = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "fusioner_rt.commands":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("fusioner_rt", run_name="__main__")
"""


def test_an_interrupt_while_the_command_is_imported_is_one_line() -> None:
    told = subprocess.run([sys.executable, "-c", AT_AN_IMPORT], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (130, "fusioner-rt: interrupted\n")


FORKED = """
import os, signal, time
from fusioner_rt.interrupts import signals_heard
with signals_heard():
    if not (child := os.fork()):
        time.sleep(60)
os.kill(child, signal.SIGKILL)
"""


def test_a_command_ends_while_a_worker_that_it_forked_lives() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=20)


def test_a_closed_pipe_keeps_what_is_done(command: Command, whole: bytes, tmp_path: Path) -> None:
    with started(command("pipe")) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(60) == 141
    assert 1 <= len(names((tmp_path / "pipe.json").read_bytes())) < COUNT
    (line,) = told.splitlines()
    assert "the same command with --resume goes on" in line
    assert main(command("pipe", "--resume")) == 0
    assert (tmp_path / "pipe.json").read_bytes() == whole


def test_a_full_disk_keeps_what_is_done(
    command: Command, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--legend", "none"]
    assert main(command("small", *small)) == 0
    capsys.readouterr()
    room = 1 + max(path.stat().st_size for path in (tmp_path / "small").iterdir())
    assert room < len(whole) // 2, "the record is what has too little room"

    def little_room() -> None:
        hearing()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    process = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", *command("full", *small)],
        preexec_fn=little_room,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 50, process.stderr
    error, told = process.stderr.splitlines()
    assert "cannot be written" in error
    assert "the same command with --resume goes on" in told
    assert main(command("full", *small, "--resume")) == 0
    assert (tmp_path / "full.json").read_bytes() == whole
    assert "pictures are done already" in capsys.readouterr().err


def test_two_runs_do_not_write_one_record(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(command("two")) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        assert main(command("two", "--resume")) == 2
        assert "is of a run that is still at work" in capsys.readouterr().err
        assert main(command("two")) == 0
        assert "this one cannot be resumed" in capsys.readouterr().err
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_library_that_calls_main_keeps_its_signals(command: Command) -> None:
    def mine(*_: object) -> None: ...

    before = [signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["words"]) == 0
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [mine, mine]
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(main(["words"])))
        thread.start()
        thread.join()
        assert codes == [0]
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_a_signal_that_nohup_turned_off_ends_nothing(command: Command, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", *command("nohup")],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    "line", ['{"a": 1}', "[" * 100_000, '{"picture": 1, "name": "a", "read": [], "saved": {}, "coco": null}']
)
def test_a_line_that_is_no_entry_counts_as_cut_off(tmp_path: Path, line: str) -> None:
    record = RunRecord(tmp_path / "record", {"--words": "cat"}, False)
    record.add("a.png", "a", {"read": [1, 2], "saved": {}, "coco": None})
    record.close(finished=False)
    with open(tmp_path / "record", "a") as stream:
        stream.write(f"{line}\n")
    again = RunRecord(tmp_path / "record", {"--words": "cat"}, True)
    assert list(again.done) == [("a.png", "a")]
    again.close(finished=True)
