"""How long a bundle takes on this machine: process start to first mask, and each stage once warm.

  python benchmarks/session.py                               # the demonstration bundle, 1, 20 and 150 words
  python benchmarks/session.py --engine engines/mine --json records.jsonl
  python benchmarks/session.py --list 64                     # lists of 64 pictures against one call after the other
  python benchmarks/session.py --engine engines/mine --backends tensorrt-rtx,onnxruntime-cuda,onnxruntime-cpu

Wall time beside processor time: on a shared machine the first tells of the neighbours too. One JSON line a row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import fusioner_rt
from benchmarks import command, machine
from fusioner_rt.command_parser import CommandParser

ROOT = Path(__file__).resolve().parents[1]
NOUNS = ("cat", "sofa", "person", "cup", "window", "floor", "curtain", "plant", "dog", "table")


def steady(engine: Path, picture: Path, words: int, repeats: int, backend: str) -> dict[str, Any]:
    """Median milliseconds per stage over `repeats` calls once warm; words are cached, as they are in service."""
    names = [
        f"{noun} {index // len(NOUNS) + 1}" if index >= len(NOUNS) else noun
        for index, noun in zip(range(words), NOUNS * words, strict=False)
    ]
    before = machine.free_gpu_bytes()
    with fusioner_rt.Session(engine, backend=backend, cache=False) as session:
        session.set_vocabulary(names)
        for _ in range(3):  # a GPU readies a shape in the first call and records it in the second
            session.segment(picture)
        warm = machine.free_gpu_bytes()
        wall, processor, stages = [], [], []
        for _ in range(repeats):
            started, spent = time.perf_counter(), time.process_time()
            result = session.segment(picture)
            wall.append((time.perf_counter() - started) * 1000)
            processor.append((time.process_time() - spent) * 1000)
            stages.append(result.timing)
        return {
            "what": "segment", "words": words, "size": list(result.labels.shape), "backend": session.backend.effective,
            **machine.percentiles(wall), "p99_ms": round(float(np.percentile(wall, 99)), 3),
            **_gpu_memory(before, warm, machine.free_gpu_bytes()),
            "processor_p50_ms": round(float(np.median(processor)), 1),
            "stages_p50_ms": {stage: round(float(np.median([s[stage] for s in stages])), 1) for stage in stages[0]},
        }  # fmt: skip


def _gpu_memory(before: int | None, warm: int | None, after: int | None) -> dict[str, Any]:
    """gpu_mb: what a warm session holds beside the driver's context. gpu_mb_grown: what further calls added to it."""
    if before is None or warm is None or after is None:
        return {}
    return {"gpu_mb": round((before - warm) / 1e6), "gpu_mb_grown": round((warm - after) / 1e6)}


def listed(engine: Path, count: int, repeats: int, backend: str) -> dict[str, Any]:
    """Pictures a second of a list and of one call after the other, in turns, and whether labels and confidence are equal."""
    paths = sorted((ROOT / "docs/pictures").glob("*.jpg"))
    pictures = [np.roll(np.asarray(Image.open(paths[n % len(paths)]).convert("RGB")), n, axis=1) for n in range(count)]
    with fusioner_rt.Session(engine, backend=backend, cache=False) as session:
        session.set_vocabulary(NOUNS[:4])
        ways: dict[str, Any] = {
            "one by one": lambda: [session.segment(picture) for picture in pictures],
            "list": lambda: session.segment(pictures),
        }
        found = {name: way() for name, way in ways.items()}  # and loads what lists need
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - started)
        rates = {name: count / float(np.median(seconds)) for name, seconds in taken.items()}
        equal = all(
            np.array_equal(one.labels, other.labels) and np.array_equal(one.confidence, other.confidence)
            for one, other in zip(*found.values(), strict=True)
        )
        return {
            "what": "list", "pictures": count, "backend": session.backend.effective, "repeats": repeats,
            **{f"{name}, pictures/s": round(rate, 1) for name, rate in rates.items()},
            "ratio": round(rates["list"] / rates["one by one"], 2), "equal": equal,
        }  # fmt: skip


def cold(engine: Path, picture: Path, repeats: int) -> dict[str, Any]:
    """The command line from process start to overlay: first with words never seen, then with words in the cache."""
    rows: dict[str, list[float]] = {"new": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        segment = [sys.executable, "-m", "fusioner_rt", "segment", str(picture), "--words", "cat, sofa"]
        segment += ["--engine", str(engine), "--out", folder]
        for repeat in range(repeats):
            environment = {**os.environ, "FUSIONER_CACHE": f"{folder}/cache{repeat}"}
            for kind in rows:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(segment, check=True, capture_output=True, env=environment)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                rows[kind].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "what": "command line, processor seconds", "new_words_p50_s": round(float(np.median(rows["new"])), 2),
        "cached_words_p50_s": round(float(np.median(rows["cached"])), 2), "peak_mb": round(peak),
    }  # fmt: skip


def main() -> int:
    return command.exit_status("session.py", run, "nothing was kept")


def run() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, bundle, cat = parser.add_argument, ROOT / "models/demo/bundle", ROOT / "docs/pictures/cat.jpg"
    add("--engine", type=Path, default=bundle, help="bundle to time (default: the demonstration's)")
    add("--picture", type=Path, default=cat, help="default: a photograph of 451×300")
    add("--words", default="1,20,150", help="numbers of words (default: %(default)s)")
    add("--backends", default="auto", help="as in Session, commas between them (default: %(default)s)")
    add("--list", type=int, metavar="N", help="time lists of N pictures instead, turns of --repeats")
    add("--repeats", type=int, default=20, help="calls per row (default: %(default)s)")
    add("--json", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.7:
        print(f"note: the load average is {load:.1f}; wall times tell of it", file=sys.stderr)
    rows = []
    for backend in given.backends.split(",") if given.list else ():
        rows.append(listed(given.engine, given.list, given.repeats, backend))
    for backend in () if given.list else given.backends.split(","):
        for count in given.words.split(","):
            try:
                rows.append(steady(given.engine, given.picture, int(count), given.repeats, backend))
            except fusioner_rt.FusionerError as error:
                if "," not in given.backends:
                    raise
                rows.append({"what": "segment", "words": int(count), "backend": backend, "error": str(error)})
    where = {**machine.record("onnxruntime"), "load": round(load, 2)}
    if not given.list:
        rows.append(cold(given.engine, given.picture, max(3, given.repeats // 4)))
    rows = [{**row, **where} for row in rows]
    print("\n".join(json.dumps(row) for row in rows))
    command.append(rows, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
