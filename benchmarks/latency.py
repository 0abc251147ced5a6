"""The whole way from a picture to its label map, against what people would use instead: time, memory and accuracy.

  python benchmarks/latency.py                                   # suite cpu: an hour or two
  python benchmarks/latency.py --suite smoke --gate              # two minutes; exit status 1 where ours has become slower
  python benchmarks/latency.py --models vits --outputs 1024 --words 20 --candidates eager,ours
  python benchmarks/latency.py --json record.jsonl --table record.md --plot record.png
  python benchmarks/latency.py --from record.jsonl --plot record.png
  python benchmarks/latency.py --suite gpu --json gpu.jsonl      # where there is an NVIDIA GPU

Every candidate (benchmarks/latency_candidates.py says what each is) runs in a process of its own, gets the same pictures,
words and vectors, and they take turns. A cell is a model, picture, output size, number of words, batch and precision. A
suite takes each axis' values in turn with the others held at its middle ones (20 words, one picture); --product takes
all combinations. The first call of every cell is compared with float64 arithmetic: one that computes something else than
its precision explains ends the run. What needs too much memory, or fails, is a row that says so.

Models with random weights are made and exported when first needed, which takes minutes, and kept in --work.
One JSON line a row, appended after every cell; Ctrl-C keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import command, latency_report, machine
from benchmarks.command import Row, count, counts, names, whole
from benchmarks.latency_candidates import APPROXIMATE, TITLES, Cell, Job, bytes_on_disk, installed_bytes, needed_bytes
from benchmarks.latency_models import MAX_WORDS, MODELS, Files
from fusioner_rt.atomic_files import writable_place, write_result
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import FusionerError, UsageError

ROOT = Path(__file__).resolve().parents[1]
CPU = [
    "eager", "eager-uncached", "compile", "ort", "openvino", "openvino-bf16", "ort-scores", "openvino-scores", "ours", "ours-words",
    "clipseg",
]  # fmt: skip
SUITES: dict[str, dict[str, Any]] = {
    "smoke": {"models": ["small", "demo"], "outputs": [224, 512], "words": [20], "batch": [1], "repeats": 7, "cold": 1,
              "candidates": ["eager", "ort", "openvino", "ours", "ours-words"], "seconds": 10, "precision": ["own"]},
    "cpu": {"models": ["demo", "vits", "vitb", "vitl"], "outputs": [224, 512, 1024, 2048, 4096], "words": [1, 20, 150],
            "batch": [1, 8], "candidates": CPU, "repeats": 30, "cold": 5, "seconds": 120, "precision": ["own"]},
    "gpu": {"models": ["demo", "vits", "vitb", "vitl"], "outputs": [224, 512, 1024, 2048, 4096], "words": [1, 20, 150],
            "batch": [1, 8], "candidates": ["eager", "compile", "kernels", "ours", "ours-ort", "clipseg"], "repeats": 100, "cold": 3,
            "seconds": 60, "precision": ["fp16", "fp32"]},
}  # fmt: skip
MAX_BATCH = 8
MIN_REPEATS = 5
TOGETHER = ("ours", "openvino-scores", "ort-scores", "eager", "openvino", "ort", "ours-words")
"""Candidates that take turns with each other before all others, where memory does not hold every one."""
SLOW_MS = 2000
"""Where no call takes longer, each timed call follows an untimed one: other candidates had the caches meanwhile."""
COLD_EDGE = 224
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
"""A worker does not inherit them: a measurement says its threads with --threads."""


class Disagreement(FusionerError):
    """A candidate computes something else than the model."""

    exit_code = 96
    is_input = False


class Failed(Exception):
    """What a worker could not do. Its row tells it."""


class Process:
    """A worker (benchmarks/latency_worker.py). `ask` sends a command and waits for its answer."""

    def __init__(self, job: Job) -> None:
        self._cache = tempfile.TemporaryDirectory()  # what torch.compile keeps: every first call compiles
        environment = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": self._cache.name, "HF_HUB_OFFLINE": "1"}
        arguments = [sys.executable, str(ROOT / "benchmarks/latency_worker.py"), json.dumps(dataclasses.asdict(job))]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self._spent = 0.0
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._commands, self._answers = self._process.stdin, self._process.stdout

    def ask(self, *words: Any) -> Row:
        """Raises Failed."""
        try:
            self._commands.write(json.dumps(words) + "\n")
            self._commands.flush()
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["without a word"])[-1]
            raise Failed(f"its process ended with status {status}: {last[:200]}")
        answer: Row = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def processor_seconds(self) -> float:
        """What the process has spent. After its end this is what was known before."""
        self._spent = max(self._spent, machine.processor_seconds(self._process.pid))
        return self._spent

    def close(self) -> None:
        self.processor_seconds()
        with contextlib.suppress(OSError):
            self._commands.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._errors.close()
        self._cache.cleanup()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cells(given: argparse.Namespace) -> list[Cell]:
    """The suite's cells: every axis in turn about the middle, or all combinations. A repeated cell counts once."""
    middle_words = 20 if 20 in given.words else given.words[0]
    middle_batch = given.batch[0]
    smallest, large = given.outputs[0], max([size for size in given.outputs if size <= 1024] or given.outputs[:1])
    if given.product:
        axes = list(itertools.product(given.outputs, given.words, given.batch))
    else:
        axes = [(output, middle_words, middle_batch) for output in given.outputs]
        axes += [(output, words, middle_batch) for output in (smallest, large) for words in given.words]
        axes += [(smallest, middle_words, batch) for batch in given.batch]
    found: dict[Cell, None] = {}
    for model, precision in itertools.product(given.models, given.precision):
        if precision == "own":
            precision = "fp16" if model == "demo" and given.device == "cpu" else "fp32"
        for output, words, batch in axes:
            for picture in given.pictures or [output]:
                found[Cell(model, picture, output, words, batch, precision)] = None
    return list(found)


