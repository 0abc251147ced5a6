"""Load on `fusioner-rt serve`, by wrk, against a bare loop over `Session.segment`: pictures a second, waits, memory.

  python -m benchmarks.service                                       # the table of docs/serve.md, twelve minutes
  python -m benchmarks.service --json docs/records/service.jsonl     # and a JSON line per case
  python -m benchmarks.service --minutes 10                          # and whether memory grows, ten minutes more
  python -m benchmarks.service --from docs/records/service.jsonl     # the table of a record

The service is the command, on a free port, with pictures of docs/pictures and answers as JSON; wrk is Debian's package of that
name. The bare loop decodes and segments the same files, in one thread whose calls have all cores and in as many threads as
cores whose calls have one; the better is the measure. Cases are taken in turns, and medians of the rounds are told. Processor
time is that of the service, or of the loop. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.cpu_cores import cores
from fusioner_rt.errors import FusionerError

PICTURES = sorted((machine.ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "person,cat,cup,sofa"
CLIENTS = [1, 8, 64]
BATCH = 8
"""Pictures of a call where there is micro-batching: the demonstration's most."""

QUEUE = 8
"""Of the service that is asked for more than it can do."""

PATIENCE = 30.0
"""Seconds after which wrk counts a time-out: the service's own deadline."""

STEP = 10.0
"""Seconds between two looks at the memory."""

COUNTS = ("time_outs", "broken", "without_retry_after")
_SCRIPT = Path(__file__).with_name("service.lua")


class GeneratorMissing(FusionerError):
    """wrk is not installed."""

    exit_code = 120
    is_input = False


class LoadFailed(FusionerError):
    """The service did not start, or wrk told nothing."""

    exit_code = 121
    is_input = False


class Service:
    """The command, until the block ends."""

    def __init__(self, engine: Path, *options: str) -> None:
        """Raises LoadFailed."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusioner_rt", "serve", "--port", "0", "--engine", str(engine), *options],
            cwd=machine.ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if "serving on" not in line:
            self._process.kill()
            raise LoadFailed(f"the service did not start: {line.strip()[:300]}", "start it alone: fusioner-rt serve")
        self.url = line.split()[-1]
        self._reader = ThreadPoolExecutor(1)
        self._reader.submit(lambda: [None for _ in self._process.stderr or ()])  # or its log would fill the pipe

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.shutdown()

    def seconds(self) -> float:
        return machine.processor_seconds(self._process.pid)

    def held(self) -> Row:
        """Resident bytes, threads and open files."""
        folder = Path(f"/proc/{self._process.pid}")
        return {
            "bytes": machine.resident(self._process.pid),
            "threads": len(os.listdir(folder / "task")),
            "files": len(os.listdir(folder / "fd")),
        }

    def load(self, clients: int, seconds: float) -> Row:
        """What wrk tells of this many clients, who ask again once they are answered. Raises LoadFailed."""
        return asked(f"{self.url}/v1/segment?words={WORDS}", PICTURES, clients, seconds, self.seconds)


def asked(
    url: str, bodies: Sequence[Path], clients: int, seconds: float, spent: Callable[[], float], *headers: str
) -> Row:
    """What wrk tells of this many clients, who post the bodies in turn. spent: processor seconds of the service so far.

    Raises LoadFailed.
    """
    before, given = spent(), [option for header in headers for option in ("-H", header)]
    done = subprocess.run(
        ["wrk", "-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--timeout", f"{PATIENCE:.0f}s",
         *given, "-s", str(_SCRIPT), url, "--", *map(str, bodies)],
        capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != 1:
        raise LoadFailed(f"wrk ended with {done.returncode}: {done.stderr.strip()[-300:]}", "run it alone: wrk -v")
    told: Row = json.loads(lines[0])
    return _rates(told, told["statuses"].get("200", 0), told.pop("seconds"), spent() - before)


def check_generator() -> None:
    """Raises GeneratorMissing."""
    if not shutil.which("wrk"):
        raise GeneratorMissing("wrk, which asks the service, is not installed", "install it: apt-get install wrk")


class BareLoop:
    """`Session.segment` of the same files, by `callers` threads; a call has its share of the cores."""

    def __init__(self, engine: Path, callers: int) -> None:
        self._session = Session(engine, "onnxruntime-cpu", threads=max(1, cores() // callers))
        self._callers, self._files = callers, [file.read_bytes() for file in PICTURES]
        self._session.segment(io.BytesIO(self._files[0]), WORDS)

    def load(self, seconds: float) -> Row:
        start, spent = time.perf_counter(), time.process_time()

        def loop(caller: int) -> int:
            turn = 0
            while time.perf_counter() < start + seconds:
                self._session.segment(io.BytesIO(self._files[(caller + turn) % len(self._files)]), WORDS)
                turn += 1
            return turn

        with ThreadPoolExecutor(self._callers) as pool:
            count = sum(pool.map(loop, range(self._callers)))
        return _rates({}, count, time.perf_counter() - start, time.process_time() - spent)


def _rates(told: Row, count: int, wall: float, spent: float) -> Row:
    each = round(spent * 1000 / count, 1) if count else None
    return {"pictures_a_second": round(count / wall, 2), "processor_ms_a_picture": each, **told}


def cases(given: argparse.Namespace) -> Iterator[list[Row]]:
    """Every case's row. Raises GeneratorMissing, LoadFailed, MachineBusy."""
    check_generator()
    machine.check_idle(given.busy)
    with ExitStack() as stack:
        bare = {callers: BareLoop(given.engine, callers) for callers in sorted({1, cores()})}
        services = {
            batch: stack.enter_context(Service(given.engine, "--max-batch", str(batch))) for batch in (1, BATCH)
        }
        small = stack.enter_context(Service(given.engine, "--queue", str(QUEUE)))
        for service in (*services.values(), small):
            service.load(2, 1)  # sessions and caches are warm then
        many = max(64, *given.clients)
        measures: list[tuple[Row, Callable[[float], Row]]] = [
            *(({"case": "bare", "clients": callers}, loop.load) for callers, loop in bare.items()),
            *(
                ({"case": "service", "clients": clients, "max_batch": batch}, partial(service.load, clients))
                for clients in given.clients
                for batch, service in services.items()
            ),
            ({"case": "beyond capacity", "clients": many, "queue": QUEUE}, partial(small.load, many)),
        ]
        found: list[list[Row]] = [[] for _ in measures]
        for _ in range(given.rounds):
            for rows, (_case, load) in zip(found, measures, strict=True):
                rows.append(load(given.seconds))
        told = {"seconds": given.seconds, "rounds": given.rounds, "busy": given.busy, "generator": generator(),
                **machine.record("numpy", "onnxruntime")}  # fmt: skip
        for rows, (case, _load) in zip(found, measures, strict=True):
            yield [{"what": "service", **case, **together(rows), **told}]
        if given.minutes:
            yield [{"what": "service", "case": "memory", **growth(services[1], given.minutes * 60), **told}]


