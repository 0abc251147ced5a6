"""Half precision that lives in the graph (design section 6): TensorRT 11 computes in the types that a graph has.

Products (MatMul, Gemm, Conv) and their weights become float16 or bfloat16. Normalisations, softmax and lengths stay
float32. Other operators follow their operands, as PyTorch promotes: half where all of them are, else float32. Inputs and
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
    """A precision of 16 bits. onnx: its tensor type. largest: its greatest finite number. opset: the first that takes it."""

    name: str
    onnx: int
    largest: float
    opset: int


FP16 = Half("fp16", TensorProto.FLOAT16, 65504.0, 13)
BF16 = Half("bf16", TensorProto.BFLOAT16, (2 - 2**-7) * 2.0**127, 22)
HALVES = {half.name: half for half in (FP16, BF16)}
HALF_TYPES = {half.onnx for half in HALVES.values()}

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
FULL = {  # stay float32
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Softmax", "LogSoftmax",
    "ReduceL2", "ReduceL1", "ReduceSum", "ReduceSumSquare", "ReduceMean", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
}  # fmt: skip
FIRST_OPERAND_ONLY = {"Resize"}  # its scales are float32 by definition
TABLE_READERS = {"Gather", "Slice"}

SCALE = ".scale"  # ends the name of a scale of codes (export/onnx/small_weights.py)
LARGE = 4096  # bytes; no shape depends on the values of a weight of this size

LEAST_HALF_SHARE = 0.95
"""Below this share of weights in half precision a graph is not what its option promises. Norms and biases are the rest."""


class PrecisionNotReached(FusionerError):
    """A graph that was to be half precision computes in float32."""

    exit_code = 80
    is_input = False


class WeightsOverflow(FusionerError):
    """A weight lies outside the half precision's range."""

    exit_code = 81
    is_input = False


def to_half(model: onnx.ModelProto, kind: Half = FP16) -> onnx.ModelProto:
    """A copy of `model` with products in half precision. Raises WeightsOverflow, and ValueError for graphs with subgraphs.

    The copy has opset `kind.opset` at least: from there on operators differ from earlier ones in the types they take alone.
    """
    converted = without_weights(model)
    graph = converted.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        raise ValueError(f"{graph.name}: a graph with control flow cannot be converted to {kind.name}")
    for opset in converted.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, kind.opset)
    conversion = _Conversion(model, kind)
    for node in graph.node:
        conversion.add(node)
    for value in graph.output:
        conversion.widen_output(value.name)
    weights = conversion.weights()
    _replace_nodes(graph, conversion.nodes)
    graph.initializer.extend(weights)
    onnx.checker.check_model(_outline(converted), full_check=True)
    return converted


class _Conversion:
    """The nodes of a graph, taken in order, with their operands read in the precision that each computes in.

    nodes: those converted so far, and the Casts between them.
    """

    def __init__(self, model: onnx.ModelProto, kind: Half) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._kind = kind
        self._stored = model.graph.initializer
        self._constants = {tensor.name: tensor for tensor in self._stored if tensor.data_type == FLOAT}
        self._types = {name: FLOAT for name, found in value_types(model).items() if found == FLOAT}  # of values so far
        self._copies: dict[str, onnx.TensorProto] = {}
        self._casts: set[str] = set()

    def add(self, node: onnx.NodeProto) -> None:
        """Convert a node. It is changed in place."""
        operands = self._float_operands(node)
        if node.op_type == "Cast" or not operands:
            self.nodes.append(node)
            return
        computed = any(node.input[index] in self._types for index in operands)
        precision = self._precision_of(node, operands)
        for index in operands:
            node.input[index] = self._read(node.input[index], precision)
        self.nodes.append(node)
        if not computed and precision == self._kind.onnx:  # float32 again at once: what is read of a table enters sums
            node.output[0] = self._widened(node.output[0])
            return
        self._types |= {name: precision for name in node.output if name in self._types}

    def _float_operands(self, node: onnx.NodeProto) -> list[int]:
        """Indices of the inputs that have a floating type which may change."""
        operands = [0] if node.op_type in FIRST_OPERAND_ONLY else range(len(node.input))
        return [index for index in operands if node.input[index] in self._types or node.input[index] in self._constants]

    def _precision_of(self, node: onnx.NodeProto, operands: list[int]) -> int:
        """The type that a node computes in."""
        if node.op_type in PRODUCTS:
            return self._kind.onnx
        if node.op_type in FULL:
            return FLOAT
        computed = [self._types[node.input[index]] for index in operands if node.input[index] in self._types]
        if computed:
            return FLOAT if FLOAT in computed else self._kind.onnx
        # Constants alone: a table of weights is read in half precision, a number stays as it is.
        table = node.op_type in TABLE_READERS and len(self._constants[node.input[0]].dims) > 1
        return self._kind.onnx if table else FLOAT

    def _read(self, name: str, precision: int) -> str:
        """The name of a value or constant in that precision; a copy of the constant, or a Cast, is added for it."""
        if name in self._constants:
            return name if precision == FLOAT else self._copy(name)
        if self._types.get(name, precision) == precision:
            return name
        cast = f"{name}.fp32" if precision == FLOAT else self._in_half(name)
        if cast not in self._casts:
            self._casts.add(cast)
            self.nodes.append(helper.make_node("Cast", [name], [cast], name=f"{cast}.cast", to=precision))
        return cast

    def _copy(self, name: str) -> str:
        """The constant in half precision. Raises WeightsOverflow."""
        copy = self._in_half(name)
        if copy not in self._copies:
            self._copies[copy] = _half_constant(self._constants[name], copy, self._kind)
        return copy

    def _in_half(self, name: str) -> str:
        return f"{name}.{self._kind.name}"

    def _widened(self, name: str) -> str:
        """The new name of a value in half precision whose own name is now that of a float32 Cast."""
        narrow = self._in_half(name)
        self.nodes.append(helper.make_node("Cast", [narrow], [name], to=FLOAT))
        return narrow

    def widen_output(self, name: str) -> None:
        """Make an output of the graph float32 again, where it no longer is."""
        if self._types.get(name) != self._kind.onnx:
            return
        narrow = self._in_half(name)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [narrow if other == name else other for other in names]
        self.nodes.append(helper.make_node("Cast", [narrow], [name], name=name, to=FLOAT))

    def weights(self) -> list[onnx.TensorProto]:
        """The constants that the converted nodes read."""
        read = {name for node in self.nodes for name in node.input}
        return [tensor for tensor in (*self._stored, *self._copies.values()) if tensor.name in read]


