"""Fleets on paper: the tables of docs/scale.md, scenarios of your own, and the simulation checked against the real service.

  python -m benchmarks.fleet                                             # the tables, in seconds, from the committed records
  python -m benchmarks.fleet --table replicas                            # one of them
  python -m benchmarks.fleet --table rates --price 0.04                  # with what a million pictures cost at 0.04 a core-hour
  python -m benchmarks.fleet --rate 100 --replicas 4                     # a fleet of yours: 100 requests a second
  python -m benchmarks.fleet --rate 40,120,40 --for 300 --replicas 2 --most 8 --start 30   # a peak, and replicas that follow it
  python -m benchmarks.fleet --rate 60 --max-batch 8 --further 0.4       # batches whose further pictures cost 40% each
  python -m benchmarks.fleet --check --json docs/records/fleet.jsonl --page docs/scale.md   # measures on an idle machine, in under
                                                                         # four minutes, and writes record and page anew

The check starts `fusioner-rt serve`, measures what pictures take where nobody waits, asks with Poisson arrivals at 30, 60, 85 and 120%
of the capacity that follows, and prints measured beside predicted. A replica is the machine that the record names; the record
of yours, by --from, makes the tables yours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt.atomic_files import writable_place, write_result
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import UsageError
from fusioner_rt.optional_packages import optional

RECORD = machine.ROOT / "docs/records/fleet.jsonl"
LATENCY = machine.ROOT / "docs/records/latency.jsonl"
NAMES = ("rates", "sizes", "words", "samples", "check", "replicas", "steps", "batches")


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="record", type=Path, default=RECORD, metavar="FILE",
                        help="record of a check (docs/records/fleet.jsonl)")  # fmt: skip
    parser.add_argument("--table", choices=NAMES, help="print this table alone")
    parser.add_argument("--page", type=Path, metavar="FILE",
                        help="write the tables into a page, between <!-- NAME --> and <!-- /NAME -->")  # fmt: skip
    parser.add_argument(
        "--price", type=_positive, metavar="P", help="of a core-hour: the table of rates tells costs, too"
    )

    check = parser.add_argument_group("check")
    check.add_argument("--check", action="store_true", help="measure, and print measured beside predicted")
    check.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                       help="engine bundle (the demonstration's)")  # fmt: skip
    check.add_argument("--seconds", type=_positive, default=36, metavar="S", help="of each load (36)")
    check.add_argument("--busy", action="store_true", help="measure beside other work, and have every row say so")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the rows, in place of what is in FILE")

    own = parser.add_argument_group("a fleet of yours")
    own.add_argument("--rate", type=_rates, metavar="R,R", help="requests a second; several follow each other")
    own.add_argument("--for", dest="each", type=_positive, default=300, metavar="S", help="seconds of each rate (300)")
    own.add_argument("--replicas", type=command.count, default=1, metavar="N", help="at first, and at least (1)")
    own.add_argument("--most", type=command.count, metavar="N", help="at most (as many as at first: none are added)")
    own.add_argument(
        "--target", type=_positive, default=2, metavar="N", help="requests at hand that each shall have (2)"
    )
    own.add_argument(
        "--delay", type=_seconds, default=5, metavar="S", help="that more are wanted before they start (5)"
    )
    own.add_argument(
        "--start",
        type=_seconds,
        metavar="S",
        help="until a replica takes requests (as measured, with its machine there)",
    )
    own.add_argument(
        "--cool-down", type=_seconds, default=60, metavar="S", help="that fewer are wanted before some end (60)"
    )
    own.add_argument("--calls", type=command.count, metavar="N", help="at once in a replica (as measured)")
    own.add_argument("--max-batch", type=command.count, default=1, metavar="N", help="pictures of a call (1)")
    own.add_argument("--max-wait", type=_seconds, default=3, metavar="MS", help="that a picture waits for others (3)")
    own.add_argument("--further", type=_seconds, default=1, metavar="X",
                     help="what a further picture of a call costs, of what it costs alone (1, as on CPUs)")  # fmt: skip
    own.add_argument(
        "--queue", type=command.whole, default=64, metavar="N", help="pictures that may wait in a replica (64)"
    )
    own.add_argument("--deadline", type=_positive, default=30, metavar="S", help="of a request (30)")
    own.add_argument("--seed", type=command.whole, default=1, metavar="N", help="of arrivals and draws (1)")
    given = parser.parse_args(arguments)
    return command.exit_status("fleet.py", lambda: run(given), "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Raises FusionerError."""
    optional("simpy", "simpy", "simulations of fleets", "'fusioner-rt[bench]'")
    from benchmarks import fleet_tables

    if given.check:
        return _check(given)
    rows = command.read(given.record, "fleet") if given.record != RECORD or RECORD.exists() else []
    if given.rate:
        print(_scenario(given, rows))
        return 0
    made = fleet_tables.tables(rows, command.read(LATENCY, "latency"), given.price)
    if given.page:
        write_page(given.page, made)
        return 0
    if given.table and given.table not in made:
        raise UsageError(
            f"there is no record {given.record} for this table", "make one: --check --json FILE, and --from FILE"
        )
    for name in [given.table] if given.table else made:
        print(made[name]() if given.table else f"## {name}\n\n{made[name]()}\n")
    return 0


