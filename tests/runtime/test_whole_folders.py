"""What lies on disk after kill -9 at every moment of a folder's making, and after two processes made one at a time."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import killed_at

from fusioner_rt import whole_folders
from fusioner_rt.folder_locks import locked
from fusioner_rt.whole_folders import clear_left, replace_folder, unfinished_folder

FILES = ("manifest.json", "graphs/a.onnx", "graphs/b.onnx")


def make(place: Path, content: str) -> None:
    with unfinished_folder(place) as new:
        for name in FILES:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(content)
        replace_folder(new, place)


def content(place: Path) -> str:
    """What all files of a folder hold; none is missing, and none is another's."""
    (held,) = {(place / name).read_text() for name in FILES}
    assert sum(path.is_file() for path in place.rglob("*")) == len(FILES)
    return held


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways into place; the second is that of file systems that cannot exchange two paths."""
    if request.param != "exchanged":
        monkeypatch.setattr(whole_folders, "_exchange", lambda *_: False)
    return str(request.param)


@pytest.mark.parametrize("before", ["a folder", "a link", "nothing"])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_and_the_next_run_the_rest(
    way: str, before: str, tmp_path: Path
) -> None:
    put_back, moments = 0, 0
    while True:
        place = tmp_path / str(moments) / "demo"
        place.parent.mkdir()
        old = "none" if before == "nothing" else "old"
        if before != "nothing":
            make(place if before == "a folder" else tmp_path / str(moments) / "elsewhere", "old")
        if before == "a link":
            place.symlink_to("elsewhere")
        whole = killed_at(moments, place.parent, lambda place=place: make(place, "new"))  # type: ignore[misc]
        said: list[str] = []
        if way == "exchanged" and old == "old":
            assert content(place) in ("old", "new"), "before anything is cleared"
        left = [path for path in place.parent.iterdir() if path.name not in ("demo", "elsewhere")]
        clear_left(place, said.append)
        assert len(said) == len(left) + sum("is put back" in line for line in said)
        assert len(said) <= 3
        put_back += sum("is put back" in line for line in said)
        assert (content(place) if place.exists() else "none") in (old, "new")
        assert {path.name for path in place.parent.iterdir()} <= {"demo", "elsewhere"}
        make(place, "newest")
        assert content(place) == "newest"
        if before == "a link":
            assert content(place.parent / "elsewhere") == "old"
        moments += 1
        if not whole:
            break
    assert moments > 12, "the changes are seen, one by one"
    assert bool(put_back) == (way != "exchanged" and before != "nothing")


def test_at_no_time_is_there_no_folder(tmp_path: Path) -> None:
    place, ended = tmp_path / "demo", threading.Event()
    make(place, "0")
    looks, missed = 0, 0

    def look() -> None:
        nonlocal looks, missed
        while not ended.is_set():
            looks += 1
            missed += not (place / "manifest.json").exists()

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(300):
        make(place, str(number))
    ended.set()
    watcher.join()
    assert looks > 300
    assert missed == 0


@contextlib.contextmanager
def another(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs a script and then waits at its input. The block begins where it says so."""
    script = f"import sys, pathlib\n{script}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


HOLDS = """
from fusioner_rt.whole_folders import unfinished_folder
with unfinished_folder(pathlib.Path(sys.argv[1])) as new:
    (new / "half").write_text("")
    print("ready", flush=True), sys.stdin.read()
"""


def test_what_a_living_process_makes_stays_and_goes_when_it_was_killed(tmp_path: Path) -> None:
    place, said = tmp_path / "demo", list[str]()
    with another(HOLDS, place) as process:
        (made,) = tmp_path.iterdir()
        clear_left(place, said.append)
        make(place, "mine")
        assert (made / "half").exists()
        assert said == []
        process.kill()
        process.wait()
        (tmp_path / f".demo.unfinished-{'x' * 9}").mkdir()  # no name of ours
        (tmp_path / ".other.unfinished-12345678").mkdir()
        clear_left(place, said.append)
    assert said == [f"{made} is removed: a process that was killed left it"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".demo.unfinished-{'x' * 9}", ".other.unfinished-12345678", "demo",
    ]  # fmt: skip


def test_a_fork_that_outlives_its_killed_parent_holds_no_lock(tmp_path: Path) -> None:
    script = """
import os, time
from fusioner_rt.folder_locks import locked
with locked(pathlib.Path(sys.argv[1])) as free:
    child = os.fork()
    if child == 0:
        os.close(1), time.sleep(60)
    pathlib.Path(sys.argv[1], "child").write_text(str(child))
    assert free is True
    print("ready", flush=True), sys.stdin.read()
"""
    with another(script, tmp_path) as process:
        child = int((tmp_path / "child").read_text())
        try:
            with locked(tmp_path) as free:
                assert free is False
            process.kill()
            process.wait()
            with locked(tmp_path) as free:
                assert free is True
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def make_often(start: Any, place: Path, content: str) -> None:
    start.wait()
    for _ in range(200):
        make(place, content)


def test_processes_that_make_one_folder_at_a_time_end_in_a_whole_one(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    makers = [context.Process(target=make_often, args=(start, place, name)) for name in "ab"]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert content(place) in "ab"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
