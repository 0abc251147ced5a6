"""A CUDA driver in host memory, for what can be proved of a launcher without a GPU: which calls it makes, with which
arguments, and what becomes of their errors. The kernels themselves can be run by Triton's interpreter (`execute`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real

from fusioner_rt.gpu.cuda_graph import uncollected
from fusioner_rt.hardware import driver_missing

OK = real.CUresult.CUDA_SUCCESS
NO_DRIVER = driver_missing() is not None


_taken: set[Any] = set()


def _take(name: str, arguments: tuple[Any, ...]) -> None:
    """The real binding takes these arguments, then finds no driver. It looks for one each time, which takes longer than all
    else here, so it is asked once for arguments of these kinds."""
    kinds = name, _kind(arguments)
    if kinds not in _taken:
        with uncollected(), pytest.raises(RuntimeError):
            getattr(real, name)(*arguments)
        _taken.add(kinds)


def _kind(value: Any) -> Any:
    """What a binding may refuse a value for: its type, and of an integer its bits."""
    if isinstance(value, tuple | list):
        return type(value), *map(_kind, value)
    return (type(value), value < 0, value.bit_length()) if type(value) is int else type(value)


class EmulatedDriver:
    """Stands where `cuda.bindings.driver` does. Calls are kept in `calls`; the one named `failing` returns an error.

    execute: called with a kernel's code, grid and argument values for every launch.
    parameters: sizes in bytes of the kernels' parameters, by symbol, as `cuKernelGetParamInfo` tells them.
    """

    CUdevice_attribute = real.CUdevice_attribute
    CUstream_flags = real.CUstream_flags
    CUresult = real.CUresult
    CUfunction_attribute = real.CUfunction_attribute
    CUpointer_attribute = real.CUpointer_attribute

    def __init__(self, capability: tuple[int, int] = (8, 0), execute: Callable[..., None] | None = None) -> None:
        self.capability, self.execute = capability, execute
        self.calls: list[str] = []
        self.failing = ""
        self.has_pools = True
        self.memory: dict[int, np.ndarray] = {}
        self.parameters = {
            "measure_kernel": [8] * 6 + [4] * 3 + [8] * 2,
            "maps_kernel": [8] * 8 + [4] * 4 + [8] * 2,
            "labels_kernel": [8] * 4 + [4] * 8 + [8] * 2,
            "probabilities_kernel": [8] * 3 + [4] * 7 + [8] * 2,
            "masks_kernel": [8] * 3 + [4] * 7 + [8] * 2,
            "softmax_masks_kernel": [8] * 3 + [4] * 8 + [8] * 2,
            "names_kernel": [8] * 4 + [4] + [8] * 2,
            "resize_rows_kernel": [8] * 4 + [4] * 10 + [8] * 2,
            "resize_columns_kernel": [8] * 4 + [4] * 10 + [8] * 2,
        }
        self.owners: dict[int, int] = {}  # GPU by address, where it is not the first
        self.contexts = 0
        self.codes: list[bytes] = []
        self.kernels: list[tuple[str, bytes]] = []

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cu") and name not in ("cuGetErrorName", "cuGetErrorString"):

            def noted(*arguments: Any) -> Any:
                self.calls.append(name)
                if NO_DRIVER:
                    _take(name, arguments)
                if name == self.failing:
                    return (real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
                return found(*arguments)

            return noted
        return found

    def cuGetErrorName(self, code: Any) -> Any:
        return OK, code.name.encode()

    def cuGetErrorString(self, code: Any) -> Any:
        return OK, b"an emulated error"

    def cuInit(self, flags: int) -> Any:
        return (OK,)

    def cuDriverGetVersion(self) -> Any:
        return OK, 12040

    def cuDeviceGetCount(self) -> Any:
        return OK, 1

    def cuDeviceGet(self, ordinal: int) -> Any:
        return OK, real.CUdevice(ordinal)

    def cuDeviceGetName(self, length: int, device: Any) -> Any:
        return OK, b"Emulated".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, which: Any, device: Any) -> Any:
        if which == real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
            return OK, int(self.has_pools)
        major = which == real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return OK, self.capability[0 if major else 1]

    def cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        return OK, real.CUcontext(7)

    def cuDevicePrimaryCtxRelease(self, device: Any) -> Any:
        return (OK,)

    def cuCtxPushCurrent(self, context: Any) -> Any:
        self.contexts += 1
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        self.contexts -= 1
        return OK, real.CUcontext(7)

    def cuStreamCreate(self, flags: int) -> Any:
        return OK, real.CUstream(11)

    def cuStreamSynchronize(self, stream: int) -> Any:
        return (OK,)

    def cuStreamDestroy(self, stream: int) -> Any:
        return (OK,)

    def cuMemAlloc(self, size: int) -> Any:
        whole = np.zeros(size + 256, np.uint8)
        start = -whole.ctypes.data % 256
        piece = whole[start : start + size]
        self.memory[piece.ctypes.data] = piece
        return OK, real.CUdeviceptr(piece.ctypes.data)

    def cuPointerGetAttribute(self, which: Any, pointer: int) -> Any:
        assert which == real.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return OK, self.owners.get(pointer, 0)

    def cuMemFree(self, pointer: int) -> Any:
        del self.memory[pointer]
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        ctypes.memmove(to, source, size)
        return (OK,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        ctypes.memmove(to, source, size)
        return (OK,)

    def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:
        assert options == ([], [], 0, [], [], 0)
        assert code[:4] == b"\x7fELF" or b".version" in code
        self.codes.append(code)
        return OK, real.CUlibrary(len(self.codes))

    def cuLibraryGetKernel(self, library: Any, symbol: bytes) -> Any:
        code = self.codes[int(library) - 1]
        assert symbol in code
        self.kernels.append((symbol.decode(), code))
        return OK, real.CUkernel(len(self.kernels))

    def cuLibraryUnload(self, library: Any) -> Any:
        return (OK,)

    def cuKernelGetParamInfo(self, kernel: Any, index: int) -> Any:
        offset = 0
        for position, size in enumerate(self.parameters[self.kernels[int(kernel) - 1][0]]):
            offset = -(-offset // size) * size
            if position == index:
                return OK, offset, size
            offset += size
        return (real.CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuKernelSetAttribute(self, attribute: Any, value: int, kernel: Any, device: Any) -> Any:
        return (OK,)

    def cuKernelGetFunction(self, kernel: Any) -> Any:
        return OK, real.CUfunction(int(kernel))

    def cuLaunchKernel(
        self, function: Any, x: int, y: int, z: int, threads: int, ty: int, tz: int, shared: int, stream: int,
        parameters: Any, extra: int,
    ) -> Any:  # fmt: skip
        assert self.contexts > 0, "no context is current"
        assert (z, ty, tz, extra) == (1, 1, 1, 0)
        values, types = parameters
        symbol, code = self.kernels[int(function) - 1]
        assert [ctypes.sizeof(kind) for kind in types] == self.parameters[symbol]
        assert values[-2:] == (0, 0)
        if self.execute:
            self.execute(code, (x, y), values[:-2])
        return (OK,)
