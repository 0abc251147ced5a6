"""A service that is treated badly, as the process it is: the next request works, and nothing is held for ever.

What is held is seen from outside, in /proc: open files, threads and resident memory, before and after the same fault.
"""

from __future__ import annotations

import gzip
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from full_disk import full_disk
from made_pictures import encoded, png_header, scene
from PIL import Image

from fusioner_rt.errors import OutputUnwritable

ONE = "/v1/segment?words=cat"
SLOW = "/v1/segment?words=cat&masks=none&size=2500x2500"
HUGE = "/v1/segment?words=cat&threshold=0&size=3000x3000"
TIMES = 10
MEGABYTE = 1_000_000


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def files_and_threads(process: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{process}/fd")), len(os.listdir(f"/proc/{process}/task"))


def holds(process: int) -> tuple[int, ...]:
    """Resident bytes, open files, threads."""
    resident = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, *files_and_threads(process)


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def idle(service: Any) -> bool:
    """Nothing is at hand, and nothing runs for who is gone."""
    return not any(service.metric(f"fusioner_{name}") for name in ("in_flight", "bytes_held", "running"))


def begun(service: Any, path: str, length: int, sent: bytes, *headers: str) -> socket.socket:
    line: socket.socket = service.connect()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {service.token}",
        f"Content-Length: {length}",
        *headers,
    ]
    line.sendall("\r\n".join([*head, "", ""]).encode() + sent)
    return line


def hang_up(service: Any, png: bytes) -> None:
    for _ in range(TIMES):
        with begun(service, HUGE, len(png), png, "Accept: application/x-npz"):
            until(lambda: service.metric("fusioner_in_flight") == 1, 1)
        assert until(lambda: service.metric("fusioner_in_flight") == 0)


def half_a_body(service: Any, png: bytes) -> None:
    for _ in range(TIMES):
        begun(service, ONE, 4 * MEGABYTE, png + bytes(3 * MEGABYTE)).close()


def malformed(service: Any, png: bytes) -> None:
    chosen = random.Random(0)
    for number in range(3 * TIMES):
        body = chosen.randbytes(3 * MEGABYTE if number % 3 else 10)
        kind = ("application/json", "image/png", "multipart/form-data; boundary=b")[number % 3]
        assert 400 <= service.post(ONE, body, kind).status < 500


def bomb(service: Any, png: bytes) -> None:
    zeros = gzip.compress(bytes(64 * MEGABYTE), 1)
    for _ in range(TIMES):
        assert service.post(ONE, png_header(60_000, 60_000)).status == 413
        assert service.post(ONE, zeros, Content_Encoding="gzip").status == 413


def thousand_words(service: Any, png: bytes) -> None:
    for number in range(TIMES):
        words = ",".join(f"thing {number} {place}" for place in range(1000))
        reply = service.post(f"/v1/segment?size=9x9&{urlencode({'words': words})}", png)
        assert (reply.status, reply.json["type"]) == (400, "urn:fusioner-rt:TooManyWords")  # this bundle takes 64


def slow_reader(service: Any, png: bytes) -> None:
    """Takes ten bytes of twenty megabytes; others are answered meanwhile."""
    with ExitStack() as lines:
        for _ in range(3):
            line = lines.enter_context(begun(service, HUGE, len(png), png, "Accept: application/x-npz"))
            assert line.recv(10)
        assert service.post(ONE, png).status == 200


def no_token(service: Any, png: bytes) -> None:
    for _ in range(TIMES):
        assert service.ask("POST", ONE, bytes(3 * MEGABYTE), Authorization="Bearer other").status == 401


SLOWER = [malformed, bomb, thousand_words, slow_reader]
FAULTS = [hang_up, half_a_body, no_token, *(pytest.param(fault, marks=pytest.mark.slow) for fault in SLOWER)]


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_next_request_works_and_nothing_is_held(
    command: Any, png: bytes, fault: Callable[[Any, bytes], None]
) -> None:
    returned = dict.fromkeys(
        ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "100000"
    )  # what is freed goes back at once
    service = command(FUSIONER_TOKEN="secret", MALLOC_ARENA_MAX="1", **returned)
    service.token, process = "secret", service.process.pid

    def once() -> None:
        fault(service, png)
        reply = service.post(ONE, png)
        assert (reply.status, len(reply.json["words"])) == (200, 1)
        assert until(lambda: idle(service))

    for _ in range(3):  # threads are started and the allocator has grown by then
        once()
    most = holds(process)
    for _ in range(12):  # what leaks grows every time, what an allocator or a pool of threads keeps does not
        once()
        before, most = most, tuple(map(max, most, holds(process)))
        if most[0] - before[0] < MEGABYTE and most[1:] == before[1:]:
            break
    else:
        pytest.fail(f"memory, files or threads grew every time, to {most}")
    assert not [line for line in service.lines if "Traceback" in line or '"status": 5' in line]
    assert service.end() == 0


def test_a_worker_killed_in_flight_costs_its_own_requests_and_no_others(command: Any, png: bytes) -> None:
    service = command("--workers", "2", "--concurrency", "1")
    workers = children(service.process.pid)
    held = files_and_threads(service.process.pid)
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(service.post(SLOW, png).status)
        except (OSError, http.client.HTTPException):  # its worker is the one
            statuses.append(0)

    asking = [threading.Thread(target=ask) for _ in range(16)]
    for thread in asking:
        thread.start()
    assert until(lambda: len(statuses) > 1)
    os.kill(max(workers, key=lambda worker: files_and_threads(worker)), signal.SIGKILL)  # the one with more connections
    for thread in asking:
        thread.join(60)
        assert not thread.is_alive()
    assert len(statuses) == 16
    assert set(statuses) == {0, 200}
    assert until(lambda: len(set(children(service.process.pid)) - set(workers)) == 1)
    assert until(lambda: any("another is started" in line for line in service.lines))
    for _ in range(10):
        assert service.post(ONE, png).status == 200
    assert files_and_threads(service.process.pid) == held
    assert service.end() == 0


def test_a_full_disk_costs_handles_and_nothing_else(command: Any, png: bytes, tmp_path: Path) -> None:
    """Processes share handles as files. This disk takes those of small pictures."""
    large = encoded(Image.fromarray(scene(800, 900)))
    with full_disk(3 * MEGABYTE // 2):  # the command inherits it
        service = command("--workers", "2", TMPDIR=str(tmp_path))
    for _ in range(4):
        refused = service.post("/v1/encode", large)
        assert (refused.status, refused.json["type"]) == (503, "urn:fusioner-rt:ServiceFull")
        assert "File too large" in refused.json["detail"]
        kept = service.post(f"{ONE}&keep=true", large)
        assert (kept.status, kept.json["handle"]) == (200, None)
        handle = service.post("/v1/encode", png).json["handle"]
        assert service.post_json("/v1/segment", handle=handle, words="cat").status == 200
    assert [path.suffix for path in tmp_path.rglob("handles/*")] == [".npz"] * 4
    assert service.end() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_from_the_start_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fusioner_rt",
        "serve",
        "--port",
        "0",
        "--engine",
        str(tiny_bundle),
        "--workers",
        "2",
    ]
    with full_disk(20_000):  # less than the file of a process's numbers
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
    assert done.returncode == OutputUnwritable.exit_code, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be written (File too large)" in line
    assert list(tmp_path.iterdir()) == []
