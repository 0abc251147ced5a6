"""A table as a bar chart: a bar per row, a point per class, a line for the spread over seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusioner_rt.atomic_files import write_result
from fusioner_rt.errors import FusionerError
from training.recipe import Recipe
from training.table import cells, markdown
from training.table.cells import Runs, Value
from training.table.layout import Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_COLOURS = 10  # more classes share one colour


class NothingToPlot(FusionerError):
    """No row of the table is complete, the file's format is unknown, or matplotlib is not installed."""

    exit_code = 76
    is_input = False


@dataclass(frozen=True)
class Bar:
    """One row of the chart. key: of its figure; paper: the paper's figure; points: percent by class."""

    label: str
    key: str
    value: Value
    points: dict[str, float]
    paper: float | None = None

    @property
    def is_baseline(self) -> bool:
        return self.label.startswith("baseline: ")


def write(file: Path, layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]) -> None:
    """Writes a PNG, or another format by the file's suffix: a bar per row with its last mean, the paper's as a diamond.

    Raises NothingToPlot, OutputUnwritable.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NothingToPlot(
            f"matplotlib is not installed ({error})", "install it: pip install -c constraints.txt matplotlib"
        ) from None
    bars = _bars(layout, found, scored)
    if not bars:
        raise NothingToPlot("no row has all of its folds yet", "run the table first", subject=layout.title)
    figure = Figure(figsize=(9, 1.4 + 0.45 * len(bars)), layout="constrained")
    _draw(figure.add_subplot(), bars, layout.title)
    suffix = file.suffix.lstrip(".").lower() or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        raise NothingToPlot(f"no picture format is called {suffix!r}", "name it .png, .svg or .pdf", subject=file)
    write_result(file, lambda stream: figure.savefig(stream, format=suffix, dpi=120))


def _bars(layout: Layout, found: dict[str, Recipe], scored: dict[str, Runs]) -> list[Bar]:
    bars = []
    for column, keys in layout.columns.items():
        key = "mIoU" if "mIoU" in keys else keys[-1]
        for name in dict.fromkeys(row.name for row in layout.rows):
            value = markdown.ours(layout, found, scored, name, column).get(key)
            recipe = cells.recipe_of(found, name, column)
            if value is not None and recipe is not None:
                points = _per_class(recipe, scored.get(cells.scored_as(recipe), {}))
                bars.append(Bar(f"{name}, {column}" if column else name, key, value, points, recipe.paper.get(key)))
        of_column = {name: recipe for name, recipe in found.items() if recipe.place.column == column}
        for name, (recipe, runs) in cells.baselines(of_column, scored).items():
            if value := cells.values(recipe, runs, keys).get(key):
                bars.append(Bar(f"baseline: {name}", key, value, _per_class(recipe, runs)))
    return bars


def _draw(axes: Axes, bars: list[Bar], title: str) -> None:
    classes = sorted({word for bar in bars for word in bar.points})
    colours = {word: f"C{number}" for number, word in enumerate(classes)} if len(classes) <= _MAX_COLOURS else {}
    for place, bar in enumerate(bars):
        axes.barh(place, bar.value.mean, color="#dddddd" if bar.is_baseline else "#c6dbef")
        if bar.value.spread is not None:
            axes.errorbar(bar.value.mean, place - 0.2, xerr=bar.value.spread, color="#333333", capsize=3)
        for word, number in bar.points.items():  # below the line, so that both are visible
            axes.scatter(number, place + 0.15, s=16, color=colours.get(word, "#444444"), zorder=3, alpha=0.8)
        if bar.paper is not None:
            axes.scatter(bar.paper, place, s=40, color="#d62728", marker="D", zorder=4)
    for word, colour in colours.items():
        axes.scatter([], [], s=16, color=colour, label=word)
    if colours:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    legend = [f"bar: {bars[0].key}", "points: its classes"]
    if any(bar.value.spread is not None for bar in bars):
        legend.append("line: ± standard deviation over seeds")
    if any(bar.paper is not None for bar in bars):
        legend.append("red: paper")
    axes.set_xlabel(f"IoU in percent ({', '.join(legend)})")
    axes.set_title(title)


def _per_class(recipe: Recipe, runs: Runs) -> dict[str, float]:
    """Each counted class's mean over seeds."""
    numbers: dict[str, list[float]] = {}
    for run in runs.values():
        for word, score in run.counted(recipe.protocol.least).items():
            numbers.setdefault(word, []).append(score.iou)
    return {word: statistics.fmean(values) for word, values in numbers.items()}
