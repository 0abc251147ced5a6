"""Launches a bundle's compiled kernels on a GPU: no Triton, no torch (docs/bundle.md, "Kernels").

The record `kernels/abi.json` says what a launch needs; this file reads it, picks the file that fits the GPU and packs
the arguments.
"""

import contextlib
import ctypes
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CudaFailed, GpuMemoryShort, KernelsUnusable, UsageError
from .driver import Device
from .kernel_contract import MAX_PICTURES, extra_of, programs

ABI_VERSION = 2
_TYPES = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}  # every other type is a pointer
_TEGRA = {(7, 2), (8, 7), (8, 8), (10, 1), (11, 0)}  # Xavier, Orin and its successors, Thor by its two numbers
_SPECIFIC = 9  # from this major version on, a cubin runs on its own capability alone
_STATIC_SHARED = 48 << 10  # a block may have this much shared memory without asking for more


@dataclass(frozen=True)
class Launch:
    """One kernel as it is launched on one GPU.

    file: cubin or PTX. types: of the arguments, in order. multiples: names of those that must be multiples of 16.
    grid: see `kernel_contract.Grid`.
    """

    name: str
    file: Path
    symbol: str
    threads: int
    shared_bytes: int
    arguments: tuple[tuple[str, str], ...]
    multiples: frozenset[str]
    tile: Mapping[str, int]
    grid: tuple[tuple[tuple[str, int], ...], ...]


