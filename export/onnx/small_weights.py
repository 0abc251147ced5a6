"""A text encoder in two fifths of its bytes: weights of products in 8 bits; of queries, keys and the table of tokens in 4.

The weights are rounded in the encoder itself, before it is exported (export/onnx/round_weights.py). So every gate compares the graph with
an encoder of the same weights, and one gate of its own (export.gates.small_text) tells what the rounding does to words. In
the file eight bits are int8 with a scale for each column, and four are halves of bytes with a scale for each GROUP of
values. ONNX Runtime makes products' weights floats again when it loads the graph (behind a DequantizeLinear it would round
the other operand to 8 bits too); of the table the graph unpacks the rows that it reads, no more.

TensorRT has no operators on bytes: `whole` gives it the graph with its weights as they were rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.half_precision import LARGE, SCALE

GROUP = 64  # values that share a scale where codes have four bits
CODES, PACKED = ".codes", ".packed"  # ends of initializers' names: int8, and two codes in a byte
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Rounded:
    """A weight as the graph has it, (in, out) of a product and (rows, t) of a table. codes: of its shape, int8.

    scale: (out,) of eight bits; of four (in / GROUP, out) and, of a table, (rows, t / GROUP).
    """

    codes: np.ndarray
    scale: np.ndarray
    table: bool = False

    @property
    def packed(self) -> bool:
        return self.scale.ndim == 2

    def values(self) -> np.ndarray:
        """What the codes stand for, in the type of `scale`."""
        scale = self.scale.repeat(GROUP, axis=1 if self.table else 0) if self.packed else self.scale
        values: np.ndarray = (self.codes.astype(np.float32) * scale.astype(np.float32)).astype(self.scale.dtype)
        return values

    def tensors(self, name: str) -> list[TensorProto]:
        stored = [numpy_helper.from_array(self.scale, name + SCALE)]
        if not self.packed:
            return [numpy_helper.from_array(self.codes, name + CODES), *stored]
        low, high = np.split((self.codes + np.int8(8)).astype(np.uint8), 2, axis=1 if self.table else 0)
        return [numpy_helper.from_array(low | high << np.uint8(4), name + PACKED), *stored]

    @classmethod
    def of(cls, name: str, stored: dict[str, TensorProto], table: bool) -> Rounded:
        """From `tensors`."""
        scale = numpy_helper.to_array(stored[name + SCALE])
        if name + CODES in stored:
            return cls(numpy_helper.to_array(stored[name + CODES]), scale)
        packed = numpy_helper.to_array(stored[name + PACKED])
        halves = np.concatenate([packed & 15, packed >> 4], axis=1 if table else 0)
        return cls(halves.astype(np.int8) - np.int8(8), scale, table)


def small(model: onnx.ModelProto, codes: dict[bytes, Rounded]) -> onnx.ModelProto:
    """A copy of a graph with those of its weights as codes that `round_weights` has rounded, by the bytes of their values."""
    nodes: list[NodeProto] = []
    tensors: dict[str, TensorProto] = {}
    tables: dict[str, Rounded] = {}
    for tensor in model.graph.initializer:
        found = codes.get(numpy_helper.to_array(tensor).tobytes()) if tensor.ByteSize() > LARGE else None
        made = [tensor] if found is None else found.tensors(tensor.name)
        if found is not None and found.table:
            tables[tensor.name] = found
        elif found is not None:
            nodes += _widened(found, tensor, tensors)
        tensors |= {one.name: one for one in made}
    for node in model.graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        nodes += [node] if table is None else _read(node, table, tensors)
    return _rewritten(model, nodes, tensors.values())


def has_codes(model: onnx.ModelProto) -> bool:
    """Whether it comes from `small`."""
    return bool(_coded(tensor.name for tensor in model.graph.initializer))


def whole(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `small` was made of: weights for codes, one Gather for each lookup."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    lookups = {node.name: node for node in model.graph.node if node.name.endswith(_READ)}
    weights = {}
    for name in _coded(stored):
        rounded = Rounded.of(name, stored, table=f"{name}{_READ}" in lookups)
        weights[name] = numpy_helper.from_array(rounded.values(), name)
    nodes = []
    for node in model.graph.node:
        owner = next((name for name in weights if node.name.startswith(f"{name}{_MADE}")), None)
        if owner is None:
            nodes.append(node)
        elif node.name.endswith(_ROWS):
            indices = lookups[f"{owner}{_READ}"].input[1]
            nodes.append(helper.make_node("Gather", [owner, indices], list(node.output), name=node.name, axis=0))
    gone = {name + end for name in weights for end in (CODES, PACKED, SCALE)}
    kept = (tensor for name, tensor in stored.items() if name not in gone and not name.startswith(_SHARED))
    return _rewritten(model, nodes, [*kept, *weights.values()])


_MADE = ".small/"  # after a weight's name: the nodes that make it
_READ, _ROWS = f"{_MADE}read", f"{_MADE}rows"
_SHARED = "small."  # constants of all such nodes


def _coded(names: Iterable[str]) -> list[str]:
    """Names of the weights that are codes."""
    return [name.removesuffix(end) for name in names for end in (CODES, PACKED) if name.endswith(end)]


class _Nodes(list[NodeProto]):
    """Nodes that make one weight, or read its rows. tensors: of the graph; gets the constants that the nodes read."""

    def __init__(self, weight: str, tensors: dict[str, TensorProto]) -> None:
        self.weight, self.tensors = weight, tensors

    def add(self, kind: str, inputs: list[str], name: str, output: str = "", **attributes: Any) -> str:
        place = f"{self.weight}{_MADE}{name}"
        self.append(cast(Any, helper.make_node)(kind, inputs, [output or place], name=place, **attributes))
        return output or place

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{_SHARED}{array.dtype}_{'_'.join(map(str, array.ravel()))}"
        self.tensors.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def unpacked(self, packed: str, axis: int) -> str:
        """Codes of -8 to 7 in float32."""
        low = self.add("BitwiseAnd", [packed, self.constant(np.uint8(15))], "low")
        high = self.add("BitShift", [packed, self.constant(np.uint8(4))], "high", direction="RIGHT")
        both = self.add("Cast", [self.add("Concat", [low, high], "both", axis=axis)], "codes", to=FLOAT)
        return self.add("Sub", [both, self.constant(np.float32(8))], "centred")


def _widened(rounded: Rounded, tensor: TensorProto, tensors: dict[str, TensorProto]) -> _Nodes:
    """A product's weight from its codes: in float32, and rounded once to the type that it had."""
    name, nodes = tensor.name, _Nodes(tensor.name, tensors)
    scale = nodes.add("Cast", [name + SCALE], "scale", to=FLOAT)
    if rounded.packed:
        rows, columns = rounded.codes.shape
        codes = nodes.unpacked(name + PACKED, axis=0)
        codes = nodes.add("Reshape", [codes, nodes.constant(np.array([-1, GROUP, columns]))], "grouped")
        scale = nodes.add("Unsqueeze", [scale, nodes.constant(np.array([1]))], "beside")
        scaled = nodes.add("Mul", [codes, scale], "scaled")
        scaled = nodes.add("Reshape", [scaled, nodes.constant(np.array([rows, columns]))], "whole")
    else:
        scaled = nodes.add("Mul", [nodes.add("Cast", [name + CODES], "codes", to=FLOAT), scale], "scaled")
    nodes.add("Cast", [scaled], "weight", name, to=tensor.data_type)
    return nodes


