"""An exported graph in the form that ONNX Runtime's CPU runs fastest; its results are the same up to rounding.

widened half precision  Everything is computed in float32. The file keeps its weights of 16 bits: each has one Cast, which
                        ONNX Runtime computes once, when it loads the graph.
attention               One operator, com.microsoft's MultiHeadAttention, which holds no (L, L) map.
QuickGelu               One operator.
residuals               A product starts from the sum of residual and bias, instead of being added to them.
hidden layers           A product starts from the bias. No row is a multiple of 4096 bytes long: a product reads twelve
                        rows at once, and all twelve would fall into one set of the first-level cache.

The patterns are those of training/encoders/vision_transformer.py and training/model.py. A graph without them stays as it
is. No weight is changed or copied: nodes that are folded at loading compute what is derived from weights, so graphs still
share the file of their weights. The operators are those of ONNX Runtime 1.20 and newer.

A function named after a pattern looks for it and changes nothing. It says line by line what it needs, and raises _NoMatch
where the graph is something else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.onnx.editable_graph import MICROSOFT, EditableGraph, attribute, copied
from export.onnx.half_precision import FLOAT, HALF_TYPES, value_types

COLLIDING = 1024  # float32 in a row: 4096 bytes, one way of a first-level cache
APART = 16  # columns added there: one cache line, and as many as a product takes at a time
FARTHEST = 64  # nodes between a residual and the sum it enters
SAME_ROWS = {
    "Cast", "Erf", "Gelu", "LayerNormalization", "MultiHeadAttention", "QuickGelu", "Relu", "Sigmoid", "Softmax", "Tanh",
}  # fmt: skip
"""Operators whose result has every dimension of their first operand but the last, and no other."""

T = TypeVar("T")


def for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with the rewrites above; every input and output keeps its name, type and dimensions."""
    graph = EditableGraph(model)
    _widen(graph)
    for attention in _matches(graph, _attention, "Softmax"):
        _fuse_attention(graph, attention)
    for quick_gelu in _matches(graph, _quick_gelu, "Sigmoid"):
        _fuse_quick_gelu(graph, quick_gelu)
    for residual in _matches(graph, _residual, "Add"):
        _start_from_residual(graph, residual)
    for hidden_layer in _matches(graph, _hidden_layer, "Gelu", "QuickGelu"):
        _start_from_bias(graph, hidden_layer)
    return graph.model()


class _NoMatch(Exception):
    """The graph is not the pattern here."""


def _matches(graph: EditableGraph, pattern: Callable[[EditableGraph, NodeProto], T], *kinds: str) -> Iterator[T]:
    """What `pattern` finds around nodes of these kinds, in a graph that is rewritten between one and the next."""
    for node in graph.of(*kinds):
        try:
            match = pattern(graph, node)
        except _NoMatch:
            continue
        yield match


def _found(value: T | None) -> T:
    if value is None:
        raise _NoMatch
    return value


def _require(condition: bool) -> None:
    if not condition:
        raise _NoMatch


def _widen(graph: EditableGraph) -> None:
    """Half precision becomes float32: each weight gets a folded Cast, and Casts between the two types go."""
    source = graph.source
    types = value_types(source) | {name: tensor.data_type for name, tensor in graph.constants.items()}
    borders = {value.name for value in (*source.graph.input, *source.graph.output)}
    halves = {name for name, found in types.items() if found in HALF_TYPES}
    if not halves or halves & borders or any(map(_makes_half, graph.nodes)):
        return
    floats = {FLOAT, *HALF_TYPES}
    renamed: dict[str, str] = {}  # what a Cast gave, by what it read
    nodes = []
    for node in graph.nodes:
        read = list(node.input)
        for index, name in enumerate(read):
            narrow = name in graph.constants and name in halves
            node.input[index] = _fold_widening(graph, name) if narrow else renamed.get(name, name)
        if node.op_type == "Cast" and attribute(node, "to") in floats:
            if types.get(read[0]) in floats and node.output[0] not in graph.outputs:
                renamed[node.output[0]] = node.input[0]
                continue
            node = helper.make_node("Cast", list(node.input), list(node.output), name=node.name, to=FLOAT)
        nodes.append(node)
    graph.set_nodes(nodes)


