"""A session that a process opened before it forked: the child works with engines of its own, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_pictures import scene
from PIL import Image

from fusioner_rt import Session
from fusioner_rt.errors import SessionClosed

ROOT = Path(__file__).parents[2]

FORKED = """
import multiprocessing, os, sys, threading
from fusioner_rt import Session
bundle, picture, threads, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
session = Session(bundle, threads=threads, cache=False)
session.set_vocabulary("cat, sofa")
expected = None if how == "unused" else session.segment(picture).labels

def work(_):
    return (session.segment(picture).labels == session.segment(picture, "cat, sofa").labels).all()

if how == "pool":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(work, range(4)))
    sys.exit(7)
if how == "busy":  # threads of the parent hold locks while it forks
    stop = threading.Event()
    busy = [threading.Thread(target=lambda: [session.segment(picture) for _ in iter(stop.is_set, True)]) for _ in range(2)]
    [thread.start() for thread in busy]
child = os.fork()
if child == 0:
    if how != "idle":
        labels = session.segment(picture).labels
        assert expected is None or (labels == expected).all()
        assert work(0)
    if how == "closed":
        session.close()
    sys.exit(7)
_, status = os.waitpid(child, 0)
if how == "busy":
    stop.set()
    [thread.join() for thread in busy]
session.segment(picture)
session.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.parametrize(
    ("how", "threads"),
    [("used", 1), ("used", 2), ("unused", 2), ("closed", 2), ("idle", 2), ("pool", 2), ("busy", 2)],
)
def test_a_forked_child_gives_the_same_masks_and_ends(
    tiny_bundle: Path, tmp_path: Path, how: str, threads: int
) -> None:
    Image.fromarray(scene(61, 93)).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", FORKED, str(tiny_bundle), str(tmp_path / "photo.png"), str(threads), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr


def test_a_gpus_session_says_that_it_is_the_parents(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(tiny_bundle, cache=False) as session:
        monkeypatch.setattr(session, "_forked", True)
        monkeypatch.setattr(session, "_backend", replace(session.backend, effective="tensorrt"))
        with pytest.raises(SessionClosed, match="opened before a fork, and tensorrt works in the parent alone"):
            session.segment(scene(20, 30), "cat")
        monkeypatch.undo()
