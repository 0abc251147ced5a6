"""The recipes that come with the project: the paper's tables, row by row."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from training import recipe
from training.recipe import Recipe
from training.table import layout
from training.table.cells import scored_as, trained_as

TABLES = ("1", "2", "3", "4", "5", "7")

# The last figure of each row and column, top to bottom, as printed in the paper: mIoU, and FB-IoU in table 3.
PRINTED = {
    ("1", "early fusion"): (52.1, 49.1, 49.7, 59.0, 54.6, 54.0, 55.2, 53.9, 53.7, 56.3, 56.4, 56.8),
    ("1", "late fusion"): (43.6, 45.9, 46.0, 50.1, 52.1, 52.1, 54.1, 53.3, 54.3, 54.5, 55.3, 55.0),
    ("2", "PASCAL-5i"): (18.3, 38.3, 47.4, 52.3, 46.4, 59.0),
    ("2", "COCO-20i"): (None, 21.1, 23.4, 27.2, 27.6, 33.5),
    ("3", ""): (58.2, 76.3),
    ("4", ""): (59.0, 53.6, 46.6, 19.8),
    ("5", ""): (53.8, 63.4, 66.5, 49.6, 61.1, 59.5, 31.7, 44.4, 56.5),
    ("7", ""): (50.2, 55.4, 57.7, 59.0, 54.8, 54.7, 49.1, 54.0, 59.0, 55.3, 54.0, 54.4),
}


@functools.cache
def table(number: str) -> dict[str, Recipe]:
    return layout.of_table(number, catalogue())


@functools.cache
def catalogue() -> dict[str, Recipe]:
    return layout.catalogue()


def figures(number: str) -> dict[tuple[int, str], dict[str, float]]:
    """The paper's figures by row number and column, whether a recipe or the layout holds them."""
    found = table(number)
    shape = layout.read(number, found)
    by_place = {(r.place.row, r.place.column): r.paper for r in found.values()}
    return {
        (index, column): by_place.get((row.name, column)) or row.paper.get(column, {})
        for index, row in enumerate(shape.rows)
        for column in shape.columns
    }


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_reads_and_says_what_it_is(name: str) -> None:
    assert recipe.read(name).about


@pytest.mark.parametrize("number", TABLES)
def test_every_row_of_the_paper_has_its_figures_in_the_papers_order(number: str) -> None:
    found = figures(number)
    shape = layout.read(number, table(number))
    for column, keys in shape.columns.items():
        rows = [found[index, column] for index in range(len(shape.rows))]
        assert tuple(row.get(keys[-1]) for row in rows) == PRINTED[number, column]
        for index, row in enumerate(rows):
            complete = not row or set(row) == set(keys)
            assert complete or (number, index, set(keys) - set(row)) == ("5", 6, {"20^1"}), shape.rows[index]


@pytest.mark.parametrize("number", TABLES)
def test_a_mean_is_the_mean_of_its_folds(number: str) -> None:
    """Within 0.1: folds and mean are each rounded to 0.1, and two of the paper's means are cut rather than rounded."""
    for row in figures(number).values():
        folds = [value for key, value in row.items() if "^" in key]
        if folds:
            assert abs(sum(folds) / len(folds) - row["mIoU"]) < 0.1, row


def test_figures_stand_under_folds_that_are_run() -> None:
    for number in TABLES:
        for name, row in table(number).items():
            keys = {int(key.partition("^")[2]) for key in row.paper if "^" in key}
            assert keys == set(row.scored_folds), name
            assert bool(row.scored_folds) == bool(row.data.folds) == bool(row.evaluation.folds), name


def test_the_decoder_has_a_stage_for_each_halving_of_the_encoder() -> None:
    for number in TABLES:
        for name, row in table(number).items():
            stages = len(row.model.decoder)
            if name in ("table4/b1-no-decoder", "table4/b3-neither"):
                assert stages == 0
            else:
                assert stages == (5 if "RN101" in row.model.image_encoder else 4), name


