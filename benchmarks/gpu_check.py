"""Everything that an NVIDIA GPU can answer about this project, in under eight minutes.

  python benchmarks/gpu_check.py                       # every step, a JSON line each, a table, a record
  python benchmarks/gpu_check.py --steps cubins,path   # some of them
  python benchmarks/gpu_check.py --list                # what they ask, and how long each may take
  python benchmarks/gpu_check.py --emulated            # those that need no real GPU, through the emulated driver

It needs Python, what the runtime needs, NVIDIA's driver, and cuda-core with cuda-bindings; PyTorch, CuPy, TensorRT,
TensorRT-RTX, ONNX Runtime's CUDA and compute-sanitizer are used where they are, and what is not there is said. Steps come
in the order of what they are worth. Each has a process and a time-out of its own: one that fails or hangs stops no other.

Exit code 0: every step is ok, or was skipped for want of something; 1: one failed. `gpu_kit.py` packs all this for a
machine without internet.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fusioner_rt.command_end import run_command
from fusioner_rt.command_parser import CommandParser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BUNDLES, PICTURES = ("bundle", "models/demo/bundle"), ("pictures", "docs/pictures")
"""Where they lie in a kit, and in a checkout."""
BUDGET = 480
OK, FAILED, SKIPPED, TIMEOUT = "ok", "failed", "skipped", "timeout"
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("gpu_check", lambda: _main(arguments), "the steps above are done")


def _main(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    try:
        from benchmarks import gpu_steps
    except ImportError as error:
        print(
            f"gpu_check: the Python package {error.name} is missing; pip install numpy pillow tokenizers onnxruntime "
            "cuda-core cuda-bindings",
            file=sys.stderr,
        )
        return 3
    if given.list:
        for name, step in gpu_steps.STEPS.items():
            print(
                f"{name:<12} {step.seconds:>4} s  {'emulated too' if step.emulable else 'GPU alone':<13} {step.answers}"
            )
        return 0
    return _run_here(given) if given.run else _run_all(given)


def _run_all(given: argparse.Namespace) -> int:
    from benchmarks import gpu_steps
    from fusioner_rt.bundle import Bundle
    from fusioner_rt.errors import UsageError
    from fusioner_rt.gpu.driver import Device

    chosen = [name.strip() for name in given.steps.split(",")] if given.steps else list(gpu_steps.STEPS)
    if unknown := [name for name in chosen if name not in gpu_steps.STEPS]:
        raise UsageError("unknown", f"choose of {', '.join(gpu_steps.STEPS)}", subject=f"--steps {','.join(unknown)}")
    if given.budget <= 0:
        raise UsageError(f"give seconds, {BUDGET} by default", subject=f"--budget {given.budget}")
    Bundle.open(_place(given.bundle, BUNDLES))  # known to be broken now rather than in every step
    name = "emulated"
    if not given.emulated:
        with contextlib.closing(Device()) as device:
            name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    record = given.json or (None if given.emulated else _default_record(name))
    rows: list[Row] = []
    started = time.monotonic()
    with _appending(record) as stream, tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_paths(given.library, Path(scratch)))}
        for step in chosen:
            left = given.budget - (time.monotonic() - started)
            if given.emulated and not gpu_steps.STEPS[step].emulable:
                row = {"step": step, "verdict": SKIPPED, "why": "it needs a real GPU"}
            elif left < 5:
                over = f"the {given.budget:g} seconds of --budget are over"
                row = {"step": step, "verdict": SKIPPED, "why": over}
            else:
                row = _one(step, min(gpu_steps.STEPS[step].seconds, left), given, Path(scratch), environment)
            rows.append({**row, "date": datetime.date.today().isoformat()})
            line = json.dumps(rows[-1])
            print(line, flush=True)
            if stream:
                stream.write(line + "\n")
    print(f"\n{table(rows)}")
    if record:
        print(f"\nkept in {record}")
    return int(any(row["verdict"] in (FAILED, TIMEOUT) for row in rows))


def _appending(record: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    """Open before the first step, and whole to every line. Raises OutputUnwritable."""
    if record is None:
        return contextlib.nullcontext()
    from fusioner_rt.atomic_files import unwritable, writable_folder

    writable_folder(record.parent)
    try:
        return open(record, "a", buffering=1)
    except OSError as error:
        raise unwritable(record, error) from None


def _one(name: str, seconds: float, given: argparse.Namespace, scratch: Path, environment: Mapping[str, str]) -> Row:
    """A step in a process of its own, which goes with all it started."""
    result = scratch / f"{name}.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--run", name]
    command += ["--result", str(result), "--scratch", str(scratch)]
    for option in ("bundle", "pictures", "cache"):
        if value := getattr(given, option):
            command += [f"--{option}", str(value)]
    if given.emulated:
        command.append("--emulated")
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    said = ""
    try:
        said, _ = process.communicate(timeout=seconds)
        row = json.loads(result.read_text())
    except subprocess.TimeoutExpired:
        row = {"verdict": TIMEOUT, "why": f"did not end within {seconds:.0f} seconds"}
    except (OSError, ValueError):
        tail = " ".join(said.split())[-500:]
        row = {"verdict": FAILED, "why": f"ended with {process.returncode} and no result: {tail}"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"step": name, **row, "seconds": round(time.monotonic() - start, 1)}


def _run_here(given: argparse.Namespace) -> int:
    """In a step's own process."""
    from benchmarks import gpu_steps

    try:
        places = _place(given.bundle, BUNDLES), _place(given.pictures, PICTURES), given.cache or _words(given)
        where = gpu_steps.Where(*places, given.emulated)
        if given.emulated:
            where = gpu_steps.emulate(where, given.scratch)
        step = gpu_steps.STEPS[given.run].run if given.run in gpu_steps.STEPS else getattr(gpu_steps, given.run)
        found = step(where)
        wrong = found.pop("wrong", "")
        row = {"verdict": FAILED if wrong else OK, "why": wrong, **found}
    except gpu_steps.Skipped as error:
        row = {"verdict": SKIPPED, "why": str(error)}
    except Exception as error:  # whatever a step meets is its verdict
        row = {"verdict": FAILED, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"}
    if given.result:
        given.result.write_text(json.dumps(row))
    return int(row["verdict"] == FAILED)


def table(rows: Sequence[Row]) -> str:
    """For people: verdicts, and of the mask head its times against a copy."""
    lines = [f"{'step':<12} {'verdict':<8} {'seconds':>7}  what"]
    for row in rows:
        lines.append(f"{row['step']:<12} {row['verdict']:<8} {row.get('seconds', 0):>7}  {row['why'] or _summary(row)}")
    for cell in next((row["rows"] for row in rows if row["step"] == "mask_head" and "rows" in row), []):
        lines.append(
            f"  {cell['size'][1]}x{cell['size'][0]}, {cell['words']} words, {cell['maps']}: stage 1 {cell['stage_1_us']} µs, "
            f"label map {cell['stage_2_us']} µs, copy of its bytes {cell['copy_us']} µs: {cell['over_copy']} times"
        )
    return "\n".join(lines)


def _summary(row: Row) -> str:
    """The numbers of a step that fit a line."""
    left_out = ("step", "verdict", "why", "seconds", "date", "rows", "packages")
    said = ", ".join(f"{name} {value}" for name, value in row.items() if name not in left_out and value not in ([], {}))
    return said if len(said) < 300 else said[:297] + "..."


def _place(named: Path | None, usual: Sequence[str]) -> Path:
    return named or next((ROOT / place for place in usual if (ROOT / place).is_dir()), ROOT / usual[0])


def _words(given: argparse.Namespace) -> Path:
    """The kit's stored word vectors, or an empty folder that goes with the check."""
    stored = ROOT / "words"
    if stored.is_dir():
        return stored
    fresh = (given.scratch or Path(tempfile.mkdtemp())) / "words"
    fresh.mkdir(exist_ok=True)
    return fresh


def _default_record(name: str) -> Path:
    folder = ROOT / "docs" / "records"
    return (folder if folder.is_dir() else ROOT) / f"gpu-{name}-{datetime.date.today().isoformat()}.jsonl"


def _paths(library: Path | None, scratch: Path) -> list[str]:
    """Where steps find their modules: this project first, then a library that came in parts (gpu_kit.py --library)."""
    paths = [str(ROOT)]
    if library:
        from fusioner_rt.errors import UsageError

        parts = sorted(library.glob("*.part*"))
        if not parts:
            raise UsageError(
                "holds no parts of a library", "make them: gpu_kit.py --library", subject=f"--library {library}"
            )
        whole = scratch / "library.tar.xz"
        with open(whole, "wb") as joined:
            for part in parts:
                with open(part, "rb") as stream:
                    shutil.copyfileobj(stream, joined)
        try:
            with lzma.open(whole) as unpacked, tarfile.open(fileobj=unpacked) as archive:
                archive.extractall(scratch / "library", filter="data")
        except (lzma.LZMAError, EOFError, tarfile.TarError) as error:
            raise UsageError(
                f"its {len(parts)} parts are not whole ({error})", "copy them again", subject=f"--library {library}"
            ) from None
        whole.unlink()
        paths.append(str(scratch / "library"))
    return [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", metavar="A,B", help="these alone, in this order (default: all)")
    add("--list", action="store_true", help="print the steps and end")
    add("--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"of all steps together (default: {BUDGET})")
    add("--json", type=Path, metavar="FILE", help="append the lines here (default: docs/records/gpu-NAME-DATE.jsonl)")
    add("--emulated", action="store_true", help="through the emulated driver of a checkout's tests, without a GPU")
    add("--bundle", type=Path, metavar="DIR", help="the bundle (default: the kit's, or the demonstration's)")
    add("--pictures", type=Path, metavar="DIR", help="photographs (default: the kit's, or docs/pictures)")
    add("--cache", type=Path, metavar="DIR", help="word vectors (default: the kit's)")
    add("--library", type=Path, metavar="DIR", help="the parts of TensorRT-RTX that gpu_kit.py --library made")
    for hidden in ("--run", "--result", "--scratch"):
        add(hidden, type=str if hidden == "--run" else Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
