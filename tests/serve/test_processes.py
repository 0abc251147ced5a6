"""The command as a process: signals, reloads, several workers, what keeps it from starting."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import png_header

from fusioner_rt.errors import BundleMissing, PackageMissing, SessionClosed, UsageError
from fusioner_rt.serve.handles import HandlesInFolder, HandlesInMemory, Kept
from fusioner_rt.serve.models import Models
from fusioner_rt.serve.settings import Settings

SLOW = "/v1/segment?words=cat&masks=none&size=2500x2500"


def until(condition: Any, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(command: Any, png: bytes) -> None:
    service = command()
    replies: list[Any] = []
    asking = [threading.Thread(target=lambda: replies.append(service.post(SLOW, png))) for _ in range(3)]
    for thread in asking:
        thread.start()
    assert until(lambda: service.metric("fusioner_in_flight") == 3)
    assert service.end() == 0
    for thread in asking:
        thread.join()
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert all(len(reply.json["words"]) == 1 for reply in replies)
    with pytest.raises(OSError, match="refused"):
        service.get("/healthz")


def test_workers_that_finish_what_is_in_flight_take_no_new_connections(command: Any, png: bytes) -> None:
    service = command("--workers", "2", "--concurrency", "1")
    statuses: list[int] = []
    asking = [threading.Thread(target=lambda: statuses.append(service.post(SLOW, png).status)) for _ in range(16)]
    for thread in asking:
        thread.start()
    assert until(lambda: statuses)
    service.process.send_signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            service.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    assert until(refused)
    assert service.process.poll() is None
    assert any(thread.is_alive() for thread in asking)
    for thread in asking:
        thread.join()
    assert service.process.wait(60) == 0
    assert statuses == [200] * 16


def test_an_interrupt_ends_it_too(command: Any) -> None:
    assert command().end(signal.SIGINT) == 0


def test_sigkill_in_flight_leaves_a_port_that_the_next_one_takes(command: Any, png: bytes) -> None:
    service = command()
    failed: list[OSError] = []

    def ask() -> None:
        try:
            service.post(SLOW, png)
        except OSError as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert until(lambda: service.metric("fusioner_in_flight") == 1)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    asking.join()
    assert failed
    again = command("--port", str(service.port))
    assert again.post("/v1/segment?words=cat", png).status == 200


def test_a_changed_bundle_is_loaded_without_a_gap_and_a_broken_one_is_not(
    command: Any, tiny_bundle: Path, tiny_bundle_fp16: Path, tmp_path: Path, png: bytes
) -> None:
    folder = tmp_path / "bundle"
    folder.symlink_to(tiny_bundle, target_is_directory=True)
    service = command("--engine", f"a={folder}")
    old = service.get("/v1/models").json["models"][0]["digest"]
    handle = service.post("/v1/encode", png).json["handle"]
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            statuses.append(service.post("/v1/segment?words=cat", png).status)

    asking = threading.Thread(target=ask)
    asking.start()
    point(folder, tiny_bundle_fp16)
    service.process.send_signal(signal.SIGHUP)
    assert until(lambda: service.get("/v1/models").json["models"][0]["digest"] != old)
    assert until(lambda: any('"result": "loaded"' in line for line in service.lines))
    new = service.get("/v1/models").json["models"][0]["digest"]
    assert service.post_json("/v1/segment", handle=handle, words="cat").status == 404  # of the old bundle
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    (broken / "text.onnx").write_bytes(b"")
    point(folder, broken)
    service.process.send_signal(signal.SIGHUP)
    assert until(lambda: any('"event": "reload"' in line and "BundleFileAltered" in line for line in service.lines))
    assert service.get("/v1/models").json["models"][0]["digest"] == new
    ended.set()
    asking.join()
    assert set(statuses) == {200}
    assert len(statuses) > 3


def point(link: Path, folder: Path) -> None:
    """Turn a link to another folder in one step."""
    beside = link.with_name("beside")
    beside.symlink_to(folder, target_is_directory=True)
    beside.replace(link)


EARLY = """
import os, signal, sys
from fusioner_rt import cli
from fusioner_rt.serve import listening

