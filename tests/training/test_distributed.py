from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusioner_rt.errors import UsageError
from training import train
from training.checkpoint import read_config
from training.distributed import Processes, choose_device


@given(st.integers(0, 200), st.integers(1, 17))
def test_every_row_is_one_processes_and_shares_differ_by_one_at_most(size: int, count: int) -> None:
    shares = [Processes(torch.device("cpu"), rank, count).rows(size) for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def run(shapes: Path, out: Path, count: int, *more: str) -> list[tuple[float, float]]:
    """Loss and learning rate of every step, trained by `count` processes under torchrun; one is this process."""
    arguments = ["tiny", "--data", str(shapes), "--out", str(out), "--cache", str(out.parent / f"cache{count}")]
    arguments += ["--batch", "5", "--steps", "5", *more]
    if count == 1:
        assert train.main(arguments) == 0
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run(
            [*command, "-m", "training.train", *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 1:") == 1, "the first process alone prints"
    with (out / "steps.csv").open(newline="") as file:
        return [(float(row["loss"]), float(row["rate"])) for row in csv.DictReader(file)]


@pytest.mark.slow  # in one process: test_train.py's test_processes_draw_alike_and_their_rows_make_up_the_batch
@pytest.mark.parametrize(
    "more",
    [["--accumulate", "2", "--word-noise", "0.1", "--jaccard", "1"], ["--fusion", "none", "--augment", "full"]],
)
def test_two_processes_take_the_steps_of_one(shapes: Path, tmp_path: Path, more: list[str]) -> None:
    """8 pictures in batches of 5: whole and partial batches; with cached features, some without a row for one process.

    The losses are float32 sums of the same terms in another order, which differ by 1e-6 a step. AdamW carries that into
    the next weights; over five steps it grows less than tenfold.
    """
    single, double = run(shapes, tmp_path / "one", 1, *more), run(shapes, tmp_path / "two", 2, *more)
    assert len(single) == len(double) == 5
    for (loss, rate), (double_loss, double_rate) in zip(single, double, strict=True):
        assert double_loss == pytest.approx(loss, rel=1e-5)
        assert double_rate == rate
    assert abs(single[0][0] - single[1][0]) > 1e-3, "the steps must differ for the comparison to mean anything"
    histories = [read_config(tmp_path / name / "checkpoint")[1]["history"] for name in ("one", "two")]
    assert [row["steps"] for row in histories[0]] == [row["steps"] for row in histories[1]]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        choose_device(name)


def test_the_device_is_the_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
