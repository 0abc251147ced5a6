"""An ONNX graph that is searched for patterns and rewritten: its nodes, found by what they write and by who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


class EditableGraph:
    """A copy of a model's graph.

    nodes:     those that compute values, in order.
    constants: the weights, by name.
    folded:    nodes that compute weights from weights. They stand before all others in the model, and ONNX Runtime
               computes them once, when it loads the graph.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.source = model
        self.nodes = [copied(node) for node in model.graph.node]
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.folded: list[NodeProto] = []
        self.outputs = {value.name for value in model.graph.output}
        self._changed = False
        self._index()

    def _index(self) -> None:
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._folded = {name: node for node in self.folded for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def of(self, *kinds: str) -> Iterator[NodeProto]:
        """Nodes of these kinds, one kind after the other, that are still in the graph when their turn comes."""
        for node in [node for kind in kinds for node in self.nodes if node.op_type == kind]:
            if self._producers.get(node.output[0]) is node:
                yield node

    def producer(self, name: str) -> NodeProto | None:
        """The node that computes `name`."""
        return self._producers.get(name)

    def written_by(self, name: str, kind: str) -> NodeProto | None:
        """The node that computes `name`, if it is of that kind and one node alone reads `name`."""
        node = self._producers.get(name)
        if node is None or node.op_type != kind or self.read_by(name) is None:
            return None
        return node

    def read_by(self, name: str, kind: str | None = None) -> NodeProto | None:
        """The node that alone reads `name`, if it is of that kind."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return None
        return readers[0] if kind in (None, readers[0].op_type) else None

    def is_constant(self, name: str) -> bool:
        return name in self.constants or name in self._folded

    def variable_and_constant(self, node: NodeProto) -> tuple[str, str] | None:
        """The two operands of a sum or product, if one of them is a constant."""
        first, second = node.input
        if self.is_constant(first) == self.is_constant(second):
            return None
        return (second, first) if self.is_constant(first) else (first, second)

    def shape(self, name: str) -> list[int] | None:
        """The shape of a weight: as stored, widened, scaled, or one of the equal parts of its columns."""
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
        """The value of a constant of one element."""
        node = self._folded.get(name)
        stored = node.input[0] if node is not None and node.op_type == "Cast" else name
        tensor = self.constants.get(stored)
        if tensor is None or int(np.prod(tensor.dims, dtype=np.int64)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).astype(np.float64).reshape(()))

    def last_dimensions(self, shape: str, rank: int) -> list[int] | None:
        """The last two numbers of a Reshape's target of that rank, -1 in place of those that are not constants."""
        if shape in self.constants:
            values = [int(value) for value in numpy_helper.to_array(self.constants[shape])]
            return values[-2:] if len(values) == rank else None
        node = self._producers.get(shape)
        if node is None or node.op_type != "Concat" or len(node.input) != rank:
            return None
        return [-1 if (value := self.number(name)) is None else int(value) for name in node.input[-2:]]

    def constant(self, name: str, values: np.ndarray) -> str:
        """The name of a new constant. One that is there already stays."""
        self.constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def fold(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node that computes weights from weights, unless it is there already."""
        if outputs[0] not in self._folded:
            self.folded.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
            self._folded |= dict.fromkeys(outputs, self.folded[-1])

    def remove(self, node: NodeProto) -> None:
        """Take a node out whose outputs the next `replace` computes."""
        self.nodes = [other for other in self.nodes if other is not node]

    def replace(self, node: NodeProto, by: list[NodeProto]) -> None:
        """`by` computes what `node` did. Nodes that nothing reads any more go."""
        index = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes[index : index + 1] = by
        self._drop_unread()
        self.set_nodes(self.nodes)

    def set_nodes(self, nodes: list[NodeProto]) -> None:
        """`nodes` in place of all there are, but for the folded ones."""
        self.nodes, self._changed = nodes, True
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
        """The model with the graph as it now is."""
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        if not self._changed:
            return model
        self._drop_unread()
        nodes = [*self.folded, *self.nodes]
        read = {name for node in nodes for name in node.input}
        graph = model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in read)
        if MICROSOFT in {node.domain for node in nodes} - {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return model


def attribute(node: NodeProto, name: str) -> Any:
    """Its value, or None."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)


def copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
