"""An array in GPU memory: address, shape and dtype. All GPU backends use it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DeviceArrayInvalid

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "uint16": 2, "uint8": 1}
"""Bytes of an element, by dtype."""


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in GPU memory. pointer: its address, a multiple of 16. dtype: one of DTYPES."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype]

    @classmethod
    def of(cls, array: Any, name: str = "array") -> "DeviceArray":
        """The array of an object with `__cuda_array_interface__` (torch, CuPy, Numba), without a copy.

        The object must outlive the work that uses it. The interface has no bfloat16: give a DeviceArray.
        Raises DeviceArrayInvalid where it is not contiguous or its dtype is not in DTYPES.
        """
        if isinstance(array, DeviceArray):
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise DeviceArrayInvalid(
                f"{name} is a {type(array).__name__} without __cuda_array_interface__; expected an array in GPU memory"
            )
        names = {"<f2": "float16", "<f4": "float32", "<i4": "int32", "<u2": "uint16", "|u1": "uint8"}
        dtype = names.get(interface["typestr"])
        if dtype is None:
            raise DeviceArrayInvalid(
                f"{name} has dtype {interface['typestr']}; expected one of {', '.join(DTYPES)}", "convert it first"
            )
        described = cls(int(interface["data"][0]), tuple(interface["shape"]), dtype)
        if not _contiguous(described, interface.get("strides")):
            raise DeviceArrayInvalid(f"{name} has strides {interface['strides']}", "make it contiguous")
        return described


def _contiguous(array: DeviceArray, strides: Sequence[int] | None) -> bool:
    if strides is None:
        return True
    expected = DTYPES[array.dtype]
    for length, stride in zip(reversed(array.shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True
