"""What a record of benchmarks/latency.py says: tables, a gate on how much faster ours is, and drawings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.command import Row
from benchmarks.latency_candidates import TITLES
from benchmarks.latency_models import MODELS

ROOT = Path(__file__).resolve().parents[1]
GATE = ROOT / "docs/records/latency_gate.json"
MARGIN = 0.6
"""What the gate asks of a measured ratio: shared cores and other processors give others."""
MIN_CALLS_FOR_P99 = 20
"""The 99th percentile of fewer calls says nothing."""
CELL = ("model", "precision", "picture", "output", "words", "batch", "device")
MIDDLE_WORDS = 20

COLOURS = {
    "eager": "#8c8c8c", "eager-uncached": "#c4c4c4", "compile": "#5b8db8", "ort": "#7b9e6b", "openvino": "#c9a227",
    "openvino-bf16": "#e0cb83", "ort-scores": "#3f6b2e", "openvino-scores": "#7d5f00",
    "clipseg": "#8e6bb0", "kernels": "#4aa6a6", "ours": "#c2185b", "ours-words": "#e58aab",
    "ours-ort": "#f2996e", "ours-uncached": "#7d1140",
}  # fmt: skip
MODEL_COLOURS = ["#5b8db8", "#c9a227", "#7b9e6b", "#c2185b", "#8e6bb0", "#4aa6a6", "#8c8c8c", "#f2996e"]
STAGES = {
    "decode": "#efefef", "preprocess": "#d0d0d0", "text": "#8c8c8c", "image": "#5b8db8", "fusion": "#c9a227",
    "decoder": "#7b9e6b", "image_fusion": "#8e6bb0", "graph": "#b79fce", "mask_head": "#c2185b", "copy out": "#4aa6a6",
}  # fmt: skip
"""image_fusion is encoder, fusion and decoder in one; graph is these and the mask head in one."""


def grouped(rows: list[Row], *axes: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values on these axes, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    return found


def described(cell: tuple[Any, ...]) -> str:
    """As the gate's file names it: `vits fp32, 1024² from 1024², 20 words, batch 1`."""
    model, precision, picture, output, words, batch, device = cell
    where = "" if device == "cpu" else f", {device}"
    return f"{model} {precision}, {output}² from {picture}², {words} word{'s' * (words > 1)}, batch {batch}{where}"


def table(rows: list[Row]) -> str:
    """Markdown: a table for each cell, and one of the cold starts."""
    lines: list[str] = []
    for cell, of_cell in grouped(matching(rows, what="latency"), *CELL).items():
        lines += cell_table(cell, of_cell)
    if colds := matching(rows, what="cold"):
        lines += cold_table(colds)
    return "\n".join(lines).strip() + "\n"


def cell_table(cell: tuple[Any, ...], rows: list[Row]) -> list[str]:
    """× ours: how many times our median. n: timed calls."""
    found = {row["candidate"]: row for row in rows}  # of a candidate measured in several runs the last one stands
    ours = found.get("ours", {}).get("p50_ms")
    lines = [
        "", f"**{MODELS[cell[0]].title}** ({described(cell)})", "",
        "| candidate | n | p20 | p50 | p90 | p99 ms | × ours | cpu ms | pictures/s | first ms | peak MB | labels agree | error |",
        "|---|" + "--:|" * 12,
    ]  # fmt: skip
    for name in [name for name in TITLES if name in found]:
        row = found[name]
        if "skipped" in row:
            lines.append(f"| {TITLES[name]} | {row['skipped'].replace('|', '/')} |" + " |" * 11)
            continue
        p99 = f"{row['p99_ms']:.1f}" if row["repeats"] >= MIN_CALLS_FOR_P99 else ""
        times_ours = f"{row['p50_ms'] / ours:.2f}" if ours else ""
        memory = f"{row['peak_bytes'] / 1e6:.0f}"
        if row.get("device_bytes") is not None:
            memory += f" + {row['device_bytes'] / 1e6:.0f} on the GPU"
        agree = f"{row['labels_agree']:.2%}" if "labels_agree" in row else "another model"
        error = f"{row['error_max']:.0e}" if "error_max" in row else ""
        lines.append(
            f"| {TITLES[name]}{remarks(row)} | {row['repeats']} | {row['p20_ms']:.1f} | **{row['p50_ms']:.1f}** | "
            f"{row['p90_ms']:.1f} | {p99} | {times_ours} | {row['processor_p50_ms']:.0f} | "
            f"{row['pictures_per_s']:.2f} | {row['first_ms']:.0f} | {memory} | {agree} | {error} |"
        )
    return lines


def remarks(row: Row) -> str:
    """What a reader has to know before comparing. apart: it took no turns with ours, for want of memory."""
    said = [word for word, true in (("busy machine", row["busy"]), ("apart", not row["interleaved"])) if true]
    return f" ({', '.join(said)})" if said else ""


