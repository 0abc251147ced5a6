"""Facts about NVIDIA GPUs and their driver from the file system and the environment, without calling the driver."""

import ctypes
import os
import sys
from pathlib import Path

_PCI_VENDOR = "0x10de"
_PCI_DISPLAY = "0x03"  # display controllers, data-centre GPUs among them
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_is_there(root: Path = Path("/")) -> bool:
    """Whether this machine or container has an NVIDIA GPU. root: of the file system, for tests."""
    if sys.platform == "win32":
        return driver_missing() is None
    if any((root / "dev").glob("nvidia[0-9]*")) or (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        return True
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        if _read(vendor) == _PCI_VENDOR and _read(vendor.with_name("class")).startswith(_PCI_DISPLAY):
            return True
    return False


def driver_missing() -> str | None:
    """Why the driver's library cannot be loaded, or None."""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return str(error)
    return None


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of the kernel module, such as "580.65.06", or None if unknown."""
    return _read(root / "sys/module/nvidia/version") or None


def all_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
