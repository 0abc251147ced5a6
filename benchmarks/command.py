"""What the benchmarks' commands share: option values, the record of rows, its drawings, and how a command ends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusioner_rt.atomic_files import write_result
from fusioner_rt.command_end import run_command
from fusioner_rt.errors import UsageError

Row = dict[str, Any]
BAR = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def names(*known: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        if unknown := [part for part in text.split(",") if part not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return text.split(",")

    return parse


def fill(given: argparse.Namespace, suite: Mapping[str, Any]) -> None:
    """Sets the options that were not given to the suite's values."""
    for option, value in suite.items():
        if getattr(given, option) is None:
            setattr(given, option, value)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Those of `tell`."""
    parser.add_argument("--busy", action="store_true", help="measure beside other work, and have every row say so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line per case")
    parser.add_argument(
        "--from", dest="record", type=Path, metavar="FILE", help="measure nothing, print a record's table"
    )


def tell(
    given: argparse.Namespace,
    what: str,
    cases: Callable[[argparse.Namespace], Iterator[list[Row]]],
    table: Callable[[list[Row]], str],
) -> int:
    """Print the table of a record, or of what is measured now. what: the record's kind of rows. Raises FusionerError."""
    print(table(read(given.record, what) if given.record else collect(cases(given), given.json, table)))
    return 0


def exit_status(script: str, run: Callable[[], int], left: str = "the rows of the cells finished so far stand") -> int:
    """Runs a command. An error or an interrupt becomes one line and a status. left: what an interrupt leaves."""
    return run_command(f"benchmarks/{script}", run, left)


def skip_too_large(rows: Iterable[Row], gigabytes: float) -> None:
    """Marks rows that need more memory than is allowed."""
    for row in rows:
        if row["needs_bytes"] > gigabytes * 1e9:
            row["skipped"] = f"needs {row['needs_bytes'] / 1e9:.1f} GB, {gigabytes:.1f} GB allowed"


def collect(cells: Iterator[list[Row]], file: Path | None, table: Callable[[list[Row]], str]) -> list[Row]:
    """Appends every finished cell's rows to `file` and returns all rows. An interrupt prints the table so far."""
    rows: list[Row] = []
    try:
        for cell in cells:
            rows += cell
            append(cell, file)
    except KeyboardInterrupt:
        print(table(rows))
        raise
    return rows


def append(rows: Iterable[Row], file: Path | None) -> None:
    if file:
        with file.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def read(file: Path, *kinds: str) -> list[Row]:
    """The rows whose "what" is one of `kinds`. Raises UsageError."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line]
        return [row for row in rows if row["what"] in kinds]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} is no record of this benchmark ({reason})", "--json writes one") from None


def check_drawable(rows: Sequence[Row]) -> None:
    """Raises UsageError where matplotlib or rows are missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        cure = "install it: pip install -c constraints.txt matplotlib"
        raise UsageError(f"matplotlib is missing ({error})", cure) from None
    if not rows:
        raise UsageError("no rows to draw", "measure some, or give a record with --from")


def logarithmic(panel: Any, ticks: Sequence[int]) -> None:
    """Gives a panel two logarithmic axes, with `ticks` alone on the horizontal one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(True, color="#e6e6e6", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def save(figure: Any, file: Path) -> None:
    """Raises OutputUnwritable."""
    write_result(file, lambda stream: figure.savefig(stream, dpi=150, format="png"))
