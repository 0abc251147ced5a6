"""What a measurement says about where it was made: processor, commit, versions, memory, and what else was running."""

from __future__ import annotations

import ctypes
import datetime
import importlib
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt.mask_head import cores

ROOT = Path(__file__).resolve().parents[1]


def record(*modules: str) -> dict[str, Any]:
    """Machine, commit ("-dirty" where files differ from it), the versions of `modules`, and the date."""
    commit = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "machine": f"{platform.machine()}, {cores()} cores",
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        **{module: importlib.import_module(module).__version__ for module in modules},
        "date": datetime.date.today().isoformat(),
    }


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 3) for q in (20, 50, 80)}


class OtherWork:
    """Cores kept busy by other processes between construction and `cores()`, the load average where Linux tells no more."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()

    def cores(self) -> float:
        wall = max(time.monotonic() - self._wall, 1e-3)
        if self._busy is None or (busy := _busy_seconds()) is None:
            return os.getloadavg()[0]
        return max(0.0, (busy - self._busy - (time.process_time() - self._own)) / wall)


def _busy_seconds() -> float | None:
    """Processor seconds of all processes since the machine started."""
    try:
        user, nice, system, _idle, _waiting, interrupt, soft = (
            int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def available_memory() -> int:
    """Bytes that could be allocated without swapping."""
    return _kilobytes("/proc/meminfo", "MemAvailable:") * 1024


class PeakMemory:
    """The most resident memory since construction, above what was resident then; Linux only.

    Freed memory that the allocator kept is given back first, or a call that reuses it would seem to need none.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._before = _kilobytes("/proc/self/status", "VmRSS:")

    def bytes(self) -> int:
        return max(0, _kilobytes("/proc/self/status", "VmHWM:") - self._before) * 1024


def _kilobytes(file: str, field: str) -> int:
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(field))