def _fold_widening(graph: EditableGraph, weight: str) -> str:
    graph.fold("Cast", [weight], [f"{weight}.wide"], to=FLOAT)
    return f"{weight}.wide"


def _makes_half(node: NodeProto) -> bool:
    """The node has half precision in its attributes, or holds a graph. No export of ours has such a node."""
    return any(
        found.HasField("g") or found.t.data_type in HALF_TYPES or (found.name == "dtype" and found.i in HALF_TYPES)
        for found in node.attribute
    )


@dataclass(frozen=True)
class _Linear:
    """(source @ weight + bias) * scales. weight: (rows, columns). scales: (columns,) each, as layer scale has them."""

    source: str
    weight: str
    bias: str | None
    rows: int
    columns: int
    scales: tuple[str, ...] = ()


def _linear(graph: EditableGraph, name: str) -> _Linear:
    """The product with a weight, its bias and scales that compute `name`."""
    scaled = graph.written_by(name, "Mul")
    if scaled is not None:
        unscaled, scale = _found(graph.variable_and_constant(scaled))
        linear = _linear(graph, unscaled)
        _require(graph.shape(scale) == [linear.columns])
        return replace(linear, scales=(*linear.scales, scale))
    bias = None
    added = graph.written_by(name, "Add")
    if added is not None:
        name, bias = _found(graph.variable_and_constant(added))
    product = _found(graph.written_by(name, "MatMul"))
    source, weight = product.input
    shape = _found(graph.shape(weight))
    _require(not graph.is_constant(source))
    _require(len(shape) == 2)
    rows, columns = shape
    _require(bias is None or graph.shape(bias) == [columns])
    return _Linear(source, weight, bias, rows, columns)


def _fold_scales(graph: EditableGraph, linear: _Linear) -> _Linear:
    """The same without scales: they are folded into weight and bias."""
    weight, bias = linear.weight, linear.bias
    for scale in linear.scales:
        # Named by the scale too: layers may share a weight and not its scale.
        weight = _fold_scale(graph, weight, scale)
        bias = bias and _fold_scale(graph, bias, scale)
    return replace(linear, weight=weight, bias=bias, scales=())


def _fold_scale(graph: EditableGraph, name: str, scale: str) -> str:
    scaled = f"{name}.scaled_by.{scale}"
    graph.fold("Mul", [name, scale], [scaled])
    return scaled


def _scaled(graph: EditableGraph, name: str) -> tuple[str, float]:
    """The value that `name` is a multiple of, and the factor."""
    node = graph.written_by(name, "Mul")
    operands = graph.variable_and_constant(node) if node is not None else None
    factor = graph.number(operands[1]) if operands is not None else None
    return (name, 1.0) if operands is None or factor is None else (operands[0], factor)


@dataclass(frozen=True)
class _Attention:
    """softmax(q kᵀ · scale) v over heads, q, k and v being a split of one projection.

    merged: the Reshape that puts the heads side by side again.
    """

    projection: _Linear
    split: NodeProto
    heads: int
    scale: float
    merged: NodeProto


def _attention(graph: EditableGraph, softmax: NodeProto) -> _Attention:
    _require(attribute(softmax, "axis") in (None, -1, 3))
    scores, scale = _scaled(graph, softmax.input[0])
    product = _found(graph.written_by(scores, "MatMul"))
    query, of_query = _scaled(graph, product.input[0])
    key, of_key = _scaled(graph, product.input[1])
    mixed = _found(graph.read_by(softmax.output[0], "MatMul"))
    _require(mixed.input[0] == softmax.output[0])
    transposed = _found(graph.read_by(mixed.output[0], "Transpose"))
    _require(attribute(transposed, "perm") == [0, 2, 1, 3])
    merged = _found(graph.read_by(transposed.output[0], "Reshape"))

    parts = [
        _heads(graph, query, [0, 2, 1, 3]), _heads(graph, key, [0, 2, 3, 1]), _heads(graph, mixed.input[1], [0, 2, 1, 3]),
    ]  # fmt: skip
    names = [part.source for part in parts]
    count, width = parts[0].count, parts[0].width
    _require(all((part.count, part.width) == (count, width) for part in parts))
    _require(_found(graph.last_dimensions(merged.input[1], 3))[-1] == count * width)

    split = _found(graph.written_by(names[0], "Split"))
    _require(list(split.output) == names)
    _require(_in_three(graph, split))
    _require(all(graph.read_by(name) is not None for name in names))  # the names go to products without the bias
    projection = _linear(graph, split.input[0])
    _require(projection.columns == 3 * count * width)
    return _Attention(projection, split, count, scale * of_query * of_key, merged)


