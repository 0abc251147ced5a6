"""Cores that this process may use: by its affinity, and by the quota of its control group, which containers have."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """How many this process may keep busy, 1 at least."""
    quota = quota_of_control_group()
    return min(bound_cores(), max(1, math.ceil(quota))) if quota else bound_cores()


def bound_cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota_of_control_group(root: Path = Path("/")) -> float | None:
    """The least quota of the process's control group and those above it, in cores; None without one. root: of the file system."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return None
    found = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", "", ""][:3]
        if not controllers:
            found += [_version_2(folder) for folder in _upward(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                found += [_version_1(folder) for folder in _upward(root / "sys/fs/cgroup" / mount, path)]
    return min((quota for quota in found if quota), default=None)


def _upward(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it. In a container the mount may be the group itself."""
    folder = mount / path.lstrip("/")
    while folder != mount and folder.is_relative_to(mount):
        yield folder
        folder = folder.parent
    yield mount


def _version_2(folder: Path) -> float | None:
    return _ratio(_words(folder / "cpu.max"))


def _version_1(folder: Path) -> float | None:
    return _ratio(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _ratio(words: list[str]) -> float | None:
    """Microseconds of a period that may be used, as a share of it; "max" and negative ones are no quota."""
    try:
        quota, period = map(int, words)
        return quota / period if quota > 0 and period > 0 else None
    except (ValueError, OverflowError):
        return None
