"""A full disk at any file that is written: one clear error, what was there stays as it was, and nothing half-written is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from full_disk import contents, full_disk

from export import add_plans, build_engine
from fusioner_rt import Session
from fusioner_rt.cli import main
from fusioner_rt.errors import OutputUnwritable
from fusioner_rt.words.cache import TextCache
from training import checkpoint
from training.model import tiny

FULL = "cannot be written (File too large); make room on its disk, or choose another"


def refused(run: Callable[[], int], said: Callable[[], str], size: int, says: str = FULL) -> None:
    with full_disk(size):
        code = run()
    lines = [line for line in said().splitlines() if not line.startswith((" ", "build_engine: note:"))]
    assert code == OutputUnwritable.exit_code, lines
    assert len(lines) == 1, lines
    assert says in lines[0]


def test_a_build(
    tiny_checkpoint: Path,
    picture_folder: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    traced_once: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "engines" / "tiny"
    options = ["--checkpoint", tiny_checkpoint, "--pictures", picture_folder, "--out", out, "--max-batch", "1"]
    command = [str(option) for option in [*options, "--backend", "onnxruntime", "--kernels", "none"]]
    sizes = sorted({path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file()})
    assert len(sizes) > 4
    shutil.copytree(tiny_bundle, out)
    before = contents(tmp_path)
    for size in (0, *(size - 1 for size in sizes[1:])):
        refused(lambda: build_engine.main(command), lambda: capsys.readouterr().err, size)
        assert contents(tmp_path) == before, size


def test_plans_that_are_added(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    before = contents(tmp_path)
    command = [str(tmp_path / "tiny"), "--backend", "tensorrt-rtx", "--for", "sm_89"]
    for size in (0, 10_000):
        refused(lambda: add_plans.main(command), lambda: capsys.readouterr().err, size)
        assert contents(tmp_path) == before


def test_a_checkpoint(tmp_path: Path) -> None:
    model, folder = tiny(), tmp_path / "checkpoint"
    checkpoint.save(model, folder, {"pictures": 1})
    before = contents(tmp_path)
    for size in (0, 10, 1000, 100_000):
        with full_disk(size), pytest.raises(OutputUnwritable) as error:
            checkpoint.save(model, folder, {"pictures": 2})
        assert str(error.value) == f"{folder}: {FULL}"
        assert contents(tmp_path) == before
    checkpoint.save(model, folder, {"pictures": 2})
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.npz", "a.overlay.png", "a.labelme.json", "a.txt"])
def test_a_result(name: str, tiny_bundle: Path, photographs: list[np.ndarray], tmp_path: Path) -> None:
    with Session(tiny_bundle, cache=False, backend="onnxruntime-cpu") as session:
        result = session.segment(photographs[0], "cat, sofa")
    for old in (None, b"old"):
        if old:
            (tmp_path / name).write_bytes(old)
        with full_disk(1), pytest.raises(OutputUnwritable) as error:
            result.save(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {FULL}"
        assert contents(tmp_path) == ({name: old} if old else {})


def test_the_masks_of_the_command_line(
    tiny_bundle: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks.json").write_text("old")
    command = ["segment", str(picture_folder / "0.png"), "--words", "cat", "--engine", str(tiny_bundle)]
    command += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "masks.json")]
    with full_disk(100):
        assert main(command) != 0
    assert FULL in capsys.readouterr().err
    assert contents(tmp_path) == {"masks.json": b"old"}


def test_the_cache_of_words(tmp_path: Path) -> None:
    cache = TextCache(tmp_path)
    cache.put("a", np.ones(99, np.float32), "cat", 1, "g", "fp32")
    before = contents(tmp_path)
    with full_disk(100):
        cache.put("a", np.zeros(99, np.float32), "cat", 1, "g", "fp32")
        cache.put("b", np.ones(99, np.float32), "dog", 1, "g", "fp32")
    assert cache.note is not None
    assert "File too large" in cache.note
    assert contents(tmp_path) == before
    assert cache.get("b") is not None
    cache.put("b", np.ones(99, np.float32), "dog", 1, "g", "fp32")
    assert cache.note is None
    assert len(contents(tmp_path)) == 2