def test_table_7_has_64_channels_a_head_and_the_other_tables_the_papers_choice() -> None:
    for number in TABLES:
        for name, row in table(number).items():
            assert row.model.width == 64 * row.model.heads, name
            if number == "7":
                assert row.place.row == f"{row.model.layers} · {row.model.heads} · {row.model.width}"
            else:
                assert (row.model.layers, row.model.heads, row.model.temperature) == (12, 8, 0.07), name


def test_table_1_pairs_the_encoders_that_its_rows_name() -> None:
    clip = {"CLIP-B": "open_clip:ViT-B-16:openai", "CLIP-L": "open_clip:ViT-L-14:openai"}
    images = {**clip, "DINO-B": "dino-vitb16", "MoCo-B": "mocov3-vitb16"}
    texts = {**clip, "BERT-B": "bert:bert-base-uncased", "BERT-L": "bert:bert-large-uncased"}
    rows = table("1")
    assert len(rows) == 24
    for row in rows.values():
        _, image, text = row.place.row.split(layout.SEPARATOR)
        assert row.model.image_encoder == images[image]
        assert row.model.text_encoder == texts[text]
        assert row.place.column.split()[0] == row.model.fusion


def test_table_4_switches_off_what_its_rows_cross_out() -> None:
    for row in table("4").values():
        _, fusion, decoder = row.place.row.split(layout.SEPARATOR)
        assert row.model.fusion == {"✓": "early", "✗": "none"}[fusion]
        assert bool(row.model.decoder) == (decoder == "✓")


def test_tables_3_and_5_are_scored_on_another_data_set_than_they_train_on() -> None:
    for row in table("5").values():
        assert (row.data.dataset, row.data.folds) == ("coco-20i", "coco-20i")
        assert (row.evaluation.dataset, row.evaluation.folds) == ("pascal-5i", "coco-20i-to-voc")
    (mosaic,) = table("3").values()
    assert (mosaic.data.dataset, mosaic.evaluation.dataset) == ("fss-1000", "mosaic-4")
    assert (mosaic.training.words, mosaic.training.exact_words) == (4, True)


def test_one_model_of_several_tables_is_one_run() -> None:
    b = trained_as(recipe.read("table1/b-clip-l-clip-l-early"))
    same = [name for number in TABLES for name, row in table(number).items() if trained_as(row) == b]
    assert same == [
        "table1/b-clip-l-clip-l-early", "table2/fusioner-vit-l-14-pascal", "table4/b0-full", "table7/heads-8",
        "table7/layers-12",
    ]  # fmt: skip
    everything = [row for number in TABLES for row in table(number).values()]
    # 24 rows and columns of table 1; table 2 adds two on COCO and a ResNet on PASCAL; 1; 3; none; 10.
    assert len({trained_as(row) for row in everything}) == 24 + 3 + 1 + 3 + 0 + 10
    assert len({scored_as(row) for row in everything}) == 24 + 3 + 1 + 3 + 2 + 10


def test_the_documentation_counts_the_trainings_that_the_tables_take() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    known: set[str] = set()
    total = 0
    for number in TABLES:
        runs = {trained_as(row): max(1, len(row.scored_folds)) for row in table(number).values()}
        new = sum(count for identity, count in runs.items() if identity not in known)
        known |= set(runs)
        total += new
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {number} |"))
        assert line.endswith(f"| {sum(runs.values())} | {new} |")
    assert f"{total} trainings" in text


def test_recipes_in_one_place_of_a_table_are_one_run() -> None:
    for number in TABLES:
        places: dict[tuple[str, str], str] = {}
        for row in table(number).values():
            assert places.setdefault((row.place.row, row.place.column), scored_as(row)) == scored_as(row), row.name


def test_a_layout_that_misses_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('extends = "tiny"\nabout = "x"\n[table]\nrow = "one"\n')
    document = {"title": "T", "head": ["model"], "columns": {"": ["mIoU"]}, "rows": [{"row": "two"}]}
    (tmp_path / "layout.json").write_text(json.dumps(document))
    found = layout.of_table(f"{tmp_path}/", {})
    with pytest.raises(recipe.RecipeError, match="no place for recipe"):
        layout.read(f"{tmp_path}/", found)