def opened(*given, own=listening.create_app):
    os.kill(os.getpid(), signal.SIGHUP)
    return own(*given)

listening.create_app = opened
sys.exit(cli.main(["serve", "--port", "0", "--engine", sys.argv[1]]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_that_is_asked_for_while_it_starts_waits(tiny_bundle: Path, workers: int) -> None:
    options = ["serve", "--port", "0", "--workers", "2", "--engine"] if workers > 1 else []
    start = ["-m", "fusioner_rt", *options] if workers > 1 else ["-c", EARLY]
    process = subprocess.Popen([sys.executable, *start, str(tiny_bundle)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    if workers > 1:
        assert until(lambda: children(process.pid))
        process.send_signal(signal.SIGHUP)
    watchdog = threading.Timer(120, process.kill)  # or a lost signal would be waited for without end
    watchdog.start()
    lines = [process.stderr.readline() for _ in range(2)]
    watchdog.cancel()
    assert sum("serving on" in line for line in lines) == 1
    assert sum('"result": "unchanged"' in line for line in lines) == 1  # of the one process that there was
    process.terminate()
    assert process.wait(60) == 0
    process.stderr.close()


def test_workers_share_handles_and_numbers_and_one_that_is_killed_is_replaced(command: Any, png: bytes) -> None:
    service = command("--workers", "2", "--concurrency", "1")
    for _ in range(6):
        handle = service.post("/v1/encode", png).json["handle"]
        for _ in range(3):
            assert service.post_json("/v1/segment", handle=handle, words="cat").status == 200
    assert until(lambda: service.metric("fusioner_handles") == 6)
    assert service.metric("fusioner_batch_size_sum") == 24
    workers = children(service.process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert until(lambda: set(children(service.process.pid)) - set(workers))
    assert until(lambda: any("another is started" in line for line in service.lines))
    for _ in range(10):
        assert service.post_json("/v1/segment", handle=handle, words="dog").status == 200
    for _ in range(3):
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
    assert service.post("/v1/segment?words=cat", png).status == 200
    last = children(service.process.pid)
    assert service.end() == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in last)


def test_workers_end_with_the_process_that_started_them(command: Any) -> None:
    service = command("--workers", "2")
    workers = children(service.process.pid)
    shared = Path(os.environ.get("TMPDIR", "/tmp"))
    folders = set(shared.glob("fusioner-rt-*"))
    service.end(signal.SIGKILL)
    assert until(lambda: not any(running(worker) for worker in workers))
    assert set(shared.glob("fusioner-rt-*")) < folders


def running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--engine", "nowhere"], BundleMissing.exit_code, "nowhere"),
        (["--engine", "nowhere", "--workers", "2"], BundleMissing.exit_code, "nowhere"),
        (["--engine", "a=x", "--engine", "a=y"], UsageError.exit_code, "two bundles are called a"),
        (["--host", "nowhere.invalid"], UsageError.exit_code, "cannot listen"),
        (["--port", "70000"], 2, "is no port"),
        (["--max-wait", "-1"], 2, "is no number"),
        (["--cors", "https://example.org/"], 2, "is no origin"),
        (["--cors", "example.org"], 2, "is no origin"),
        (
            ["--token-file", "nowhere"],
            UsageError.exit_code,
            "nowhere: cannot be read (No such file or directory); give",
        ),
        (["--max-pixels", "999999999999"], 2, f"at most {1 << 27} is taken"),
        (["--max-bytes", "0"], 2, "is no whole number of 1 or more, at most"),
        (["--handle-bytes", "9" * 15], 2, f"at most {1 << 40} is taken"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(options: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", "serve", "--port", "0", *options],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert said in lines[0]
    assert len(lines) == 1


def test_an_empty_token_is_refused(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", "serve", "--port", "0", "--engine", str(tiny_bundle)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "FUSIONER_TOKEN": " "},
    )  # fmt: skip
    assert done.returncode == UsageError.exit_code
    assert done.stderr == ("fusioner-rt: FUSIONER_TOKEN: holds no token; set it to one, or unset it to serve without\n")


def test_who_listens_for_other_machines_without_a_token_is_warned(command: Any) -> None:
    open_to_all = command("--host", "0.0.0.0", "--handle-bytes", "2000000000")
    assert "other machines may use it" in open_to_all.lines[-2]
    assert open_to_all.get("/v1/models", Host="here.example").status == 200
    assert len(command("--host", "0.0.0.0", FUSIONER_TOKEN="secret").lines) == 1
    own = command()
    assert len(own.lines) == 1
    assert own.get("/v1/models", Host="evil.example").status == 403


def test_the_log_is_json_alone_and_tells_of_a_reload_that_changed_nothing(command: Any) -> None:
    service = command()
    for body in (b"x", b"--b\r\nx"):
        assert service.post("/v1/segment?words=a", body, "multipart/form-data; boundary=b").status == 400
    service.process.send_signal(signal.SIGHUP)
    assert until(lambda: any('"event": "reload"' in line for line in service.lines))
    assert service.end() == 0
    (line,) = (line for line in map(json.loads, service.lines[1:]) if line.get("event") == "reload")
    assert line["result"] == "unchanged"


def test_what_a_library_warns_of_is_json_too_in_every_worker(command: Any) -> None:
    service = command("--workers", "2")
    for _ in range(4):  # Pillow warns of a picture of this size before the service refuses it
        assert service.post("/v1/segment?words=a", png_header(9500, 9500)).status == 413
    assert until(lambda: any("exceeds limit" in line for line in service.lines))
    assert service.end() == 0
    lines = [json.loads(line) for line in service.lines if not line.startswith("fusioner-rt: ")]
    warned = [line for line in lines if line.get("event") == "log"]
    assert warned
    assert all((line["logger"], line["level"]) == ("py.warnings", "warning") for line in warned)


def test_words_are_not_logged_though_notes_quote_them(command: Any, png: bytes) -> None:
    service = command()
    handle = service.post("/v1/encode", png).json["handle"]
    told = service.post_json("/v1/segment", handle=handle, words=["brown, fox"]).json
    assert "'brown, fox' is one word" in told["notes"][0]
    assert service.end() == 0
    assert "fox" not in "".join(service.lines)


def test_a_reader_of_the_log_that_stops_holds_up_neither_requests_nor_the_end(tiny_bundle: Path, png: bytes) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", "serve", "--port", "0", "--engine", str(tiny_bundle)],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    host, port = process.stderr.readline().decode().rpartition("/")[2].strip().split(":")
    asking = http.client.HTTPConnection(host, int(port), timeout=60)
    for _ in range(60):  # 200 bytes each
        asking.request("GET", "/healthz")
        assert asking.getresponse().read()
    asking.close()
    process.terminate()
    assert process.wait(60) == 0
    process.stderr.close()


def test_a_port_that_is_taken_is_one_line(command: Any, tiny_bundle: Path) -> None:
    service = command()
    options = ["serve", "--port", str(service.port), "--engine", str(tiny_bundle)]
    done = subprocess.run([sys.executable, "-m", "fusioner_rt", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == UsageError.exit_code
    assert len(done.stderr.splitlines()) == 1
    assert f"port {service.port}" in done.stderr


def test_without_its_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ImportError('not there')")
    done = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", "serve"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])},
    )  # fmt: skip
    assert done.returncode == PackageMissing.exit_code
    assert "pip install 'fusioner-rt[serve]'" in done.stderr


def test_help_and_the_library_need_none_of_its_packages() -> None:
    check = "import sys, fusioner_rt.cli as c; c._parser(); print(sorted({'starlette', 'uvicorn', 'python_multipart', 'prometheus_client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60).stdout == "[]\n"


def kept(session: Any, picture: np.ndarray) -> Kept:
    return Kept("tiny", session.encode(picture))


@pytest.mark.parametrize("in_folder", [False, True])
def test_handles_are_bounded_by_count_bytes_and_age(
    session: Any, picture: np.ndarray, tmp_path: Path, in_folder: bool
) -> None:
    from fusioner_rt.serve.errors import HandleGone, ServiceFull

    one = kept(session, picture)

    def store(**limits: Any) -> Any:
        settings = Settings(**limits)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return HandlesInFolder(settings, folder) if in_folder else HandlesInMemory(settings)

    handles = store(handles=2)
    first, second = handles.put(one), handles.put(one)
    time.sleep(0.02)
    assert np.array_equal(handles.get(first).encoded.encoded, one.encoded.encoded)
    time.sleep(0.02)
    third = handles.put(one)
    assert handles.held()[0] == 2
    with pytest.raises(HandleGone):
        handles.get(second)  # used least recently
    handles.get(first), handles.get(third)
    handles.drop(first)
    with pytest.raises(HandleGone):
        handles.drop(first)

    few = store(handle_bytes=int(one.nbytes * 2.5))
    for _ in range(4):
        few.put(one)
    assert few.held()[0] == 2
    with pytest.raises(ServiceFull):
        store(handle_bytes=one.nbytes - 1).put(one)

    old = store(handle_age=0.05)
    handle = old.put(one)
    time.sleep(0.1)
    with pytest.raises(HandleGone):
        old.get(handle)
    for foreign in ("../x", "", "a" * 32, "x" * 5000, "a\0b"):
        with pytest.raises(HandleGone):
            handles.get(foreign)


def test_what_a_killed_process_has_not_finished_goes_with_the_handles(
    session: Any, picture: np.ndarray, tmp_path: Path
) -> None:
    handles, one = HandlesInFolder(Settings(handle_age=60), tmp_path), kept(session, picture)
    half, older = tmp_path / f"{'h' * 32}.new", time.time() - 61
    half.write_bytes(b"x" * 1000)
    first = handles.put(one)
    assert half.exists()  # it may be finished yet
    assert handles.held()[1] > 1000
    os.utime(half, (older, older))
    handles.get(first)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_files_of_others_in_the_folder_of_handles_stay(session: Any, picture: np.ndarray, tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs.npz", tmp_path / ("f" * 32)
    theirs.write_bytes(b"x")
    folder.mkdir()
    for path in (theirs, folder):
        os.utime(path, (0, 0))
    handles = HandlesInFolder(Settings(handle_age=60), tmp_path)
    handles.get(handles.put(kept(session, picture)))
    assert theirs.exists()
    assert folder.exists()
    assert handles.held()[0] == 1


def test_a_full_disk_costs_the_handle_and_not_the_masks(session: Any, picture: np.ndarray, tmp_path: Path) -> None:
    from fusioner_rt.serve.errors import ServiceFull

    gone = tmp_path / "gone"
    with pytest.raises(ServiceFull, match="cannot be kept"):
        HandlesInFolder(Settings(), gone).put(kept(session, picture))


def test_several_applications_live_in_one_process(start: Any, png: bytes) -> None:
    first, second = start(token="one"), start()
    assert first.post("/v1/segment?words=cat", png).status == 401
    assert second.post("/v1/segment?words=cat", png).status == 200
    assert second.metric("fusioner_batch_size_count") == 1
    assert json.loads(first.get("/metrics").body)["status"] == 401


def test_an_old_bundle_is_closed_with_its_last_call_and_not_before(
    tiny_bundle: Path, tiny_bundle_fp16: Path, tmp_path: Path, picture: np.ndarray
) -> None:
    folder = tmp_path / "bundle"
    folder.symlink_to(tiny_bundle, target_is_directory=True)
    models = Models(Settings(engines={"a": str(folder)}))
    assert list(models.reload()) == []
    with models.used("a") as old:
        point(folder, tiny_bundle_fp16)
        assert list(models.reload()) == [("a", None)]
        assert models["a"].session is not old
        old.segment(picture, "cat")
    with pytest.raises(SessionClosed):
        old.segment(picture, "cat")
    with models.used("a") as new:
        new.segment(picture, "cat")
    models.close()
    with pytest.raises(SessionClosed):
        new.segment(picture, "cat")
