"""The tables of docs/scale.md: arithmetic from the committed records, and simulations of fleets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.command import Row
from benchmarks.fleet_simulation import Measured, Replica, Scaling, poisson, simulate
from benchmarks.latency_models import MODELS
from fusioner_rt.errors import UsageError

FILES_ON_DISK = 64 << 20
"""Bytes of the files of `fusioner_rt.words.cache.TextCache`."""

REQUESTS = 4_000
"""Of a simulated row: then p99 is told by the 40 slowest."""

_SEED = 1


@dataclass(frozen=True)
class Encoded:
    """What `Session.encode` keeps of a picture on a CPU: (side / stride)² tokens of `channels` float32."""

    side: int
    stride: int
    channels: int

    def tokens_bytes(self, height: int, width: int) -> int:
        """Of a network input of this size."""
        return (height // self.stride) * (width // self.stride) * self.channels * 4

    @property
    def bytes(self) -> int:
        return self.tokens_bytes(self.side, self.side)


ENCODED = {
    "tiny": Encoded(96, 16, 72),
    "demo": Encoded(320, 16, 1392),
    "vits": Encoded(224, 16, 384),
    "vitb": Encoded(224, 16, 768),
    "vitl": Encoded(224, 14, 1024),
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


# The check.


def start_s(rows: Sequence[Row]) -> float:
    return float(next(row["start_s"] for row in rows if row["case"] == "start"))


def measured(rows: Sequence[Row]) -> Measured:
    """The replica of a record. Raises UsageError where it holds none."""
    found = [row for row in rows if row["case"] == "closed"]
    if not found:
        raise UsageError("the record holds no check", "make one: --check --json FILE, and --from FILE")
    alone = next(row for row in found if row["clients"] == 1)
    return Measured(
        alone["calls"], [ms / 1000 for ms in alone["ms"]], {row["clients"]: row["answers_a_second"] for row in found}
    )


def check(rows: Sequence[Row]) -> str:
    """Measured beside predicted, and by how much the prediction is off."""
    lines = []
    for row in (row for row in rows if row["case"] == "load"):
        found, told = row["measured"], row["predicted"]
        cells: list[object] = [f"{row['percent']} %, {row['rate']:.1f}/s", found["requests"]]
        for metric, form in (("answers_a_second", ".1f"), ("p50_ms", ".0f"), ("p99_ms", ".0f")):
            median, low, high = told[metric]
            cells += [f"{found[metric]:{form}}", f"{median:{form}} ({low:{form}} to {high:{form}})"]
            cells.append(f"{(median / found[metric] - 1) * 100:+.0f} %")
        median, low, high = told["share_503"]
        cells += [f"{found['share_503']:.1%}", f"{median:.1%} ({low:.1%} to {high:.1%})"]
        lines.append(cells)
    head = ["load", "requests", *(f"{what}{one}" for what in ("answers/s", "p50 ms", "p99 ms") for one in ("", ", predicted", ", off")),
            "503", "503, predicted"]  # fmt: skip
    return table(head, lines)


def samples(rows: Sequence[Row]) -> str:
    """What answers take where few clients ask, each again once it is answered."""
    lines = []
    for row in (row for row in rows if row["case"] == "closed"):
        mean, low, median, high = (float(x) for x in (np.mean(row["ms"]), *np.percentile(row["ms"], (5, 50, 95))))
        per_second, moved = row["answers_a_second"], (row["sent_bytes"], row["got_bytes"])
        lines.append(
            [row["clients"], len(row["ms"]), f"{low:.0f}", f"{median:.0f}", f"{high:.0f}", f"{mean:.1f}", f"{row['processor_ms']:.1f}",
             f"{per_second:.1f}", *(f"{count / 1000:.1f}" for count in moved), f"{sum(moved) * 8 * per_second / 1e6:.1f}"]
        )  # fmt: skip
    head = ["clients", "pictures", "p5 ms", "p50 ms", "p95 ms", "mean ms", "processor ms", "pictures/s"]
    return table([*head, "kB sent a picture", "kB answered", "Mbit/s"], lines)


# Arithmetic.


def _ours(latency: Sequence[Row], model: str, output: int, candidate: str = "ours") -> Row:
    return next(
        row for row in latency
        if (row["what"], row["model"], row["output"], row["words"], row["batch"], row["candidate"]) == ("latency", model, output, 20, 1, candidate)
    )  # fmt: skip


def core_hours(processor_ms: float) -> float:
    """Of a million pictures."""
    return processor_ms * 1e6 / 1000 / 3600


def rates(latency: Sequence[Row], rows: Sequence[Row], price: float | None = None) -> str:
    """Pictures a second of a core, and core-hours of a million pictures. price: of a core-hour, for a column of costs."""
    lines = []
    cells = (("demo", 224), ("demo", 512), ("demo", 1024), ("vits", 224), ("vits", 1024), ("vitb", 224), ("vitl", 224))
    found = [(f"{MODELS[model].title}, {output}²", _ours(latency, model, output)["processor_p50_ms"],
              _ours(latency, model, output, "ours-words")["processor_p50_ms"]) for model, output in cells]  # fmt: skip
    served = [row for row in rows if row["case"] == "closed"]
    found += [("demonstration model by HTTP, photographs to JSON", served[-1]["processor_ms"], None)] if served else []
    for name, ms, words_ms in found:
        costs = [] if price is None else [f"{core_hours(ms) * price:.2f}"]
        others = ["", ""] if words_ms is None else [f"{words_ms:.0f}", f"{1000 / words_ms:.1f}"]
        lines.append([name, f"{ms:.0f}", f"{1000 / ms:.1f}", f"{core_hours(ms):.1f}", *costs, *others])
    head = ["model, label map", "processor ms", "pictures/s a core", "core-hours a million"]
    head += [] if price is None else [f"cost at {price:g} a core-hour"]
    return table([*head, "other words: ms", "other words: /s a core"], lines)


def sizes(latency: Sequence[Row]) -> str:
    """Bytes of an encoded picture, and where sending one pays."""
    lines = []
    for model, encoded in ENCODED.items():
        side = encoded.side // encoded.stride
        row = None if model == "tiny" else _ours(latency, model, 224)
        cells = ["", "", "", "", ""]
        if row:
            ms, whole = row["stages_p50_ms"]["image"], row["p50_ms"]
            seconds = (encoded.bytes / 125e6, encoded.bytes / 1250e6)
            sent, as_long = (f"{one * 1000:.1f}" for one in seconds), encoded.bytes * 8 / (ms / 1000) / 1e9
            cells = [f"{ms:.0f}", f"{ms / whole:.0%}", *sent, f"{as_long:.2f}"]
        lines.append([MODELS[model].title, f"{side}×{side}×{encoded.channels}", f"{encoded.bytes / 1000:.0f}", *cells])
    return table(
        ["model", "tokens", "kB", "encoding ms", "of a call", "sent by 1 Gbit/s, ms", "by 10 Gbit/s, ms", "as long as encoding, Gbit/s"], lines
    )  # fmt: skip


# Words.


def zipf(words: int, exponent: float) -> np.ndarray:
    """(words,) shares of requests of each of `words` words: the r-th is asked in proportion to r ** -exponent."""
    weights = np.arange(1, words + 1, dtype=float) ** -exponent
    return weights / weights.sum()


def recent_hits(shares: np.ndarray, room: int) -> float:
    """The share of hits of a cache of the `room` most recently used words, by Che's approximation.

    Each word is there if it was asked for within a time t, the same for all, in which `room` words are met.
    """
    if room >= len(shares):
        return 1.0
    low, high = 0.0, 1.0
    while (1 - np.exp(-shares * high)).sum() < room:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (1 - np.exp(-shares * middle)).sum() > room else (middle, high)
    return float((shares * (1 - np.exp(-shares * high))).sum())


def met(shares: np.ndarray, asked: int) -> float:
    """How many different words `asked` independent ones hold."""
    return float((1 - (1 - shares) ** asked).sum())


def words(rows: Sequence[Row]) -> str:
    """Hits of caches, and what misses cost."""
    row = next(row for row in rows if row["case"] == "words")
    ms, room = float(np.median(row["ms"])), FILES_ON_DISK // row["entry_bytes"]
    lines = []
    for count in (10_000, 100_000, 1_000_000):
        for exponent in (0.8, 1.0, 1.2):
            shares = zipf(count, exponent)
            top, recent = float(shares[:1000].sum()), recent_hits(shares, room)
            cold = met(shares, 4000)
            lines.append(
                [f"{count:,}, s = {exponent}", f"{top:.1%}", f"{recent:.1%}", f"{(1 - recent) * 4 * ms:.1f}", f"{cold:.0f}", f"{cold * ms / 1000:.0f}"]
            )  # fmt: skip
    head = ["different words, Zipf's s", "file of the 1,000 most frequent: hits", f"folder of {room:,} words: hits"]
    return table(
        [
            *head,
            "its misses cost a request, ms",
            "new words in a cold replica's first 1,000 requests",
            "encoding them, s",
        ],
        lines,
    )


# Simulations.


def replicas(rows: Sequence[Row]) -> str:
    """What fleets of the measured machine wait and refuse, by load."""
    known, lines = measured(rows), []
    one = Replica(known.calls)
    for count in (1, 2, 4, 8, 16):
        cells: list[object] = [count]
        for load in (0.5, 0.7, 0.8, 0.9, 0.95):
            rate = count * known.capacity * load
            arrivals = poisson([rate], REQUESTS / rate, _SEED)
            told = simulate(arrivals, one, known.work(seed=_SEED), Scaling(count, count)).told(REQUESTS / rate / 10)
            cells.append(f"{told['p50_ms']:.0f}, {told['p99_ms']:.0f}{_refused(told)}")
        lines.append(cells)
    return table(["replicas", *(f"{load} % load" for load in (50, 70, 80, 90, 95))], lines)


def _refused(told: Row) -> str:
    share = told["share_503"] + told["share_504"]
    return f" ({share:.1%} refused)" if share else ""


def steps(rows: Sequence[Row]) -> str:
    """A load that triples for two minutes, by how replicas follow it."""
    known, lines = measured(rows), []
    one, each = Replica(known.calls), 120
    rate = 2 * known.capacity * 0.6
    arrivals = poisson([rate, 3 * rate, rate], each, _SEED)
    rules: dict[str, Scaling] = {
        "2 replicas throughout": Scaling(2, 2),
        "6 replicas throughout": Scaling(6, 6),
        "2 to 8, a replica warm after 2 s": Scaling(2, 8, target=2, delay=2, start=2),
        "2 to 8, after 10 s": Scaling(2, 8, target=2, delay=5, start=10),
        "2 to 8, after 60 s (a new machine)": Scaling(2, 8, target=2, delay=5, start=60),
        "2 to 8, Ray Serve's delays, after 10 s": Scaling(2, 8, target=2, every=10, delay=30, start=10, cool_down=600),
    }
    for name, rule in rules.items():
        found = simulate(arrivals, one, known.work(seed=_SEED), rule)
        whole, late = found.told(), (found.arrived >= each) & (found.arrived < each + 60)
        refused = float((found.status[late] != 200).mean())
        lines.append(
            [name, f"{whole['p50_ms']:.0f}", f"{whole['p99_ms']:.0f}", f"{whole['share_503'] + whole['share_504']:.1%}", f"{refused:.1%}",
             max(count for _, count in found.replicas), f"{found.replica_seconds / 3600:.2f}"]
        )  # fmt: skip
    head = [
        "replicas",
        "p50 ms",
        "p99 ms",
        "refused",
        "refused in the first minute of the peak",
        "most",
        "replica-hours",
    ]
    return table(head, lines)


def batches(rows: Sequence[Row]) -> str:
    """Micro-batches at 80% of the load that a replica without them bears, by what a further picture of a call costs."""
    known, lines = measured(rows), []
    rate = known.capacity * 0.8
    arrivals = poisson([rate], REQUESTS / rate, _SEED)
    for further in (1.0, 0.7, 0.4):
        cells: list[object] = [f"{further:.0%}"]
        for most, wait in ((1, 0.0), (8, 0.003), (8, 0.02)):
            work, one = known.work(further, _SEED), Replica(known.calls, max_batch=most, max_wait=wait)
            found = simulate(arrivals, one, work)
            told, mean = found.told(REQUESTS / rate / 10), found.status.size / sum(found.groups.values())
            cells.append(f"{told['p50_ms']:.0f}, {told['p99_ms']:.0f}{_refused(told)}; {mean:.1f}")
        lines.append(cells)
    head = ["a further picture costs", "no batches", "at most 8, waits 3 ms", "at most 8, waits 20 ms"]
    return table(head, lines)


def tables(rows: Sequence[Row], latency: Sequence[Row], price: float | None = None) -> dict[str, Callable[[], str]]:
    """By name, in the page's order. rows: of `python -m benchmarks.fleet --check`. latency: of docs/records/latency.jsonl."""
    made = {"rates": partial(rates, latency, rows, price), "sizes": partial(sizes, latency)}
    of_rows = {
        "words": words,
        "samples": samples,
        "check": check,
        "replicas": replicas,
        "steps": steps,
        "batches": batches,
    }
    return made | ({name: partial(make, rows) for name, make in of_rows.items()} if rows else {})
