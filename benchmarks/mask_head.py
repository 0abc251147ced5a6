"""The mask head against the usual ways to a label map: time, memory, bytes moved and error, candidates interleaved.

  python benchmarks/mask_head.py                                  # suite quick on the CPU: minutes
  python benchmarks/mask_head.py --suite full --json record.jsonl --plot record.png
  python benchmarks/mask_head.py --sizes 1024 --words 20,600 --maps smooth --candidates ours,compile
  python benchmarks/mask_head.py --device cuda --dtype float16    # the shipped kernels, by replay of recordings
  python benchmarks/mask_head.py --from record.jsonl --plot record.png

A candidate that disagrees with float64 arithmetic by more than its precision explains ends the run, but for the
low-resolution approximation, whose error is reported. What would not fit into memory is reported with what it needs.
One JSON line a row, appended after every cell; Ctrl-C keeps them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import command, machine, truth
from benchmarks.command import Row, count, counts, names
from benchmarks.mask_head_candidates import TEMPERATURE, TITLES, Candidate, Case, candidate, sizes
from benchmarks.mask_head_report import plot, speedups, table
from fusioner_rt.atomic_files import writable_place
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import FusionerError, UsageError
from kernels import reference

SUITES: dict[str, dict[str, Any]] = {
    "smoke": {"sizes": [48, 97], "channels": [16], "words": [1, 5], "low": 12, "repeats": 3,
              "candidates": ["naive", "lowres", "onnx", "ours"]},
    "quick": {"sizes": [224, 512, 1024, 2048], "channels": [512], "words": [20, 150], "low": 80, "repeats": 5,
              "candidates": list(TITLES)},
    "full": {"sizes": [224, 512, 1024, 2048, 4096], "channels": [256, 512, 768], "words": [1, 20, 150, 600], "low": 80,
             "repeats": 15, "candidates": list(TITLES)},
}  # fmt: skip
MIN_REPEATS = 3


class Disagreement(FusionerError):
    """A candidate computes something else than the mask head's definition."""

    exit_code = 97
    is_input = False


def measure(case: Case, given: argparse.Namespace, bar: tqdm[Any]) -> list[Row]:
    """One row per candidate. The first call is checked and its memory watched; one more warms up; then they take turns.

    Raises Disagreement.
    """
    rows = {
        name: {"what": "mask_head", "candidate": name, **vars(case), **sizes(name, case)} for name in given.candidates
    }
    command.skip_too_large(rows.values(), given.memory_limit)
    inputs = case.inputs()
    running = {name: candidate(name, case, inputs, given.threads) for name, row in rows.items() if "skipped" not in row}
    for name, one in running.items():
        rows[name] |= checked(one, case, rows.get("naive", {}).get("error_max", 0.0))

    others, started = machine.OtherWork(), time.monotonic()
    times: dict[str, list[list[float]]] = {name: [] for name in running}
    processor: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(given.repeats + 1):
        if turn > MIN_REPEATS and time.monotonic() - started > given.seconds:
            break
        for name, one in running.items():
            time.sleep(0.02)  # idle threads of the last one's pool spin a while
            spent = time.process_time()
            took = timed(one, case.device)
            if turn:
                times[name].append(took)
                processor[name].append((time.process_time() - spent) * 1000)
        bar.update(work(case, running) / (given.repeats + 1))
    load = round(others.cores(), 2)
    for name, one in running.items():
        rows[name] |= machine.percentiles([sum(stages) for stages in times[name]])
        rows[name] |= {"processor_p50_ms": round(float(np.median(processor[name])), 3), "repeats": len(times[name])}
        if len(one.stages) > 1:
            medians = np.median(times[name], axis=0).round(3).tolist()
            rows[name]["stages_p50_ms"] = dict(zip(one.stages, medians, strict=True))
    return [{**row, "load": load, "busy": given.busy or load > machine.IDLE} for row in rows.values()]


def checked(one: Candidate, case: Case, naive_error: float) -> Row:
    """Peak memory and errors of one call. Raises Disagreement."""
    peak, labels, confidence = watched(one, case.device)
    errors = compare(labels, confidence, case)
    if one.exact and errors["shortfall"] > (limit := tolerance(one.name, case, naive_error)):
        raise Disagreement(
            f"{TITLES[one.name]} errs by {errors['shortfall']:.2g} in probability on {case}, its "
            f"precision explains {limit:.2g}",
            "it computes something else: run its tests",
        )
    return {"peak_bytes": peak, **errors}


