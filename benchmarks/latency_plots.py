"""Draws a record of benchmarks/latency.py: time by output size, by words, by channels, and by stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.latency_candidates import TITLES
from benchmarks.latency_models import MODELS
from fusioner_rt.errors import UsageError
from fusioner_rt.files import write_result

Row = dict[str, Any]

COLOURS = {
    "eager": "#8c8c8c", "eager-uncached": "#c4c4c4", "compile": "#5b8db8", "ort": "#7b9e6b", "openvino": "#c9a227",
    "openvino-bf16": "#e0cb83", "clipseg": "#8e6bb0", "kernels": "#4aa6a6", "ours": "#c2185b", "ours-words": "#e58aab",
    "ours-ort": "#f2996e", "ours-uncached": "#7d1140",
}  # fmt: skip
WIDTHS = ["#5b8db8", "#c9a227", "#7b9e6b", "#c2185b", "#8e6bb0", "#4aa6a6", "#8c8c8c", "#f2996e"]
STAGES = {
    "decode": "#efefef", "preprocess": "#d0d0d0", "text": "#8c8c8c", "image": "#5b8db8", "fusion": "#c9a227",
    "decoder": "#7b9e6b", "image_fusion": "#8e6bb0", "graph": "#b79fce", "mask_head": "#c2185b", "copy out": "#4aa6a6",
}  # fmt: skip
"""image_fusion: encoder, fusion and decoder in one. graph: these and the mask head in one."""
MIDDLE_WORDS = 20


def plot(rows: list[Row], file: Path) -> list[Path]:
    """Writes FILE and its siblings, and returns those for which the record has rows. Raises UsageError, OutputUnwritable."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"matplotlib is missing ({error})", "install it: pip install -c constraints.txt matplotlib"
        ) from None
    timed = [row for row in rows if row["what"] == "latency" and "p50_ms" in row]
    if not timed:
        raise UsageError("no rows to draw", "measure some, or give a record with --from")
    written = []
    drawings: list[tuple[str, Callable[[Any, list[Row]], bool]]] = [
        ("", by_output), ("-words", by_words), ("-channels", by_channels), ("-stages", by_stage),
    ]  # fmt: skip
    for suffix, draw in drawings:
        figure = Figure(layout="constrained")
        if not draw(figure, timed):
            continue
        first = timed[0]
        busy = ", busy machine" if any(row["busy"] for row in timed) else ""
        figure.suptitle(
            f"{figure.get_suptitle()}\n{first['processor']}, {first['threads']} threads, {first['date']}, {first['commit']}{busy}",
            fontsize=9,
        )
        place = file.with_name(f"{file.stem}{suffix}{file.suffix or '.png'}")
        write_result(place, lambda stream, one=figure: one.savefig(stream, dpi=150, format="png"))  # type: ignore[misc]
        written.append(place)
    return written


