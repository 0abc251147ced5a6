"""Kills and full disks: builds, fetches, words, trainings ended by SIGKILL at any moment; what lies there is whole, old or new."""

import contextlib
import csv
import functools
import io
import os
import resource
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import OutputUnwritable
from fusioner_rt.words.cache import SUFFIX, TextCache
from tests.emulation.full_disk import contents
from tests.emulation.kills import kill_at
from tests.training.conftest import write_shapes

from .cases import Bench, Case

Work = Callable[[], int]
KILLED = -signal.SIGKILL
FILES = 12  # words of the cache that processes write at a time


@dataclass(frozen=True)
class Fault:
    """What befalls a process: a kill before its step of that number on disk, or after so many seconds, or a disk on which
    no file grows beyond so many bytes.
    """

    step: int | None = None
    seconds: float | None = None
    room: int | None = None

    def __str__(self) -> str:
        if self.room is not None:
            return f"room for files of {self.room} bytes"
        return f"killed at step {self.step}" if self.seconds is None else f"killed after {self.seconds:.3f} s"


NOTHING = Fault()


def case(number: int, random: Random, bench: Bench) -> Case:
    make = random.choices((_build, _fetch, _words, _training), (2, 3, 4, 2))[0]
    return make(random, bench)


class Child:
    """`work` in a forked child. folder: where its steps are counted."""

    def __init__(self, work: Work, folder: Path, fault: Fault = NOTHING) -> None:
        self._reads, writes = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _become(work, folder, fault, writes)
        os.close(writes)
        self._killer = threading.Timer(fault.seconds or 0, os.kill, (self._pid, signal.SIGKILL))
        if fault.seconds is not None:
            self._killer.start()

    def end(self) -> tuple[int, str]:
        """Wait for it. Returns its exit code, or minus its signal, and what it printed."""
        with os.fdopen(self._reads, "rb") as stream:
            said = stream.read().decode(errors="replace")
        self._killer.cancel()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), said


def _become(work: Work, folder: Path, fault: Fault, output: int) -> None:
    """Be the child, to its end."""
    code = 99
    try:
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(open(fd, "wb", 0), write_through=True) for fd in (1, 2))  # noqa: SIM115
        if fault.step is not None:
            kill_at(fault.step, folder)
        if fault.room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.room, fault.room))
        code = work()
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def _steps(work: Work, folder: Path) -> tuple[int, float]:
    """How many steps a work has, and how many seconds it takes."""
    reads, writes = os.pipe()
    begun = time.monotonic()
    if (child := os.fork()) == 0:
        steps = [0]

        def count() -> None:
            steps[0] += 1

        def counted() -> int:
            kill_at(1 << 60, folder, count)
            code = work()
            os.write(writes, str(steps[0]).encode())
            return code

        _become(counted, folder, NOTHING, os.open(os.devnull, os.O_WRONLY))
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        told = int(stream.read() or b"0")
    if os.waitpid(child, 0)[1] != 0 or not told:
        raise RuntimeError("the work fails by itself")
    return told, time.monotonic() - begun


def _fault(random: Random, steps: int, seconds: float, largest: int) -> Fault:
    kind = random.random()
    if kind < 0.4:
        return Fault(step=random.randrange(steps))
    if kind < 0.7:
        return Fault(seconds=random.uniform(0, seconds))
    return Fault(room=int(largest ** random.random()))


def _wrong(fault: Fault, code: int, said: str) -> str | None:
    """What is wrong with how a process ended."""
    if "Traceback" in said:
        return f"a traceback: {said[-500:]}"
    if code == 0 or (code == KILLED and fault.room is None):
        return None
    if code == OutputUnwritable.exit_code and fault.room is not None and "cannot be written" in said:
        return None
    return f"it exits with {code}: {said[-500:]}"


def _shared(bench: Bench) -> Path:
    folder = bench.folder.parent / "kills.shared"
    folder.mkdir(exist_ok=True)
    return folder


# Bundles: those of a build, and those of a fetch.


