"""The measurement of background words counts what a session paints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_pictures import scene
from PIL import Image

from benchmarks import background_words
from fusioner_rt import Session
from training.data import MaskFolder


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Two pictures: one shows a cat, the other nothing."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("background\ncat\ntree\n")
    for number in range(2):
        Image.fromarray(scene(60 + number, 80)).save(tmp_path / "images" / f"{number}.png")
        mask = np.zeros((60 + number, 80), np.uint8)
        mask[:30] = 1 - number
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "train.txt").write_text("")
    (tmp_path / "val.txt").write_text("0\n1\n")
    return tmp_path


def test_absent_words_are_asked_alone_and_their_pixels_counted(tiny_bundle: Path, shapes: Path) -> None:
    data = MaskFolder(shapes)
    with Session(tiny_bundle, cache=False) as session:
        found, lacking = background_words.measure(session, data, data.names("val"), [1, 2], "grass, lamp")
        assert lacking == 2
        expected = [
            float((session.segment(data.picture(name), [word], background=hidden).labels > 0).mean())
            for hidden in (None, "grass, lamp") for name, word in (("0", "tree"), ("1", "cat"), ("1", "tree"))
        ]  # fmt: skip
    assert found["without"].painted + found["with"].painted == pytest.approx(expected)
    said = background_words.table(found, [1, 2], lacking, data.words)
    assert "3 questions of 2 pictures that lack a word; words: cat, tree." in said


def test_errors_are_one_line(tiny_bundle: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--classes", "dog"], ["--background", "wall,, sky"], ["--engine", str(shapes)]):
        options = arguments if "--engine" in arguments else [*arguments, "--engine", str(tiny_bundle)]
        assert background_words.main(["--data", str(shapes), *options]) != 0
        (line,) = [part for part in capsys.readouterr().err.splitlines() if "background_words.py" in part]
        assert "; " in line