def _read(gather: NodeProto, table: Rounded, tensors: dict[str, TensorProto]) -> _Nodes:
    """The rows that a Gather of (N, L) indices reads."""
    name, indices = gather.input
    nodes = _Nodes(name, tensors)
    codes = nodes.unpacked(nodes.add("Gather", [name + PACKED, indices], "read", axis=0), axis=-1)
    codes = nodes.add("Reshape", [codes, nodes.constant(np.array([0, 0, -1, GROUP]))], "grouped")
    scale = nodes.add("Gather", [name + SCALE, indices], "scale", axis=0)
    scale = nodes.add(
        "Cast", [nodes.add("Unsqueeze", [scale, nodes.constant(np.array([-1]))], "beside")], "wide", to=FLOAT
    )
    scaled = nodes.add("Mul", [codes, scale], "scaled")
    rows = nodes.add("Reshape", [scaled, nodes.constant(np.array([0, 0, table.codes.shape[1]]))], "both_halves")
    nodes.add("Cast", [rows], "rows", gather.output[0], to=helper.np_dtype_to_tensor_dtype(table.scale.dtype))
    return nodes


def _rewritten(model: onnx.ModelProto, nodes: Iterable[NodeProto], tensors: Iterable[TensorProto]) -> onnx.ModelProto:
    """The model with other nodes and weights; without the types noted of values in between."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(tensors)
    return made
