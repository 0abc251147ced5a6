"""What a record of benchmarks/latency.py says: a table, plots, and whether ours is still as much faster as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.latency_candidates import TITLES
from benchmarks.latency_models import MODELS
from fusioner_rt.errors import UsageError

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
GATE = ROOT / "docs/records/latency_gate.json"
MARGIN = 0.6
"""What the gate asks of a measured ratio: shared cores and other processors give others."""
TAIL = 20
CELL = ("model", "precision", "picture", "output", "words", "batch", "device")


def read(file: Path) -> list[Row]:
    """Raises UsageError."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line]
        return [row for row in rows if row["what"] in ("latency", "cold")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} is no record of this benchmark ({reason})", "--json writes one") from None


def cell_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def described(cell: tuple[Any, ...]) -> str:
    """As the gate's file names it: `vits fp32, 1024² from 1024², 20 words, batch 1`."""
    model, precision, picture, output, words, batch, device = cell
    where = "" if device == "cpu" else f", {device}"
    return f"{model} {precision}, {output}² from {picture}², {words} word{'s' * (words > 1)}, batch {batch}{where}"


def table(rows: list[Row]) -> str:
    """Markdown. over: how many times ours' median. n: timed calls; of fewer than `TAIL` the 99th percentile says nothing."""
    lines: list[str] = []
    latencies = [row for row in rows if row["what"] == "latency"]
    for cell in dict.fromkeys(cell_of(row) for row in latencies):
        # of a candidate measured in several runs the last one stands
        of_cell = {row["candidate"]: row for row in latencies if cell_of(row) == cell}
        ours = of_cell.get("ours", {}).get("p50_ms")
        lines += ["", f"**{MODELS[cell[0]].title}** ({described(cell)})", ""]
        lines.append(
            "| candidate | n | p20 | p50 | p90 | p99 ms | × ours | cpu ms | pictures/s | first ms | peak MB | labels agree | error |"
        )
        lines.append("|---|" + "--:|" * 12)
        for name in [name for name in TITLES if name in of_cell]:
            row = of_cell[name]
            if "skipped" in row:
                lines.append(f"| {TITLES[name]} | {row['skipped'].replace('|', '/')} |" + " |" * 11)
                continue
            memory = f"{row['peak_bytes'] / 1e6:.0f}"
            if row.get("device_bytes") is not None:
                memory += f" + {row['device_bytes'] / 1e6:.0f} on the GPU"
            over = f"{row['p50_ms'] / ours:.2f}" if ours else ""
            agree = f"{row['labels_agree']:.2%}" if "labels_agree" in row else "another model"
            tail = f"{row['p99_ms']:.1f}" if row["repeats"] >= TAIL else ""
            error = f"{row['error_max']:.0e}" if "error_max" in row else ""
            lines.append(
                f"| {TITLES[name]}{remarks(row)} | {row['repeats']} | {row['p20_ms']:.1f} | **{row['p50_ms']:.1f}** | "
                f"{row['p90_ms']:.1f} | {tail} | {over} | {row['processor_p50_ms']:.0f} | "
                f"{row['pictures_per_s']:.2f} | {row['first_ms']:.0f} | {memory} | {agree} | {error} |"
            )
    colds = [row for row in rows if row["what"] == "cold"]
    if colds:
        lines += ["", "**Cold start, two words, files read before**", ""]
        lines.append(
            "| model | candidate | process to mask, ms | import to mask, ms | peak MB | model MB | installed MB |"
        )
        lines.append("|---|---|--:|--:|--:|--:|--:|")
    for row in colds:
        start = f"| {row['model']} {row['precision']} | {TITLES[row['candidate']]} | "
        if "skipped" in row:
            lines.append(start + row["skipped"].replace("|", "/") + " | | | | |")
            continue
        installed = f"{row['installed_bytes'] / 1e6:.0f}" if row["installed_bytes"] else "?"
        lines.append(
            f"{start}{row['process_p50_ms']} | {row['import_p50_ms']} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row['bytes_on_disk'] / 1e6:.0f} | {installed} |"
        )
    return "\n".join(lines).strip() + "\n"


def remarks(row: Row) -> str:
    """What a reader has to know before comparing. apart: it took no turns with ours, for want of memory."""
    said = [word for word, true in (("busy machine", row["busy"]), ("apart", not row["interleaved"])) if true]
    return f" ({', '.join(said)})" if said else ""


def ratios(rows: list[Row]) -> dict[str, float]:
    """Eager's median over ours', by cell as the gate names it."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["what"] == "latency" and "p50_ms" in row:
            found.setdefault(cell_of(row), {})[row["candidate"]] = row["p50_ms"]
    return {
        described(cell): pair["eager"] / pair["ours"]
        for cell, pair in found.items()
        if "eager" in pair and "ours" in pair
    }


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
    lines, met = [], True
    measured = ratios(rows)
    for cell, least in stored["least"].items():
        ratio = measured.get(cell)
        met &= ratio is not None and ratio >= least
        said = "not measured" if ratio is None else f"{ratio:.2f}×"
        lines.append(
            f"{'ok  ' if ratio is not None and ratio >= least else 'FAIL'} eager over ours, {cell}: {said}, at least {least:g}×"
        )
    return lines, met
