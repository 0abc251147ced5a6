"""What memory a session needs, by picture and words: peaks of resident memory, each case in a process of its own.

  python -m benchmarks.memory                                       # the table of docs/operating.md, some minutes
  python -m benchmarks.memory --json docs/records/memory.jsonl      # and a JSON line per case
  python -m benchmarks.memory --sizes 512x512 --words 20 --calls 0  # one case alone
  python -m benchmarks.memory --from docs/records/memory.jsonl      # the table of a record

A case opens a session and segments one JPEG; then it draws the overlay, makes the COCO annotations and asks for the
probabilities, while the result is kept. Each step's peak is the process's, libraries and picture included. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import FusionerError, UsageError

SIZES = [(512, 512), (1080, 1920), (3000, 4000), (6000, 8000), (10000, 10000)]
WORDS = [1, 20, 200]
STEPS = ("open", "segment", "overlay", "to_coco", "probabilities")
WARM = 20
"""Calls before those of the slope: the allocator and the caches are filled by then."""

PHOTOGRAPH = machine.ROOT / "docs/pictures/astronaut.jpg"
NAMES = ("person", "helmet", "flag", "rocket")


class MeasurementFailed(FusionerError):
    """The process of a case ended with an error."""

    exit_code = 123
    is_input = False


def words(count: int) -> list[str]:
    return [*NAMES, *(f"thing {number}" for number in range(count))][:count]


def steps(job: Row) -> Row:
    """Peaks in bytes after each step. Probabilities that a call refuses are None."""
    peaks: Row = {}

    def peak(step: str, call: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        value = call()
        peaks[step] = machine.peak_resident()
        return value

    def opened() -> Session:
        session = Session(job["bundle"], "onnxruntime-cpu", cache=job["cache"])
        session.set_vocabulary(words(job["words"]))
        return session

    session = peak("open", opened)
    result = peak("segment", lambda: session.segment(job["picture"]))
    peak("overlay", result.overlay)
    peak("to_coco", lambda: result.to_coco(compressed=True))
    try:
        peak("probabilities", lambda: session.segment(job["picture"], probabilities=True))
    except UsageError:  # over 4 GB
        peaks["probabilities"] = None
    return {"peak_bytes": peaks}


def encoding(job: Row) -> Row:
    """The peak of a session that encodes words, none of which is cached."""
    with Session(job["bundle"], "onnxruntime-cpu", cache=job["cache"]) as session:
        session.set_vocabulary(words(job["words"]))
    return {"peak_bytes": {"words": machine.peak_resident()}}


def slope(job: Row) -> Row:
    """Bytes that resident memory grows by a call, by a line through all of them."""
    resident = []
    with Session(job["bundle"], "onnxruntime-cpu", cache=job["cache"]) as session:
        for _ in range(WARM + job["calls"]):
            session.segment(job["picture"], words(job["words"])).overlay()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return {"bytes_a_call": round(float(np.polyfit(np.arange(job["calls"]), resident[WARM:], 1)[0]))}


def cases(given: argparse.Namespace, folder: Path) -> Iterator[list[Row]]:
    """Every case's row. Raises MeasurementFailed."""
    told = machine.record("numpy", "onnxruntime")

    def measured(case: str, **job: Any) -> list[Row]:
        script = f"import json, sys; from benchmarks.memory import {case}; print(json.dumps({case}(json.loads(sys.argv[1]))))"
        job = {"bundle": str(given.engine), "cache": str(folder / "words"), **job}
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(job)], cwd=machine.ROOT, capture_output=True, text=True
        )
        if done.returncode:
            *_, last = ["no reason given", *done.stderr.splitlines()]
            raise MeasurementFailed(f"{case} of {job} ended with {done.returncode}: {last[:300]}")
        kept = {name: job[name] for name in ("size", "words", "calls") if name in job}
        return [{"what": "memory", "case": case, **kept, **json.loads(done.stdout.splitlines()[-1]), **told}]

    yield measured("encoding", words=max(given.words))
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    for height, width in given.sizes:
        picture = folder / f"{height}x{width}.jpg"
        photograph.resize((width, height)).save(picture)
        for count in given.words:
            yield measured("steps", size=[height, width], words=count, picture=str(picture))
        picture.unlink()
    if given.calls:
        photograph.resize((512, 512)).save(picture := folder / "slope.jpg")
        yield measured(
            "slope", size=[512, 512], words=min(20, max(given.words)), calls=given.calls, picture=str(picture)
        )


def table(rows: list[Row]) -> str:
    """Markdown, in MB of 10⁶ bytes."""
    lines = [
        "| picture | words | session, words cached | `segment` | `overlay` | `to_coco` | with `probabilities` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["case"] == "steps":
            height, width = row["size"]
            peaks = [row["peak_bytes"][step] for step in STEPS]
            told = " | ".join("refused, over 4 GB" if peak is None else _megabytes(peak) for peak in peaks)
            lines.append(f"| {width}×{height} | {row['words']} | {told} |")
    for row in rows:
        if row["case"] == "encoding":
            lines += [
                "",
                f"Encoding {row['words']} words that are not cached: {_megabytes(row['peak_bytes']['words'])} MB.",
            ]
        if row["case"] == "slope":
            lines += [
                "",
                f"Over {row['calls']} calls with overlays, after {WARM} others: {row['bytes_a_call'] / 1000:.1f} kB more a call.",
            ]
    return "\n".join(lines)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}"


def sizes(text: str) -> list[tuple[int, int]]:
    """HxW,HxW."""
    pairs = [[command.count(edge) for edge in part.split("x")] for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of HxW")
    return [(pair[0], pair[1]) for pair in pairs]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                        help="engine bundle (the demonstration's)")  # fmt: skip
    parser.add_argument("--sizes", type=sizes, default=SIZES, metavar="HxW,HxW", help="of the pictures")
    parser.add_argument("--words", type=command.counts, default=WORDS, metavar="N,N", help="how many (1,20,200)")
    parser.add_argument("--calls", type=command.whole, default=200, metavar="N", help="of the slope, 0 for none (200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line per case")
    parser.add_argument(
        "--from", dest="record", type=Path, metavar="FILE", help="measure nothing, print a record's table"
    )
    given = parser.parse_args(arguments)
    return command.exit_status("memory.py", lambda: run(given))


def run(given: argparse.Namespace) -> int:
    """Raises FusionerError."""
    if given.record:
        print(table(command.read(given.record, "memory")))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(table(command.collect(cases(given, Path(folder)), given.json, table)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
