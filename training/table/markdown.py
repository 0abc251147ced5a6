"""A table as Markdown; each cell is "the paper's figure / ours"."""

from __future__ import annotations

from training.recipe import Recipe
from training.table import cells
from training.table.cells import Runs, Value
from training.table.layout import SEPARATOR, Layout, Row


def render(layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]) -> str:
    """found: the table's recipes; scored: from cells.by_recipe."""
    keys = [(column, key) for column, keys in layout.columns.items() for key in keys]
    head = [*layout.head, *(f"{column} {key}".strip() for column, key in keys)]
    lines = [f"**{layout.title}**", "", _line(head), "|" + "---|" * len(head)]
    paper = any(recipe.paper for recipe in found.values())
    for row in layout.rows:
        lines.append(_line([*_names(row.name, layout), *_cells(row, layout, found, scored, paper)]))
    for name, values in _baseline_rows(layout, found, scored).items():
        lines.append(_line([name, *[""] * (len(layout.head) - 1), *(_cell(None, values.get(k), paper) for k in keys)]))
    notes = [*layout.notes]
    if paper:
        notes.insert(0, "Each cell: paper / ours, in percent; nothing after the slash: not run.")
    runs = [scored.get(cells.scored_as(recipe), {}) for recipe in found.values()]
    seeds = sorted({len({seed for _, seed in of_recipe}) for of_recipe in runs} - {0, 1})
    if seeds:
        notes.append(f"±: sample standard deviation over {' or '.join(map(str, seeds))} seeds; without it: one seed.")
    if any(" > " in label for of_recipe in runs for run in of_recipe.values() for label in run.baselines):
        notes.append("A baseline with a threshold has the best of several on the very pictures that are scored.")
    notes += _counts(layout, found, scored)
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)])


def ours(layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs], row: str, column: str) -> dict[str, Value]:
    """Our figures of a row and column, by key."""
    recipe = cells.recipe_of(found, row, column)
    runs = scored.get(cells.scored_as(recipe), {}) if recipe else {}
    return cells.values(recipe, runs, layout.columns[column]) if recipe else {}


def _cells(row: Row, layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs], paper: bool) -> list[str]:
    texts = []
    for column, keys in layout.columns.items():
        recipe = cells.recipe_of(found, row.name, column)
        figures = recipe.paper if recipe else row.paper.get(column, {})
        values = ours(layout, found, scored, row.name, column)
        texts += [_cell(figures.get(key), values.get(key), paper, recipe is not None) for key in keys]
    return texts


def _cell(figure: float | None, value: Value | None, paper: bool, trained: bool = True) -> str:
    left = "–" if figure is None else f"{figure:.1f}"
    right = "" if value is None else f"{value.mean:.1f}"
    if value is not None and value.spread is not None:
        right += f" ± {value.spread:.1f}"
    if not paper:
        return right
    return f"{left} / {right}".rstrip() if trained else left


def _baseline_rows(
    layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]
) -> dict[str, dict[tuple[str, str], Value]]:
    rows: dict[str, dict[tuple[str, str], Value]] = {}
    for column, keys in layout.columns.items():
        inside = {name: recipe for name, recipe in found.items() if recipe.place.column == column}
        for name, (recipe, runs) in cells.baselines(inside, scored).items():
            values = cells.values(recipe, runs, keys)
            rows.setdefault(f"baseline: {name}", {}).update({(column, key): value for key, value in values.items()})
    return rows


def _counts(layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]) -> list[str]:
    """Notes with the counted classes, one per column, fold and set of classes; all rows should have the same."""
    counts: dict[str, None] = {}
    for column in layout.columns:
        for recipe in (r for r in found.values() if r.place.column == column):
            least = recipe.protocol.least
            for (fold, _), run in sorted(scored.get(cells.scored_as(recipe), {}).items(), key=str):
                classes = run.counted(least)
                place = ", ".join(part for part in (column, "" if fold is None else f"fold {fold}") if part)
                named = ", ".join(f"{word} {score.pictures}" for word, score in classes.items())
                masks = sum(score.pictures for score in classes.values())
                rule = f" of {least} or more pictures" if least > 1 else ""
                counts[
                    f"Counted{f' in {place}' if place else ''}: {len(classes)} {'class' if len(classes) == 1 else 'classes'}{rule}"
                    f" in {masks} masks" + (f" ({named})" if len(classes) <= 20 else "")
                ] = None
    return sorted(counts)


def _names(row: str, layout: Layout) -> list[str]:
    """The head cells of a row: the parts of its name, or, for a single head column, the whole name."""
    parts = row.split(SEPARATOR) if len(layout.head) > 1 else [row]
    return [*parts, *[""] * (len(layout.head) - len(parts))]


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"
