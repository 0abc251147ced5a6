"""A session shared by threads gives what it gives to one, and a session closed has given everything back."""

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner_rt import Session

ROOT = Path(__file__).parents[2]
THREADS = 8
VOCABULARIES = ("cat", "sofa, cat", "red car, bus stop, person", "cup, table, tree, sky, cat")
EDGES = ((40, 56), (61, 93), (96, 64), (33, 130))
SIZES = (None, None, (47, 31))


def requests(pictures: int) -> list[tuple[Any, dict[str, Any]]]:
    """Calls on crops of the photographs, of every kind: alone and in lists, words joint and each alone, other sizes."""
    photographs = [
        np.asarray(Image.open(path).convert("RGB")) for path in sorted((ROOT / "docs/pictures").glob("*.jpg"))
    ]
    random = np.random.default_rng(0)

    def crop(index: int) -> np.ndarray:
        photograph, (height, width) = photographs[index % len(photographs)], EDGES[index % len(EDGES)]
        top, left = (
            random.integers(whole - edge + 1) for whole, edge in zip(photograph.shape[:2], (height, width), strict=True)
        )
        return photograph[top : top + height, left : left + width]

    made: list[tuple[Any, dict[str, Any]]] = []
    numbers = iter(range(pictures))
    for turn in itertools.count():
        options = {"words": VOCABULARIES[turn % len(VOCABULARIES)], "size": SIZES[turn % len(SIZES)]}
        if turn % 10 == 9:
            options["mode"] = "independent"
        taken = [crop(number) for number in itertools.islice(numbers, 6 if turn % 25 == 24 else 1)]
        if not taken:
            return made
        made.append((taken if len(taken) > 1 else taken[0], options))
    raise AssertionError


def bits(session: Session, request: tuple[Any, dict[str, Any]]) -> list[bytes]:
    picture, options = request
    results = session.segment(picture, **options)
    return [
        one.labels.tobytes() + one.confidence.tobytes() for one in (results if isinstance(results, list) else [results])
    ]


@pytest.mark.parametrize("pictures", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_eight_threads_on_one_session_get_bit_for_bit_what_one_thread_gets(tiny_bundle: Path, pictures: int) -> None:
    asked = requests(pictures)
    with Session(tiny_bundle, backend="onnxruntime-cpu", cache=False) as session:
        alone = [bits(session, request) for request in asked]
    assert sum(map(len, alone)) == pictures
    assert len({one for answer in alone for one in answer}) > pictures / 2  # they tell pictures apart
    start = Barrier(THREADS)

    def worker(first: int) -> dict[int, list[bytes]]:
        start.wait(30)
        return {index: bits(session, asked[index]) for index in range(first, len(asked), THREADS)}

    with (
        Session(tiny_bundle, backend="onnxruntime-cpu", cache=False) as session,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        together: dict[int, list[bytes]] = {}
        for part in threads.map(worker, range(THREADS)):
            together |= part
    assert [together[index] for index in range(len(asked))] == alone


OPEN_AND_CLOSE = """
import json, os, sys
import numpy as np
from fusioner_rt import Session

picture = np.zeros((61, 93, 3), np.uint8)

def used(index, close=True):
    # Every tenth has the threads a session takes by itself; the others one, to be done sooner.
    session = Session(sys.argv[1], "onnxruntime-cpu", threads=2 if index % 10 == 0 else 1)
    session.segment(picture, f"cat, word {index // 20}")  # every twentieth runs the text encoder
    if close:
        session.close()
    return session

def now():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {"kilobytes": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]),
            "files": len(os.listdir("/proc/self/fd"))}

for index in range(20):
    used(index)
before = now()
for index in range(int(sys.argv[2])):
    used(index)
closed = now()
kept = [used(index, close=False) for index in range(10)]
print(json.dumps([before, closed, now()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_sessions_opened_and_closed_take_less_than_three_kept_open(tiny_bundle: Path, count: int) -> None:
    command = [sys.executable, "-c", OPEN_AND_CLOSE, str(tiny_bundle), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    before, closed, kept = json.loads(done.stdout)
    ten = kept["kilobytes"] - closed["kilobytes"]
    assert ten > 10_000  # of the memory of ten: what is compared with it is seen
    assert closed["kilobytes"] - before["kilobytes"] < 3 * ten / 10
    assert (closed["threads"], closed["files"]) == (before["threads"], before["files"])
    assert kept["threads"] > closed["threads"]