def middle(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_output(figure: Any, rows: list[Row]) -> bool:
    """A column for each model: milliseconds against the label map's edge, at 20 words and one picture."""
    rows = [row for row in rows if row["batch"] == 1 and row["words"] == words_most_used(rows)]
    models = list(dict.fromkeys((row["model"], row["precision"]) for row in rows))
    if not models:
        return False
    figure.set_size_inches(1.6 + 3.2 * len(models), 4.4)
    figure.suptitle(f"A picture to its label map, {words_most_used(rows)} words")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    sizes = sorted({row["output"] for row in rows})
    for panel, (model, precision) in zip(panels, models, strict=True):
        lines(panel, middle(rows, model=model, precision=precision), "output", sizes)
        panel.set_title(f"{MODELS[model].title}, {precision}", fontsize=10)
        panel.set_xlabel("edge of the label map, pixels")
    panels[0].set_ylabel("ms a picture, median")
    legend(figure, panels)
    return True


def by_words(figure: Any, rows: list[Row]) -> bool:
    """A column for each model and size at which several numbers of words were measured."""
    rows = [row for row in rows if row["batch"] == 1]
    kinds = list(dict.fromkeys((row["model"], row["precision"], row["output"]) for row in rows))
    kinds = [kind for kind in kinds if len({row["words"] for row in rows if of(row) == kind}) > 1]
    if not kinds:
        return False
    across = min(4, len(kinds))
    down = -(-len(kinds) // across)
    figure.set_size_inches(1.6 + 3.2 * across, 1.6 + 2.9 * down)
    figure.suptitle("A picture to its label map, by words")
    panels = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    counts = sorted({row["words"] for row in rows})
    for panel, kind in zip(panels, kinds, strict=False):
        lines(panel, [row for row in rows if of(row) == kind], "words", counts)
        panel.set_title(f"{MODELS[kind[0]].title}, {kind[1]}, {kind[2]}²", fontsize=9)
        panel.set_xlabel("words")
    for panel in panels[len(kinds) :]:
        panel.set_axis_off()
    panels[0].set_ylabel("ms a picture, median")
    legend(figure, panels[: len(kinds)])
    return True


def of(row: Row) -> tuple[str, str, int]:
    return row["model"], row["precision"], row["output"]


def by_channels(figure: Any, rows: list[Row]) -> bool:
    """The mask head's time and the whole call's against the label map's edge, a line for each model and precision: ours, naive."""
    words = words_most_used(rows)
    rows = [
        row for row in rows if row["batch"] == 1 and row["words"] == words and row["candidate"] in ("eager", "ours")
    ]
    kinds = sorted(
        {(row["model"], row["precision"]) for row in rows}, key=lambda kind: (list(MODELS).index(kind[0]), kind[1])
    )
    kinds = [
        (model, precision)
        for model, precision in kinds
        if len({row["output"] for row in middle(rows, model=model, precision=precision)}) > 1
    ]
    if not kinds:
        return False
    figure.set_size_inches(9.6, 4.4)
    figure.suptitle(f"Ours (whole lines) and the naive form in PyTorch (broken), {words} words")
    panels = figure.subplots(1, 2, sharex=True)
    for index, (model, precision) in enumerate(kinds):
        colour = WIDTHS[index % len(WIDTHS)]
        for name, style in (("ours", "-"), ("eager", "--")):
            line = sorted(middle(rows, model=model, precision=precision, candidate=name), key=lambda row: row["output"])
            label = f"{MODELS[model].title}, {precision}{'' if name == 'ours' else ', naive'}"
            for panel, value in zip(panels, (mask_head_ms, lambda row: row["p50_ms"]), strict=True):
                told = [(row["output"], value(row)) for row in line if value(row)]
                if told:
                    panel.plot(*zip(*told, strict=True), style, color=colour, marker="o", markersize=4, label=label)
    panels[0].set_title("mask head alone", fontsize=10)
    panels[1].set_title("whole call", fontsize=10)
    for panel in panels:
        logarithmic(panel, sorted({row["output"] for row in rows}))
        panel.set_xlabel("edge of the label map, pixels")
    panels[0].set_ylabel("ms, median")
    legend(figure, panels)
    return True


def mask_head_ms(row: Row) -> float:
    return float(row["stages_p50_ms"].get("mask_head", 0.0))


def by_stage(figure: Any, rows: list[Row]) -> bool:
    """Bars of what a call's stages take, at the least and the 1024² label map."""
    words = words_most_used(rows)
    rows = [row for row in rows if row["batch"] == 1 and row["words"] == words and row["candidate"] != "eager-uncached"]
    sizes = sorted({row["output"] for row in rows})
    if not sizes:
        return False
    shown = sorted({sizes[0], max([size for size in sizes if size <= 1024] or sizes[:1])})
    models = list(dict.fromkeys((row["model"], row["precision"]) for row in rows))
    seen = {stage for row in rows for stage, ms in row["stages_p50_ms"].items() if ms > 0.005 * row["p50_ms"]}
    colours = {stage: colour for stage, colour in STAGES.items() if stage in seen}
    figure.set_size_inches(2.2 + 4.4 * len(shown), 1.4 + 1.9 * len(models))
    figure.suptitle(f"Stages of a call, {words} words")
    panels = figure.subplots(len(models), len(shown), squeeze=False)
    for (model, precision), across in zip(models, panels, strict=True):
        for size, panel in zip(shown, across, strict=True):
            cell = {row["candidate"]: row for row in middle(rows, model=model, precision=precision, output=size)}
            order = [name for name in reversed(TITLES) if name in cell]
            if not order:
                panel.set_axis_off()
                continue
            for place, name in enumerate(order):
                left = 0.0
                for stage, ms in cell[name]["stages_p50_ms"].items():
                    panel.barh(place, ms, left=left, color=colours.get(stage, "black"), height=0.7)
                    left += ms
            panel.set_yticks(range(len(order)), [TITLES[name] for name in order], fontsize=7)
            panel.set_title(f"{MODELS[model].title}, {precision}, {size}²", fontsize=9)
            panel.tick_params(axis="x", labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("ms, median")
    handles = [panels[0, 0].barh(0, 0, color=colour) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return True


def words_most_used(rows: list[Row]) -> int:
    counts = [row["words"] for row in rows]
    return MIDDLE_WORDS if MIDDLE_WORDS in counts else max(counts, key=counts.count)


def lines(panel: Any, rows: list[Row], axis: str, ticks: list[int]) -> None:
    for name in TITLES:
        line = sorted(middle(rows, candidate=name), key=lambda row: row[axis])
        if line:
            wide = 2.6 if name == "ours" else 1.4
            panel.plot([row[axis] for row in line], [row["p50_ms"] for row in line], color=COLOURS[name], linewidth=wide,
                       marker="o", markersize=4, label=TITLES[name], zorder=3 if name == "ours" else 2)  # fmt: skip
    logarithmic(panel, ticks)


def logarithmic(panel: Any, ticks: list[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(True, color="#e6e6e6", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def legend(figure: Any, panels: Any) -> None:
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=max(2, int(figure.get_figwidth() / 2.4)),
        frameon=False,
        fontsize=8,
    )
