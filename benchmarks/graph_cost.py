"""What an ONNX graph computes and moves at given inputs: multiplications and additions of its products, and bytes.

Shapes are not inferred but taken from a run: every value of the graph is made an output, and ONNX Runtime runs it once
without optimisations, so that operators of any domain and sizes computed from data are known. What depends on weights
alone is folded when a graph is loaded: computing it counts nothing, and it is read as the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import fusioner_rt  # noqa: F401  # before any import of onnxruntime: it turns off its telemetry

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """flops: two for each multiplication of a product, convolution or attention; none for other operators.

    least: bytes of inputs, weights and outputs, each once. by_operator: as if every operator read and wrote memory.
    constants: of least, the weights, as folded: what another call of the same graph reads again.
    """

    flops: int = 0
    least: int = 0
    by_operator: int = 0
    constants: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.least + other.least, self.by_operator + other.by_operator,
            self.constants + other.constants,
        )  # fmt: skip


def graph_costs(file: Path, inputs: Mapping[str, np.ndarray], parts: Sequence[str] = ()) -> dict[str, Cost]:
    """By part, a prefix of the names of values that nodes write; "" is what no prefix claims.

    least: of the whole graph, and of a part its weights and what crosses its border.
    """
    model = onnx.load(file)
    sizes = run_shapes(file, model, inputs)
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = {tensor.name: _tensor_bytes(tensor) for tensor in model.graph.initializer}
    working = []
    for node in model.graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
            continue
        working.append(node)

    def part_of(name: str) -> str:
        return next((part for part in parts if name.startswith(part)), "")

    maker = {name: part_of(node.output[0]) for node in working for name in node.output}
    results = {value.name for value in model.graph.output}
    costs: dict[str, Cost] = {}
    crossed: set[tuple[str, str]] = set()
    for node in working:
        part = part_of(node.output[0])
        shapes = [sizes[name][0] if name in sizes else () for name in node.input]
        of_outputs = [sizes[name][0] for name in node.output if name in sizes]
        moved = sum(_bytes(sizes[name]) for name in (*node.input, *node.output) if name in sizes)
        least = weighed = 0
        for name in node.input:
            if name in sizes and maker.get(name) != part and (part, name) not in crossed:
                crossed.add((part, name))
                size = weights[name] if name in weights else _bytes(sizes[name])
                least += size
                weighed += size if name in constants else 0
        leaving = [name for name in node.output if name in results or _read_elsewhere(name, part, working, part_of)]
        least += sum(_bytes(sizes[name]) for name in leaving if name in sizes)
        flops = node_flops(node, shapes, of_outputs[0]) if of_outputs else 0
        costs[part] = costs.get(part, Cost()) + Cost(flops, least, moved, weighed)
    return costs


def graph_cost(file: Path, inputs: Mapping[str, np.ndarray]) -> Cost:
    return sum(graph_costs(file, inputs).values(), Cost())


def _read_elsewhere(name: str, part: str, nodes: Sequence[Any], part_of: Any) -> bool:
    return any(name in node.input and part_of(node.output[0]) != part for node in nodes)


def node_flops(node: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Of one node, given the shapes of its inputs and of its first output."""
    kind = node.op_type
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger"):
        inner = inputs[0][-2] if attributes.get("transA") and len(inputs[0]) > 1 else inputs[0][-1]
        return 2 * math.prod(output) * inner
    if kind in ("Gemm", "FusedGemm"):
        return 2 * math.prod(output) * inputs[0][0 if attributes.get("transA") else 1]
    if kind in ("Conv", "FusedConv", "ConvInteger"):
        return 2 * math.prod(output) * math.prod(inputs[1][1:])  # (outputs, inputs of a group, kernel)
    if kind == "ConvTranspose":
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if kind == "Einsum":
        return _einsum_flops(attributes["equation"].decode(), inputs)
    if kind == "Attention" and node.domain == "com.microsoft":  # (B, S, c) and one weight for query, key and value
        (batch, length, width), out = inputs[0], output[-1]
        return 2 * batch * length * (width * inputs[1][1] + 2 * length * out)
    if kind in ("Attention", "MultiHeadAttention"):
        return _attention_flops(inputs, output)
    return 0


def _attention_flops(inputs: Sequence[Shape], output: Shape) -> int:
    """Of softmax(q kᵀ) v: query (B, S, d), (B, heads, S, d) or all three packed as (B, S, heads, 3, d)."""
    query = inputs[0]
    if len(query) == 5:
        batch, length, heads, _, width = query
        return 4 * batch * heads * length * length * width
    key = inputs[1] if len(inputs) > 1 and inputs[1] else query
    if len(query) == 4:
        return 2 * math.prod(query) * key[2] + 2 * math.prod(output) * key[2]
    length = key[2] if len(key) == 4 else key[1]
    return 2 * math.prod(query) * length + 2 * math.prod(output) * length


def _einsum_flops(equation: str, inputs: Sequence[Shape]) -> int:
    """Two for each combination of all letters, where letters are summed over; elementwise ones count nothing."""
    left, _, right = equation.replace(" ", "").partition("->")
    size = {
        letter: edge
        for term, shape in zip(left.split(","), inputs, strict=True)
        for letter, edge in zip(term, shape, strict=True)
    }
    return 2 * math.prod(size.values()) if set(size) - set(right) else 0


def run_shapes(file: Path, model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[Shape, int]]:
    """Shape and bytes per element of every value of the graph's own nodes, weights included."""
    import onnxruntime

    whole = onnx.load(file, load_external_data=False)
    named = {value.name for value in whole.graph.output}
    given = {value.name for value in whole.graph.input}
    for node in whole.graph.node:
        for name in node.output:
            if name and name not in named | given:
                whole.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(inputs)), strict=True)) | dict(inputs)
    sizes = {
        name: (tuple(array.shape), array.dtype.itemsize) for name, array in found.items() if hasattr(array, "shape")
    }
    for tensor in model.graph.initializer:
        sizes[tensor.name] = (tuple(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return sizes


def _bytes(size: tuple[Shape, int]) -> int:
    return math.prod(size[0]) * size[1]


def _tensor_bytes(tensor: Any) -> int:
    return math.prod(tensor.dims) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
