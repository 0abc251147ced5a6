"""Ray Data on this machine's cores, against one process: pictures a second of whole runs, sessions opened and actors started.

  python -m benchmarks.ray_data                                # the table of docs/ray.md, in less than five minutes
  python -m benchmarks.ray_data --json docs/records/ray.jsonl  # and a JSON line per case
  python -m benchmarks.ray_data --from docs/records/ray.jsonl  # the table of a record

Every case makes the same rows of the same files, copies of docs/pictures: by `fusioner_rt.ray.segment`, or by a loop over
`Session.segment` in one process, whose calls have all cores, or as many threads with a call of one core each. Cases are taken in
turns; medians of the rounds are told. Ray itself is started once, before. It needs the extra `ray` (`make .venv-ray/.ready`).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.cpu_cores import cores
from fusioner_rt.errors import FusionerError

PICTURES = sorted((machine.ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "person, cat, cup, sofa"


class RowsWrong(FusionerError):
    """A run gave other rows than one for each picture."""

    exit_code = 99
    is_input = False


def one_process(engine: Path, files: Sequence[Path], callers: int) -> None:
    """As many threads, each with its share of the cores in a call."""
    with (
        Session(engine, "onnxruntime-cpu", threads=max(1, cores() // callers)) as session,
        ThreadPoolExecutor(callers) as pool,
    ):
        session.set_vocabulary(WORDS)
        list(pool.map(lambda file: session.segment(file).to_coco(compressed=True), files))


def on_ray(engine: Path, files: Sequence[Path], actors: int) -> None:
    """As many actors, each with its share of the cores. Raises RowsWrong."""
    import ray.data

    from fusioner_rt.ray import segment

    pictures = ray.data.read_binary_files(list(map(str, files)), include_paths=True)
    share = max(1, cores() // actors)
    masks = segment(pictures, engine, WORDS, backend="onnxruntime-cpu", actors=actors, threads=share)
    paths: list[str] = []
    failed = 0
    for rows in masks.iter_batches(batch_size=None, batch_format="pyarrow"):
        paths += rows["path"].to_pylist()
        failed += len(rows["error"].drop_null())
    if sorted(paths) != sorted(map(str, files)) or failed:
        raise RowsWrong(f"{len(paths)} rows of {len(files)} pictures, {failed} of them failed", "run tests/ray")


def cases(given: argparse.Namespace) -> Iterator[list[Row]]:
    """Every case's row. Raises MachineBusy, RowsWrong."""
    from fusioner_rt.ray.cluster import running_cluster

    machine.check_idle(given.busy)
    several = sorted({1, given.actors})
    measures: list[tuple[Row, Callable[[Path, Sequence[Path]], None]]] = [
        *(({"case": "one process", "callers": count}, partial(one_process, callers=count)) for count in several),
        *(({"case": "ray", "actors": count}, partial(on_ray, actors=count)) for count in several),
    ]
    seconds: list[list[float]] = [[] for _ in measures]
    with tempfile.TemporaryDirectory() as name, running_cluster():
        files = [Path(name, f"{number:04}.jpg") for number in range(given.pictures)]
        for number, file in enumerate(files):
            shutil.copy(PICTURES[number % len(PICTURES)], file)
        quieten()
        for _, run in measures:
            run(given.engine, files[: given.pictures // 20 or 1])  # caches are warm then
        for _ in range(given.rounds):
            for taken, (_case, run) in zip(seconds, measures, strict=True):
                begun = time.perf_counter()
                run(given.engine, files)
                taken.append(round(time.perf_counter() - begun, 2))
    rates = [round(given.pictures / median(taken), 2) for taken in seconds]
    best = max(rate for rate, (case, _) in zip(rates, measures, strict=True) if case["case"] == "one process")
    told = {"rounds": given.rounds, "busy": given.busy, "cores": cores(), **machine.record("ray", "onnxruntime")}
    for (case, _run), taken, rate in zip(measures, seconds, rates, strict=True):
        yield [
            {"what": "ray data", **case, "pictures": given.pictures, "pictures_a_second": rate, "ratio": round(rate / best, 2),
             "seconds": taken, **told}
        ]  # fmt: skip


def quieten() -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def table(rows: list[Row]) -> str:
    """Markdown. Ratios are to the better of the loops in one process."""
    lines = ["| | pictures a second | to the better loop | seconds of the rounds |", "|---|---|---|---|"]
    for row in rows:
        each = f"of {max(1, row['cores'] // row.get('callers', row.get('actors')))} core(s)"
        name = (
            f"one process, {row['callers']} call(s) at once, {each}"
            if row["case"] == "one process"
            else f"Ray Data, {row['actors']} actor(s), {each}"
        )
        lines.append(
            f"| {name} | {row['pictures_a_second']:.1f} | {row['ratio']:.2f} | {', '.join(map(str, row['seconds']))} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                        help="engine bundle (the demonstration's)")  # fmt: skip
    parser.add_argument("--pictures", type=command.count, default=500, metavar="N", help="of a run (500)")
    parser.add_argument("--actors", type=command.count, default=2, metavar="N", help="most actors (2)")
    parser.add_argument("--rounds", type=command.count, default=3, metavar="N", help="of which medians are taken (3)")
    command.add_record_options(parser)
    given = parser.parse_args(arguments)
    return command.exit_status("ray_data.py", lambda: command.tell(given, "ray data", cases, table))


if __name__ == "__main__":
    raise SystemExit(main())
