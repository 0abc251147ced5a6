"""How far each stage of a picture's way is from what this machine can do: products counted, bytes counted, time measured.

  python benchmarks/roofline.py                                # ViT-S/16, d = 256, 224² out, 20 words
  python benchmarks/roofline.py --model vitb --output 1024 --words 150 --json roofline.jsonl

A session segments a photograph; every graph it runs is watched, and what it computes and moves is counted from the graph
at the shapes it was given (benchmarks/graph_cost.py). Beside it stands what the direct form of the stage computes: the
graph image_fusion, operator by operator, and the scores over its features (the decoder's last convolution, 1×1, counts
as decoder there; where the decoder runs by strips it is computed with the scores). The limits are measured in the same run: a
product of square matrices, the best of torch, ONNX Runtime and numpy, and a copy.

GFLOP    two for each multiplication of products, convolutions and attention; other operators count as bytes alone
MB       least: inputs, weights (as they are once folded) and outputs of the stage's graphs, each once in a call; by operator: as if each operator
         read and wrote memory
floor    milliseconds that the slower of the two limits leaves: GFLOP at the product's rate, least MB at the copy's
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import machine
from benchmarks.command import Row, append, count, exit_status
from benchmarks.graph_cost import Cost, graph_cost, graph_costs
from benchmarks.latency import make
from benchmarks.latency_models import MAX_WORDS, MODELS, Files, picture
from fusioner_rt.atomic_files import writable_place
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]

STAGES = ("image", "fusion", "decoder", "image_fusion", "scores", "labels")
"""Stages by the beginning of a graph's name; of several the longest that fits."""
_STAGE_OF = {
    "image": "image", "fusion": "fusion", "decoder": "decoder", "decoder_scores": "scores", "image_fusion": "image_fusion",
    "mask_scores": "scores", "mask_": "labels",
}  # fmt: skip


def stage_of(graph: str) -> str:
    fitting = [start for start in _STAGE_OF if graph.startswith(start)]
    return _STAGE_OF[max(fitting, key=len)] if fitting else graph


