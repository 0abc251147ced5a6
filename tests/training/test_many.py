"""Several folders as one data set: one vocabulary, and of every set what its unmarked pixels mean."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner_rt.errors import FusionerError
from training import recipe
from training.batches import CachedBatches, feature_cache
from training.data import IGNORE, DataError, MaskFolder
from training.datasets.many import ManySets, SetChoice
from training.distributed import Processes
from training.model import tiny
from training.recipe import Plan
from training.train import main
from training.words import Vocabulary, WordSampler

RECIPE = """
[model]
image_encoder = "tiny"
text_encoder = "tiny"
width = 32
layers = 1
heads = 4
decoder = [16]
templates = ["a {category}"]
[training]
epochs = 1
batch = 4
warmup = 0.1
names = 0.0
least = 1
[sets.one]
may_show = ["green thing"]
[sets.two]
unmarked = "ignored"
flip = false
weight = 1.5
may_show = ["yellow thing if red thing"]
[sets.two.names]
"red thing" = ["red thing", "crimson thing"]
"""


@pytest.fixture
def folders(tmp_path: Path, shapes_in: Callable[..., Path]) -> Path:
    """Two sets: red, green and blue things; red and yellow ones with a class between them that no picture shows."""
    for name in ("one", "two"):
        shapes_in(tmp_path / name)
    (tmp_path / "one" / "classes.txt").write_text("background\nred thing\nyellow thing\nblue thing\n")
    (tmp_path / "two" / "classes.txt").write_text("background\nred thing\ngreen thing\nviolet thing\n")
    (tmp_path / "many.toml").write_text(RECIPE)
    return tmp_path


def opened(folder: Path) -> ManySets:
    return ManySets(folder, recipe.read(str(folder / "many.toml")).sets)


def test_classes_are_every_name_once_and_masks_mark_them_alike(folders: Path) -> None:
    data = opened(folders)
    assert data.classes == ["background", "red thing", "yellow thing", "blue thing", "green thing", "violet thing"]
    assert len(data.names("train")) == 16
    for name in data.names("train"):
        set_, _, picture = name.partition("/")
        own = MaskFolder(folders / set_)
        theirs, ours = own.mask(picture), data.mask(name)
        for index, class_ in enumerate(own.classes[1:], start=1):
            np.testing.assert_array_equal(ours == data.index(class_), theirs == index)
        unmarked = 0 if set_ == "one" else IGNORE
        np.testing.assert_array_equal(ours[theirs == 0], np.full((theirs == 0).sum(), unmarked))
        assert (ours[theirs == IGNORE] == IGNORE).all()
        assert data.picture(name) == own.picture(picture)


def test_what_a_picture_may_show_unmarked_is_no_absent_word(folders: Path) -> None:
    data = opened(folders)
    green, yellow, red = (data.index(f"{colour} thing") for colour in ("green", "yellow", "red"))
    assert data.never_absent("one/shape00", [red]) == {green}
    assert data.never_absent("two/shape00", [red]) == {yellow}
    assert data.never_absent("two/shape00", [green]) == frozenset()
    assert data.synonyms == {red: ("crimson thing",)}
    assert not data.may_flip("two/shape00")
    assert data.may_flip("one/shape00")


def test_a_set_left_out_keeps_its_names_and_gives_no_picture(folders: Path) -> None:
    whole = opened(folders)
    data = ManySets(folders, whole.choices, ("two",))
    assert data.classes == whole.classes
    assert data.names("train") == [name for name in whole.names("train") if name.startswith("one/")]
    with pytest.raises(DataError, match="no set is called 'three'; leave out one of one, two"):
        ManySets(folders, whole.choices, ("three",)).names("train")


def test_a_run_that_left_a_set_out_is_another_run(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(folders / "many.toml"), "--data", str(folders), "--cache", str(folders / "cache"), "--epochs", "1"]
    for first, second in (("one", "two"), ("two", "one")):
        out = ["--out", str(folders / f"run-{first}")]
        left = {"one": [], "two": ["--without", "two"]}
        assert main([*given, *out, *left[first]]) == 0
        assert main([*given, *out, *left[second]]) == 2
        assert "without" in capsys.readouterr().err


def test_a_recipe_without_sets_has_none_to_leave_out(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--data", str(folders / "one"), "--without", "two", "--out", str(folders / "x")]) != 0
    assert "no [sets] table to leave sets out of" in capsys.readouterr().err


def test_absent_words_are_drawn_among_those_alone_that_cannot_be_there(folders: Path) -> None:
    data, model, plan = opened(folders), tiny(), Plan(words=5, names=0.0, absent=1.0, exact_words=True)
    cache = feature_cache(folders / "cache", data, model, torch.device("cpu"))
    names = data.names("train")
    cache.fill(names, (False,))
    vocabulary = Vocabulary.collect(model, data, cache, names, None)
    assert "crimson thing" in vocabulary.words
    sampler = WordSampler(vocabulary, plan)
    drawn: dict[str, set[str]] = {}
    by_vector = {
        tuple(vector.tolist()): word for vector, word in zip(vocabulary.vectors, vocabulary.words, strict=True)
    }
    for seed in range(60):
        for name in names:
            labels = cache.get(name).labels[None]
            words, targets, _, _ = sampler.draw([name], labels, np.random.default_rng(seed))
            for word, target in zip(words[0], targets[0], strict=True):
                if not target.any():
                    drawn.setdefault(name, set()).add(by_vector[tuple(word.tolist())])
    for name, absent in drawn.items():
        present = data.present(name)
        assert not {data.words[i] for i in data.never_absent(name, present)} & absent
        assert not {data.words[i] for i in present} & absent
    assert "yellow thing" in set.union(*drawn.values())


@given(st.floats(0, 3), st.integers(1, 20), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_a_weight_is_how_often_an_epoch_shows_a_picture(weight: float, pictures: int, epochs: int) -> None:
    class Weighted(CachedBatches):
        def __init__(self) -> None:
            self.weight = lambda name: weight

    names = [f"{number}" for number in range(pictures)]
    lengths = {len(Weighted()._drawn(names, epoch)) for epoch in range(epochs)}
    assert lengths == {int(np.floor(pictures * weight))}
    counts = Counter(name for epoch in range(pictures) for name in Weighted()._drawn(names, epoch))
    assert {counts[name] for name in names} == {int(np.floor(pictures * weight))}  # all in turn, alike


def test_a_set_that_may_not_be_mirrored_is_not(folders: Path) -> None:
    data, model, plan = opened(folders), tiny(), Plan(names=0.0)
    cache = feature_cache(folders / "cache", data, model, torch.device("cpu"))
    names = data.names("train")
    cache.fill(names)
    vocabulary = Vocabulary.collect(model, data, cache, names, None)
    processes = Processes(torch.device("cpu"))
    batches = CachedBatches(cache, names, model, WordSampler(vocabulary, plan), plan, processes)
    for name in names:
        seen = {batches.read(name, [seed])[1].numpy().tobytes() for seed in range(12)}
        assert len(seen) == (2 if name.startswith("one/") else 1)


def test_a_recipe_with_sets_trains_resumes_and_goes_on_from_its_weights(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(folders / "many.toml"), "--data", str(folders), "--cache", str(folders / "cache"), "--workers", "0"]
    assert main([*command, "--out", str(folders / "first")]) == 0
    record = json.loads((folders / "first" / "checkpoint" / "config.json").read_text())["training"]
    assert record["sets"]["two"]["unmarked"] == "ignored"
    assert record["classes"] == ["red thing", "yellow thing", "blue thing", "green thing", "violet thing"]
    start = ["--from", str(folders / "first" / "checkpoint")]
    assert main([*command, *start, "--out", str(folders / "second"), "--rate", "1e-9", "--word-rate", "0"]) == 0
    first, second = (_weights(folders / run) for run in ("first", "second"))
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert main([*command, *start, "--out", str(folders / "third"), "--layers", "2"]) == 2
    assert "layers is 1, and here 2" in capsys.readouterr().err


def _weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoint" / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('[sets.one]\nunmarket = "never"', "sets.one has no field 'unmarket'; it has: unmarked"),
        ('[sets.one]\nunmarked = "none"', "expected one of background, ignored, never"),
        ("[sets.one]\nweight = -1", "sets.one.weight is -1; expected a number from 0 to 1000"),
        ("[sets.one]\nflip = 1", "sets.one.flip is 1; expected true or false"),
        ('[sets.one]\nmay_show = "sky"', "sets.one.may_show is 'sky'; expected a list of words"),
        ("[sets.one]\nnames = 3", "expected a table from classes to lists of words"),
        ('[sets.one.names]\n"red thing" = 3', "sets.one.names.red thing is 3; expected a list of words"),
        ('[sets.three]\nunmarked = "never"', "is no folder; the recipe's set 'three' was expected there"),
        ('[sets.one]\nmay_show = ["sky"]', "is called 'sky'"),
        ('[sets.one.names]\n"grey thing" = ["dull thing"]', "holds 'grey thing'"),
    ],
)
def test_what_is_wrong_with_a_sets_table_is_said_in_one_line(
    folders: Path, change: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "many.toml").write_text(RECIPE.partition("[sets.one]")[0] + change + "\n")
    command = [str(folders / "many.toml"), "--data", str(folders), "--cache", str(folders / "cache")]
    assert main([*command, "--out", str(folders / "out"), "--workers", "0"]) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_folder_without_lists_is_split_by_the_names_of_its_pictures(
    tmp_path: Path, shapes_in: Callable[..., Path]
) -> None:
    shapes_in(tmp_path / "shapes", 20)
    for split in ("train", "val"):
        (tmp_path / "shapes" / f"{split}.txt").unlink()
    with pytest.raises(DataError, match=r"--split 0\.1"):
        MaskFolder(tmp_path / "shapes").names("train")
    data = MaskFolder(tmp_path / "shapes", 0.25)
    train, val = data.names("train"), data.names("val")
    assert len(val) == 5
    assert sorted(train + val) == [f"shape{number:02}" for number in range(20)]
    (tmp_path / "shapes" / "masks" / f"{train[0]}.png").unlink()
    assert set(MaskFolder(tmp_path / "shapes", 0.25).names("train")) >= set(train[1:]) - set(val)
    with pytest.raises(FusionerError, match=r"expected a number from 0 to below 1"):
        recipe.read("demo", {"data": {"split": 2.0}})


def test_a_choice_is_read_as_its_table_says() -> None:
    choice = SetChoice.of({"names": {"tv": "television"}, "weight": 2}, "sets.x")
    assert choice.names == {"tv": ("television",)}
    assert choice.weight == 2