def job(cell: Cell, candidate: str, given: argparse.Namespace) -> Job:
    return Job(
        **dataclasses.asdict(cell), candidate=candidate, device=given.device, threads=given.threads, work=str(given.work)
    )  # fmt: skip


def measure(cell: Cell, given: argparse.Namespace, bar: tqdm[Any]) -> list[Row]:
    """One row per candidate. Raises Disagreement."""
    jobs = {name: job(cell, name, given) for name in given.candidates}
    rows: dict[str, Row] = {
        name: {"what": "latency", "candidate": name, **dataclasses.asdict(cell), "device": given.device,
               "input": list(one.files.preprocessing().input_size(cell.picture, cell.picture)),
               "needs_bytes": needed_bytes(one)} for name, one in jobs.items()
    }  # fmt: skip
    command.skip_too_large(rows.values(), given.memory_limit)
    needed = {name: row["needs_bytes"] for name, row in rows.items() if "skipped" not in row}
    with Process(job(cell, "eager", given)) as truth, tempfile.TemporaryDirectory() as folder:
        try:
            truth.ask("open_truth")
        except Failed as error:
            for name in needed:
                rows[name]["skipped"] = f"nothing to compare it with, float64 arithmetic failed: {error}"
            needed = {}
        every = groups(needed, given.memory_limit * 1e9)
        for group in every:
            result = Path(folder) / "result.npz"
            measure_together({name: jobs[name] for name in group}, rows, truth, result, given)
            for name in group:
                rows[name]["interleaved"] = "ours" in group or len(every) == 1
                bar.update()
    bar.update(len(jobs) - len(needed))
    return list(rows.values())


def groups(needed: dict[str, int], allowed: float) -> list[list[str]]:
    """Candidates that take turns, as many as fit into memory."""
    order = [name for name in TOGETHER if name in needed] + [name for name in needed if name not in TOGETHER]
    found: list[list[str]] = []
    left = 0.0
    for name in order:
        if not found or needed[name] > left:
            found.append([])
            left = allowed
        found[-1].append(name)
        left -= needed[name]
    return found


