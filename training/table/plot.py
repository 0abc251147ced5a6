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
            f"matplotlib is not installed ({error}); install it: pip install -c constraints.txt matplotlib"
        ) from None
    bars = []
    for column, keys in layout.columns.items():
        key = next((k for k in reversed(keys) if k == "mIoU"), keys[-1])
        for name in dict.fromkeys(row.name for row in layout.rows):
            value = markdown.ours(layout, found, scored, name, column).get(key)
            recipe = cells.recipe_of(found, name, column)
            if value is not None and recipe is not None:
                label = f"{name}, {column}" if column else name
                bars.append((label, value, recipe.paper.get(key), _per_class(recipe, scored), key))
        inside = {name: recipe for name, recipe in found.items() if recipe.place.column == column}
        for label, values in cells.baselines(inside, scored, keys).items():
            if key in values:
                bars.append((f"baseline: {label}", values[key], None, {}, key))
    if not bars:
        raise NothingToPlot(f"{layout.title}: no row has all of its folds yet; run the table first")
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(bars))
    axes.barh(
        places, [v.mean for _, v, *_ in bars], xerr=[v.spread or 0.0 for _, v, *_ in bars], color="#9ecae1", capsize=3
    )
    for place, (_, _, paper, points, _) in enumerate(bars):
        axes.scatter(list(points.values()), [place] * len(points), s=12, color="#444444", zorder=3, alpha=0.7)
        if paper is not None:
            axes.scatter([paper], [place], s=40, color="#d62728", marker="D", zorder=4)
    axes.set_yticks(list(places), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"IoU in percent; bar: {bars[0][4]}, points: classes, line: standard deviation over seeds, ◆ paper")
    axes.set_title(layout.title)
    suffix = file.suffix.lstrip(".").lower() or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        raise NothingToPlot(f"{file}: no picture format is called {suffix!r}; name it .png, .svg or .pdf")
    write_result(file, lambda stream: figure.savefig(stream, format=suffix, dpi=120))


def _per_class(recipe: Recipe, scored: dict[str, Runs]) -> dict[str, float]:
    """The mean over seeds of each counted class."""
    numbers: dict[str, list[float]] = {}
    for run in scored.get(cells.scored_as(recipe), {}).values():
        for word, score in run.counted(recipe.protocol.least).items():
            numbers.setdefault(word, []).append(score.iou)
    return {word: statistics.fmean(values) for word, values in numbers.items()}
