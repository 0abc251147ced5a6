"""The weights that an ONNX graph keeps in another file, found in its bytes without the package onnx.

ONNX Runtime gets them as arrays, so that it opens no file by a name that a graph gives it.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Buffer: TypeAlias = bytes | mmap.mmap

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""Of TensorProto.DataType. Bundles have no other weights in a file of their own."""

# Field numbers of onnx.proto: which fields of a message hold messages that may hold a tensor.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DIMS, _DTYPE, _NAME, _EXTERNAL_DATA, _LOCATION = 1, 2, 8, 13, 14
_OUTER = 2  # of an initializer: model, graph
_VARINT, _LENGTH, _SIZES = 0, 2, {1: 8, 5: 4}
_KEY = b"location"  # of the entry that names a file; ONNX stores it in these very bytes


@dataclass(frozen=True)
class ExternalTensor:
    """name: of the initializer. file: as the graph calls it. offset: in bytes. outer: whether the main graph holds it."""

    name: str
    file: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    outer: bool

    def of(self, content: Buffer) -> np.ndarray:
        """Its values, in the memory of `content` where they are aligned. Raises ValueError where they do not fit it."""
        dtype, count = np.dtype(_DTYPES.get(self.dtype, "V")), math.prod(self.shape)
        if not dtype.itemsize or not 0 <= self.offset <= len(content) - count * dtype.itemsize:
            raise ValueError(
                f"{self.name}, of type {self.dtype} and shape {self.shape}, is not at {self.offset} of {self.file}"
            )
        return np.require(np.frombuffer(content, dtype, count, self.offset).reshape(self.shape), requirements="A")


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """The tensors of an ONNX model that lie in other files. Raises ValueError where it is no ONNX."""
    found = []
    waiting = [("model", 0, len(model), 0)]
    while waiting:
        kind, place, end, depth = waiting.pop()
        if model.find(_KEY, place, end) < 0:  # no file is named in there
            continue
        if kind == "tensor":
            if tensor := _external(model, place, end, depth):
                found.append(tensor)
            continue
        inner = _INNER[kind]
        for number, start, stop in _fields(model, place, end):
            if number in inner:
                waiting.append((inner[number], start, stop, depth + 1))
    return found


def _external(model: bytes, place: int, end: int, depth: int) -> ExternalTensor | None:
    """The tensor of a TensorProto, or None where its values are in it. depth: how many messages hold it."""
    dtype, name, external = 0, "", False
    shape: list[int] = []
    places: dict[str, str] = {}
    for number, start, stop in _fields(model, place, end):
        if number == _DIMS:
            shape += _varints(model, start, stop)
        elif number == _DTYPE:
            dtype = _varint(model, start)[0]
        elif number == _NAME:
            name = model[start:stop].decode()
        elif number == _LOCATION:
            external |= _varint(model, start)[0] == 1
        elif number == _EXTERNAL_DATA:
            entry = {inner: model[first:last].decode() for inner, first, last in _fields(model, start, stop)}
            places[entry.get(1, "")] = entry.get(2, "")
    if not external:
        return None
    file, offset = places.get("location", ""), int(places.get("offset") or 0)
    return ExternalTensor(name, file, dtype, tuple(shape), offset, depth == _OUTER)


def _fields(model: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message that lies there: number, and where the value begins and ends. Raises ValueError."""
    while place < end:
        tag, place = _varint(model, place)
        wire = tag & 7
        if wire == _VARINT:
            start, place = place, _varint(model, place)[1]
        elif wire == _LENGTH:
            length, start = _varint(model, place)
            place = start + length
        elif wire in _SIZES:
            start, place = place, place + _SIZES[wire]
        else:
            raise ValueError("it is no ONNX")
        if place > end:
            raise ValueError("it is cut off")
        yield tag >> 3, start, place


def _varint(model: bytes, place: int) -> tuple[int, int]:
    """A number of 64 bits, and the place after it. Raises ValueError."""
    if place < len(model) and model[place] < 128:  # as most are
        return model[place], place + 1
    value = 0
    for shift, byte in zip(range(0, 70, 7), model[place : place + 10], strict=False):
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, place + shift // 7 + 1
    raise ValueError("it is no ONNX")


def _varints(model: bytes, place: int, end: int) -> Iterator[int]:
    while place < end:
        value, place = _varint(model, place)
        yield value