def cold_table(rows: list[Row]) -> list[str]:
    lines = [
        "", "**Cold start, two words, files read before**", "",
        "| model | candidate | process to mask, ms | import to mask, ms | peak MB | model MB | installed MB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        start = f"| {row['model']} {row['precision']} | {TITLES[row['candidate']]} | "
        if "skipped" in row:
            lines.append(start + row["skipped"].replace("|", "/") + " | | | | |")
            continue
        installed = f"{row['installed_bytes'] / 1e6:.0f}" if row["installed_bytes"] else "?"
        lines.append(
            f"{start}{row['process_p50_ms']} | {row['import_p50_ms']} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row['bytes_on_disk'] / 1e6:.0f} | {installed} |"
        )
    return lines


def ratios(rows: list[Row]) -> dict[str, float]:
    """Eager's median over ours, by cell as the gate names it."""
    found = {}
    for cell, of_cell in grouped(timed_calls(rows), *CELL).items():
        ms = {row["candidate"]: row["p50_ms"] for row in of_cell}
        if "eager" in ms and "ours" in ms:
            found[described(cell)] = ms["eager"] / ms["ours"]
    return found


def stored(rows: list[Row]) -> Row:
    """What docs/records/latency_gate.json is to hold after these rows: `MARGIN` of each ratio."""
    say = (
        "Least ratios of PyTorch eager's median to ours, both measured in one run of `python benchmarks/latency.py --suite "
        f"smoke --gate`. Cores of continuous integration are shared, and of other kinds than those of the run that these "
        f"come from: each is {MARGIN} of what that measured. `--suite smoke --store-gate` on an idle machine writes them."
    )
    run = {name: rows[0][name] for name in ("processor", "threads", "commit", "date", "busy") if name in rows[0]}
    return {"what": say, "from": run, "least": {cell: round(MARGIN * ratio, 2) for cell, ratio in ratios(rows).items()}}


def gate(rows: list[Row], stored: Row) -> tuple[list[str], bool]:
    """A line for each stored cell, and whether all were measured and met. stored: docs/records/latency_gate.json."""
    lines, passed = [], True
    measured = ratios(rows)
    for cell, least in stored["least"].items():
        ratio = measured.get(cell)
        met = ratio is not None and ratio >= least
        found = "not measured" if ratio is None else f"{ratio:.2f}×"
        lines.append(f"{'ok  ' if met else 'FAIL'} eager over ours, {cell}: {found}, at least {least:g}×")
        passed &= met
    return lines, passed


def plot(rows: list[Row], file: Path) -> None:
    """Writes FILE and those of its siblings for which there are rows. Raises UsageError, OutputUnwritable."""
    timed = timed_calls(rows)
    command.check_drawable(timed)
    from matplotlib.figure import Figure

    first = timed[0]
    busy = ", busy machine" if any(row["busy"] for row in timed) else ""
    where = f"{first['processor']}, {first['threads']} threads, {first['date']}, {first['commit']}{busy}"
    drawings: dict[str, Callable[[Any, list[Row]], bool]] = {
        "": by_output, "-words": by_words, "-channels": by_channels, "-stages": by_stage,
    }  # fmt: skip
    for suffix, draw in drawings.items():
        figure = Figure(layout="constrained")
        if draw(figure, timed):
            figure.suptitle(f"{figure.get_suptitle()}\n{where}", fontsize=9)
            command.save(figure, file.with_name(f"{file.stem}{suffix}{file.suffix or '.png'}"))


def by_output(figure: Any, rows: list[Row]) -> bool:
    """A panel for each model: milliseconds against the label map's edge, at 20 words and one picture."""
    words = words_most_used(rows)
    kinds = grouped(matching(rows, batch=1, words=words), "model", "precision")
    if not kinds:
        return False
    figure.set_size_inches(1.6 + 3.2 * len(kinds), 4.4)
    figure.suptitle(f"A picture to its label map, {words} words")
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    draw_kinds(figure, panels, kinds, "output", "edge of the label map, pixels", 10)
    return True


def by_words(figure: Any, rows: list[Row]) -> bool:
    """A panel for each model and size at which several numbers of words were measured."""
    kinds = grouped(matching(rows, batch=1), "model", "precision", "output")
    several = {kind: of_kind for kind, of_kind in kinds.items() if len(values(of_kind, "words")) > 1}
    if not several:
        return False
    across = min(4, len(several))
    down = -(-len(several) // across)
    figure.set_size_inches(1.6 + 3.2 * across, 1.6 + 2.9 * down)
    figure.suptitle("A picture to its label map, by words")
    panels = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    draw_kinds(figure, panels, several, "words", "words", 9)
    for panel in panels[len(several) :]:
        panel.set_axis_off()
    return True


def draw_kinds(figure: Any, panels: Any, kinds: dict[Any, list[Row]], axis: str, label: str, fontsize: int) -> None:
    """A panel for each kind (model, precision, output where it differs): a line for each candidate."""
    ticks = sorted({row[axis] for rows in kinds.values() for row in rows})
    for panel, (kind, rows) in zip(panels, kinds.items(), strict=False):
        for name in TITLES:
            line = sorted(matching(rows, candidate=name), key=lambda row: row[axis])
            if line:
                wide, order = (2.6, 3) if name == "ours" else (1.4, 2)
                panel.plot([row[axis] for row in line], [row["p50_ms"] for row in line], color=COLOURS[name],
                           linewidth=wide, marker="o", markersize=4, label=TITLES[name], zorder=order)  # fmt: skip
        logarithmic(panel, ticks)
        panel.set_title(title(*kind), fontsize=fontsize)
        panel.set_xlabel(label)
    panels[0].set_ylabel("ms a picture, median")
    legend(figure, panels[: len(kinds)])


def title(model: str, precision: str, output: int | None = None) -> str:
    return f"{MODELS[model].title}, {precision}" + (f", {output}²" if output else "")


def by_channels(figure: Any, rows: list[Row]) -> bool:
    """The mask head's time and the whole call's against the label map's edge, of ours and of PyTorch eager."""
    words = words_most_used(rows)
    rows = [row for row in matching(rows, batch=1, words=words) if row["candidate"] in ("eager", "ours")]
    kinds = {kind: of_kind for kind, of_kind in grouped(rows, "model", "precision").items()
             if len(values(of_kind, "output")) > 1}  # fmt: skip
    if not kinds:
        return False
    figure.set_size_inches(9.6, 4.4)
    figure.suptitle(f"Ours (whole lines) and the naive form in PyTorch (broken), {words} words")
    head, call = panels = figure.subplots(1, 2, sharex=True)
    order = sorted(kinds, key=lambda kind: (list(MODELS).index(kind[0]), kind[1]))
    for kind, colour in zip(order, itertools.cycle(MODEL_COLOURS), strict=False):
        for name, style in (("ours", "-"), ("eager", "--")):
            line = matching(kinds[kind], candidate=name)
            heads = {row["output"]: row["stages_p50_ms"].get("mask_head", 0.0) for row in line}
            calls = {row["output"]: row["p50_ms"] for row in line}
            label = title(*kind) + ("" if name == "ours" else ", naive")
            for panel, told in ((head, heads), (call, calls)):
                points = sorted((output, ms) for output, ms in told.items() if ms)
                if points:
                    panel.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=label)
    head.set_title("mask head alone", fontsize=10)
    call.set_title("whole call", fontsize=10)
    head.set_ylabel("ms, median")
    for panel in panels:
        logarithmic(panel, values(rows, "output"))
        panel.set_xlabel("edge of the label map, pixels")
    legend(figure, panels)
    return True


def by_stage(figure: Any, rows: list[Row]) -> bool:
    """Bars of what a call's stages take, at the smallest and the 1024² label map."""
    words = words_most_used(rows)
    rows = [row for row in matching(rows, batch=1, words=words) if row["candidate"] != "eager-uncached"]
    sizes = values(rows, "output")
    if not sizes:
        return False
    shown = sorted({sizes[0], max([size for size in sizes if size <= 1024] or sizes[:1])})
    models = grouped(rows, "model", "precision")
    seen = {stage for row in rows for stage, ms in row["stages_p50_ms"].items() if ms > 0.005 * row["p50_ms"]}
    colours = {stage: colour for stage, colour in STAGES.items() if stage in seen}
    figure.set_size_inches(2.2 + 4.4 * len(shown), 1.4 + 1.9 * len(models))
    figure.suptitle(f"Stages of a call, {words} words")
    panels = figure.subplots(len(models), len(shown), squeeze=False)
    for (kind, of_kind), across in zip(models.items(), panels, strict=True):
        for size, panel in zip(shown, across, strict=True):
            if cell := matching(of_kind, output=size):
                bars(panel, cell, colours)
                panel.set_title(title(*kind, size), fontsize=9)
            else:
                panel.set_axis_off()
    for panel in panels[-1]:
        panel.set_xlabel("ms, median")
    handles = [panels[0, 0].barh(0, 0, color=colour) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return True


def bars(panel: Any, rows: list[Row], colours: dict[str, str]) -> None:
    """A bar for each candidate, of its stages one after the other."""
    found = {row["candidate"]: row for row in rows}
    order = [name for name in reversed(TITLES) if name in found]
    for place, name in enumerate(order):
        left = 0.0
        for stage, ms in found[name]["stages_p50_ms"].items():
            panel.barh(place, ms, left=left, color=colours.get(stage, "black"), height=0.7)
            left += ms
    panel.set_yticks(range(len(order)), [TITLES[name] for name in order], fontsize=7)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def timed_calls(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["what"] == "latency" and "p50_ms" in row]


def matching(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def values(rows: list[Row], axis: str) -> list[int]:
    return sorted({row[axis] for row in rows})


def words_most_used(rows: list[Row]) -> int:
    counts = [row["words"] for row in rows]
    return MIDDLE_WORDS if MIDDLE_WORDS in counts else max(counts, key=counts.count)


def logarithmic(panel: Any, ticks: list[int]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    command.logarithmic(panel, ticks)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())


def legend(figure: Any, panels: Any) -> None:
    """One for all panels, each label once."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = max(2, int(figure.get_figwidth() / 2.4))
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )  # fmt: skip