def measure_together(
    jobs: dict[str, Job], rows: dict[str, Row], truth: Process, result: Path, given: argparse.Namespace
) -> None:
    """Opens a process for each job, checks its first call, and times them in turns. Fills `rows`. Raises Disagreement."""
    running: dict[str, Process] = {}
    with contextlib.ExitStack() as stack:
        for name, one in jobs.items():
            process = stack.enter_context(Process(one))
            try:
                open_and_compare(process, one, rows[name], truth, result)
            except Failed as error:
                rows[name]["skipped"] = str(error)
                process.close()  # those that follow get its memory
                continue
            refuse_disagreement(rows[name])
            running[name] = process

        processes = [*running.values(), truth]
        others = machine.OtherWork(lambda: time.process_time() + sum(one.processor_seconds() for one in processes))
        taken = take_turns(running, rows, given)
        load = round(others.cores(), 2)
        for name in list(running):
            if (peak := ask_or_drop(name, "peak", running, rows)) is not None:
                busy = given.busy or load > machine.IDLE
                rows[name] |= summary(taken[name], jobs[name].batch) | peak | {"load": load, "busy": busy}


def open_and_compare(process: Process, job: Job, row: Row, truth: Process, result: Path) -> None:
    """Raises Failed, which says whose failure it is."""
    opened = process.ask("open")
    first = process.ask("first", str(result))
    row |= {"open_ms": round(opened["open_ms"], 1), "first_ms": round(first["ms"], 1), **opened["versions"]}
    row |= {"note": opened["note"], "bytes_on_disk": opened["parameter_bytes"] or bytes_on_disk(job)}
    row |= {"device_bytes": first["device_bytes"]}
    if job.candidate != "clipseg":  # another model
        try:
            row |= truth.ask("check", str(result))
        except Failed as error:
            raise Failed(f"not compared, float64 arithmetic failed: {error}") from None


def summary(answers: list[Row], batch: int) -> Row:
    """Medians and percentiles of the timed calls."""
    ms = [answer["ms"] for answer in answers]
    stages = {stage: median([answer["stages"][stage] for answer in answers]) for stage in answers[0]["stages"]}
    return {
        **machine.percentiles(ms, (20, 50, 80, 90, 99)),
        "processor_p50_ms": median([answer["processor_ms"] for answer in answers]),
        "pictures_per_s": round(1000 * batch / float(np.median(ms)), 3), "repeats": len(ms), "stages_p50_ms": stages,
    }  # fmt: skip


def median(values: list[float]) -> float:
    return round(float(np.median(values)), 3)


def ask_or_drop(name: str, word: str, running: dict[str, Process], rows: dict[str, Row]) -> Row | None:
    """The answer. Where there is none, the row says why and the candidate leaves `running`."""
    try:
        return running[name].ask(word)
    except Failed as error:
        rows[name]["skipped"] = str(error)
        running.pop(name).close()
        return None


def take_turns(running: dict[str, Process], rows: dict[str, Row], given: argparse.Namespace) -> dict[str, list[Row]]:
    """Answers to the timed calls: as many of each candidate, and warmed up alike, so that their quantiles compare."""
    warmed = True
    for name in list(running):
        if warmed and rows[name]["first_ms"] > SLOW_MS:  # a first call may have compiled: one more tells
            again = ask_or_drop(name, "call", running, rows)
            warmed = again is None or again["ms"] <= SLOW_MS
    taken: dict[str, list[Row]] = {name: [] for name in running}
    spent = 0.0
    for turn in range(given.repeats):
        if turn >= MIN_REPEATS and spent > given.seconds:
            break
        for name in list(running):
            time.sleep(0.02)  # idle threads of the last one's pool spin a while
            for timed in (False, True) if warmed else (True,):
                if (answer := ask_or_drop(name, "call", running, rows)) is None:
                    break
                spent += answer["ms"] / 1000
                if timed:
                    taken[name].append(answer)
    return taken


def refuse_disagreement(row: Row) -> None:
    """Raises Disagreement where rounding does not explain an error in float32, and where the model hides errors."""
    if "shortfall" not in row or row["precision"] != "fp32" or row["candidate"] in ("openvino-bf16", *APPROXIMATE):
        return
    if row["shortfall"] > row["explained"]:
        raise Disagreement(
            f"{TITLES[row['candidate']]} errs by {row['shortfall']:.2g} in probability on {row['model']}, output "
            f"{row['output']}², {row['words']} words; rounding explains {row['explained']:.2g}",
            "it computes something else",
        )
    if row["words"] > 1 and row["words_winning"] < 2:
        raise Disagreement(
            f"in {row['model']} one word wins everywhere, which hides errors",
            "its outputs are to be centred (benchmarks/latency_models.py)",
        )