def emulated(model: onnx.ModelProto, kind: Half) -> onnx.ModelProto:
    """What a graph of `to_half` computes, for machines without that arithmetic: float32 operators, each result rounded.

    ONNX Runtime has no bfloat16 operators on a CPU, but it converts to and from bfloat16. Sums inside an operator are
    float32, as on tensor cores.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == kind.onnx}
    narrow |= {name for name, found in value_types(model).items() if found == kind.onnx}
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
    _replace_nodes(graph, nodes)
    onnx.checker.check_model(_outline(whole), full_check=True)
    return whole


def half_weight_share(model: onnx.ModelProto, kind: Half = FP16) -> float:
    """The share of weight elements, 0 to 1, that enter a computation in half precision, counted from the graph itself.

    A weight that a Cast widens before any operator reads it saves disk space and nothing else. It counts as float32.
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
            widened = readers.get(tensor.name) == {"Cast"} and not tensor.name.endswith(SCALE)
            half += elements if tensor.data_type == kind.onnx and not widened else 0
    return half / total if total else 0.0


def prove_half(name: str, model: onnx.ModelProto, kind: Half = FP16) -> float:
    """The graph's share of weights in half precision. Raises PrecisionNotReached where it is under LEAST_HALF_SHARE."""
    share = half_weight_share(model, kind)
    if share < LEAST_HALF_SHARE:
        raise PrecisionNotReached(
            f"the {name} graph holds {share:.1%} of its weights in {kind.name}, at least {LEAST_HALF_SHARE:.0%} "
            f"is needed to call it {kind.name}",
            f"build without --{kind.name}, or add the operators that keep their weights in fp32 to "
            "export/onnx/half_precision.py",
        )
    return share


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers, which are gigabytes in a large model."""
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


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value that a node computes or the caller gives, by name."""
    inferred = onnx.shape_inference.infer_shapes(_outline(model)).graph
    weights = {tensor.name for tensor in model.graph.initializer}
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values if value.name not in weights}


def _outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large weights are inputs: enough to infer types from, and to check."""
    outline = without_weights(model)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > LARGE:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            outline.graph.input.append(value)
        else:
            outline.graph.initializer.append(tensor)
    return outline


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """The values that the graph says types of are no longer those that its nodes compute."""
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _half_constant(tensor: onnx.TensorProto, name: str, kind: Half) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    if largest > kind.largest and values.ndim:  # a scalar, such as the bound of a Clip, saturates
        raise WeightsOverflow(
            f"weight {tensor.name} reaches {largest:.3g}, {kind.name} ends at {kind.largest:.3g}",
            f"build without --{kind.name}",
        )
    inside = np.clip(values, -kind.largest, kind.largest)
    return numpy_helper.from_array(inside.astype(helper.tensor_dtype_to_np_dtype(kind.onnx)), name)
