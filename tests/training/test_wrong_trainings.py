"""Every wrong command line of training and scoring is one line with a cure, and nothing is left."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import across, evaluate, train
from training.datasets import __main__ as datasets
from training.table import __main__ as table

ROOT = Path(__file__).parents[2]
BUNDLE = str(ROOT / "models/demo/bundle")
DATA, LONG = ["--data", "empty"], "l" * 5000
DEMO = ["demo", *DATA]
TRAININGS = [
    (["demo"], "are needed"), (["demo", "--data"], "expected one argument"), (["nonsense", *DATA], "no recipe is called 'nonsense'"),
    (["", *DATA], "no recipe is called ''"), (["file.toml", *DATA], "no recipe is called"), (["broken.toml", *DATA], "cannot be read as TOML"),
    (["a\0b", *DATA], "null byte"), ([LONG, *DATA], "File name too long"), (["demo", "--data", ""], "is no path"),
    (["demo", "--data", "nowhere"], "is no folder"), (["demo", "--data", "file"], "is no folder"), (["demo", "--data", LONG], "File name too long"),
    (DEMO, "classes.txt"), ([*DEMO, "--out", ""], "is no path"), ([*DEMO, "--out", "a\0b"], "is no path"), ([*DEMO, "--cache", ""], "is no path"),
    ([*DEMO, "--from", "nowhere"], "config.json is missing"), ([*DEMO, "--from", BUNDLE], "is an engine bundle"), ([*DEMO, "--from", ""], "is no path"),
    ([*DEMO, "--workers", "-1"], "--workers is -1; expected 0 to"), ([*DEMO, "--workers", "9999999"], "expected 0 to"), ([*DEMO, "--workers", "x"], "invalid int"),
    ([*DEMO, "--epochs", "0"], "training.epochs is 0; expected 1 or more"), ([*DEMO, "--epochs", "1.5"], "invalid int value"), ([*DEMO, "--batch", "0"], "1 or more"),
    ([*DEMO, "--rate", "nan"], "a number above 0"), ([*DEMO, "--rate", "inf"], "a finite number"), ([*DEMO, "--rate", ""], "invalid float"), ([*DEMO, "--clip", "nan"], "above 0"),
    ([*DEMO, "--ema", "1"], "below 1"), ([*DEMO, "--ema", "nan"], "from 0 to 1"), ([*DEMO, "--precision", "fp8"], "invalid choice"), ([*DEMO, "--augment", "all"], "invalid choice"),
    ([*DEMO, "--width", "0"], "model.width is 0"), ([*DEMO, "--width", "7"], "not a multiple of 4 heads; correct it"), ([*DEMO, "--heads", "7"], "7 heads; correct it"),
    ([*DEMO, "--decoder", "x"], "no channels"), ([*DEMO, "--decoder", "-5"], "model.decoder|expected one argument"), ([*DEMO, "--temperature", "0"], "temperature is 0.0"),
    ([*DEMO, "--image-encoder", "nonsense"], "no image encoder"), ([*DEMO, "--text-encoder", ""], "no text encoder"), ([*DEMO, "--split", "2"], "from 0 to below 1"),
    ([*DEMO, "--set", "x"], "sets nothing"), ([*DEMO, "--set", "training.x=1"], "has no field 'x'"), ([*DEMO, "--set", "training.epochs=[1]"], r"is \(1,\); expected int; correct"),
    ([*DEMO, "--seed", "9" * 30], "below 2\\*\\*63"), ([*DEMO, "--steps", "-1"], "0 or more"), ([*DEMO, "--absent", "2"], "from 0 to 1"), ([*DEMO, "extra"], "unrecognized"),
]  # fmt: skip
TARGET = [BUNDLE, *DATA]
SCORES: list[tuple[Any, list[str], str]] = [
    (evaluate, [], "required"), (evaluate, [BUNDLE], "required"), (evaluate, ["", *DATA], "is no path"), (evaluate, ["nowhere", *DATA], "; "),
    (evaluate, [BUNDLE, "--data", "nowhere"], "; "), (evaluate, TARGET, "classes.txt"), (evaluate, [*TARGET, "--threshold", "2"], "--threshold"), (evaluate, [*TARGET, "--threshold", "nan"], "--threshold"),
    (evaluate, [*TARGET, "--scale", "0"], "--scale"), (evaluate, [*TARGET, "--json", ""], "is no path"), (evaluate, [*TARGET, "--masks", "x"], "invalid choice"),
    (evaluate, [BUNDLE, "--data", LONG], "File name too long"), (across, [], "required"), (across, TARGET, "holds none of the sets"), (across, [*TARGET, "--recipe", "demo"], r"no \[sets\] table"),
    (across, [*TARGET, "--every", "0"], "1 or more"), (across, [*TARGET, "--json", "a\0b"], "is no path"), (across, [BUNDLE, "--data", LONG], "File name too long"),
    (table, ["x"], "no recipe belongs to a table 'x'"), (table, ["1", "--record", "nowhere"], "cannot be read as JSON"), (table, ["1", "--record", ""], "is no path"),
    (table, ["1", "--run"], "give --data DIR"), (table, ["1", "--run", "--data", "nowhere"], "is no folder"), (table, ["1", "--jobs", "x"], "invalid int"),
    (datasets, [], "required"), (datasets, ["check", "x", *DATA], "no kind of data set"), (datasets, ["check", "folder", "--data", ""], "is no path"),
]  # fmt: skip


def refused(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    (line,) = capsys.readouterr().err.splitlines()
    assert 0 < code < 126
    assert "; " in line or "--help explains" in line, line
    return line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken.toml").write_text("[model")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(("arguments", "says"), TRAININGS, ids=[" ".join(arguments)[:50] for arguments, _ in TRAININGS])
def test_a_wrong_training_is_one_line_and_leaves_nothing(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    line = refused(train.main, arguments, capsys)
    assert re.search(says, line), line
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    SCORES,
    ids=[f"{command.__name__} {' '.join(a)[-50:]}" for command, a, _ in SCORES],
)
def test_a_wrong_scoring_is_one_line_and_leaves_nothing(
    command: Any, arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    line = refused(command.main, arguments, capsys)
    assert re.search(says, line), line
    assert sorted(place.rglob("*")) == before
