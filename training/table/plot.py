"""The same figures as a bar chart: a bar per row, a point per class, a line over the seeds' spread."""

from __future__ import annotations

import statistics
from pathlib import Path

from fusioner_rt.errors import FusionerError
from fusioner_rt.files import write_result
from training.recipe import Recipe
from training.table import cells, markdown
from training.table.cells import Runs
from training.table.layout import Layout

_TOLD_APART = 10  # classes that have a colour each


class NothingToPlot(FusionerError):
    """No row of the table has been run, or the plotting library is not installed."""

    exit_code = 76


def write(file: Path, layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]) -> None:
    """PNG, or what else the file's suffix says. The bar is the row's last mean; the paper's figure, where there is one, a
    diamond. Raises NothingToPlot.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NothingToPlot(
            f"matplotlib is not installed ({error})", "install it: pip install -c constraints.txt matplotlib"
        ) from None
    bars = []
    for column, keys in layout.columns.items():
        key = next((k for k in reversed(keys) if k == "mIoU"), keys[-1])
        for name in dict.fromkeys(row.name for row in layout.rows):
            value = markdown.ours(layout, found, scored, name, column).get(key)
            recipe = cells.recipe_of(found, name, column)
            if value is not None and recipe is not None:
                label = f"{name}, {column}" if column else name
                bars.append(
                    (
                        label,
                        value,
                        recipe.paper.get(key),
                        _per_class(recipe, scored.get(cells.scored_as(recipe), {})),
                        key,
                    )
                )
        inside = {name: recipe for name, recipe in found.items() if recipe.place.column == column}
        for label, (recipe, runs) in cells.baselines(inside, scored).items():
            if value := cells.values(recipe, runs, keys).get(key):
                bars.append((f"baseline: {label}", value, None, _per_class(recipe, runs), key))
    if not bars:
        raise NothingToPlot("no row has all of its folds yet", "run the table first", subject=layout.title)
    classes = sorted({word for *_, points, _ in bars for word in points})
    colours = {word: f"C{number}" for number, word in enumerate(classes)} if len(classes) <= _TOLD_APART else {}
    figure = Figure(figsize=(9, 1.4 + 0.45 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, value, paper, points, _) in enumerate(bars):
        axes.barh(place, value.mean, color="#dddddd" if label.startswith("baseline: ") else "#c6dbef")
        if value.spread is not None:
            axes.errorbar(value.mean, place - 0.2, xerr=value.spread, color="#333333", capsize=3)
        for word, number in points.items():  # below the line, so that both can be read
            axes.scatter(number, place + 0.15, s=16, color=colours.get(word, "#444444"), zorder=3, alpha=0.8)
        if paper is not None:
            axes.scatter(paper, place, s=40, color="#d62728", marker="D", zorder=4)
    for word, colour in colours.items():
        axes.scatter([], [], s=16, color=colour, label=word)
    if colours:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    told = [f"bar: {bars[0][4]}", "points: its classes"]
    if any(value.spread is not None for _, value, *_ in bars):
        told.append("line: ± standard deviation over seeds")
    if any(paper is not None for _, _, paper, *_ in bars):
        told.append("red: paper")
    axes.set_xlabel(f"IoU in percent ({', '.join(told)})")
    axes.set_title(layout.title)
    suffix = file.suffix.lstrip(".").lower() or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        raise NothingToPlot(f"no picture format is called {suffix!r}", "name it .png, .svg or .pdf", subject=file)
    write_result(file, lambda stream: figure.savefig(stream, format=suffix, dpi=120))


def _per_class(recipe: Recipe, runs: Runs) -> dict[str, float]:
    """The mean over seeds of each counted class."""
    numbers: dict[str, list[float]] = {}
    for run in runs.values():
        for word, score in run.counted(recipe.protocol.least).items():
            numbers.setdefault(word, []).append(score.iou)
    return {word: statistics.fmean(values) for word, values in numbers.items()}
