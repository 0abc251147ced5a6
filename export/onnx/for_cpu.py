"""An exported graph in the form that ONNX Runtime's CPU runs fastest; its results are the same up to rounding.

Float32 throughout: what is half precision is widened, weights by one Cast each, which ONNX Runtime folds when it loads the
graph, so the file keeps its 16 bits. Attention is one operator that holds no (L, L) map (com.microsoft's
MultiHeadAttention). Biases and residuals enter the products as what they are added to, and no hidden layer has rows a
multiple of 4096 bytes apart: twelve of them, as a product reads them, fall into one set of the first-level cache.

Patterns: those of training/encoders/vision_transformer.py and training/model.py. Where none is found the graph stays as it
is. No weight is changed or copied: what is derived of one is computed by nodes that are folded at loading, so graphs that
share their weights' file still do. Operators are those of ONNX Runtime 1.20 and newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.onnx.half_precision import FLOAT, HALVES, _types

MICROSOFT = "com.microsoft"
COLLIDING = 1024  # float32 in a row: 4096 bytes, one way of a first-level cache
APART = 16  # columns added there: one cache line, and as many as a product takes at a time
FARTHEST = 64  # nodes between a residual and the sum it enters
SAME_ROWS = {
    "Cast", "Erf", "Gelu", "LayerNormalization", "MultiHeadAttention", "QuickGelu", "Relu", "Sigmoid", "Softmax", "Tanh",
}  # fmt: skip
"""Operators whose result has every dimension of their first operand but the last, and no other."""

_HALF = {half.onnx for half in HALVES.values()}


def for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with the rewrites above; every input and output keeps its name, type and dimensions."""
    graph = _Graph(model)
    _widen(graph)
    _fuse_attention(graph)
    _quick_gelus(graph)
    _residuals(graph)
    _hidden_layers(graph)
    return graph.model()


