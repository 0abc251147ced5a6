"""docs/own_pictures.md: its commands run, with the recipe that takes seconds in place of the demonstration's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from documented import blocks_of
from PIL import Image

from export import build_engine
from fusioner_rt import cli
from fusioner_rt.cures import INSTALL_TRAINING
from training import evaluate, train
from training.checkpoint import read_config
from training.datasets import __main__ as datasets

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_pictures.md").read_text()


blocks = partial(blocks_of, PAGE)


COMMANDS = {"training.datasets": datasets, "training.train": train, "training.evaluate": evaluate}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> None:
    """A line of the page, in this process: imports of PyTorch take longer than all else."""
    words = shlex.split(line, comments=True)
    if words[0] == "fusioner-rt":
        assert cli.main(words[1:]) == 0
    else:
        assert words[0] == "python"
        del words[: 2 if words[1] == "-m" else 1]
        assert COMMANDS[words[0]].main(words[1:]) == 0, line


@pytest.mark.parametrize("name", ["own_pictures", "training"])
def test_what_is_installed_first_is_what_the_commands_ask_for(name: str) -> None:
    """PyTorch's index aside, which gives CPUs their smaller build."""
    install = blocks_of((ROOT / "docs" / f"{name}.md").read_text(), "sh")[0]
    commands = [shlex.split(line, comments=True) for line in install.splitlines()]
    commands[0] = commands[0][: commands[0].index("--extra-index-url")]
    assert commands == [shlex.split(command) for command in INSTALL_TRAINING.split(" && ")]


def test_outlines_become_a_folder_a_model_and_a_mask(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle that is there stands for the built one: tests/training/test_train.py builds one of such a checkpoint."""
    for line in (
        blocks("sh")[1].replace("train demo --data mine --steps 100", "train tiny --data mine --steps 1").splitlines()
    ):
        if line.startswith("python export/build_engine.py "):
            given = build_engine.parse(shlex.split(line)[2:])
            assert read_config(given.checkpoint)[0].image_encoder == "tiny"
            given.out.parent.mkdir()
            given.out.symlink_to(ROOT / "models" / "demo" / "bundle")
        else:
            run(line)
    said = capsys.readouterr().out
    assert "mine: from labelme, 3 pictures copied, 2 in train.txt, 1 in val.txt" in said
    assert "usable; next: python -m training.train demo --data mine --steps 100 --out models/mine" in said
    assert "docs/pictures/coffee.jpg: " in said
    with Image.open(folder / "masks.jpg") as sheet, Image.open(ROOT / "docs" / "own_pictures.jpg") as shown:
        assert sheet.size == shown.size


def test_masks_made_of_arrays_pass_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, timeout=100)
    run(blocks("sh")[2])
    assert "usable; next: " in capsys.readouterr().out


def test_the_measurement_trains_on_a_share_and_scores_the_whole_list(folder: Path) -> None:
    """The loop's folders are made by the shell; its commands run here, of the first of three numbers."""
    run("python -m training.datasets convert docs/labels --out data")
    script = blocks("sh")[3].replace("python -m", "echo python -m").replace("for n in 10 30 100", "for n in 1 2 3")
    done = subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True, text=True, timeout=100)
    training, scoring, *_ = done.stdout.splitlines()
    assert len((folder / "few" / "1" / "train.txt").read_text().split()) == 1
    run(training.replace("train demo --steps 100", "train tiny --steps 1"))
    run(scoring)


def test_the_tree_is_the_layout_that_training_explains() -> None:
    (tree,) = (
        block for block in re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "NAME.png" in block
    )
    for name in ("images/NAME.jpg", "masks/NAME.png", "classes.txt", "train.txt, val.txt"):
        assert name in tree