def run(one: Candidate) -> tuple[Any, Any]:
    result = one.inputs
    for stage in one.stages.values():
        result = stage(*result)
    return result


def watched(one: Candidate, device: str) -> tuple[int, Any, Any]:
    """Peak bytes above the inputs, labels, confidence."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        labels, confidence = run(one)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, labels, confidence
    memory = machine.PeakMemory()
    labels, confidence = run(one)
    return memory.bytes(), labels, confidence


def timed(one: Candidate, device: str) -> list[float]:
    """Milliseconds per stage."""
    if one.replay is not None:
        return one.replay()
    result = one.inputs
    if device == "cuda":
        torch.empty(256 << 20, dtype=torch.uint8, device=device).zero_()  # nothing of the last call stays in the cache
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(one.stages) + 1)]
        marks[0].record()
        for stage, mark in zip(one.stages.values(), marks[1:], strict=True):
            result = stage(*result)
            mark.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
    times = [time.perf_counter()]
    for stage in one.stages.values():
        result = stage(*result)
        times.append(time.perf_counter())
    return [(after - before) * 1000 for before, after in itertools.pairwise(times)]


def compare(labels: Any, confidence: Any, case: Case) -> Row:
    """Errors on seven rows of pixels, first and last among them, against naive arithmetic in float64.

    error_max, error_mean: of the confidence. labels_otherwise: the share of pixels labelled otherwise than in float64.
    shortfall: the largest one, which benchmarks/truth.py defines.
    """
    features, words = (part[0].double() for part in case.inputs())
    rows = truth.spread_rows(case.size, 7)
    exact = truth.probabilities(features, reference.unit(words), case.size, rows, TEMPERATURE).cpu()
    labels, confidence = as_float64(labels)[rows].long(), as_float64(confidence)[rows]
    otherwise, error, shortfall = truth.errors(labels, confidence, exact)
    return {
        "error_max": float(error.max()), "error_mean": float(error.mean()),
        "labels_otherwise": float(otherwise.double().mean()), "shortfall": float(shortfall.max()),
    }  # fmt: skip


def as_float64(maps: Any) -> torch.Tensor:
    """(H, W) from a map with or without a batch of one."""
    tensor = torch.from_numpy(maps) if isinstance(maps, np.ndarray) else maps
    return tensor.reshape(tensor.shape[-2:]).cpu().double()


def tolerance(name: str, case: Case, naive_error: float) -> float:
    """The probability error that rounding explains: roundings of the cosine, times the sigmoid's slope of 1/(4τ).

    torch and ONNX's Resize also round coordinates, which reach the map's side. In float32 ours is held to 1e-5, and in
    half precision to twice naive torch's own error, where that ran. On a GPU our confidence is rounded to float16.
    """
    eps = torch.finfo(case.torch_dtype).eps
    coordinates = (case.channels, case.low) if case.dtype == "float32" else ()
    plain = truth.rounding(eps, TEMPERATURE, *coordinates)
    if name != "ours":
        return plain
    allowed = 1e-5 if case.dtype == "float32" else 2 * naive_error or plain
    return allowed + (torch.finfo(torch.float16).eps / 4 if case.device == "cuda" else 0)  # rounded just below 1


def work(case: Case, candidates: Iterable[str]) -> float:
    """What the progress bar counts: bytes moved, which time follows."""
    return float(sum(sizes(name, case)["bytes_moved"] for name in candidates))


def measured(cases: list[Case], given: argparse.Namespace) -> Iterator[list[Row]]:
    """Rows of one cell after the other. Raises Disagreement."""
    where = machine.record("torch", "onnxruntime" if given.device == "cpu" else "triton") | {"threads": given.threads}
    rate = 0.0
    if given.device == "cuda":
        rate = copy_bandwidth()
        where |= {"gpu": torch.cuda.get_device_name(), "copy_gb_s": round(rate / 1e9, 1)}
    with tqdm(total=sum(work(case, given.candidates) for case in cases), bar_format=command.BAR, disable=None) as bar:
        done = 0.0
        for case in cases:
            bar.set_postfix_str(f"{case.maps} {case.size}² d={case.channels} K={case.words}")
            rows = [{**row, **where} for row in measure(case, given, bar)]
            for row in rows:
                if rate and "stages_p50_ms" in row:  # stage 2 against copying what it must read and write
                    floor = (row["output_bytes"] + 4 * (case.words + 5) * case.low**2) / rate * 1000
                    row |= {"floor_ms": round(floor, 4), "over_floor": round(row["stages_p50_ms"]["labels"] / floor, 2)}
            done += work(case, given.candidates)
            bar.update(done - bar.n)
            yield rows


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a 1 GB copy on the GPU."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = Candidate("copy", (source, target), {"all": lambda source, target: (target.copy_(source), target)})
    return 2 * source.numel() / (float(np.median([timed(copy, "cuda")[0] for _ in range(10)])) / 1000)


def main(arguments: list[str] | None = None) -> int:
    return command.exit_status("mask_head.py", lambda: benchmark(options(arguments)))


def benchmark(given: argparse.Namespace) -> int:
    for file in filter(None, (given.json, given.plot)):
        writable_place(file)
    if given.read:
        rows = command.read(given.read, "mask_head")
    else:
        machine.check_idle(given.busy)
        torch.set_num_threads(given.threads)
        axes = itertools.product(given.maps, given.channels, given.words, given.sizes)
        cases = [Case(maps, size, d, k, given.low, given.dtype, given.device) for maps, d, k, size in axes]
        rows = command.collect(measured(cases, given), given.json, table)
    print(table(rows))
    if given.plot:
        plot(rows, given.plot)
    verdicts, passed = speedups(rows)
    print("\n".join(verdicts))
    return 0 if passed or not given.gate else 1


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UsageError for what only this machine can tell; argparse ends the process for what it cannot read."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="quick", help="axes and repeats (default: %(default)s): smoke takes seconds, "
        "quick minutes, full hours; the flags below replace one axis each")  # fmt: skip
    add("--sizes", type=counts, help="output edges in pixels, 224 to 4096 in suite full", metavar="A,B")
    add("--channels", type=counts, help="d of the features", metavar="A,B")
    add("--words", type=counts, help="K", metavar="A,B")
    add("--low", type=count, help="edge of the feature map (default: 80, the demonstration model's)")
    add("--maps", type=names("random", "smooth"), default=["random", "smooth"], metavar="A,B",
        help="random: normal numbers, no word wins anywhere; smooth: eight regions with a word each, "
        "blurred, plus noise, as a model's maps are (default: both)")  # fmt: skip
    add("--candidates", type=names(*TITLES), help=", ".join(TITLES), metavar="A,B")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "float16", "bfloat16"),
        help="of the features (default: float32 on the CPU, float16 on a GPU)")  # fmt: skip
    add("--threads", type=count, default=machine.cores(), help="CPU threads (default: all %(default)s)")
    add("--repeats", type=count, help="turns each candidate takes in a cell")
    add("--seconds", type=count, default=120, help="end a cell's turns after this long, but not "
        f"before {MIN_REPEATS} (default: %(default)s)")  # fmt: skip
    add("--memory-limit", type=float, metavar="GB", help="skip what needs more (default: 0.6 of what is available)")
    add("--busy", action="store_true", help="measure though other processes run; every row says so")
    add("--json", type=Path, metavar="FILE", help="append the rows to this file")
    add("--plot", type=Path, metavar="FILE.png", help="draw time and memory against output size")
    add("--from", type=Path, dest="read", metavar="FILE", help="measure nothing: print and draw this record")
    add("--gate", action="store_true", help="exit with 1 where ours misses the speed-up it is to show")
    given = parser.parse_args(arguments)
    command.fill(given, SUITES[given.suite])
    given.candidates = [name for name in TITLES if name in given.candidates]  # naive's error first, ours is held to it
    cuda = given.device == "cuda"
    given.dtype = given.dtype or ("float16" if cuda else "float32")
    if not cuda and given.dtype != "float32":
        raise UsageError(
            f"--dtype {given.dtype} is measured on a GPU", "on the CPU it is float32, or pass --device cuda"
        )
    free = machine.torch_gpu_bytes("--device cuda", "use cpu") if cuda else machine.available_memory()
    if cuda:
        given.candidates = [name for name in given.candidates if name != "onnx"]  # of the CPU
    if given.memory_limit is None:
        given.memory_limit = 0.6 * free / 1e9
    return given


if __name__ == "__main__":
    sys.exit(main())