def cold(model: str, precision: str, given: argparse.Namespace) -> list[Row]:
    """From nothing to the first mask of two words, in fresh processes. The cells before have read the files.

    Candidates that say so encode the words; for the others their vectors lie on disk.
    """
    candidates = [
        name for name in given.candidates if name not in ("ours-words", "openvino-bf16", "compile", *APPROXIMATE)
    ]
    candidates += ["ours-uncached"] if "ours" in candidates else []
    cell = Cell(model, COLD_EDGE, COLD_EDGE, 2, 1, precision)
    rows = []
    for name in candidates:
        row: Row = {"what": "cold", "candidate": name, "model": model, "precision": precision, "device": given.device}
        try:
            row |= cold_starts(job(cell, name, given), given)
        except Failed as error:
            row["skipped"] = str(error)
        rows.append(row)
    return rows


def cold_starts(job: Job, given: argparse.Namespace) -> Row:
    """process_p50_ms: from the start of the process; import_p50_ms: from its first line, the interpreter being up.

    Raises Failed.
    """
    times: list[tuple[float, float]] = []
    spent: list[float] = []
    others = machine.OtherWork(lambda: time.process_time() + sum(spent))
    for _ in range(given.cold):
        with Process(job) as process:
            opened = process.ask("open")
            first = process.ask("first")
            ended = time.perf_counter()
            spent.append(process.processor_seconds())
        times.append(((ended - process.started) * 1000, first["since_start_ms"]))
    from_process, from_import = np.median(times, axis=0)
    load = round(others.cores(), 2)
    return {
        "process_p50_ms": round(from_process), "import_p50_ms": round(from_import), "repeats": len(times), "load": load,
        "peak_bytes": first["peak_bytes"], "installed_bytes": installed_bytes(job.candidate),
        "bytes_on_disk": opened["parameter_bytes"] or bytes_on_disk(job), "busy": given.busy or load > machine.IDLE,
    }  # fmt: skip


def measured(given: argparse.Namespace) -> Iterator[list[Row]]:
    """Rows of one cell after the other. Raises Disagreement."""
    where = machine.record("numpy") | {"threads": given.threads, "python": sys.version.split()[0]}
    if given.device == "cuda":
        import torch

        where["gpu"] = torch.cuda.get_device_name()
    everything = cells(given)
    starts = sorted({(cell.model, cell.precision) for cell in everything}) if given.cold else []
    with tqdm(total=len(everything) * len(given.candidates) + len(starts), bar_format=command.BAR, disable=None) as bar:
        for model in given.models:
            bar.set_postfix_str(f"making {model}")
            precisions = sorted({cell.precision for cell in everything if cell.model == model})
            make(Files(given.work, model, given.device), precisions, max(given.words), given.threads)
        for cell in everything:
            bar.set_postfix_str(f"{cell.model} {cell.output}² K={cell.words} B={cell.batch} {cell.precision}")
            yield [{**row, **where} for row in measure(cell, given, bar)]
        for model, precision in starts:
            bar.set_postfix_str(f"{model} {precision}, cold starts")
            yield [{**row, **where} for row in cold(model, precision, given)]
            bar.update()


