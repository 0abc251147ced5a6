"""The real service under open-loop load: requests come when they come, whether others are answered or not.

Rows: "start", seconds until a process serves; "closed", what answers take where few clients ask, each again once it is answered;
"load", at a share of the capacity that follows from the last of them, measured, and predicted by simulations of the same arrivals;
"words", what new words take.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks import machine
from benchmarks.command import Row
from benchmarks.fleet_simulation import Measured, Replica, poisson, simulate, summary
from benchmarks.service import PICTURES, WORDS, LoadFailed, Service
from fusioner_rt import Session
from fusioner_rt.serve.models import shares
from fusioner_rt.serve.settings import Settings
from fusioner_rt.words.vectors_file import read_vectors

LOADS = (30, 60, 85, 120)
"""Percent of the capacity."""

QUEUE = 16
"""Of the service that is asked: it is full soon where there is too much."""

SIMULATIONS = 40
"""Of each load, with other draws; told are the median and the span of nine tenths."""

NEW_WORDS = ("barn owl", "anvil", "bandage", "canoe", "dinghy", "easel", "flute", "gong", "harp", "iron", "jug", "kiln")
METRICS = ("answers_a_second", "p50_ms", "p99_ms", "share_503")


class Asker:
    """Posts pictures to the service, a connection each."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url).netloc
        self._host, _, self._port = address.partition(":")
        head = "POST /v1/segment?words={} HTTP/1.1\r\nHost: {}\r\nContent-Type: image/jpeg\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
        bodies = [file.read_bytes() for file in PICTURES]
        self._requests = [head.format(WORDS, address, len(body)).encode() + body for body in bodies]
        self.sent = self.got = self.answers = 0

    async def ask(self, which: int) -> int:
        """The status of the answer about a picture, once it is there. Raises LoadFailed."""
        request, answer = self._requests[which % len(self._requests)], b""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(request)
            answer = await reader.read(-1)
            writer.close()
        if not answer.startswith(b"HTTP/1.1 "):
            raise LoadFailed("the service ended a connection without an answer", "look at its log: fusioner-rt serve")
        status = int(answer[9:12])
        if status == 200:
            self.sent += len(request)
            self.got += len(answer)
            self.answers += 1
        return status

    async def closed(self, clients: int, seconds: float) -> tuple[list[float], float]:
        """Clients who ask again once they are answered, three times at least: seconds of each answer, and answers a second.

        As many answers as there are clients are left out: they all began at once.
        """
        start, taken, ends = time.perf_counter(), list[float](), list[float]()

        async def client(which: int) -> None:
            turn = 0
            while (asked := time.perf_counter()) < start + seconds or turn < 3:
                if (status := await self.ask(which + turn * clients)) != 200:
                    raise LoadFailed(f"the service answered {status}", "look at its log: fusioner-rt serve")
                ends.append(time.perf_counter())
                taken.append(ends[-1] - asked)
                turn += 1

        await asyncio.gather(*(client(number) for number in range(clients)))
        return taken[clients:], (len(ends) - clients) / (ends[-1] - ends[clients - 1])

    async def opened(self, arrivals: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Seconds from each arrival to its answer, and the statuses. A request that is sent late counts from when it was due."""
        made, start = random.Random(seed), time.perf_counter() + 0.1
        waited, status = np.zeros(len(arrivals)), np.zeros(len(arrivals), np.int64)

        async def one(number: int, at: float, which: int) -> None:
            status[number] = await self.ask(which)
            waited[number] = time.perf_counter() - start - at

        tasks = []
        for number, at in enumerate(arrivals):
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number, float(at), made.randrange(len(self._requests)))))
        await asyncio.gather(*tasks)
        return waited, status


def rows(engine: Path, seconds: float, busy: bool, seed: int = 0) -> Iterator[list[Row]]:
    """A row per case, as they are measured. Raises LoadFailed, MachineBusy."""
    machine.check_idle(busy)
    facts = {"seconds": seconds, "busy": busy, **machine.record("numpy", "onnxruntime", "simpy")}
    calls, threads = shares(Settings())
    alone: list[float] = []
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        with Service(engine, "--queue", str(QUEUE), "--cache", cache) as service:
            started = time.perf_counter() - began
            asker = Asker(service.url)
            asyncio.run(asker.closed(calls, 3))  # words and what else waits for its first use
            yield [{"what": "fleet", "case": "start", "start_s": round(started, 2), **facts}]
            for clients in sorted({*range(1, calls + 1), 2 * calls, QUEUE}):  # the last leave no core without work
                row, taken = _closed(service, asker, clients, seconds / 4)
                alone, rates[clients] = alone or taken, row["answers_a_second"]
                yield [{"what": "fleet", "case": "closed", "calls": calls, "threads": threads, **row, **facts}]
            measured = Measured(calls, alone, rates)
            for percent in LOADS:
                yield [
                    {
                        "what": "fleet",
                        "case": "load",
                        **_load(service, asker, measured, percent, seconds, seed),
                        **facts,
                    }
                ]
    yield [{"what": "fleet", "case": "words", **_words(engine), **facts}]


def _closed(service: Service, asker: Asker, clients: int, seconds: float) -> tuple[Row, list[float]]:
    asker.sent, asker.got, asker.answers, spent = 0, 0, 0, service.seconds()
    taken, rate = asyncio.run(asker.closed(clients, seconds))
    sums = {"processor_ms": (service.seconds() - spent) * 1000, "sent_bytes": asker.sent, "got_bytes": asker.got}
    each = {name: round(value / asker.answers, 1) for name, value in sums.items()}
    ms = [round(one * 1000, 1) for one in taken]
    return {"clients": clients, "answers_a_second": round(rate, 2), **each, "ms": ms}, taken


def _load(service: Service, asker: Asker, measured: Measured, percent: int, seconds: float, seed: int) -> Row:
    rate = measured.capacity * percent / 100
    arrivals = poisson([rate], seconds, seed + percent)
    others = machine.OtherWork(lambda: time.process_time() + service.seconds())
    began, own = time.perf_counter(), time.process_time()
    waited, status = asyncio.run(asker.opened(arrivals, seed))
    own = (time.process_time() - own) / (time.perf_counter() - began)
    return {
        "percent": percent, "rate": round(rate, 2), "queue": QUEUE, "measured": summary(arrivals, waited, status),
        "asker_cores": round(own, 2), "other_cores": round(others.cores(), 2), "predicted": predicted(measured, arrivals),
    }  # fmt: skip


def predicted(measured: Measured, arrivals: np.ndarray) -> dict[str, list[float]]:
    """Of each metric the median of the simulations, and what nine tenths of them lie between."""
    replica = Replica(measured.calls, queue=QUEUE)
    told = [simulate(arrivals, replica, measured.work(seed=seed)).told() for seed in range(SIMULATIONS)]
    return {
        metric: [round(float(np.percentile([one[metric] for one in told], q)), 4) for q in (50, 5, 95)]
        for metric in METRICS
    }


def _words(engine: Path) -> Row:
    """What a new word takes, and its bytes in a file of word vectors."""
    taken: list[float] = []
    with Session(engine, "onnxruntime-cpu", cache=False, threads=1) as session, tempfile.TemporaryDirectory() as folder:
        session.load_text()
        session.load_words("warm")
        for word in NEW_WORDS:
            start = time.perf_counter()
            session.load_words([word])
            taken.append(time.perf_counter() - start)
        session.export_words(Path(folder, "fleet.vectors"), NEW_WORDS)
        entries = read_vectors(Path(folder, "fleet.vectors"))
    kept = sum(map(len, entries.values())) / len(entries)
    return {"ms": [round(one * 1000, 1) for one in taken], "entry_bytes": round(kept)}
