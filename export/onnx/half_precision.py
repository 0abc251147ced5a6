"""Half precision that lives in the graph (design section 6): TensorRT 11 takes types as it finds them, and so do we.

Products (MatMul, Gemm, Conv) and their weights become float16 or bfloat16; normalisations, softmax and lengths stay
float32; what lies between follows its operands, as PyTorch promotes: half where all of them are, else float32. Inputs and
outputs of the graph stay float32, so a caller never sees which precision a bundle has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusioner_rt.errors import FusionerError

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Half:
    """A precision of 16 bits. largest: its greatest finite number. opset: the first whose operators take it."""

    name: str
    onnx: int
    largest: float
    opset: int


FP16 = Half("fp16", TensorProto.FLOAT16, 65504.0, 13)
BF16 = Half("bf16", TensorProto.BFLOAT16, (2 - 2**-7) * 2.0**127, 22)
HALVES = {half.name: half for half in (FP16, BF16)}

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
FULL = {
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Softmax", "LogSoftmax",
    "ReduceL2", "ReduceL1", "ReduceSum", "ReduceSumSquare", "ReduceMean", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
}  # fmt: skip
FIRST_OPERAND_ONLY = {"Resize"}  # its scales are float32 by definition
TABLE_READERS = {"Gather", "Slice"}

LARGE = 4096  # bytes of a weight whose values no shape depends on

LEAST_HALF_SHARE = 0.95
"""Below this share of weights in half precision a graph is not what its option promises. Norms and biases are the rest."""


class PrecisionNotReached(FusionerError):
    """A graph that was to be half precision computes in float32."""

    exit_code = 80


class WeightsOverflow(FusionerError):
    """A weight lies outside the half precision's range."""

    exit_code = 81


def to_half(model: onnx.ModelProto, kind: Half = FP16) -> onnx.ModelProto:
    """A copy of `model` with products in half precision. Raises WeightsOverflow, and ValueError for graphs with subgraphs.

    From `kind.opset` on operators differ from those before in the types they take alone, so the number is raised to it.
    """
    converted = without_weights(model)
    for opset in converted.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, kind.opset)
    graph = converted.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        raise ValueError(f"{graph.name}: a graph with control flow cannot be converted to {kind.name}")
    types = _float_types(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == FLOAT}
    copies: dict[str, onnx.TensorProto] = {}
    casts: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []

    def read(name: str, wanted: int) -> str:
        """The name under which `name` is found in type `wanted`, adding a converted constant or a Cast for it."""
        if name in constants:
            if wanted == FLOAT:
                return name
            name_in_half = f"{name}.{kind.name}"
            copies.setdefault(name_in_half, _half_constant(constants[name], name_in_half, kind))
            return name_in_half
        if types.get(name, wanted) == wanted:
            return name
        other = f"{name}.{kind.name}" if wanted == kind.onnx else f"{name}.fp32"
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
            wanted = kind.onnx
        elif node.op_type in FULL:
            wanted = FLOAT
        elif computed:
            wanted = FLOAT if FLOAT in computed else kind.onnx
        else:  # constants alone: a table of weights is read in half precision, a number is not worth it
            table = node.op_type in TABLE_READERS and len(constants[node.input[0]].dims) > 1
            wanted = kind.onnx if table else FLOAT
        for index in operands:
            node.input[index] = read(node.input[index], wanted)
        nodes.append(node)
        if not computed and wanted == kind.onnx:  # what is read of a table is float32 again at once: it enters sums
            narrow = f"{node.output[0]}.{kind.name}"
            nodes.append(helper.make_node("Cast", [narrow], [node.output[0]], to=FLOAT))
            node.output[0] = narrow
            continue
        for name in node.output:
            if name in types:
                types[name] = wanted

    for value in graph.output:
        if types.get(value.name) == kind.onnx:
            narrow = f"{value.name}.{kind.name}"
            _rename_value(nodes, value.name, narrow)
            nodes.append(helper.make_node("Cast", [narrow], [value.name], name=value.name, to=FLOAT))

    read_names = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in (*model.graph.initializer, *copies.values()) if tensor.name in read_names]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(_outline(converted), full_check=True)
    return converted


def emulated(model: onnx.ModelProto, kind: Half) -> onnx.ModelProto:
    """What a graph of `to_half` computes, for machines without that arithmetic: operators in float32, values rounded.

    ONNX Runtime has no bfloat16 operators on a CPU, and converts to and from it. Sums inside an operator are float32, as
    on tensor cores.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == kind.onnx}
    narrow |= {name for name, found in _types(model).items() if found == kind.onnx}
    nodes: list[onnx.NodeProto] = []
    widened: set[str] = set()
    for node in graph.node:
        if node.op_type == "Cast":
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in narrow:
                if name not in widened:
                    nodes.append(helper.make_node("Cast", [name], [f"{name}.wide"], to=FLOAT))
                    widened.add(name)
                node.input[index] = f"{name}.wide"
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [name], to=kind.onnx))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(_outline(whole), full_check=True)
    return whole


def half_weight_share(model: onnx.ModelProto, kind: Half = FP16) -> float:
    """The share of weight elements that enter a computation in half precision, counted from the graph itself: 0 to 1.

    A weight stored in it that a Cast widens before anything reads it saves disk and nothing else: it counts as float32.
    """
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    total = half = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in (FLOAT, kind.onnx):
            elements = int(np.prod(tensor.dims, dtype=np.int64))
            total += elements
            half += elements if tensor.data_type == kind.onnx and readers.get(tensor.name) != {"Cast"} else 0
    return half / total if total else 0.0


def prove_half(name: str, model: onnx.ModelProto, kind: Half = FP16, least: float = LEAST_HALF_SHARE) -> float:
    """The graph's share of weights in half precision. Raises PrecisionNotReached where it is under `least`."""
    share = half_weight_share(model, kind)
    if share < least:
        raise PrecisionNotReached(
            f"the {name} graph holds {share:.1%} of its weights in {kind.name}, at least {least:.0%} "
            f"is needed to call it {kind.name}",
            f"build without --{kind.name}, or add the operators that keep their weights in fp32 to "
            "export/onnx/half_precision.py",
        )
    return share


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers: those of a large model are gigabytes."""
    copy = onnx.ModelProto()
    for whole, made in ((model, copy), (model.graph, copy.graph)):
        for field, value in whole.ListFields():
            if field.name in ("graph", "initializer"):
                continue
            if isinstance(value, (str, int)):
                setattr(made, field.name, value)
            else:
                getattr(made, field.name).extend(value)
    return copy


def _outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large weights are inputs: enough to infer types of and to check."""
    outline = without_weights(model)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > LARGE:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            outline.graph.input.append(value)
        else:
            outline.graph.initializer.append(tensor)
    return outline


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value that a node or the caller computes, by name."""
    inferred = onnx.shape_inference.infer_shapes(_outline(model)).graph
    weights = {tensor.name for tensor in model.graph.initializer}
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values if value.name not in weights}


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Those that are float32."""
    return {name: FLOAT for name, found in _types(model).items() if found == FLOAT}


def _half_constant(tensor: onnx.TensorProto, name: str, kind: Half) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    if largest > kind.largest and values.ndim:  # a scalar beyond it, a clip's bound say, saturates
        raise WeightsOverflow(
            f"weight {tensor.name} reaches {largest:.3g}, {kind.name} ends at {kind.largest:.3g}",
            f"build without --{kind.name}",
        )
    inside = np.clip(values, -kind.largest, kind.largest)
    return numpy_helper.from_array(inside.astype(helper.tensor_dtype_to_np_dtype(kind.onnx)), name)


def _rename_value(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
