"""Half precision that lives in the graph (design section 6): TensorRT 11 takes types as it finds them, and so do we.

Products (MatMul, Gemm, Conv) and their weights become float16; normalisations, softmax and lengths stay float32; what
lies between follows its operands, as PyTorch promotes: float16 where all of them are, else float32. Inputs and outputs
of the graph stay float32, so a caller never sees which precision a bundle has.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusioner_rt.errors import FusionerError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
FULL = {
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Softmax", "LogSoftmax",
    "ReduceL2", "ReduceL1", "ReduceSum", "ReduceSumSquare", "ReduceMean", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
}  # fmt: skip
FIRST_OPERAND_ONLY = {"Resize"}  # its scales are float32 by definition
TABLE_READERS = {"Gather", "Slice"}

LEAST_FP16_SHARE = 0.95
"""Below this share of weights in float16 a graph is not what `--fp16` promises. Norms and biases are the rest."""


class PrecisionNotReached(FusionerError):
    """A graph that was to be float16 holds float32 weights."""

    exit_code = 80


class WeightsOverflow(FusionerError):
    """A weight lies outside float16's range."""

    exit_code = 81


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with float16 products. Raises WeightsOverflow, and ValueError for graphs with subgraphs."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        raise ValueError(f"{graph.name}: a graph with control flow cannot be converted to float16")
    types = _float_types(model)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FLOAT}
    copies: dict[str, onnx.TensorProto] = {}
    casts: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []

    def read(name: str, wanted: int) -> str:
        """The name under which `name` is found in type `wanted`, adding a converted constant or a Cast for it."""
        if name in constants:
            if wanted == FLOAT:
                return name
            half_name = f"{name}.fp16"
            copies.setdefault(half_name, _half_constant(constants[name], half_name))
            return half_name
        if types.get(name, wanted) == wanted:
            return name
        other = f"{name}.fp16" if wanted == HALF else f"{name}.fp32"
        if other not in casts:
            casts[other] = helper.make_node("Cast", [name], [other], name=f"{other}.cast", to=wanted)
            nodes.append(casts[other])
        return other

    for node in graph.node:
        operands = [0] if node.op_type in FIRST_OPERAND_ONLY else range(len(node.input))
        operands = [index for index in operands if node.input[index] in types or node.input[index] in constants]
        computed = [types[node.input[index]] for index in operands if node.input[index] in types]
        if node.op_type == "Cast" or not operands:
            nodes.append(node)
            continue
        if node.op_type in PRODUCTS:
            kind = HALF
        elif node.op_type in FULL:
            kind = FLOAT
        elif computed:
            kind = FLOAT if FLOAT in computed else HALF
        else:  # constants alone: a table of weights is read in float16, a number is not worth it
            kind = HALF if node.op_type in TABLE_READERS and len(constants[node.input[0]].dims) > 1 else FLOAT
        for index in operands:
            node.input[index] = read(node.input[index], kind)
        nodes.append(node)
        if not computed and kind == HALF:  # what is read of a table is float32 again at once: it enters sums
            _rename_value(nodes[-1:], node.output[0], f"{node.output[0]}.fp16")
            nodes.append(helper.make_node("Cast", [node.output[0]], [node.output[0].removesuffix(".fp16")], to=FLOAT))
            continue
        for name in node.output:
            if name in types:
                types[name] = kind

    for value in graph.output:
        if types.get(value.name) == HALF:
            _rename_value(nodes, value.name, f"{value.name}.fp16")
            nodes.append(helper.make_node("Cast", [f"{value.name}.fp16"], [value.name], name=value.name, to=FLOAT))

    read_names = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in (*graph.initializer, *copies.values()) if tensor.name in read_names]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(half, full_check=True)
    return half


def fp16_weight_share(model: onnx.ModelProto) -> float:
    """The share of weight elements that enter a computation as float16, counted from the graph itself: 0 to 1.

    A float16 weight that a Cast widens before anything reads it saves disk and nothing else: it counts as float32.
    """
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    total = half = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in (FLOAT, HALF):
            elements = int(np.prod(tensor.dims, dtype=np.int64))
            total += elements
            half += elements if tensor.data_type == HALF and readers.get(tensor.name) != {"Cast"} else 0
    return half / total if total else 0.0


def prove_fp16(name: str, model: onnx.ModelProto, least: float = LEAST_FP16_SHARE) -> float:
    """The graph's share of float16 weights. Raises PrecisionNotReached where it is under `least`."""
    share = fp16_weight_share(model)
    if share < least:
        raise PrecisionNotReached(
            f"the {name} graph holds {share:.1%} of its weights in fp16, at least {least:.0%} is needed to call it fp16; "
            "build without --fp16, or add the operators that keep their weights in fp32 to export/precision.py"
        )
    return share


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Every float32 value that a node or the caller computes, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: FLOAT for value in values if value.type.tensor_type.elem_type == FLOAT}


def _half_constant(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    limit = float(np.finfo(np.float16).max)
    if largest > limit and values.ndim:  # a scalar beyond it, a clip's bound say, saturates
        raise WeightsOverflow(
            f"weight {tensor.name} reaches {largest:.3g}, float16 ends at {limit:.0f}; build without --fp16"
        )
    return numpy_helper.from_array(np.clip(values, -limit, limit).astype(np.float16), name)


def _rename_value(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