def _build(random: Random, bench: Bench) -> Case:
    steps, seconds = bench.once("build", lambda: _built(_shared(bench)))
    shared, place = _shared(bench), bench.folder / "engines" / "tiny"
    fault = _fault(random, steps, seconds, 400_000)
    before = random.random() < 0.7
    if before:
        shutil.copytree(shared / "engines" / "tiny", place)
    work = functools.partial(_run_build, shared, place)
    return Case(lambda: _bundle_is_whole(work, place, fault), f"build, {fault}", seconds=120, hangs=600)


def _built(shared: Path) -> tuple[int, float]:
    """A checkpoint, pictures and a bundle to be built over; the graphs are traced here, once for all children."""
    from PIL import Image

    from export.gates import textured
    from export.onnx import model_graphs
    from training import checkpoint
    from training.model import tiny

    checkpoint.save(tiny(), shared / "tiny", {"pictures": 0})
    (shared / "pictures").mkdir()
    Image.fromarray(textured(0, (96, 128))).save(shared / "pictures" / "0.png")
    for name in ("text_graph", "picture_graphs"):
        setattr(model_graphs, name, _once(getattr(model_graphs, name)))
    model = checkpoint.load(shared / "tiny")
    model_graphs.text_graph(model), model_graphs.picture_graphs(model)
    return _steps(functools.partial(_run_build, shared, shared / "engines" / "tiny"), shared / "engines")


def _once(trace: Callable[[Any], Any]) -> Callable[[Any], Any]:
    made: list[Any] = []

    def traced(model: Any) -> Any:
        if not made:
            made.append(trace(model))
        return made[0]

    return traced


def _run_build(shared: Path, place: Path) -> int:
    from export import build_engine

    options = ["--checkpoint", shared / "tiny", "--pictures", shared / "pictures", "--out", place, "--max-batch", "1"]
    return build_engine.main([*map(str, options), "--backend", "onnxruntime", "--kernels", "none"])


def _fetch(random: Random, bench: Bench) -> Case:
    archive = _shared(bench) / "demo.tar"
    place = bench.folder / "bundles" / "demo"

    def packed() -> tuple[int, float]:
        with tarfile.open(archive, "w") as tar:
            tar.add(bench.bundle, "demo")
        return _steps(functools.partial(_run_fetch, archive, archive.parent / "fetched"), archive.parent / "fetched")

    steps, seconds = bench.once("fetch", packed)
    fault = _fault(random, steps, seconds, archive.stat().st_size)
    if random.random() < 0.7:  # a bundle of another name, which is replaced
        shutil.copytree(bench.bundle, place)
        (place / "manifest.json").write_bytes((place / "manifest.json").read_bytes() + b"\n")
    work = functools.partial(_run_fetch, archive, place)
    return Case(lambda: _bundle_is_whole(work, place, fault), f"fetch, {fault}", seconds=30)


def _run_fetch(archive: Path, place: Path) -> int:
    from fusioner_rt.cli import main

    return main(["fetch", str(archive), "--out", str(place), "--force"])


def _bundle_is_whole(work: Work, place: Path, fault: Fault) -> str | None:
    before = contents(place)
    code, said = Child(work, place.parent, fault).end()
    if wrong := _wrong(fault, code, said):
        return wrong
    after = contents(place)
    if not after and before:
        return "the old bundle is gone"
    if after != before:
        Bundle.open(place)
    if code not in (0, KILLED):
        if after != before:
            return "an error, and the bundle is another"
        if place.parent.exists() and (left := {path.name for path in place.parent.iterdir()} - {place.name}):
            return f"an error leaves {sorted(left)}"
    code, said = Child(work, place.parent).end()
    if code != 0:
        return f"the next one exits with {code}: {said[-500:]}"
    Bundle.open(place)
    left = {path.name for path in place.parent.iterdir()} - {place.name}
    return f"the next one leaves {sorted(left)}" if left else None


# Words: processes that write into one cache, and evict each other's.


