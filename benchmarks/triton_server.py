"""Load on Triton Inference Server, by wrk: with and without dynamic batching, and against a bare loop over `Session.segment`.

  .venv-triton/bin/python -m benchmarks.triton_server                          # the table of docs/triton.md, under three minutes
  .venv-triton/bin/python -m benchmarks.triton_server --json docs/records/triton.jsonl    # and a JSON line per case
  .venv-triton/bin/python -m benchmarks.triton_server --from docs/records/triton.jsonl    # the table of a record

`make .venv-triton/.ready` makes that environment, whose wheel holds the server. It serves what export/triton_repository.py
writes, on this machine's CPUs; pictures of docs/pictures, 4 words, label maps as binary tensors. Cases are taken in turns, and
medians of the rounds are told. Processor time is that of the server with its models' processes, or of the loop. The servers have
no response cache but for the case of that name. The versions of a row are the project's, and the server's. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import command, machine
from benchmarks.command import Row
from benchmarks.service import PICTURES, WORDS, BareLoop, asked, check_generator, together
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.cpu_cores import cores
from fusioner_rt.optional_packages import optional

CLIENTS = [1, 16]
BATCH = 8
"""Pictures of a call where there is dynamic batching: the demonstration's most."""

WAIT = 3
"""Milliseconds that a request waits for others there."""

HEADER = 512
"""Bytes of a request's JSON, padded: wrk sends one header with all bodies."""

KINDS = {
    "each alone": ["--max-batch", "1"],
    "dynamic batching": ["--max-batch", str(BATCH), "--max-wait", str(WAIT)],
}


class Loaded:
    """A server with one model, and the bodies to ask it."""

    def __init__(self, stack: ExitStack, engine: Path, bodies: list[Path], *options: str, cache: bool = False) -> None:
        from tests.triton.server import served

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = ("--cache-config=local,size=268435456",) if cache else ()
        own = ["--cache"] if cache else []
        self._server = stack.enter_context(served(engine, folder, "--name", "model", *own, *options, server=server))
        self._bodies = bodies

    def load(self, clients: int, seconds: float) -> Row:
        """What wrk tells of this many clients. Raises LoadFailed."""
        url = f"http://{self._server.http}/v2/models/model/infer"
        headers = (f"Inference-Header-Content-Length: {HEADER}", "Content-Type: application/octet-stream")
        before = self._counts()
        row = asked(url, self._bodies, clients, seconds, self._spent, *headers)
        requests, calls = (now - then for now, then in zip(self._counts(), before, strict=True))
        largest = max(map(machine.resident, machine.family(self._server.pid)[1:]), default=0)
        return row | {"pictures_a_call": round(requests / calls, 2) if calls else None, "instance_bytes": largest}

    def _spent(self) -> float:
        return sum(map(machine.processor_seconds, machine.family(self._server.pid)))

    def _counts(self) -> tuple[float, float]:
        """Requests that a model's process has run, and calls of it."""
        names = ("nv_inference_count", "nv_inference_exec_count")
        first, second = (self._server.metric(name, "model") for name in names)
        return first, second


def bodies(folder: Path) -> list[Path]:
    """The pictures as requests, by the server's own client."""
    http = optional("tritonclient.http", "tritonclient[http]", "this benchmark")
    written = []
    for picture in PICTURES:
        tensors = [("PICTURE", picture.read_bytes()), ("WORDS", WORDS.encode())]
        inputs = []
        for name, content in tensors:
            inputs.append(http.InferInput(name, [1, 1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([[content]], object))
        wanted = [http.InferRequestedOutput("LABELS", binary_data=True)]
        body, size = http.InferenceServerClient.generate_request_body(inputs, outputs=wanted)
        written.append(folder / picture.stem)
        written[-1].write_bytes(bytes(body[:size]).ljust(HEADER) + bytes(body[size:]))
    return written


def cases(given: argparse.Namespace) -> Iterator[list[Row]]:
    """Every case's row. Raises GeneratorMissing, LoadFailed, MachineBusy."""
    check_generator()
    machine.check_idle(given.busy)
    with ExitStack() as stack:
        asking = bodies(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        bare = {callers: BareLoop(given.engine, callers) for callers in sorted({1, cores()})}
        measures: list[tuple[Row, Callable[[float], Row]]] = [
            ({"case": "bare", "clients": callers}, loop.load) for callers, loop in bare.items()
        ]
        for instances in sorted({1, cores()}):
            for kind, options in KINDS.items():
                server = Loaded(stack, given.engine, asking, "--instances", str(instances), *options)
                told = {"case": kind, "instances": instances}
                measures += [(told | {"clients": clients}, partial(server.load, clients)) for clients in given.clients]
        cached = Loaded(stack, given.engine, asking, cache=True)
        measures.append(({"case": "response cache", "instances": 1, "clients": 8}, partial(cached.load, 8)))
        for _, load in measures:
            load(1)  # sessions and caches are warm then
        found: list[list[Row]] = [[] for _ in measures]
        for _ in range(given.rounds):
            for rows, (_case, load) in zip(found, measures, strict=True):
                rows.append(load(given.seconds))
        told = {"seconds": given.seconds, "rounds": given.rounds, "busy": given.busy, "server": "nvidia-pytriton 0.7.0",
                **machine.record("numpy", "onnxruntime")}  # fmt: skip
        for rows, (case, _load) in zip(found, measures, strict=True):
            yield [{"what": "triton", **case, **together(rows), **told}]


def table(rows: list[Row]) -> str:
    """Markdown. Ratios are to the better of the bare loops."""
    best = max((row["pictures_a_second"] for row in rows if row["case"] == "bare"), default=0.0)
    lines = [
        "| | instances | clients | pictures a second | to the bare loop | pictures a call | CPU ms a picture | p50 ms | p99 ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = "bare loop" if row["case"] == "bare" else row["case"]
        ratio = f"{row['pictures_a_second'] / best:.2f}" if best else ""
        spent, together = row["processor_ms_a_picture"], row.get("pictures_a_call")
        parts = [
            name, row.get("instances", ""), row["clients"], f"{row['pictures_a_second']:.1f}", ratio,
            "" if together is None else f"{together:.1f}", "" if spent is None else f"{spent:.0f}",
            *(f"{row[key]:.0f}" if key in row else "" for key in ("p50_ms", "p99_ms")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, parts))} |")
    if largest := max((row.get("instance_bytes", 0) for row in rows), default=0):
        lines += ["", f"A model's process had at most {largest / 1e6:.0f} MB resident."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                        help="engine bundle (the demonstration's)")  # fmt: skip
    parser.add_argument("--clients", type=command.counts, default=CLIENTS, metavar="N,N", help="at once (1,16)")
    parser.add_argument("--seconds", type=command.count, default=3, metavar="S", help="of a case in a round (3)")
    parser.add_argument("--rounds", type=command.count, default=3, metavar="N", help="of which medians are taken (3)")
    command.add_record_options(parser)
    given = parser.parse_args(arguments)
    return command.exit_status("triton_server.py", lambda: command.tell(given, "triton", cases, table))


if __name__ == "__main__":
    raise SystemExit(main())
