"""A table's layout: rows in the paper's order, columns, notes, and figures of methods without a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training import recipe as recipes
from training.recipe import Recipe, RecipeError

SEPARATOR = " · "  # separates the parts of a row's name, one per head column
Figures = dict[str, float]  # percent, by key: "5^0" … "mIoU", "FB-IoU"


@dataclass(frozen=True)
class Row:
    name: str
    paper: dict[str, Figures] = field(default_factory=dict)  # by column, for methods without a recipe


@dataclass(frozen=True)
class Layout:
    title: str
    head: tuple[str, ...]  # names of the columns of the row's name
    columns: dict[str, tuple[str, ...]]  # column ("early fusion") → keys; "" for a single one
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def catalogue() -> dict[str, Recipe]:
    """The project's recipes by name."""
    return {name: recipes.read(name) for name in recipes.names()}


def of_table(table: str, known: dict[str, Recipe]) -> dict[str, Recipe]:
    """A table's recipes, by the name that training.train takes. Raises RecipeError where there are none.

    table: the name in the recipes' [table], or, with a "/", a folder of .toml files.
    """
    if "/" in table:
        files = sorted(Path(table).glob("*.toml"))
        if not files:
            raise RecipeError(
                f"{table} is no folder with recipes in it; expected .toml files", "name another folder, or a table"
            )
        return {str(file): _placed(recipes.read(str(file)), table) for file in files}
    found = {name: _placed(recipe, table) for name, recipe in known.items() if recipe.place.table == table}
    if not found:
        tables = sorted({recipe.place.table for recipe in known.values()} - {""})
        raise RecipeError(
            f"no recipe belongs to a table {table!r}",
            f"tables: {', '.join(tables)}, or a folder of recipes, written with a /",
        )
    return found


def _placed(recipe: Recipe, table: str) -> Recipe:
    """The recipe with `table`, and with its own name where it names no row."""
    return replace(recipe, place=replace(recipe.place, table=table, row=recipe.place.row or recipe.name))


def read(table: str, found: dict[str, Recipe]) -> Layout:
    """A table's layout.json; without one, a row per recipe in file order, a column per fold and two means.

    Raises RecipeError where the file is invalid or has no place for one of the recipes.
    """
    folders = [Path(table)] if "/" in table else [recipes.FOLDER / f"table{table}", recipes.FOLDER / table]
    for folder in folders:
        file = folder / "layout.json"
        if file.is_file():
            try:
                layout = _from_json(json.loads(file.read_text()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecipeError(f"{file} is no layout of a table ({error})", "see that of another table") from None
            names = {row.name for row in layout.rows}
            for name, recipe in found.items():
                if recipe.place.row not in names or recipe.place.column not in layout.columns:
                    raise RecipeError(
                        f"{file} has no place for recipe {name}: {recipe.place}",
                        "add its row or column there, or correct the recipe's [table]",
                    )
            return layout
    rows = tuple(Row(name) for name in dict.fromkeys(recipe.place.row for recipe in found.values()))
    folds = sorted({fold for recipe in found.values() for fold in recipe.scored_folds})
    keys = (*(f"fold {fold}" for fold in folds), "mean of folds", "mean of classes")
    columns = dict.fromkeys((recipe.place.column for recipe in found.values()), keys)
    return Layout(f"Table {table}", ("model",), columns, rows)


def _from_json(document: dict[str, Any]) -> Layout:
    return Layout(
        str(document["title"]),
        tuple(document["head"]),
        {column: tuple(keys) for column, keys in document["columns"].items()},
        tuple(Row(str(row["row"]), row.get("paper", {})) for row in document["rows"]),
        tuple(document.get("notes", ())),
    )
