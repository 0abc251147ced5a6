"""The folder of a node's replicas: one user's, there while one of them is, gone after the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusioner_rt.errors import OutputUnwritable
from fusioner_rt.ray.node_folder import NodeFolder


def test_it_goes_with_the_last_who_uses_it(tmp_path: Path) -> None:
    first, second = NodeFolder("a" * 32, tmp_path), NodeFolder("a" * 32, tmp_path)
    (first.path / "file").write_text("")
    assert first.path == second.path
    assert first.path.stat().st_mode & 0o777 == 0o700
    first.leave()
    assert (second.path / "file").exists()
    second.leave()
    assert list(tmp_path.iterdir()) == []


def test_what_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from fusioner_rt.ray.node_folder import NodeFolder; NodeFolder('a' * 32, Path({str(tmp_path)!r})); print('in', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        other = NodeFolder("b" * 32, tmp_path)
        assert len(list(tmp_path.iterdir())) == 2  # it is in use
        process.send_signal(signal.SIGKILL)
        process.wait()
    third = NodeFolder("c" * 32, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {other.path.name, third.path.name}
    for folder in (other, third):
        folder.leave()


def test_what_others_made_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    (tmp_path / "fusioner-rt-ray-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "fusioner-rt-ray-file").write_text("")
    (tmp_path / "fusioner-rt-ray-results").mkdir()
    for name in ("link", "file"):
        with pytest.raises(OutputUnwritable):
            NodeFolder(name, tmp_path)
    NodeFolder("a" * 32, tmp_path).leave()
    assert (tmp_path / "elsewhere" / "file").exists()
    assert (tmp_path / "fusioner-rt-ray-file").exists()
    assert (tmp_path / "fusioner-rt-ray-results").exists()
    if os.getuid() == 0:
        (tmp_path / "fusioner-rt-ray-theirs").mkdir()
        os.chown(tmp_path / "fusioner-rt-ray-theirs", 1, 1)
        with pytest.raises(OutputUnwritable, match="another user made it"):
            NodeFolder("theirs", tmp_path)
        NodeFolder("a" * 32, tmp_path).leave()
        assert (tmp_path / "fusioner-rt-ray-theirs").exists()


def test_who_comes_while_another_leaves_has_a_folder(tmp_path: Path) -> None:
    def come_and_go(number: int) -> None:
        for _ in range(200):
            folder = NodeFolder("a" * 32, tmp_path)
            (folder.path / str(number)).write_text("")
            folder.leave()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert list(tmp_path.iterdir()) == []
