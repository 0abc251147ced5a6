from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import evaluate, train
from training.checkpoint import read_config
from training.data import MaskFolder
from training.feature_cache import FeatureCache
from training.model import tiny
from training.scoring import present

SMALL = [
    "--image-encoder",
    "tiny",
    "--text-encoder",
    "tiny",
    "--width",
    "16",
    "--layers",
    "1",
    "--heads",
    "2",
    "--decoder",
    "16",
    "--batch",
    "2",
    "--epochs",
    "4",
    "--words",
    "2",
]


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--out", str(out), "--cache", str(out.parent / "cache"), *SMALL, *more]


def test_a_killed_run_resumes_and_ends_where_an_unbroken_one_does(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "whole")) == 0
    command = [sys.executable, "-m", "training.train", *arguments(shapes, tmp_path / "broken")]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "broken" / "state" / "state.json").is_file():
            assert time.monotonic() < deadline, "no epoch ended in time"
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "broken" / "checkpoint").exists()
    assert train.main(arguments(shapes, tmp_path / "broken")) == 0
    whole, broken = (load_file(tmp_path / name / "checkpoint" / "weights.safetensors") for name in ("whole", "broken"))
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    assert not (tmp_path / "broken" / "state").exists()


def test_resuming_with_other_settings_is_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train._Progress, "finish", lambda self: None)
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "1")) == 0
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "1", "--rate", "0.5")) != 0
    assert "other settings" in capsys.readouterr().err


def test_training_lowers_the_loss_and_evaluation_prints_a_row_per_class(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "12", "--rate", "0.01", "--words", "1")) == 0
    losses = [
        float(line.split("loss ")[1].split(",")[0])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("epoch")
    ]
    assert losses[-1] < 0.8 * losses[0]
    target = str(tmp_path / "run" / "checkpoint")
    assert evaluate.main([target, "--data", str(shapes), "--cache", str(tmp_path / "cache"), "--least", "1"]) == 0
    output = capsys.readouterr().out
    assert "| red thing |" in output
    assert "mean of 3" in output


def test_holding_out_a_class_leaves_every_picture_that_shows_it(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "1", "--holdout", "red thing")) == 0
    data = MaskFolder(shapes)
    without = [name for name in data.names("train") if 1 not in present(data.mask(name))]
    assert 0 < len(without) < len(data.names("train"))
    record = read_config(tmp_path / "run" / "checkpoint")[1]
    assert record["pictures"] == len(without)
    assert "red thing" not in record["classes"]
    flipped = {file.name.rsplit("-", 1)[0] for file in (tmp_path / "cache").rglob("flipped/*")}
    assert flipped == set(without), "only pictures to train on are cached in both directions"


def test_a_changed_mask_is_read_again(shapes: Path, tmp_path: Path) -> None:
    data, model = MaskFolder(shapes), tiny()
    cache = FeatureCache(tmp_path / "cache", data, model.image_encoder, "x", model.preprocessing())
    cache.fill(["shape00"])
    before = cache.get("shape00").labels
    Image.fromarray(np.full(data.mask("shape00").shape, 3, np.uint8)).save(data.mask_file("shape00"))
    cache.fill(["shape00"])
    assert before.unique().tolist() != [3]
    assert cache.get("shape00").labels.unique().tolist() == [3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "classes.txt cannot be read"),
        (lambda root: (root / "classes.txt").write_text("background\nred thing\n"), "holds index"),
        (lambda root: (root / "masks" / "shape00.png").unlink(), "shape00.png is missing"),
        (lambda root: (root / "images" / "shape00.jpg").unlink(), "shape00.jpg is missing"),
        (lambda root: (root / "val.txt").write_text(""), "names no picture"),
        (lambda root: Image.new("L", (5, 7)).save(root / "masks" / "shape00.png"), "5×7 pixels, its picture 96×96"),
    ],
)
def test_bad_data_is_named_before_anything_is_trained(
    shapes: Path, tmp_path: Path, damage: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(shapes)  # type: ignore[operator]
    assert train.main(arguments(shapes, tmp_path / "run")) == 72
    assert message in capsys.readouterr().err