@dataclass(frozen=True)
class _Heads:
    """source (B, L, count · width), split into heads and transposed."""

    source: str
    count: int
    width: int


def _heads(graph: EditableGraph, name: str, perm: list[int]) -> _Heads:
    transposed = _found(graph.written_by(name, "Transpose"))
    _require(attribute(transposed, "perm") == perm)
    reshaped = _found(graph.written_by(transposed.input[0], "Reshape"))
    count, width = _found(graph.last_dimensions(reshaped.input[1], 4))
    _require(min(count, width) >= 1)
    return _Heads(reshaped.input[0], count, width)


def _in_three(graph: EditableGraph, split: NodeProto) -> bool:
    """Along the last of three dimensions, into equal parts."""
    if attribute(split, "axis") not in (2, -1):
        return False
    if len(split.input) < 2 or not split.input[1]:
        return len(split.output) == 3
    sizes = graph.constants.get(split.input[1])
    return sizes is not None and len(set(numpy_helper.to_array(sizes).tolist())) == 1


def _fuse_attention(graph: EditableGraph, found: _Attention) -> None:
    """Three products, and one operator that adds the bias to them itself."""
    projection, out = _fold_scales(graph, found.projection), found.merged.output[0]
    names = list(found.split.output)
    weights = [f"{projection.weight}.{part}" for part in ("query", "key", "value")]
    graph.fold("Split", [projection.weight], weights, axis=1, num_outputs=3)
    products = [
        helper.make_node("MatMul", [projection.source, weight], [name], name=name)
        for weight, name in zip(weights, names, strict=True)
    ]
    attention = helper.make_node(
        "MultiHeadAttention", names + ([projection.bias] if projection.bias else []), [out], name=out,
        domain=MICROSOFT, num_heads=found.heads, scale=float(np.float32(found.scale)),
    )  # fmt: skip
    graph.remove(found.split)
    graph.replace(found.merged, [*products, attention])


@dataclass(frozen=True)
class _QuickGelu:
    """x sigmoid(alpha x), the activation of OpenAI's CLIP."""

    x: str
    alpha: float
    product: NodeProto


def _quick_gelu(graph: EditableGraph, sigmoid: NodeProto) -> _QuickGelu:
    x, alpha = _scaled(graph, sigmoid.input[0])
    _require(x != sigmoid.input[0])
    product = _found(graph.read_by(sigmoid.output[0], "Mul"))
    _require(set(product.input) == {x, sigmoid.output[0]})
    return _QuickGelu(x, alpha, product)


def _fuse_quick_gelu(graph: EditableGraph, found: _QuickGelu) -> None:
    out = found.product.output[0]
    gelu = helper.make_node("QuickGelu", [found.x], [out], name=out, domain=MICROSOFT, alpha=found.alpha)
    graph.replace(found.product, [gelu])


@dataclass(frozen=True)
class _Residual:
    """residual + branch, the branch being computed from the residual row by row."""

    added: NodeProto
    residual: str
    branch: _Linear


def _residual(graph: EditableGraph, added: NodeProto) -> _Residual:
    for residual, summand in (added.input, reversed(added.input)):
        with contextlib.suppress(_NoMatch):
            branch = _linear(graph, summand)
            _require(not graph.is_constant(residual))
            _require(_same_rows(graph, residual, branch.source))
            return _Residual(added, residual, branch)
    raise _NoMatch


def _same_rows(graph: EditableGraph, name: str, end: str) -> bool:
    """`end` is computed from `name` row by row, so every dimension but the last is the same in both."""
    for _ in range(FARTHEST):
        if end == name:
            return True
        source = _of_same_rows(graph, end)
        if source is None:
            return False
        end = source
    return False


