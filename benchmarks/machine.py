"""What a measurement says about where it was made: processor, commit, versions, memory, and what else was running."""

from __future__ import annotations

import ctypes
import datetime
import importlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt.cpu_cores import cores
from fusioner_rt.errors import FusionerError, UsageError

ROOT = Path(__file__).resolve().parents[1]
IDLE = 0.25
"""Cores that other processes may keep busy; rows measured beside more are marked."""


class MachineBusy(FusionerError):
    """Other processes are running: times would tell of them."""

    exit_code = 92
    is_input = False


def check_idle(busy: bool) -> None:
    """Raises MachineBusy."""
    others = OtherWork()
    time.sleep(1)
    if (found := others.cores()) > IDLE and not busy:
        raise MachineBusy(
            f"other processes keep {found:.1f} cores busy, a quarter of one may be",
            "wait for them, or pass --busy and have every row say so",
        )


def record(*modules: str) -> dict[str, Any]:
    """Machine, commit ("-dirty" where files differ from it), the versions of `modules`, and the date."""
    commit = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "machine": f"{platform.machine()}, {cores()} cores",
        "processor": processor(),
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        **{module: importlib.import_module(module).__version__ for module in modules},
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """Its name as Linux tells it, with what decides the rate of a product."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve") if flag in
            told.get("flags", told.get("Features", "")).split()]  # fmt: skip
    return ", ".join([told.get("model name", platform.processor()), *wide])


def percentiles(milliseconds: list[float], which: tuple[int, ...] = (20, 50, 80)) -> dict[str, float]:
    return {f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 3) for q in which}


class OtherWork:
    """Cores kept busy by other processes between construction and `cores()`, the load average where Linux tells no more."""

    def __init__(self, own: Callable[[], float] = time.process_time) -> None:
        """own: processor seconds so far of what is not others' work."""
        self._spent = own
        self._wall, self._busy, self._own = time.monotonic(), _busy_seconds(), own()

    def cores(self) -> float:
        wall = max(time.monotonic() - self._wall, 1e-3)
        if self._busy is None or (busy := _busy_seconds()) is None:
            return os.getloadavg()[0]
        return max(0.0, (busy - self._busy - (self._spent() - self._own)) / wall)


def _busy_seconds() -> float | None:
    """Processor seconds of all processes since the machine started."""
    try:
        user, nice, system, _idle, _waiting, interrupt, soft = (
            int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """That a process has spent, of all its threads; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and those it started, and so on, that live."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:  # which grows
        found += parents.get(one, [])
    return found


def resident(pid: int) -> int:
    """Bytes that a process has resident now; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_memory() -> int:
    """Bytes that could be allocated without swapping."""
    return _kilobytes("/proc/meminfo", "MemAvailable:") * 1024


def torch_gpu_bytes(option: str, otherwise: str) -> int:
    """Free memory of the GPU that torch uses. Raises UsageError for the option that asks for one."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"PyTorch cannot be imported ({error})", "install it", subject=option) from None
    if not torch.cuda.is_available():
        cure = f"check nvidia-smi and that torch was built for CUDA, or {otherwise}"
        raise UsageError("torch sees no GPU", cure, subject=option)
    return int(torch.cuda.mem_get_info()[0])


def free_gpu_bytes() -> int | None:
    """Free memory of the first GPU. None where there is none."""
    from fusioner_rt.gpu.driver import Device

    try:
        device = Device()
    except FusionerError:
        return None
    free = device.free_bytes
    device.close()
    return free


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


def peak_resident() -> int:
    """Bytes that this process has had resident at most; not getrusage's figure, which begins with the parent's."""
    return _kilobytes("/proc/self/status", "VmHWM:") * 1024


def _kilobytes(file: str, field: str) -> int:
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(field))