def _words(random: Random, bench: Bench) -> Case:
    faults = [_fault(random, 60, 0.2, 1000) for _ in range(3)]
    seeds = [random.random() for _ in faults]
    told = ", ".join(map(str, faults))
    return Case(lambda: _cache_is_whole(bench.folder / "words", faults, seeds), f"words, {told}", seconds=30)


def _vector(number: int) -> np.ndarray:
    return np.full(100, number, np.float32)


def _write_words(folder: Path, seed: float) -> int:
    random = Random(seed)
    for _ in range(60):
        number = random.randrange(FILES)
        cache = TextCache(folder, disk_bytes=FILES * 400)
        got = cache.get(str(number))
        if got is not None and not (got == number).all():
            print(f"Traceback: word {number} has another's vector")
        cache.put(str(number), _vector(number), f"word {number}", 1, "graph", "fp32")
    return 0


def _cache_is_whole(folder: Path, faults: list[Fault], seeds: list[float]) -> str | None:
    pairs = zip(faults, seeds, strict=True)
    children = [Child(functools.partial(_write_words, folder, seed), folder, fault) for fault, seed in pairs]
    ends = [child.end() for child in children]
    for fault, end in zip(faults, ends, strict=True):
        if wrong := _wrong(fault, *end):
            return wrong
    if not folder.exists():
        return None
    names = {path.name for path in folder.iterdir()}
    if strangers := {name for name in names if not name.endswith(SUFFIX) and not name.startswith(TEMPORARY)}:
        return f"files that are no words: {sorted(strangers)}"
    entries = {name for name in names if name.endswith(SUFFIX)}
    for name in entries:
        number = name.removesuffix(SUFFIX)
        got = TextCache(folder).get(number)
        if got is None or not (got == int(number)).all():
            return f"{name} is not whole"
    for path in folder.glob(f"{TEMPORARY}*"):
        os.utime(path, (0, 0))
    TextCache(folder).put("last", _vector(0), "last", 1, "graph", "fp32")
    left = [path.name for path in folder.glob(f"{TEMPORARY}*")]
    return f"temporary files stay: {left}" if left else None


# Trainings: killed again and again, and meeting full disks.


def _training(random: Random, bench: Bench) -> Case:
    shared, out = _shared(bench), bench.folder / "run"

    def whole() -> tuple[int, float]:
        write_shapes(shared / "shapes")
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401

        import training.train  # noqa: F401

        return _steps(functools.partial(_run_training, shared, shared / "run"), shared / "run")

    steps, seconds = bench.once("training", whole)
    faults = [_fault(random, steps, seconds, 200_000) for _ in range(random.randint(1, 4))]
    told = ", ".join(map(str, faults))
    return Case(lambda: _same_curve(shared, out, faults), f"training, {told}", seconds=120, hangs=600)


def _run_training(shared: Path, out: Path) -> int:
    from training import train

    data = ["tiny", "--data", str(shared / "shapes"), "--out", str(out), "--cache", str(out.with_name("features"))]
    return train.main([*data, "--epochs", "3", "--ema", "0.9", "--patience", "9", "--workers", "0"])


def _curve(out: Path) -> tuple[str, list[list[str]], bytes]:
    """Losses and scores, without seconds, and the weights."""
    with (out / "log.csv").open(newline="") as stream:
        log = [row[:-1] for row in csv.reader(stream)]
    return (out / "steps.csv").read_text(), log, (out / "checkpoint" / "weights.safetensors").read_bytes()


def _same_curve(shared: Path, out: Path, faults: list[Fault]) -> str | None:
    work = functools.partial(_run_training, shared, out)
    for fault in faults:
        code, said = Child(work, out.parent, fault).end()
        if wrong := _wrong(fault, code, said):
            return wrong
    code, said = Child(work, out.parent).end()
    if code != 0:
        return f"the last one exits with {code}: {said[-500:]}"
    with contextlib.suppress(FileNotFoundError):
        if _curve(out) == _curve(shared / "run"):
            left = contents(out).keys() ^ contents(shared / "run").keys()
            return f"files too many or too few: {sorted(left)}" if left else None
    return "its curve or its weights are not the whole run's"
