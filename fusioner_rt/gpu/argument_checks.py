"""Checks of arrays and numbers before a launch: a kernel trusts what it is given. All raise DeviceArrayInvalid."""

from collections.abc import Sequence
from typing import Any

from ..device_array import DeviceArray
from ..errors import DeviceArrayInvalid
from .kernel_contract import ALIGNMENT, MAX_VALUES


def array_of(array: Any, name: str, letters: str, dtypes: Sequence[str]) -> DeviceArray:
    """The array, of as many dimensions as `letters` has, such as "(B, h, w, d)", and of one of the dtypes."""
    found = DeviceArray.of(array, name)
    if found.dtype not in dtypes:
        raise DeviceArrayInvalid(f"{name} is {found.dtype}; expected {' or '.join(dtypes)}")
    if len(found.shape) != letters.count(",") + 1 or min(found.shape, default=0) < 1:
        raise DeviceArrayInvalid(f"{name} has shape {found.shape}; expected {letters}, none of them 0")
    check_address(name, found.pointer)
    return found


def array_as(array: Any, name: str, shape: Sequence[int], dtype: str) -> DeviceArray:
    """The array, of exactly this shape and dtype."""
    found = DeviceArray.of(array, name)
    if found.dtype != dtype or tuple(found.shape) != tuple(shape):
        raise DeviceArrayInvalid(f"{name} is {found.dtype} {found.shape}; expected {dtype} {tuple(shape)}")
    check_address(name, found.pointer)
    return found


def check_address(name: str, address: int) -> None:
    if address % ALIGNMENT or not address:
        raise DeviceArrayInvalid(f"{name} lies at {address:#x}; expected an address that is a multiple of 16")


def check_count(number: int, what: str) -> None:
    """number: elements of a picture."""
    if number > MAX_VALUES:
        raise DeviceArrayInvalid(f"{number} {what} of a picture", "the kernels count to 2**30: give them less at once")