class _Graph:
    """Nodes in order, found by what they write and by who reads it. Nodes of constants alone stand before all others."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._source = model
        self.nodes = [_copy(node) for node in model.graph.node]
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.folded: list[NodeProto] = []
        self.outputs = {value.name for value in model.graph.output}
        self.changed = False
        self._index()

    def _index(self) -> None:
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._folded = {name: node for node in self.folded for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def of(self, kind: str) -> Iterator[NodeProto]:
        """Nodes of one kind that are still in the graph when their turn comes."""
        for node in [node for node in self.nodes if node.op_type == kind]:
            if self._producers.get(node.output[0]) is node:
                yield node

    def written_by(self, name: str, kind: str, perm: list[int] | None = None) -> NodeProto | None:
        """The node that computes `name`, if it is of that kind and for one reader alone."""
        node = self._producers.get(name)
        if node is None or node.op_type != kind or self.read_by(name) is None:
            return None
        return node if perm is None or _attribute(node, "perm") == perm else None

    def read_by(self, name: str, kind: str | None = None) -> NodeProto | None:
        """The one node that reads `name`."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return None
        return readers[0] if kind in (None, readers[0].op_type) else None

    def leads_to(self, name: str, end: str) -> bool:
        """`end` is computed from `name` row by row, so both have as many rows, in one order: every dimension but the last."""
        for _ in range(FARTHEST):
            if end == name:
                return True
            source = self._of_same_rows(end)
            if source is None:
                return False
            end = source
        return False

    def _of_same_rows(self, name: str) -> str | None:
        """What `name` is computed from by a node that leaves every dimension but the last as it is."""
        node = self._producers.get(name)
        if node is None or not node.input:
            return None
        if node.op_type in SAME_ROWS:
            return node.input[0]
        if node.op_type == "MatMul":
            weight = self.shape(node.input[1])
            return node.input[0] if weight is not None and len(weight) == 2 else None
        if node.op_type in ("Add", "Mul"):
            found = _with_constant(self, node)
            vector = self.shape(found[1]) if found is not None else None
            return found[0] if found is not None and vector is not None and len(vector) < 2 else None
        return None

    def is_constant(self, name: str) -> bool:
        return name in self.constants or name in self._folded

    def shape(self, name: str) -> list[int] | None:
        """Of a weight: as stored, widened, scaled, or one of the equal parts of its columns."""
        if name in self.constants:
            return list(self.constants[name].dims)
        node = self._folded.get(name)
        if node is None or node.op_type not in ("Cast", "Mul", "Split"):
            return None
        whole = self.shape(node.input[0])
        if whole is None or node.op_type != "Split":
            return whole
        return [whole[0], whole[1] // len(node.output)]

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        node = self._folded.get(name)
        stored = node.input[0] if node is not None and node.op_type == "Cast" else name
        tensor = self.constants.get(stored)
        if tensor is None or int(np.prod(tensor.dims, dtype=np.int64)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).astype(np.float64).reshape(()))

    def last_dimensions(self, shape: str, rank: int) -> list[int] | None:
        """The last two numbers of a Reshape's target of that rank, -1 where they are not constants."""
        if shape in self.constants:
            values = [int(value) for value in numpy_helper.to_array(self.constants[shape])]
            return values[-2:] if len(values) == rank else None
        node = self._producers.get(shape)
        if node is None or node.op_type != "Concat" or len(node.input) != rank:
            return None
        return [-1 if (value := self.number(name)) is None else int(value) for name in node.input[-2:]]

    def rows_of(self, columns: int) -> str:
        """The target of a Reshape to two dimensions."""
        return self._constant(f"cpu.rows_of_{columns}", np.array([-1, columns]))

    def zeros(self, *shape: int) -> str:
        return self._constant(f"cpu.zeros_{'x'.join(map(str, shape))}", np.zeros(shape, np.float32))

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def fold(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """A node of constants, unless it is there already."""
        if outputs[0] not in self._folded:
            self.folded.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
            self._folded |= dict.fromkeys(outputs, self.folded[-1])

    def replace(self, node: NodeProto, by: list[NodeProto]) -> None:
        """`by` computes what `node` did. Nodes that nothing reads any more go."""
        index = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes[index : index + 1] = by
        self.changed = True
        self._drop_unread()
        self._index()

    def _drop_unread(self) -> None:
        read, kept = set(self.outputs), []
        for node in reversed([*self.folded, *self.nodes]):
            if read.intersection(node.output):
                kept.append(node)
                read.update(node.input)
        kept_ids = set(map(id, kept))
        self.folded = [node for node in self.folded if id(node) in kept_ids]
        self.nodes = [node for node in self.nodes if id(node) in kept_ids]

    def model(self) -> onnx.ModelProto:
        """The graph as it now is; a plain copy where nothing was found."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._source)
        if not self.changed:
            return copy
        self._drop_unread()
        nodes = [*self.folded, *self.nodes]
        read = {name for node in nodes for name in node.input}
        graph = copy.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in read)
        if MICROSOFT in {node.domain for node in nodes} - {opset.domain for opset in copy.opset_import}:
            copy.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return copy


def _widen(graph: _Graph) -> None:
    """Half precision becomes float32: weights by a Cast of their own, which is folded; other Casts go."""
    source = graph._source
    types = _types(source) | {name: tensor.data_type for name, tensor in graph.constants.items()}
    borders = {value.name for value in (*source.graph.input, *source.graph.output)}
    halves = {name for name, found in types.items() if found in _HALF}
    if not halves or halves & borders or any(map(_makes_half, graph.nodes)):
        return
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            if name in graph.constants and name in halves:
                graph.fold("Cast", [name], [f"{name}.wide"], to=FLOAT)
                node.input[index] = f"{name}.wide"
            else:
                node.input[index] = renamed.get(name, name)
        if node.op_type == "Cast" and _attribute(node, "to") in {FLOAT, *_HALF}:
            if types.get(name) in {FLOAT, *_HALF} and node.output[0] not in graph.outputs:
                renamed[node.output[0]] = node.input[0]
                continue
            node = helper.make_node("Cast", list(node.input), list(node.output), name=node.name, to=FLOAT)
        nodes.append(node)
    graph.nodes, graph.changed = nodes, True
    graph._index()


def _makes_half(node: NodeProto) -> bool:
    """It brings half precision of its own, or holds a graph: forms that no export of ours has."""
    return any(
        attribute.HasField("g")
        or attribute.t.data_type in _HALF
        or (attribute.name == "dtype" and attribute.i in _HALF)
        for attribute in node.attribute
    )


@dataclass(frozen=True)
class _Linear:
    """source @ weight + bias. rows: of the weight; columns: as well."""

    source: str
    weight: str
    bias: str | None
    rows: int
    columns: int


def _linear(graph: _Graph, name: str) -> _Linear | None:
    """What computes `name`, where that is a product with a weight, its bias and a scale of its columns (layer scale)."""
    scaled = graph.written_by(name, "Mul")
    if scaled is not None:
        found = _with_constant(graph, scaled)
        linear = _linear(graph, found[0]) if found is not None else None
        if found is None or linear is None or graph.shape(found[1]) != [linear.columns]:
            return None
        # By the scale's name as well: layers may share a weight and not its scale.
        by = f"scaled_by.{found[1]}"
        weight, bias = f"{linear.weight}.{by}", linear.bias and f"{linear.bias}.{by}"
        graph.fold("Mul", [linear.weight, found[1]], [weight])
        if linear.bias and bias:
            graph.fold("Mul", [linear.bias, found[1]], [bias])
        return replace(linear, weight=weight, bias=bias)
    bias = None
    added = graph.written_by(name, "Add")
    if added is not None:
        found = _with_constant(graph, added)
        if found is None:
            return None
        name, bias = found
    product = graph.written_by(name, "MatMul")
    shape = graph.shape(product.input[1]) if product is not None else None
    if product is None or graph.is_constant(product.input[0]) or shape is None or len(shape) != 2:
        return None
    if bias is not None and graph.shape(bias) != shape[1:]:
        return None
    return _Linear(product.input[0], product.input[1], bias, *shape)


def _with_constant(graph: _Graph, node: NodeProto) -> tuple[str, str] | None:
    """The two operands of a sum or product, the constant one last."""
    one, other = node.input
    if graph.is_constant(one) == graph.is_constant(other):
        return None
    return (other, one) if graph.is_constant(one) else (one, other)


def _fuse_attention(graph: _Graph) -> None:
    """softmax(q kᵀ · scale) v over heads, with q, k and v of one projection: three products and MultiHeadAttention."""
    for softmax in graph.of("Softmax"):
        scores, scale = _scaled(graph, softmax.input[0])
        product = graph.written_by(scores, "MatMul")
        mixed = graph.read_by(softmax.output[0], "MatMul")
        if product is None or mixed is None or mixed.input[0] != softmax.output[0]:
            continue
        if _attribute(softmax, "axis") not in (None, -1, 3):
            continue
        query, of_query = _scaled(graph, product.input[0])
        key, of_key = _scaled(graph, product.input[1])
        heads = [
            _heads(graph, query, [0, 2, 1, 3]), _heads(graph, key, [0, 2, 3, 1]), _heads(graph, mixed.input[1], [0, 2, 1, 3]),
        ]  # fmt: skip
        transposed = graph.read_by(mixed.output[0], "Transpose")
        merged = graph.read_by(transposed.output[0], "Reshape") if transposed is not None else None
        if None in heads or transposed is None or merged is None or _attribute(transposed, "perm") != [0, 2, 1, 3]:
            continue
        names, counts = [head[0] for head in heads if head], {head[1:] for head in heads if head}
        split = graph.written_by(names[0], "Split")
        linear = _linear(graph, split.input[0]) if split is not None else None
        if split is None or linear is None or list(split.output) != names or len(counts) != 1:
            continue
        if any(graph.read_by(name) is None for name in names):
            continue  # their names will be those of the products without the bias
        number, width = counts.pop()
        if not _in_three(graph, split) or linear.columns != 3 * number * width:
            continue
        if (graph.last_dimensions(merged.input[1], 3) or [0])[-1] != number * width:
            continue
        weights = [f"{linear.weight}.{part}" for part in ("query", "key", "value")]
        graph.fold("Split", [linear.weight], weights, axis=1, num_outputs=3)
        nodes = [
            helper.make_node("MatMul", [linear.source, weight], [name], name=name)
            for weight, name in zip(weights, names, strict=True)
        ]
        attention = helper.make_node(
            "MultiHeadAttention", names + ([linear.bias] if linear.bias else []), [merged.output[0]], name=merged.output[0],
            domain=MICROSOFT, num_heads=number, scale=float(np.float32(scale * of_query * of_key)),
        )  # fmt: skip
        graph.nodes = [node for node in graph.nodes if node is not split]  # its outputs' names are the products' now
        graph.replace(merged, [*nodes, attention])


def _scaled(graph: _Graph, name: str) -> tuple[str, float]:
    """What `name` is, and times which number."""
    node = graph.written_by(name, "Mul")
    found = _with_constant(graph, node) if node is not None else None
    factor = graph.number(found[1]) if found is not None else None
    return (name, 1.0) if found is None or factor is None else (found[0], factor)


def _heads(graph: _Graph, name: str, perm: list[int]) -> tuple[str, int, int] | None:
    """(B, L, d) split into heads and transposed: its name before, the number of heads, their width."""
    transposed = graph.written_by(name, "Transpose", perm)
    reshaped = graph.written_by(transposed.input[0], "Reshape") if transposed is not None else None
    last = graph.last_dimensions(reshaped.input[1], 4) if reshaped is not None else None
    if reshaped is None or last is None or min(last) < 1:
        return None
    return reshaped.input[0], last[0], last[1]


def _in_three(graph: _Graph, split: NodeProto) -> bool:
    """Along the last of three dimensions, into equal parts."""
    if _attribute(split, "axis") not in (2, -1):
        return False
    if len(split.input) < 2 or not split.input[1]:
        return len(split.output) == 3
    sizes = graph.constants.get(split.input[1])
    return sizes is not None and len(set(numpy_helper.to_array(sizes).tolist())) == 1


def _residuals(graph: _Graph) -> None:
    """x + (a W + b): a product that starts from x + b."""
    for added in graph.of("Add"):
        for residual, summand in (added.input, reversed(added.input)):
            linear = _linear(graph, summand)
            if linear is None or graph.is_constant(residual) or not graph.leads_to(residual, linear.source):
                continue
            out = added.output[0]
            start, start_rows, rows, sums, shape = (
                f"{out}.{part}" for part in ("start", "start_rows", "rows", "sums", "shape")
            )
            nodes = []
            if linear.bias:
                nodes = [helper.make_node("Add", [residual, linear.bias], [start], name=start)]
            graph.replace(added, [
                *nodes,
                _reshape(start if linear.bias else residual, graph.rows_of(linear.columns), start_rows),
                _reshape(linear.source, graph.rows_of(linear.rows), rows),
                helper.make_node("Gemm", [rows, linear.weight, start_rows], [sums], name=sums),
                helper.make_node("Shape", [residual], [shape], name=shape),
                _reshape(sums, shape, out),
            ])  # fmt: skip
            break


def _quick_gelus(graph: _Graph) -> None:
    """x sigmoid(alpha x), the activation of OpenAI's CLIP, in one operator."""
    for sigmoid in graph.of("Sigmoid"):
        x, alpha = _scaled(graph, sigmoid.input[0])
        product = graph.read_by(sigmoid.output[0], "Mul")
        if product is None or x == sigmoid.input[0] or set(product.input) != {x, sigmoid.output[0]}:
            continue
        gelu = helper.make_node(
            "QuickGelu", [x], [product.output[0]], name=product.output[0], domain=MICROSOFT, alpha=alpha
        )
        graph.replace(product, [gelu])


def _hidden_layers(graph: _Graph) -> None:
    """gelu(x W + b) V: a product that starts from b, in rows that do not collide in the cache."""
    for activation in [*graph.of("Gelu"), *graph.of("QuickGelu")]:
        up = _linear(graph, activation.input[0])
        flat = graph.read_by(activation.output[0], "Reshape")
        down = graph.read_by(flat.output[0], "Gemm") if flat is not None else None
        if up is None or up.bias is None or flat is None or down is None or down.input[0] != flat.output[0]:
            continue
        shape = graph.shape(down.input[1])
        if shape is None or shape[0] != up.columns or _attribute(down, "transA") or _attribute(down, "transB"):
            continue
        if graph.last_dimensions(flat.input[1], 2) != [-1, up.columns]:
            continue
        weight, bias = up.weight, up.bias
        if up.columns % COLLIDING == 0:
            weight, bias, below = (f"{name}.apart" for name in (up.weight, up.bias, down.input[1]))
            graph.fold("Concat", [up.weight, graph.zeros(up.rows, APART)], [weight], axis=1)
            graph.fold("Concat", [up.bias, graph.zeros(APART)], [bias], axis=0)
            graph.fold("Concat", [down.input[1], graph.zeros(APART, shape[1])], [below], axis=0)
            down.input[1] = below
        rows, sums = f"{activation.input[0]}.rows", f"{activation.input[0]}.sums"
        gelu = _copy(activation)
        gelu.input[0], gelu.output[0] = sums, flat.output[0]
        graph.replace(flat, [
            _reshape(up.source, graph.rows_of(up.rows), rows),
            helper.make_node("Gemm", [rows, weight, bias], [sums], name=sums),
            gelu,
        ])  # fmt: skip


def _reshape(name: str, shape: str, into: str) -> NodeProto:
    return helper.make_node("Reshape", [name, shape], [into], name=into)


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
