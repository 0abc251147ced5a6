"""What a record of benchmarks/mask_head.py says: a table, a plot, and whether ours is as much faster as it is to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.command import Row
from benchmarks.mask_head_candidates import TITLES

HEADER = (
    "maps    size   d   K    candidate               p20      p50      p80 ms  cpu ms    peak MB  moved  "
    "error max     mean  labels otherwise"
)
SPEEDUPS = {
    "cpu": [("naive", 1024, 10.0), ("naive", 512, 3.0), ("compile", 1024, 0.0), ("compile", 512, 0.0)],
    "cuda": [("compile", 1024, 10.0), ("naive", 1024, 0.0)],
}
"""Against whom, at which size and by how much at least, with d = 512 and K = 20; 0 is told and not asked for."""
OVER_FLOOR = 1.5
"""On a GPU stage 2 takes at most this many times what a copy of its bytes takes, at 2048² and K = 20."""


def table(rows: list[Row]) -> str:
    """moved: bytes the algorithm moves over those it must."""
    lines = [HEADER]
    for row in rows:
        line = f"{row['maps']:7} {row['size']:4} {row['channels']:3} {row['words']:3}  {TITLES[row['candidate']]:21}  "
        if "skipped" in row:
            lines.append(line + row["skipped"])
            continue
        line += f"{row['p20_ms']:8.1f} {row['p50_ms']:8.1f} {row['p80_ms']:8.1f} {row['processor_p50_ms']:10.1f} "
        line += f"{row['peak_bytes'] / 1e6:10.0f} {row['bytes_moved'] / row['bytes_must']:5.0f}×  "
        line += f"{row['error_max']:8.1e} {row['error_mean']:8.1e}  {row['labels_otherwise']:8.3%}"
        lines.append(line + ("  (busy machine)" if row["busy"] else ""))
    return "\n".join(lines)


def speedups(rows: list[Row]) -> tuple[list[str], bool]:
    """What is asked of ours, a line each, and whether all of it was measured and met."""
    lines, met = [], True
    timed = {(row["maps"], row["size"], row["candidate"]): row for row in rows
             if (row["channels"], row["words"]) == (512, 20) and "p50_ms" in row}  # fmt: skip
    kinds = sorted({maps for maps, _, _ in timed}) or ["any"]
    device = rows[0]["device"] if rows else "cpu"
    for other, size, least in SPEEDUPS[device]:
        for maps in kinds:
            pair = timed.get((maps, size, "ours")), timed.get((maps, size, other))
            wanted = f", at least {least:g}× asked for" if least else ""
            what = f"ours against {TITLES[other]}, {maps} maps, {size}², d=512, K=20: "
            if not all(pair):
                lines.append(f"{what}not measured{wanted}")
                met &= not least
                continue
            ratio = pair[1]["p50_ms"] / pair[0]["p50_ms"]  # type: ignore[index]
            lines.append(f"{what}{ratio:.1f}×{wanted}")
            met &= ratio >= least
    for maps in kinds if device == "cuda" else []:
        row = timed.get((maps, 2048, "ours"), {})
        lines.append(f"stage 2 over a copy of its bytes, {maps} maps, 2048², K=20: {row.get('over_floor', 'not measured')}, "
                     f"at most {OVER_FLOOR} asked for")  # fmt: skip
        met &= row.get("over_floor", float("inf")) <= OVER_FLOOR
    return lines, met


COLOURS = {"naive": "#8c8c8c", "compile": "#5b8db8", "lowres": "#c9a227", "onnx": "#7b9e6b", "ours": "#c2185b"}


def plot(rows: list[Row], file: Path) -> None:
    """Time and peak memory against the output's edge, a column for each K. Hollow: not run, the memory it needs.

    Of several d the one in most rows is drawn. What does not depend on the maps is drawn once; ours is drawn for both.
    Raises UsageError, OutputUnwritable.
    """
    command.check_drawable(rows)
    from matplotlib.figure import Figure

    channels = max({row["channels"] for row in rows}, key=[row["channels"] for row in rows].count)
    cells = {
        (row["candidate"], row["words"], row["maps"], row["size"]): row for row in rows if row["channels"] == channels
    }
    rows = sorted(cells.values(), key=lambda row: row["size"])  # of a cell measured twice, the later row
    words = sorted({row["words"] for row in rows})
    edges = sorted({row["size"] for row in rows})
    figure = Figure(figsize=(2.2 + 3.1 * len(words), 6.6), layout="constrained")
    axes = figure.subplots(2, len(words), sharex=True, sharey="row", squeeze=False)
    for column, k in enumerate(words):
        time, memory = axes[:, column]
        draw_lines(time, memory, rows, k)
        time.set_title("1 word" if k == 1 else f"{k} words", fontsize=10)
        memory.set_xlabel("edge of the output, pixels")
        for panel in (time, memory):
            command.logarithmic(panel, edges)
    axes[0, 0].set_ylabel("ms a label map, median")
    axes[1, 0].set_ylabel("MB at the peak, above the inputs")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: not labels[index].startswith("ours"))
    figure.legend([handles[index] for index in order], [labels[index] for index in order], loc="outside lower center",
                  ncols=6 if len(words) > 2 else 3, frameon=False, fontsize=9)  # fmt: skip
    first = rows[0]
    where = first.get("gpu") or f"{first['machine']}, {first['threads']} threads"
    figure.suptitle(
        f"Features of {first['low']}² × {channels} to a label map. {where}, {first['dtype']}, {first['date']}, "
        f"{first['commit']}" + (", busy machine" if any(row["busy"] for row in rows) else "") +
        "\nHollow: not run, the memory it needs", fontsize=9,
    )  # fmt: skip
    command.save(figure, file)


def draw_lines(time: Any, memory: Any, rows: list[Row], k: int) -> None:
    """The candidates' lines for K words, in the panel of times and in that of memory."""
    kinds = sorted({row["maps"] for row in rows}, reverse=True)  # smooth first
    for name, colour in COLOURS.items():
        for kind in kinds if name == "ours" else kinds[:1]:
            line = [row for row in rows if (row["candidate"], row["words"], row["maps"]) == (name, k, kind)]
            ran, skipped = ([row for row in line if ("skipped" in row) == wanted] for wanted in (False, True))
            label = f"ours, {kind} maps" if name == "ours" and len(kinds) > 1 else TITLES[name]
            label += " (approximate)" if name == "lowres" else ""
            style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2.6 if name == "ours" else 1.4,
                     "linestyle": "-" if kind == kinds[0] else "--", "zorder": 3 if name == "ours" else 2}  # fmt: skip
            edges = [row["size"] for row in ran]
            time.plot(edges, [row["p50_ms"] for row in ran], label=label, **style)
            memory.plot(edges, [max(row["peak_bytes"], 1e6) / 1e6 for row in ran], label=label, **style)
            joined = ran[-1:] + skipped  # a dotted line goes on from the last that ran
            megabytes = [row["peak_bytes" if row in ran else "needs_bytes"] / 1e6 for row in joined]
            hollow = {**style, "linestyle": ":", "markerfacecolor": "white", "linewidth": 1.0, "alpha": 0.7}
            memory.plot(
                [row["size"] for row in joined], megabytes, markevery=range(len(ran[-1:]), len(joined)), **hollow
            )
