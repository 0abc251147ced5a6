"""Trainings that are killed, meet a full disk, or meet each other."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from full_disk import contents, full_disk
from kills import kill_at
from safetensors.torch import load_file

from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.errors import OutputUnwritable
from training import train
from training.encoders import tokenizer_file

EPOCHS = ("--epochs", "3", "--ema", "0.9", "--patience", "9", "--workers", "0")
BEGINS = multiprocessing.get_context("forkserver")  # PyTorch is loaded once, by a server that has run nothing
BEGINS.set_forkserver_preload(["training.train", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def arguments(shapes: Path, out: Path) -> list[str]:
    return ["tiny", "--data", str(shapes), "--out", str(out), "--cache", str(out.parent / "cache"), *EPOCHS]


def _trained(given: list[str], folder: Path, moment: int, steps: Any, stops: bool = False) -> None:
    """stops: after its first epoch, with -1 steps."""

    def stepped() -> None:
        steps.value += 1
        if stops and (Path(given[4]) / "state" / "state.json").is_file():
            steps.value = -1
            os.kill(os.getpid(), signal.SIGSTOP)

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(1, 2)
    kill_at(moment, folder, stepped)
    os._exit(train.main(given))


def trained(shapes: Path, out: Path, moment: int = 1 << 30) -> tuple[int | None, int]:
    """Trains in a process that is killed before its step of that number on disk. Returns its exit code and its steps."""
    steps = BEGINS.Value("q", 0, lock=False)
    process = BEGINS.Process(target=_trained, args=(arguments(shapes, out), out.parent, moment, steps))
    process.start()
    process.join()
    return process.exitcode, steps.value


def curves(out: Path) -> tuple[str, list[dict[str, str]]]:
    with (out / "log.csv").open(newline="") as stream:
        log = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)]
    return (out / "steps.csv").read_text(), log


def assert_same(out: Path, whole: Path) -> None:
    """The same losses, scores and weights, bit by bit, and no file more."""
    assert curves(out) == curves(whole)
    own, other = (load_file(folder / "checkpoint" / "weights.safetensors") for folder in (out, whole))
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert contents(out).keys() == contents(whole).keys()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_as_the_whole_one(kills: int, shapes: Path, tmp_path: Path) -> None:
    code, steps = trained(shapes, tmp_path / "whole" / "run")
    assert code == 0
    assert steps > 100
    random, done = Random(kills), 0
    for number in range(10 * kills):
        out = tmp_path / str(number) / "run"  # a new run where the last was ended by no kill
        while done < kills:
            code, _ = trained(shapes, out, random.randrange(steps * 2 // 3))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            done += 1
        if code != 0:
            assert trained(shapes, out)[0] == 0
        assert_same(out, tmp_path / "whole" / "run")
        if done == kills:
            break
    assert done == kills


def test_a_full_disk_costs_an_epoch_and_a_second_training_is_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main(arguments(shapes, whole)) == 0
    steps = BEGINS.Value("q", 0, lock=False)
    other = BEGINS.Process(target=_trained, args=(arguments(shapes, out), tmp_path, 1 << 30, steps, True))
    other.start()
    while steps.value >= 0:
        assert other.is_alive()
        time.sleep(0.01)
    try:
        capsys.readouterr()
        assert train.main(arguments(shapes, out)) == train.FolderTaken.exit_code
        assert capsys.readouterr().err == (
            f"training.train: {out}: another process trains here; wait until it ends, or give another --out\n"
        )
    finally:
        other.kill()
        other.join()
    before = contents(out / "state")
    (tensors,) = (size for name, size in sizes(out / "state").items() if name.endswith(".safetensors"))
    for room in (0, 500, tensors - 1):
        with full_disk(room):
            assert train.main(arguments(shapes, out)) == OutputUnwritable.exit_code
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training.train:")]
        assert len(said) == 1
        assert "cannot be written (File too large)" in said[0]
        assert contents(out / "state") == before
        assert not (out / "checkpoint").exists()
    (plain,) = (tmp_path / "cache").glob("*/plain")
    left = plain / f"{TEMPORARY}of-a-killed-one"
    left.write_text("half")
    os.utime(left, (0, 0))
    assert train.main(arguments(shapes, out)) == 0
    assert not left.exists()
    assert "resuming after epoch 1" in capsys.readouterr().out
    assert_same(out, whole)


def sizes(folder: Path) -> dict[str, int]:
    return {name: len(content) for name, content in contents(folder).items()}


def test_tokenizers_of_killed_processes_go_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tokenizer_file, "_kept", contextlib.ExitStack())
    file = tokenizer_file.keep_tokenizer("{}")
    other = os.fork()
    if other == 0:
        tokenizer_file.keep_tokenizer("[]")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(other, 0)
    assert len(list(tmp_path.iterdir())) == 2
    assert tokenizer_file.keep_tokenizer("1").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 2
    assert file.read_text() == "{}"
    tokenizer_file._kept.close()
    assert not list(tmp_path.iterdir())
    with full_disk(0), pytest.raises(OutputUnwritable):
        tokenizer_file.keep_tokenizer("{}")