class Watched:
    """A graph of ONNX Runtime's backend that tells `calls` of every call: path, inputs, start and end."""

    def __init__(self, graph: Any, path: Path, calls: list[tuple[Path, Mapping[str, Any], float, float]]) -> None:
        self._graph, self._path, self._calls = graph, path, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        return self._timed(self._graph, inputs)

    def fill(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._timed(self._graph.fill, inputs, outputs)

    def _timed(self, function: Callable[..., Any], inputs: Mapping[str, Any], *more: Any) -> Any:
        start = time.perf_counter()
        result = function(inputs, *more)
        self._calls.append((self._path, inputs, start, time.perf_counter()))
        return result


@contextlib.contextmanager
def watching(calls: list[Any]) -> Iterator[None]:
    """Every graph that is loaded meanwhile is watched, also after."""
    from fusioner_rt.onnx.runtime import OnnxRuntime

    load = OnnxRuntime.load
    OnnxRuntime.load = lambda self, path, *a, **k: Watched(load(self, path, *a, **k), path, calls)  # type: ignore[assignment]
    try:
        yield
    finally:
        OnnxRuntime.load = load  # type: ignore[method-assign]


def counted(calls: list[tuple[Path, Mapping[str, Any], float, float]]) -> dict[str, Cost]:
    """By stage, of the graphs called; those given the same shapes are run once more to count. Weights count once a graph."""
    known: dict[Any, Cost] = {}
    total: dict[str, Cost] = {}
    weighed: set[Path] = set()
    for path, inputs, _, _ in calls:
        shapes = (path, *((name, np.shape(value)) for name, value in sorted(inputs.items())))
        if shapes not in known:
            known[shapes] = graph_cost(path, {name: np.ascontiguousarray(value) for name, value in inputs.items()})
        cost = known[shapes]
        if path in weighed:
            cost = Cost(cost.flops, cost.least - cost.constants, cost.by_operator)
        weighed.add(path)
        stage = stage_of(path.stem)
        total[stage] = total.get(stage, Cost()) + cost
    return total


def direct(bundle: Path, pixels: np.ndarray, words: np.ndarray) -> dict[str, Cost]:
    """The same stages computed as they are defined: image_fusion's operators, then scores and Gram maps of its features."""
    import onnxruntime

    inputs = {"pixels": pixels, "words": words}
    parts = graph_costs(bundle / "image_fusion.onnx", inputs, ("image/", "fusion/", "decoder/"))
    named = {part.rstrip("/") or "image_fusion": cost for part, cost in parts.items()}
    if "fusion" in named:  # what belongs to no part are the whole's outputs, renamed
        named["decoder" if "decoder" in named else "fusion"] += named.pop("image_fusion", Cost())
    session = onnxruntime.InferenceSession(str(bundle / "image_fusion.onnx"), providers=["CPUExecutionProvider"])
    features, refined = session.run(["features", "refined"], inputs)
    named["scores"] = graph_cost(bundle / "mask_scores.onnx", {"features": features, "refined": refined})
    return named


def gemm_rate(threads: int) -> tuple[float, str]:
    """FLOP per second of the fastest product of n×n float32 matrices here, and which it was."""
    import onnxruntime
    import torch

    from export.onnx.mask_head_graphs import FLOAT, Graph

    torch.set_num_threads(threads)
    graph = Graph("product", {"a": (FLOAT, ["n", "n"]), "b": (FLOAT, ["n", "n"])})
    graph.MatMul("a", "b", name="c")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph.model({"c": (FLOAT, ["n", "n"])}).SerializeToString(), options)
    best = (0.0, "")
    for n in (1024, 1536, 2048):
        a, b = (np.random.default_rng(n).standard_normal((n, n), np.float32) for _ in range(2))
        ways: dict[str, Callable[[Any, Any], Any]] = {
            "torch": lambda a, b: torch.from_numpy(a) @ torch.from_numpy(b), "numpy": np.matmul,
            "ONNX Runtime": lambda a, b: session.run(None, {"a": a, "b": b}),
        }  # fmt: skip
        for name, way in ways.items():
            best = max(best, (2 * n**3 / seconds(lambda way=way, a=a, b=b: way(a, b)), f"{name}, n = {n}"))  # type: ignore[misc]
    return best


def copy_rate() -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    import torch

    source = torch.zeros(64 << 20)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest: a limit is what the machine can do."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def spans(calls: list[tuple[Path, Mapping[str, Any], float, float]]) -> dict[str, float]:
    """Milliseconds from the beginning of a stage's first graph to the end of its last, what lies between included."""
    stages: dict[str, list[float]] = {}
    for path, _, start, end in calls:
        ends = stages.setdefault(stage_of(path.stem), [start, end])
        ends[:] = [min(ends[0], start), max(ends[1], end)]
    return {stage: (end - start) * 1000 for stage, (start, end) in stages.items()}