class Record:
    """`kernels/abi.json`, read and checked. Raises KernelsUnusable."""

    def __init__(self, folder: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> None:
        """folder: the bundle's `kernels`. read: reads a file of it."""
        path = folder / "abi.json"
        try:
            record = json.loads(read(path))
        except OSError as error:
            raise KernelsUnusable(
                f"cannot be read ({error.strerror})",
                "the bundle was built without kernels: build it again without --kernels none",
                subject=path,
            ) from None
        except (ValueError, RecursionError) as error:
            raise KernelsUnusable(f"is not JSON ({error})", "build the bundle again", subject=path) from None
        version = record.get("abi_version") if isinstance(record, dict) else None
        if version != ABI_VERSION:
            raise KernelsUnusable(
                f"ABI version {version!r}, this fusioner-rt launches version {ABI_VERSION}",
                "build the bundle again",
                subject=path,
            )
        self.folder, self._path = folder, path
        self._kernels: dict[str, Any] = record.get("kernels")
        if not isinstance(self._kernels, dict):
            raise KernelsUnusable("kernels is no object of names", "build the bundle again", subject=path)

    @property
    def names(self) -> tuple[str, ...]:
        """Every kernel there is, such as "labels.float16"."""
        return tuple(self._kernels)

    def launches(self, name: str, capability: Sequence[int]) -> list[Launch]:
        """How a kernel may be launched on a GPU of this compute capability (major, minor), the preferred form first.

        The cubin of that capability, else the newest of the same major version below it, if those are not tied to theirs;
        then the PTX, which the driver compiles. Desktop GPUs and Tegra do not load each other's cubins, though the numbers
        would allow it. Raises KernelsUnusable where there is none.
        """
        if name not in self._kernels:
            extra = extra_of(name)
            raise KernelsUnusable(
                f"holds no kernel {name}, only {', '.join(self._kernels) or 'none'}",
                "build the bundle again" + (f" with --kernels all,{extra}" if extra else ""),
                subject=self._path,
            )
        here = major, minor = capability[0], capability[1]
        try:
            entry = self._kernels[name]
            targets = {_capability(key): value for key, value in entry["targets"].items()}
            alike = [
                target
                for target in targets
                if target[0] == major < _SPECIFIC and target[1] <= minor and {target, here}.isdisjoint(_TEGRA)
            ]
            found = [targets[here]] if here in targets else [targets[max(alike)]] if alike else []
            if "ptx" in entry and here >= _capability(entry["ptx"]["target"]):
                found.append(entry["ptx"])
            if not found:
                raise KernelsUnusable(
                    f"{name} was compiled for {', '.join(entry['targets'])} and this GPU's compute capability "
                    f"is {major}.{minor}",
                    f"build the bundle again with --kernels sm_{major}{minor}, or choose another backend",
                    subject=self._path,
                )
            return [
                Launch(
                    name=name,
                    file=self.folder / chosen["file"],
                    symbol=chosen["symbol"],
                    threads=int(chosen["threads"]),
                    shared_bytes=int(chosen["shared_bytes"]),
                    arguments=tuple((str(argument), str(kind)) for argument, kind in entry["arguments"]),
                    multiples=frozenset(entry["multiples_of_16"]),
                    tile={str(key): int(value) for key, value in chosen["tile"].items()},
                    grid=tuple(tuple((str(size), int(tile)) for size, tile in row) for row in chosen["grid"]),
                )
                for chosen in found
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KernelsUnusable(
                f"the entry of {name} is missing a field or malformed ({error!r})",
                "build the bundle again",
                subject=self._path,
            ) from None


def _capability(target: str) -> tuple[int, int]:
    """(8, 0) of "sm_80"."""
    return int(target[3:-1]), int(target[-1])


class Kernels:
    """The kernels of a bundle on one GPU. Threads may share them; a kernel is loaded when first launched.

    notes: which cubins the driver did not take, and PTX runs instead.
    """

    def __init__(self, folder: Path, device: Device, read: Callable[[Path], bytes] = Path.read_bytes) -> None:
        """folder: the bundle's `kernels`. read: reads a file of it, `Bundle.read` where there is a bundle.

        Raises KernelsUnusable.
        """
        self.record, self.device, self._read = Record(folder, read), device, read
        self.notes: list[str] = []
        self._loaded: dict[str, tuple[Launch, Any]] = {}
        self._libraries: list[Any] = []
        self._loading = threading.Lock()

    def launch(
        self, name: str, pictures: int, sizes: Mapping[str, int], arguments: Mapping[str, int | float], stream: int
    ) -> None:
        """Launch a kernel; returns at once, the stream does the work.

        pictures: B, the grid's second dimension. sizes: by the names of the kernel's grid. arguments: values by name,
        pointers as integers. stream: a CUstream as an integer, of this device. Raises KernelsUnusable, CudaFailed,
        UsageError.
        """
        launch, function = self._load(name)
        values, types = self.pack(launch, arguments)
        number = programs(launch.grid, sizes)
        if not (0 < number < 2**31 and 0 < pictures <= MAX_PICTURES):
            raise UsageError(
                f"{number} programs for {pictures} pictures; a GPU takes at most 2**31 and 65535", subject=name
            )
        with self.device.current():
            self.device.driver.cuLaunchKernel(
                function, number, pictures, 1, launch.threads, 1, 1, launch.shared_bytes, stream, (values, types), 0
            )

    @staticmethod
    def pack(launch: Launch, arguments: Mapping[str, int | float]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Values and their ctypes in the kernel's order, two null scratch pointers last. Raises UsageError."""
        expected = [name for name, _ in launch.arguments]
        if set(expected) != set(arguments):
            raise UsageError(f"arguments {', '.join(arguments)}, expected {', '.join(expected)}", subject=launch.name)
        for name in launch.multiples:
            if int(arguments[name]) % 16:
                raise UsageError(f"{name} is {arguments[name]}, expected a multiple of 16", subject=launch.name)
        types = [_TYPES.get(kind, ctypes.c_void_p) for _, kind in launch.arguments]
        return (*(arguments[name] for name in expected), 0, 0), (*types, ctypes.c_void_p, ctypes.c_void_p)

    def close(self) -> None:
        """Unload what was loaded. Nothing launched may still be running; closing twice is fine."""
        with self._loading, self.device.current():
            self._loaded.clear()
            while self._libraries:
                self.device.driver.cuLibraryUnload(self._libraries.pop())

    def _load(self, name: str) -> tuple[Launch, Any]:
        loaded = self._loaded.get(name)
        if loaded is None:
            with self._loading:
                loaded = self._loaded.get(name) or self._load_now(name)
                self._loaded[name] = loaded
        return loaded

    def _load_now(self, name: str) -> tuple[Launch, Any]:
        """The cubin, or the PTX where the driver does not take the cubin. The driver loads kernels lazily, so that any of
        these calls may fail.
        """
        refused: list[tuple[Path, CudaFailed]] = []
        for launch in self.record.launches(name, self.device.capability):
            try:
                loaded = launch, self._resolved(launch)
            except GpuMemoryShort:
                raise
            except CudaFailed as error:
                refused.append((launch.file, error))
                continue
            for file, why in refused:
                self.notes.append(
                    f"{launch.file.name} runs, compiled by the driver, which does not load {file} ({why})"
                )
            return loaded
        version = self.device.driver.cuDriverGetVersion()
        files, reasons = (dict.fromkeys(map(str, column)) for column in zip(*refused, strict=True))
        raise KernelsUnusable(
            f"the driver of {self.device} does not load it ({'; '.join(reasons)}); it is of CUDA "
            f"{version // 1000}.{version % 1000 // 10}, the kernels need 12.0",
            "update the driver, or choose another backend",
            subject=", ".join(files),
        )

    def _resolved(self, launch: Launch) -> Any:
        """The kernel's function. Raises CudaFailed where the driver does not load it."""
        driver = self.device.driver
        try:
            code = self._read(launch.file) + b"\0"  # PTX is a string to the driver; a cubin knows its own length
        except OSError as error:
            raise KernelsUnusable(
                f"cannot be read ({error.strerror})", "build the bundle again", subject=launch.file
            ) from None
        with self.device.current():
            library = driver.cuLibraryLoadData(code, [], [], 0, [], [], 0)
            try:
                kernel = driver.cuLibraryGetKernel(library, launch.symbol.encode())
                self._check_parameters(launch, kernel)
                if launch.shared_bytes > _STATIC_SHARED:
                    attribute = driver.bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    driver.cuKernelSetAttribute(attribute, launch.shared_bytes, kernel, self.device.handle)
                function = driver.cuKernelGetFunction(kernel)
            except BaseException:
                with contextlib.suppress(CudaFailed):
                    driver.cuLibraryUnload(library)
                raise
        self._libraries.append(library)
        return function

    def _check_parameters(self, launch: Launch, kernel: Any) -> None:
        """What is loaded takes what the record says: a wrong offset would be a wrong mask, or worse."""
        types = self.pack(launch, dict.fromkeys((name for name, _ in launch.arguments), 0))[1]
        offset = 0
        for index, kind in enumerate(types):
            size = ctypes.sizeof(kind)
            offset = -(-offset // size) * size
            found = tuple(int(number) for number in self.device.driver.cuKernelGetParamInfo(kernel, index))
            if found != (offset, size):
                raise KernelsUnusable(
                    f"parameter {index} has offset and size {found}, the record says {(offset, size)}",
                    "build the bundle again",
                    subject=launch.file,
                )
            offset += size