def generator() -> str:
    """Its name and version."""
    return " ".join(subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split()[:2])


def together(rounds: list[Row]) -> Row:
    """A row of several: medians, sums of counts, and the longest wait."""
    made: Row = {}
    for key in rounds[0]:
        values = [row[key] for row in rounds if row[key] is not None]
        if key == "statuses":
            made[key] = {status: sum(one.get(status, 0) for one in values) for status in sorted(set().union(*values))}
        elif key in COUNTS:
            made[key] = sum(values)
        else:
            made[key] = round((max if key == "max_ms" else median)(values), 2) if values else None
    return made


def growth(service: Service, seconds: float) -> Row:
    """How resident memory, threads and open files change under the load of 8 clients; memory by a line through all looks."""
    end, requests = time.monotonic() + seconds, 0
    looks = []
    while time.monotonic() < end or len(looks) < 3:
        requests += sum(service.load(8, min(STEP, seconds / 3))["statuses"].values())
        looks.append({"requests": requests, **service.held()})
    at, resident = ([look[key] for look in looks] for key in ("requests", "bytes"))
    slope = float(np.polyfit(at, resident, 1)[0])
    return {"clients": 8, "minutes": round(seconds / 60, 2), "bytes_a_request": round(slope, 1), "looks": looks}


def table(rows: list[Row]) -> str:
    """Markdown. Ratios are to the better of the bare loops."""
    best = max((row["pictures_a_second"] for row in rows if row["case"] == "bare"), default=0.0)
    lines = [
        "| | clients | pictures a second | to the bare loop | CPU ms a picture | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = {"bare": "bare loop", "service": f"service, `--max-batch {row.get('max_batch')}`"}.get(row["case"])
        if name:
            waits = " | ".join(f"{row[key]:.0f}" if key in row else "" for key in ("p50_ms", "p99_ms"))
            ratio = f"{row['pictures_a_second'] / best:.2f}" if best else ""
            spent = row["processor_ms_a_picture"]
            lines.append(
                f"| {name} | {row['clients']} | {row['pictures_a_second']:.1f} | {ratio} | {'' if spent is None else f'{spent:.0f}'} | {waits} |"
            )
    for row in rows:
        if row["case"] == "beyond capacity":
            statuses = row["statuses"]
            done, refused = (statuses.get(status, 0) for status in ("200", "503"))
            others = sum(statuses.values()) - done - refused
            lines += [
                "",
                f"Beyond capacity, {row['clients']} clients and `--queue {row['queue']}`: {done} answers of 200, {refused} of 503, "
                f"{row['without_retry_after']} of which without `Retry-After`, {others} others, {row['time_outs']} time-outs, "
                f"{row['broken']} broken connections; p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, "
                f"the longest {row['max_ms']:.0f} ms.",
            ]
        if row["case"] == "memory":
            first, last = row["looks"][0], row["looks"][-1]
            lines += [
                "",
                f"Over {row['minutes']:g} minutes and {last['requests']} requests of {row['clients']} clients: "
                f"{row['bytes_a_request']:.1f} kB more resident memory a 1,000 requests, {first['bytes'] / 1e6:.0f} MB at first and "
                f"{last['bytes'] / 1e6:.0f} MB in the end; {first['threads']} and {last['threads']} threads, "
                f"{first['files']} and {last['files']} open files.",
            ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                        help="engine bundle (the demonstration's)")  # fmt: skip
    parser.add_argument("--clients", type=command.counts, default=CLIENTS, metavar="N,N", help="at once (1,8,64)")
    parser.add_argument("--seconds", type=command.count, default=15, metavar="S", help="of a case in a round (15)")
    parser.add_argument("--rounds", type=command.count, default=5, metavar="N", help="of which medians are taken (5)")
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="of load for memory, 0 for none (0)")
    command.add_record_options(parser)
    given = parser.parse_args(arguments)
    return command.exit_status("service.py", lambda: command.tell(given, "service", cases, table))


if __name__ == "__main__":
    raise SystemExit(main())
