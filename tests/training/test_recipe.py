from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import arguments, recipe
from training.model import FusionerConfig
from training.recipe import Choice, Plan, RecipeError


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_of_the_project_is_read_and_says_what_it_is_for(name: str) -> None:
    found = recipe.read(name)
    assert found.name == name
    assert len(found.about) > 10


def test_a_recipe_has_what_it_extends_has_where_it_is_silent(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text(
        'extends = "tiny"\nabout = "below"\n[training]\nepochs = 7\nrate = 1\n[data]\nfold = 2\n'
    )
    (tmp_path / "mine.toml").write_text('extends = "below.toml"\n[training]\nepochs = 9\n[evaluation]\nwords = "all"\n')
    mine, tiny = recipe.read(str(tmp_path / "mine.toml")), recipe.read("tiny")
    assert (mine.name, mine.about, mine.model) == ("mine", "below", tiny.model)
    assert (mine.training.epochs, mine.training.rate, mine.training.batch) == (9, 1.0, tiny.training.batch)
    assert mine.evaluation.fold == mine.data.fold == 2, "what is scored is what was held out, unless said otherwise"
    assert mine.protocol.words == "all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"', "extends itself"),
        ('extends = "nothing"', "no recipe is called 'nothing'"),
        ("model = 3", "model is 3; expected a section"),
        ("[modell]\nwidth = 8", "no recipe has modell"),
        ("[model]\nwidht = 8", "no field 'widht'"),
        ("[model]\nwidth = 8.5", "width is 8.5; expected int"),
        ("[model]\nwidth = true", "width is True; expected int"),
        ("[model]\nwidth = 9\nheads = 2", "not a multiple"),
        ("[model]\nheads = 0", "heads is 0; expected 1 or more"),
        ("[model]\naligned = 2", "aligned is 2; expected 3 channels or more"),
        ("[model]\naligned = 16\n[training]\nunknown = 0", "unknown is 0"),
        ('[data]\nwithout = ["street"]', "no [sets] table to leave sets out of"),
        ("[model]\ndecoder = [8, 0]", "expected 1 or more"),
        ('[model]\ndecoder = ["8"]', "expected a list of int"),
        ("[training]\nsteps = -1", "steps is -1; expected 0 or more"),
        ("[training]\nrate = nan", "rate is nan; expected a number above 0"),
        ("[training]\nwarmup = nan", "warmup is nan; expected 0 or more"),
        ("[training]\nema = 1", "expected below 1"),
        ('[training]\nprecision = "fp8"', "expected one of fp32, bf16, fp16"),
        ("[training]\nepochs = 0", "expected 1 or more"),
        ('[paper]\n"5^0" = "x"', "could not convert"),
        ("[training", "cannot be read as TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RecipeError) as refused:
        recipe.read(str(file))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_field_of_a_recipe_has_a_flag_but_those_that_are_not_for_the_command_line() -> None:
    offered = {section: set(texts) for section, _, _, texts in arguments.SECTIONS}
    assert offered["model"] == {f.name for f in fields(FusionerConfig)} - {"templates", "encoder_sha256"}
    assert offered["training"] == {f.name for f in fields(Plan)}
    assert offered["data"] == {f.name for f in fields(Choice)}


VALUES = {
    bool: st.booleans(),
    int: st.integers(1, 10**6),
    int | None: st.integers(0, 3),
    float: st.floats(1e-6, 0.99),
    str: st.sampled_from(["bert:a folder", "pascal-5i"]),
    tuple[int, ...]: st.lists(st.integers(1, 999), max_size=4).map(tuple),
    tuple[str, ...]: st.lists(st.sampled_from(["cat", "diningtable", "tv monitor"]), min_size=1).map(tuple),
}


@given(st.data())
def test_a_flag_replaces_the_recipes_value_and_nothing_else(data: st.DataObject) -> None:
    section, _, kind, texts = data.draw(st.sampled_from(arguments.SECTIONS))
    name = data.draw(st.sampled_from(sorted(texts)))
    wanted = typing.get_type_hints(kind)[name]
    value = data.draw(st.sampled_from(arguments.ALLOWED[name]) if name in arguments.ALLOWED else VALUES[wanted])
    flag = "--" + name.replace("_", "-")
    if wanted is bool:
        given = [flag if value else "--no-" + flag[2:]]
    elif isinstance(value, tuple):
        given = [flag, ",".join(map(str, value)) or "0"]
    else:
        given = [flag, str(value)]
    found = arguments.overrides(arguments.parser().parse_args(["tiny", *given]))
    assert found == {section: {name: value}}
    # width and heads must fit each other, a residual has three channels or more, yielding a least, and tiny has no sets to
    # leave out
    small = (name == "aligned" and value in (1, 2)) or (name == "yielding" and value < 0.01)
    if name not in ("width", "heads", "without") and not small:
        assert (
            getattr(getattr(recipe.read("tiny", found), "training" if section == "training" else section), name)
            == value
        )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.epochs=3", 3),
        ('model.text_encoder="bert:a=b"', "bert:a=b"),
        ("model.text_encoder=bert:a=b", "bert:a=b"),
        ("model.decoder=[8, 4]", [8, 4]),
    ],
)
def test_set_takes_toml_or_bare_text(text: str, value: object) -> None:
    found = arguments.overrides(arguments.parser().parse_args(["tiny", "--set", text]))
    ((_, values),) = found.items()
    assert list(values.values()) == [value]


def test_a_runs_folder_says_recipe_fold_and_seed() -> None:
    chosen = recipe.read("table4/b0-full", {"data": {"fold": 1}, "training": {"seed": 3}})
    assert arguments.default_out(chosen, seeded=True) == Path("runs/table4/b0-full-fold1-seed3")
    assert arguments.default_out(recipe.read("tiny"), seeded=False) == Path("runs/tiny")


def test_the_list_has_a_line_for_every_recipe() -> None:
    assert [line.split()[0] for line in arguments.listing().splitlines()] == recipe.names()


def test_help_teaches_recipes_the_data_folder_and_every_flag() -> None:
    text = arguments.parser().format_help()
    for part in ("classes.txt", "255", "torchrun", "log.csv", "--positive-weight", "--no-exact-words"):
        assert part in text
    examples = re.findall(r"training\.train (\S+) --data", arguments.TEACHING)
    assert len(examples) == 3
    assert {name for name in examples if not name.endswith(".toml")} <= set(recipe.names())