def write_page(page: Path, made: Mapping[str, Callable[[], str]]) -> None:
    """Write tables into a page, each between the marks of its name; what has no marks is not made.

    Raises UsageError, OutputUnwritable.
    """
    try:
        text = page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({error})", "name a page with marks for the tables", subject=page) from None
    for name, make in made.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (mark and end):
            raise UsageError(
                f"has no marks for the table {name}", f"add <!-- {name} --> and <!-- /{name} -->", subject=page
            )
        text = f"{before}{mark}{make()}\n{end}{after}"
    write_result(page, lambda stream: stream.write(text.encode()))


def _check(given: argparse.Namespace) -> int:
    from benchmarks import fleet_check, fleet_tables

    if given.json:
        writable_place(given.json)
    rows: list[Row] = command.collect(fleet_check.rows(given.engine, given.seconds, given.busy), None, lambda rows: "")
    if given.json:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write_result(given.json, lambda stream: stream.write(content))
    print(f"{fleet_tables.samples(rows)}\n\n{fleet_tables.check(rows)}")
    if given.page:
        made = fleet_tables.tables(rows, command.read(LATENCY, "latency"))
        write_page(given.page, made)
    return 0


def _scenario(given: argparse.Namespace, rows: list[Row]) -> str:
    """What becomes of each rate's requests in a fleet."""
    from benchmarks.fleet_simulation import Replica, Scaling, poisson, simulate, summary
    from benchmarks.fleet_tables import measured, start_s, table

    known = measured(rows)
    replica = Replica(given.calls or known.calls, given.max_batch, given.max_wait / 1000, given.queue, given.deadline)
    most = given.most or given.replicas
    if most < given.replicas:
        raise UsageError(f"at most {most} replicas and {given.replicas} at first", "give a larger --most")
    start = start_s(rows) if given.start is None else given.start
    scaling = Scaling(given.replicas, most, given.target, delay=given.delay, start=start, cool_down=given.cool_down)
    arrivals = poisson(given.rate, given.each, given.seed)
    found = simulate(arrivals, replica, known.work(given.further, given.seed), scaling, given.seed)
    lines = []
    for turn, rate in enumerate(given.rate):
        there = (found.arrived >= turn * given.each) & (found.arrived < (turn + 1) * given.each)
        told = summary(found.arrived[there] - turn * given.each, found.waited[there], found.status[there])
        counts = [count for at, count in found.replicas if at < (turn + 1) * given.each]
        now = [count for at, count in found.replicas if turn * given.each <= at < (turn + 1) * given.each]
        lines.append([f"{rate:g}", told["answers_a_second"], told["p50_ms"], told["p99_ms"], f"{told['share_503']:.1%}",
                      f"{told['share_504']:.1%}", max([counts[-1], *now])])  # fmt: skip
    head = ["requests a second", "answers a second", "p50 ms", "p99 ms", "503", "504", "most replicas"]
    groups = sum(found.groups.values())
    return (
        f"{table(head, lines)}\n\n{found.replica_seconds / 3600:.2f} replica-hours; calls run "
        f"{found.busy / found.replica_seconds / replica.calls:.0%} of them; {len(arrivals) / groups if groups else 0:.2f} pictures a call."
    )


def _positive(text: str) -> float:
    number = _seconds(text)
    if not number:
        raise argparse.ArgumentTypeError("0 is too small")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 to 1000000")
    return number


def _rates(text: str) -> list[float]:
    return [_positive(part) for part in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