def _of_same_rows(graph: EditableGraph, name: str) -> str | None:
    """What `name` is computed from by a node that leaves every dimension but the last as it is."""
    node = graph.producer(name)
    if node is None or not node.input:
        return None
    if node.op_type in SAME_ROWS:
        return node.input[0]
    if node.op_type == "MatMul":
        weight = graph.shape(node.input[1])
        return node.input[0] if weight is not None and len(weight) == 2 else None
    if node.op_type in ("Add", "Mul"):
        operands = graph.variable_and_constant(node)
        vector = graph.shape(operands[1]) if operands is not None else None
        return operands[0] if operands is not None and vector is not None and len(vector) < 2 else None
    return None


def _start_from_residual(graph: EditableGraph, found: _Residual) -> None:
    """residual + (a W + b) becomes a product that starts from residual + b."""
    branch, residual, out = _fold_scales(graph, found.branch), found.residual, found.added.output[0]
    start, start_rows, rows, sums, shape = (
        f"{out}.{part}" for part in ("start", "start_rows", "rows", "sums", "shape")
    )
    nodes = []
    if branch.bias:
        nodes = [helper.make_node("Add", [residual, branch.bias], [start], name=start)]
    graph.replace(found.added, [
        *nodes,
        _reshape(start if branch.bias else residual, _rows_of(graph, branch.columns), start_rows),
        _reshape(branch.source, _rows_of(graph, branch.rows), rows),
        helper.make_node("Gemm", [rows, branch.weight, start_rows], [sums], name=sums),
        helper.make_node("Shape", [residual], [shape], name=shape),
        _reshape(sums, shape, out),
    ])  # fmt: skip


@dataclass(frozen=True)
class _HiddenLayer:
    """gelu(x W + b) V.

    up: x W + b. activation: of it. flat: the Reshape of that to rows. down: the Gemm with V. width: columns of V.
    """

    up: _Linear
    activation: NodeProto
    flat: NodeProto
    down: NodeProto
    width: int


def _hidden_layer(graph: EditableGraph, activation: NodeProto) -> _HiddenLayer:
    up = _linear(graph, activation.input[0])
    _require(up.bias is not None)
    flat = _found(graph.read_by(activation.output[0], "Reshape"))
    _require(graph.last_dimensions(flat.input[1], 2) == [-1, up.columns])
    down = _found(graph.read_by(flat.output[0], "Gemm"))
    _require(down.input[0] == flat.output[0])
    _require(not attribute(down, "transA") and not attribute(down, "transB"))
    rows, width = _found(graph.shape(down.input[1]))
    _require(rows == up.columns)
    return _HiddenLayer(up, activation, flat, down, width)


def _start_from_bias(graph: EditableGraph, found: _HiddenLayer) -> None:
    """x W + b becomes a product that starts from b, in rows that do not collide in the cache."""
    up, down = _fold_scales(graph, found.up), found.down
    assert up.bias is not None
    weight, bias = up.weight, up.bias
    if up.columns % COLLIDING == 0:
        weight = _extended(graph, weight, 1, (up.rows, APART))
        bias = _extended(graph, bias, 0, (APART,))
        down.input[1] = _extended(graph, down.input[1], 0, (APART, found.width))
    name = found.activation.input[0]
    rows, sums = f"{name}.rows", f"{name}.sums"
    gelu = copied(found.activation)
    gelu.input[0], gelu.output[0] = sums, found.flat.output[0]
    graph.replace(found.flat, [
        _reshape(up.source, _rows_of(graph, up.rows), rows),
        helper.make_node("Gemm", [rows, weight, bias], [sums], name=sums),
        gelu,
    ])  # fmt: skip


def _extended(graph: EditableGraph, weight: str, axis: int, zeros: tuple[int, ...]) -> str:
    """The weight with zeros of that shape behind it."""
    name = f"cpu.zeros_{'x'.join(map(str, zeros))}"
    extended = f"{weight}.apart"
    graph.fold("Concat", [weight, graph.constant(name, np.zeros(zeros, np.float32))], [extended], axis=axis)
    return extended


def _rows_of(graph: EditableGraph, columns: int) -> str:
    """The target of a Reshape to two dimensions."""
    return graph.constant(f"cpu.rows_of_{columns}", np.array([-1, columns]))


def _reshape(name: str, shape: str, into: str) -> NodeProto:
    return helper.make_node("Reshape", [name, shape], [into], name=into)
