"""What a TensorRT plan computes in which type, and whether it is the graph that the manifest describes.

Networks are strongly typed, so the parsed network's types are the plan's: counting layers by kind and type needs no GPU.
The engine's own list of fused layers needs a GPU that loads the plan, and is added where there is one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from fusioner_rt.errors import FusionerError
from fusioner_rt.tensorrt.versions import error_log

Layers = dict[str, dict[str, int]]
"""Number of layers by kind and type: {"matrix_multiply": {"float16": 73, "float32": 1}}."""

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "INT8": "int8", "UINT8": "uint8", "FP8": "float8",
}  # fmt: skip
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PRODUCTS = ("convolution", "matrix_multiply")
NAMED = (*PRODUCTS, "normalization", "softmax")
"""Kinds of layers that `summary` names. It counts the others together."""


class NetworkNotDescribed(FusionerError):
    """The network TensorRT parsed has other inputs or outputs than the manifest says."""

    exit_code = 91
    is_input = False


def dtype_name(dtype: Any) -> str:
    """numpy's name of a TensorRT type, as manifests have it."""
    return DTYPES.get(dtype.name, dtype.name.lower())


def layer_list(network: Any) -> list[dict[str, Any]]:
    """name, kind and output type of every layer of a parsed network, in its order."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [
        {"name": layer.name, "kind": layer.type.name.lower(), "dtype": dtype_name(layer.get_output(0).dtype)}
        for layer in layers
        if layer.num_outputs
    ]


def count(layers: list[dict[str, Any]]) -> Layers:
    """The list of `layer_list` by kind and type, most frequent kinds first."""
    by_kind: dict[str, Counter[str]] = {}
    for layer in layers:
        by_kind.setdefault(layer["kind"], Counter())[layer["dtype"]] += 1
    ordered = sorted(by_kind, key=lambda kind: (-by_kind[kind].total(), kind))
    return {kind: dict(sorted(by_kind[kind].items())) for kind in ordered}


def product_share(layers: Layers, dtype: str) -> float:
    """The share of convolutions and matrix products that compute in a type, 0 to 1. Without such layers it is 1."""
    products: Counter[str] = Counter()
    for kind in PRODUCTS:
        products.update(layers.get(kind, {}))
    return products[dtype] / products.total() if products else 1.0  # a text encoder that is a table has none


def summary(layers: Layers) -> str:
    """One line: `convolution 5 fp16 · matrix_multiply 73 fp16, 1 fp32 · ... · others 103 fp16, 210 int64`."""
    others: Counter[str] = Counter()
    parts = []
    for kind in NAMED:
        if kind in layers:
            parts.append(f"{kind} {_counted(layers[kind])}")
    for kind, counts in layers.items():
        if kind not in NAMED:
            others.update(counts)
    if others:
        parts.append(f"others {_counted(others)}")
    return " · ".join(parts)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {SHORT.get(dtype, dtype)}" for dtype, number in sorted(counts.items()))


def compare(network: Any, described: Mapping[str, Any], subject: str) -> None:
    """Names, types and shapes of a parsed network against a manifest's entry of the graph.

    described: `inputs` and `outputs`, each {name: [dtype, [letter or length, ...]]}. subject: the network, in messages.
    Raises NetworkNotDescribed.
    """
    for side, found in (
        ("inputs", [network.get_input(index) for index in range(network.num_inputs)]),
        ("outputs", [network.get_output(index) for index in range(network.num_outputs)]),
    ):
        has: dict[str, list[Any]] = {tensor.name: [dtype_name(tensor.dtype), list(tensor.shape)] for tensor in found}
        wanted = described[side]
        agree = set(has) == set(wanted) and all(
            has[name][0] == dtype and _fits(has[name][1], shape) for name, (dtype, shape) in wanted.items()
        )
        if not agree:
            raise NetworkNotDescribed(
                f"TensorRT read the {side} {_listed(has)}, the manifest says {_listed(wanted)}",
                "build the bundle again, and if it stays so, this TensorRT cannot read its graphs: use another version",
                subject=subject,
            )


def _fits(found: Sequence[Any], described: Sequence[Any]) -> bool:
    """TensorRT says -1 for a letter, and for a length that it could not tell from the graph."""
    return len(found) == len(described) and all(
        here == -1 or here == there for here, there in zip(found, described, strict=True)
    )


def _listed(tensors: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{name} {dtype} ({', '.join(map(str, shape))})" for name, (dtype, shape) in sorted(tensors.items()))
        or "none"
    )


def inspected(trt: ModuleType, plan: bytes, gpu: bool) -> tuple[Any, str | None]:
    """The engine inspector's list of a plan's layers, or None and why it is missing. gpu: whether one is visible here.

    A plan that does not load here may be for another GPU: its build has not failed.
    """
    if not gpu:
        return None, "no GPU is visible here, and a plan is loaded by one alone"
    log = error_log(trt)
    log.take()
    try:
        runtime = trt.Runtime(log.logger)
        runtime.engine_host_code_allowed = True  # a version-compatible plan holds code; this one was built here
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return None, f"the plan does not load on the GPU that is here ({log.take()})"
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return json.loads(text), None
    except (RuntimeError, TypeError, ValueError) as error:
        return None, f"the engine inspector failed ({error})"