def make(files: Files, precisions: list[str], words: int, threads: int) -> None:
    """Raises UsageError where the files cannot be made."""
    if not (missing := files.missing(precisions, words)):
        return
    files.work.mkdir(parents=True, exist_ok=True)
    maker = Job(files.model, 224, 224, words, 1, "fp32", "eager", files.device, threads, str(files.work))
    with Process(maker) as process:
        try:
            process.ask("prepare", missing)
        except Failed as error:
            raise UsageError(f"{files.model} cannot be made in {files.work}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    return command.exit_status("latency.py", lambda: benchmark(options(arguments)))


def benchmark(given: argparse.Namespace) -> int:
    for file in filter(None, (given.json, given.table, given.plot)):
        writable_place(file)
    if given.read:
        rows = command.read(given.read, "latency", "cold")
    else:
        machine.check_idle(given.busy)
        rows = command.collect(measured(given), given.json, latency_report.table)
    text = latency_report.table(rows)
    print(text)
    if given.table:
        write_result(given.table, lambda stream: stream.write(text.encode()))
    if given.plot:
        latency_report.plot(rows, given.plot)
    if given.store_gate:
        content = json.dumps(latency_report.stored(rows), indent=1, ensure_ascii=False) + "\n"
        write_result(latency_report.GATE, lambda stream: stream.write(content.encode()))
    if not given.gate:
        return 0
    verdicts, passed = latency_report.gate(rows, json.loads(latency_report.GATE.read_text()))
    print("\n".join(verdicts))
    return 0 if passed else 1


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UsageError for what only this machine can tell; argparse ends the process for what it cannot read."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_axes(parser.add_argument)
    add_measurement(parser.add_argument)
    add_record(parser.add_argument)
    given = parser.parse_args(arguments)
    command.fill(given, SUITES[given.suite])
    given.device = "cuda" if given.suite == "gpu" else "cpu"
    given.work = given.work.absolute()
    words, batch = max(given.words), max(given.batch)
    if words > MAX_WORDS:
        raise UsageError(f"{MAX_WORDS} names are listed at most", "give fewer", subject=f"--words {words}")
    if batch > MAX_BATCH:
        raise UsageError(
            f"the bundles are built for {MAX_BATCH} pictures at most", "give fewer", subject=f"--batch {batch}"
        )
    on_gpu = given.device == "cuda" and not given.read
    free = machine.torch_gpu_bytes("--suite gpu", "take suite cpu") if on_gpu else machine.available_memory()
    if given.memory_limit is None:
        given.memory_limit = round(0.7 * free / 1e9, 1)
    return given


def add_axes(add: Callable[..., Any]) -> None:
    titles = "; ".join(f"{name}: {one.title}" for name, one in MODELS.items())
    add("--suite", choices=SUITES, default="cpu", help="axes and repeats (default: %(default)s); the flags below replace "
        "one axis each")  # fmt: skip
    add("--models", type=names(*MODELS), metavar="A,B", help=titles)
    add("--outputs", type=counts, metavar="A,B", help="edges of the label map, pixels")
    add("--pictures", type=counts, metavar="A,B", help="edges of the picture, pixels (default: as the label map)")
    add("--words", type=counts, metavar="A,B", help=f"numbers of words, {MAX_WORDS} at most")
    add("--batch", type=counts, metavar="A,B", help=f"pictures in a call, {MAX_BATCH} at most")
    add("--precision", type=names("own", "fp32", "fp16"), metavar="A,B",
        help="of the exported graphs, and on a GPU of PyTorch; own: fp32, and the demonstration bundle as it is delivered, "
        "fp16; PyTorch on a CPU computes in float32 always")  # fmt: skip
    add("--candidates", type=names(*TITLES), metavar="A,B", help=", ".join(TITLES))
    add("--product", action="store_true", help="all combinations of the axes")


def add_measurement(add: Callable[..., Any]) -> None:
    add("--repeats", type=count, help="turns each candidate takes in a cell")
    add("--seconds", type=count, help="turns end when the calls of all that take them have had this, but not before "
        f"{MIN_REPEATS}")  # fmt: skip
    add("--cold", type=whole, metavar="N", help="fresh processes for each cold start; 0 for none")
    add("--threads", type=count, default=machine.cores(), help="CPU threads (default: all %(default)s)")
    add("--memory-limit", type=float, metavar="GB", help="skip what needs more for all that take turns (default: 0.7 of "
        "what is available)")  # fmt: skip
    add("--work", type=Path, default=ROOT / "build/latency", metavar="DIR", help="where models and graphs are kept "
        "(default: build/latency in the checkout)")  # fmt: skip
    add("--busy", action="store_true", help="measure though other processes run; every row says so")


def add_record(add: Callable[..., Any]) -> None:
    add("--json", type=Path, metavar="FILE", help="append the rows to this file")
    add("--table", type=Path, metavar="FILE.md", help="write the table, in Markdown")
    add("--plot", type=Path, metavar="FILE.png", help="draw time by output size; FILE-words, FILE-channels and "
        "FILE-stages beside it")  # fmt: skip
    add("--from", type=Path, dest="read", metavar="FILE", help="measure nothing: print and draw this record")
    add("--gate", action="store_true", help="exit with 1 where eager over ours is below the ratio in "
        "docs/records/latency_gate.json")  # fmt: skip
    add("--store-gate", action="store_true", help="write that file from this run")


if __name__ == "__main__":
    sys.exit(main())
