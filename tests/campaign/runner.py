"""Shares the time between kinds, watches their processes, and tells what was found."""

import contextlib
import itertools
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).parents[2]
MAKING = 600.0  # seconds a case's making may take: the first ones build what the others share
FEW = 30  # cases of a process, half of them: fewer say nothing of its memory
LEAK = (4_000, 8 << 20)
"""A kind leaks where its memory grows by more kB per 1,000 cases than the first, and again and again by more bytes than the second."""


@dataclass(frozen=True)
class Finding:
    """case: its name. what: the fault. found: what went wrong. kept: the folder of its input, or None."""

    case: str
    what: str
    found: str
    kept: Path | None


@dataclass
class Process:
    """One kind's process, from its start to its end. resident: bytes in memory after each of its cases."""

    started: "subprocess.Popen[bytes]"
    log: Path
    resident: list[int] = field(default_factory=list)
    _read: bytes = b""

    def ask(self, number: int, folder: Path) -> None:
        assert self.started.stdin
        with contextlib.suppress(BrokenPipeError):  # it died between two cases; its output ends, which says so
            self.started.stdin.write(json.dumps({"number": number, "folder": str(folder)}).encode() + b"\n")
            self.started.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | str:
        """Its next line of JSON; "hangs" or "ended" where none comes."""
        assert self.started.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not select.select([self.started.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return "hangs"
            if not (read := os.read(self.started.stdout.fileno(), 1 << 16)):
                return "ended"
            self._read += read
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Kind:
    """A kind of faults under way. used: seconds of its cases so far."""

    def __init__(self, name: str, seed: int, bundle: Path, scratch: Path, keep: Path) -> None:
        """scratch: a folder of the run's own. keep: where inputs of findings go."""
        self.name, self.seed, self._bundle, self._scratch, self._keep = name, seed, bundle, scratch, keep
        self.cases, self.used, self.slowest = 0, 0.0, ("", 0.0)
        self.findings: list[Finding] = []
        self._smallest: dict[str, tuple[int, Path]] = {}
        self._processes: list[Process] = []
        self._numbers = itertools.count()
        self._open: Process | None = None

    def run(self, number: int | None = None) -> Finding | None:
        """Run one case, by default the next."""
        number = next(self._numbers) if number is None else number
        name, begun = f"{self.name}-{self.seed}-{number}", time.monotonic()
        folder = self._scratch / name
        folder.mkdir()
        what, seconds, found = self._outcome(number, folder)
        finding = (
            Finding(name, what, found, self._kept(f"{' '.join(what.split()[:2])} {found}", folder)) if found else None
        )
        _remove(folder)
        self.cases, self.used = self.cases + 1, self.used + time.monotonic() - begun
        self.slowest = max(self.slowest, (name, seconds), key=lambda slowest: slowest[1])
        if finding:
            self.findings.append(finding)
        return finding

    def finish(self) -> list[Finding]:
        """End the process. Returns what only the whole shows: an end by a signal, and a leak."""
        late = []
        if self._open:
            process, self._open = self._open, None
            assert process.started.stdin
            process.started.stdin.close()
            code = _ended(process.started, 60)
            if code != 0:
                late.append(("the end of the process", f"{_how(code)} {_last_lines(process.log)}"))
        slope = self.slope()
        if slope and slope > LEAK[0] and self._growth() > LEAK[1]:
            late.append(("all its cases", f"memory grows by {slope:.0f} kB per 1,000 cases"))
        findings = [Finding(f"{self.name}-{self.seed}", what, found, None) for what, found in late]
        self.findings += findings
        return findings

    def slope(self) -> float | None:
        """kB of memory per 1,000 cases, of the process that ran most; None where it ran few.

        The median of the slopes between all pairs of cases (Theil and Sen): a single step, when a larger input than all before made
        an allocator keep more, is no growth.
        """
        resident = self._counted()
        if not resident.size:
            return None
        chosen = np.unique(np.linspace(0, resident.size - 1, 400).astype(int))
        one, other = np.triu_indices(chosen.size, 1)
        slopes = (resident[chosen[other]] - resident[chosen[one]]) / (chosen[other] - chosen[one])
        return float(np.median(slopes)) * 1000 / 1024

    def stop(self) -> None:
        """Kill what still runs."""
        if self._open:
            _kill(self._open.started)
            self._open = None

    def _counted(self) -> np.ndarray:
        """Bytes in memory after each case of the second half, when caches are full."""
        resident = max((process.resident for process in self._processes), key=len, default=[])
        half = resident[len(resident) // 2 :]
        return np.array(half if len(half) >= FEW else [], np.float64)

    def _growth(self) -> float:
        """Bytes between the least of each third of the counted cases and the least of the next, the smaller of the two."""
        least = [float(third.min()) for third in np.array_split(self._counted(), 3)]
        return min(least[1] - least[0], least[2] - least[1])

    def _outcome(self, number: int, folder: Path) -> tuple[str, float, str | None]:
        """What the case is, its seconds of CPU, and what was found."""
        process = self._open = self._open or self._start()
        what = "making the case"
        process.ask(number, folder)
        made = process.answer(MAKING)
        if isinstance(made, dict):
            what = made["what"]
            answer = process.answer(made["hangs"])
            if isinstance(answer, dict):
                process.resident.append(answer["resident"])
                return what, answer["seconds"], answer["found"]
            made = answer
        self._open = None
        if made == "hangs":
            os.killpg(process.started.pid, signal.SIGABRT)  # faulthandler writes where it hangs
            time.sleep(1)
        code = _ended(process.started, 10)
        _kill(process.started)
        return what, 0.0, f"{'it hangs' if made == 'hangs' else _how(code)} {_last_lines(process.log)}"

    def _start(self) -> Process:
        log = self._scratch / f"{self.name}.{len(self._processes)}.log"
        own = self._scratch / f"{self.name}.files"
        own.mkdir(exist_ok=True)
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(own), "HOME": str(own),
            "XDG_DATA_HOME": str(own / "data"), "XDG_CACHE_HOME": str(own / "cache"), "FUSIONER_CACHE": str(own / "words"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        with open(log, "wb") as stream:
            started = subprocess.Popen(
                [sys.executable, "-m", "tests.campaign.worker", self.name, str(self.seed), str(self._bundle)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, cwd=ROOT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(Process(started, log))
        return self._processes[-1]

    def _kept(self, found: str, folder: Path) -> Path | None:
        """Keep the input of a finding, unless a smaller one of the same finding is kept already. found: with what the case is."""
        alike = re.sub(r"[0-9a-f]{8,}|\d+", "#", found)[:200]
        size = sum(file.lstat().st_size for file in folder.rglob("*"))
        if not any(folder.iterdir()):
            return None
        if alike in self._smallest:
            smallest, kept = self._smallest[alike]
            if smallest <= size:
                return kept
            _remove(kept)
        self._keep.mkdir(parents=True, exist_ok=True)
        _remove(self._keep / folder.name)
        shutil.move(folder, self._keep / folder.name)
        self._smallest[alike] = size, self._keep / folder.name
        return self._keep / folder.name


def campaign(kinds: Sequence[Kind], minutes: float, cases: int | None, workers: int, report: "Report") -> None:
    """Run cases until the time is over: the next is one of the kind that had the least of it. cases: most of a kind."""
    end, lock, running = time.monotonic() + 60 * minutes, threading.Lock(), set[Kind]()
    failed: list[BaseException] = []

    def work() -> None:
        while time.monotonic() < end and not failed:
            with lock:
                left = [kind for kind in kinds if cases is None or kind.cases < cases]
                idle = [kind for kind in left if kind not in running]
                kind = min(idle, key=lambda kind: kind.used, default=None)
                if kind:
                    running.add(kind)
            if not left:
                return
            if not kind:
                time.sleep(0.05)
                continue
            try:
                finding = kind.run()
            except BaseException as error:  # of the runner's own
                failed.append(error)
                return
            with lock:
                running.remove(kind)
                report.progress(finding)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(kinds)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a join without a limit would not be interrupted
            thread.join(0.2)
    if failed:
        raise failed[0]


class Report:
    """Tells of findings at once, and of all in the end."""

    def __init__(self, kinds: Sequence[Kind], minutes: float, lines: IO[str] | None) -> None:
        """lines: gets the JSON lines."""
        self._kinds, self._minutes, self._lines, self._begun = kinds, minutes, lines, time.monotonic()
        self._shown = 0.0

    def progress(self, finding: Finding | None = None) -> None:
        if finding:
            self.finding(finding)
        if sys.stderr.isatty() and (finding or time.monotonic() - self._shown > 0.5):
            self._shown = time.monotonic()
            cases, found = sum(kind.cases for kind in self._kinds), sum(len(kind.findings) for kind in self._kinds)
            of = f" of {_clock(60 * self._minutes)}" if math.isfinite(self._minutes) else ""
            line = f"{_clock(self._shown - self._begun)}{of}, {cases} cases, {found} findings"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def finding(self, finding: Finding) -> None:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        kept = f" [{finding.kept}]" if finding.kept else ""
        print(f"{clear}{finding.case}: {finding.what}: {finding.found}{kept}", file=sys.stderr, flush=True)
        self._write(
            {"case": finding.case, "what": finding.what, "found": finding.found,
             "kept": str(finding.kept) if finding.kept else None}
        )  # fmt: skip

    def summary(self, facts: dict[str, Any]) -> None:
        """Print the table, and write it as the last line of JSON. facts: of the run, which lead that line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        rows = [("kind", "cases", "findings", "slowest, CPU s", "memory, kB per 1,000 cases")]
        told = {}
        for kind in self._kinds:
            slope = kind.slope()
            case, seconds = kind.slowest
            told[kind.name] = {
                "cases": kind.cases, "findings": len(kind.findings), "seconds": round(kind.used, 1),
                "slowest_case": case, "slowest_cpu_seconds": round(seconds, 2),
                "memory_kb_per_1000_cases": None if slope is None else round(slope),
            }  # fmt: skip
            slowest = f"{seconds:.2f} {case}" if case else ""
            memory = "too few" if slope is None else f"{slope:+.0f}"
            rows.append((kind.name, str(kind.cases), str(len(kind.findings)), slowest, memory))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        total = {name: sum(kind[name] for kind in told.values()) for name in ("cases", "findings")}
        print(f"{total['cases']} cases, {total['findings']} findings in {_clock(time.monotonic() - self._begun)}")
        self._write({**facts, **total, "seconds": round(time.monotonic() - self._begun), "kinds": told})

    def _write(self, line: dict[str, Any]) -> None:
        if self._lines:
            print(json.dumps(line, ensure_ascii=False), file=self._lines, flush=True)


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """The exit code of a process that is ending, or None where it hangs, and is killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how(code: int | None) -> str:
    if code is None:
        return "its process does not end"
    return f"its process died of {signal.Signals(-code).name}" if code < 0 else f"its process exited with {code}"


def _last_lines(log: Path) -> str:
    """What a process wrote last, in one line: faulthandler's innermost frames."""
    lines = log.read_text(errors="backslashreplace").splitlines()
    fatal = next((index for index in reversed(range(len(lines))) if "Fatal Python error" in lines[index]), None)
    told = lines[fatal : fatal + 8] if fatal is not None else lines[-3:]
    return f"({' | '.join(line.strip() for line in told if line.strip())[:800]})" if told else ""


def _remove(folder: Path) -> None:
    def writable(function: Any, path: str, _: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(Path(path).parent, 0o700)
            function(path)

    shutil.rmtree(folder, onerror=writable)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def stopped(kinds: Sequence[Kind]) -> Iterator[Finding]:
    """What the ends of all kinds show."""
    for kind in kinds:
        yield from kind.finish()
