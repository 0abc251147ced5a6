"""One table over several sets: known and all words, and what absent words are painted on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training import across, evaluate, scoring
from training.datasets.many import ManySets, SetChoice
from training.recipe import Protocol


@pytest.fixture
def folder(tmp_path: Path, shapes_in: Callable[..., Path]) -> Path:
    """Two sets: red, green and blue things; and three that are called otherwise."""
    for name in ("one", "two"):
        shapes_in(tmp_path / name)
    (tmp_path / "two" / "classes.txt").write_text("background\ncat\ndog\nsky\n")
    (tmp_path / "two.toml").write_text('extends = "demo"\n[sets.one]\n[sets.two]\nunmarked = "ignored"\n[sets.three]\n')
    return tmp_path


def test_the_table_holds_what_the_scores_say(
    folder: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_bundle), "--data", str(folder), "--recipe", str(folder / "two.toml"), "--least", "1"]
    assert across.main([*command, "--json", str(tmp_path / "s.json"), "--cache", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "s.json").read_text())
    assert list(document["sets"]) == ["one", "two"]  # the third is not there
    one = document["sets"]["one"]
    data = ManySets(folder, {"one": SetChoice(), "two": SetChoice(unmarked="ignored")})
    names = [name for name in data.names("val") if name.startswith("one/")]
    with evaluate.Target(tiny_bundle, data, tmp_path / "cache") as target:
        predict = target.predictor(Protocol(threshold=0.5), names)
        every = scoring.score(predict, data, names, [1, 2, 3], words="all")
        assert one["all"] == round(every.mean([1, 2, 3]), 2)
        assert one["fb_iou"] == round(every.fb_iou(), 2)
        painted = across.score_set(target, data, "one", names, Protocol(threshold=0.5)).painted
        assert len(painted) == 3 * len(names)
        assert one["salience"] == round(100 * float(np.mean(painted)), 2)
    assert f"| one | {len(names)} | 3 | {one['known']:.1f} | {one['all']:.1f} |" in said


def test_absent_words_are_names_of_other_sets_that_the_picture_cannot_show(folder: Path, tiny_bundle: Path) -> None:
    data = ManySets(folder, {"one": SetChoice(may_show=("cat", "dog")), "two": SetChoice()})
    asked: set[int] = set()

    class Recording:
        def readable(self, classes: list[int]) -> list[int]:
            return classes

        def predictor(self, protocol: Protocol, names: list[str]) -> scoring.Predictor:
            def predict(name: str, words: list[int], size: tuple[int, int]) -> np.ndarray:
                if len(words) == 1 and words[0] > 3:
                    asked.update(words)
                return np.zeros(size, np.uint16)

            return predict

    names = [name for name in data.names("val") if name.startswith("one/")]
    found = across.score_set(Recording(), data, "one", names, Protocol())  # type: ignore[arg-type]
    assert asked == {data.index("sky")}
    assert set(found.painted) == {0.0}


def test_a_folder_without_any_set_is_named(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert across.main([str(tiny_bundle), "--data", str(tmp_path)]) == 72
    assert "holds none of the sets voc_animals" in capsys.readouterr().err
    assert across.main([str(tiny_bundle), "--data", str(tmp_path), "--recipe", "demo"]) == 72
    assert "has no [sets] table" in capsys.readouterr().err