def measure(given: argparse.Namespace) -> list[Row]:
    """One row per stage, and what the call takes beside them."""
    from fusioner_rt import Session

    files = Files(given.work, given.model)
    calls: list[Any] = []
    names = files.facts()["words"][: given.words]
    rgb, size = picture(given.output), (given.output, given.output)
    others = machine.OtherWork()
    with watching(calls):
        session = Session(files.bundle(given.precision), "onnxruntime-cpu", given.work / "words", given.threads)
    with session:
        session.set_vocabulary(names)
        session.segment(rgb, size=size)
        every: list[dict[str, float]] = []
        for _ in range(given.repeats):
            time.sleep(0.02)
            calls.clear()
            start = time.perf_counter()
            with watching(calls):  # graphs are loaded when first used
                session.segment(rgb, size=size)
            every.append(spans(calls) | {"call": (time.perf_counter() - start) * 1000})
        costs = counted(calls)
    load = others.cores()
    how = files.preprocessing()
    vectors = np.load(files.words)[: given.words][None]
    plain = direct(files.bundle(given.precision), how(rgb)[None], vectors)
    rate, what = gemm_rate(given.threads)
    copied = copy_rate()
    where = machine.record("onnxruntime", "torch") | {
        "threads": given.threads, "load": round(load, 2), "busy": given.busy or load > machine.IDLE,
        "gemm_gflop_s": round(rate / 1e9, 1), "gemm": what, "copy_gb_s": round(copied / 1e9, 1),
        "model": given.model, "precision": given.precision, "output": given.output, "words": given.words,
    }  # fmt: skip
    rows: list[Row] = []
    for stage in [stage for stage in STAGES if stage in costs]:
        cost, ms = costs[stage], float(np.median([one[stage] for one in every]))
        rows.append({
            "what": "roofline", "stage": stage, **where, "p50_ms": round(ms, 3), **vars(cost),
            **({f"direct_{name}": value for name, value in vars(plain[stage]).items()} if stage in plain else {}),
            "floor_ms": round(1000 * max(cost.flops / rate, cost.least / copied), 3),
        })  # fmt: skip
    call = float(np.median([one["call"] for one in every]))
    rows.append({"what": "roofline", "stage": "call", **where, "p50_ms": round(call, 3)})
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    first = rows[0]
    lines = [
        f"**{MODELS[first['model']].title}** ({first['precision']}, {first['output']}², {first['words']} words), "
        f"{first['threads']} threads of {first['processor']}{', busy machine' if first['busy'] else ''}. "
        f"Product: {first['gemm_gflop_s']} GFLOP/s ({first['gemm']}); copy: {first['copy_gb_s']} GB/s", "",
        "| stage | GFLOP direct | GFLOP | MB least | MB by operator | ms | GFLOP/s | % of product | floor ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        if "flops" not in row:
            lines.append(f"| {row['stage']} | | | | | {row['p50_ms']:.1f} | | | |")
            continue
        rate = row["flops"] / row["p50_ms"] / 1e6
        plain = f"{row['direct_flops'] / 1e9:.2f}" if "direct_flops" in row else ""
        lines.append(
            f"| {row['stage']} | {plain} | {row['flops'] / 1e9:.2f} | {row['least'] / 1e6:.0f} | {row['by_operator'] / 1e6:.0f} | "
            f"{row['p50_ms']:.1f} | {rate:.0f} | {rate / row['gemm_gflop_s']:.0%} | {row['floor_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    return exit_status("roofline.py", lambda: run(options(arguments)), "nothing was kept")


def run(given: argparse.Namespace) -> int:
    if given.json:
        writable_place(given.json)
    machine.check_idle(given.busy)
    make(Files(given.work, given.model), [given.precision], given.words, given.threads)
    rows = measure(given)
    print(table(rows), end="")
    append(rows, given.json)
    return 0


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UsageError."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=MODELS, default="vits", help="default: %(default)s")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="of the bundle (default: %(default)s)")
    add("--output", type=count, default=224, help="edge of picture and label map, pixels (default: %(default)s)")
    add("--words", type=count, default=20, help="default: %(default)s")
    add("--repeats", type=count, default=15, help="calls that are timed (default: %(default)s)")
    add("--threads", type=count, default=machine.cores(), help="CPU threads (default: all %(default)s)")
    work = ROOT / "build/latency"
    add("--work", type=Path, default=work, metavar="DIR", help="where models are kept, as in latency.py")
    add("--busy", action="store_true", help="measure though other processes run; every row says so")
    add("--json", type=Path, metavar="FILE", help="append the rows to this file")
    given = parser.parse_args(arguments)
    if given.words > MAX_WORDS:
        raise UsageError(f"{MAX_WORDS} names are listed at most", "give fewer", subject=f"--words {given.words}")
    given.work = given.work.absolute()
    return given


if __name__ == "__main__":
    sys.exit(main())
