"""TensorRT plans of a bundle's graphs, for TensorRT and TensorRT-RTX alike: same calls, another module.

Networks are strongly typed: the plan computes in the types the ONNX graph has (export/precision.py), so there is no
precision flag here. TensorRT 10 asks for that mode, TensorRT 11 knows no other. Plans are plain plan files.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from export.precision import LEAST_FP16_SHARE, PrecisionNotReached
from fusioner_rt.errors import FusionerError, UsageError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PLANNED = ("text", "image_fusion")
"""The mask head has kernels of its own on a GPU."""


class TensorRTMissing(FusionerError):
    """The TensorRT flavour asked for is not installed, or cannot be loaded."""

    exit_code = 87


class TensorRTRefused(FusionerError):
    """TensorRT does not take a graph, or builds no engine from it."""

    exit_code = 88


def load(flavour: str) -> ModuleType:
    """The flavour's Python module. Raises TensorRTMissing."""
    try:
        return importlib.import_module(MODULES[flavour])
    except Exception as error:  # an ImportError, or whatever loading its libraries raises
        raise TensorRTMissing(
            f"--backend {flavour} needs the Python package {flavour} ({error}); install it: pip install {flavour}, "
            "or build with --backend onnxruntime"
        ) from None


def choose(asked: str) -> str:
    """`auto` becomes tensorrt where it is installed and a GPU is visible, else onnxruntime."""
    if asked != "auto":
        return asked
    import torch

    try:
        load("tensorrt")
    except TensorRTMissing:
        return "onnxruntime"
    return "tensorrt" if torch.cuda.is_available() else "onnxruntime"


def check(flavour: str, asked: str | None) -> None:
    """Raises TensorRTMissing or UsageError where `add_plans` could not do what is asked of it."""
    if asked and flavour != "tensorrt-rtx":
        raise UsageError(f"--for {asked} is for --backend tensorrt-rtx; this build is for {flavour}, leave --for out")
    if flavour == "onnxruntime":
        return
    trt = load(flavour)
    for capability in capabilities(flavour, asked):
        members = (
            name.removeprefix("SM") for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")
        )
        known = sorted(members, key=int)
        if asked and capability.replace(".", "") not in known:
            raise UsageError(
                f"--for sm_{capability.replace('.', '')}: {flavour} {trt.__version__} builds ahead of time for "
                f"{', '.join('sm_' + name for name in known)}"
            )


def capabilities(flavour: str, asked: str | None) -> list[str]:
    """What to build for: ["8.0", "8.9"] from "sm_80,sm_89", or ["this GPU's"]. Raises TensorRTMissing without either."""
    if asked:
        numbers = (name.removeprefix("sm_") for name in asked.split(","))
        return [f"{number[:-1]}.{number[-1]}" for number in numbers]
    import torch

    if not torch.cuda.is_available():
        cure = "name what to build for: --for sm_80,sm_89" if flavour == "tensorrt-rtx" else "build where the GPU is"
        raise TensorRTMissing(f"--backend {flavour}: no GPU is visible here; {cure}, or use --backend onnxruntime")
    return ["{}.{}".format(*torch.cuda.get_device_capability())]


def build_plan(
    trt: ModuleType, graph: Path, profile: dict[str, list[tuple[int, ...]]], capability: str | None, half: bool
) -> bytes:
    """graph: an ONNX file. profile: min, opt and max shape by input. capability: "8.9" to build for, None for this GPU.
    half: the graph claims float16.

    Returns the plan. Raises TensorRTRefused with everything the parser has to say, PrecisionNotReached where TensorRT
    read a float16 graph as something else.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise TensorRTRefused(f"TensorRT {trt.__version__} does not accept {graph.name}: {errors}")
    share = half_products(trt, network)
    if half and share < LEAST_FP16_SHARE:
        raise PrecisionNotReached(
            f"TensorRT {trt.__version__} read {share:.0%} of {graph.name}'s products as fp16, {LEAST_FP16_SHARE:.0%} are "
            "needed; build without --fp16, or with another TensorRT"
        )
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, (least, usual, most) in profile.items():
        shapes.set_shape(name, least, usual, most)
    config.add_optimization_profile(shapes)
    if capability and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TensorRTRefused(f"TensorRT {trt.__version__} builds no engine from {graph.name}; its log above says why")
    return bytes(plan)


def half_products(trt: ModuleType, network: Any) -> float:
    """The share of a parsed network's convolutions and matrix products that compute in float16."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    products = [layer.get_output(0).dtype == trt.float16 for layer in layers if layer.type in kinds]
    return sum(products) / len(products) if products else 1.0  # a table of names only looks up


def profiles(manifest: dict[str, Any], graph: str, model: onnx.ModelProto) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of every input at the manifest's smallest, usual and largest sizes. Dimensions are known by their letters."""
    ranges, tokens = manifest["profiles"], manifest["tokenizer"]["max_tokens"]
    templates = len(manifest["templates"])
    letters = {
        "K": ranges["words"], "B": ranges["batch"], "P": ranges["batch"], "H": ranges["size"], "W": ranges["size"],
        "N": {"min": 1, "opt": templates, "max": max(256, templates)},
        "L": {"min": 1, "opt": min(16, tokens), "max": tokens},
    }  # fmt: skip

    def shape(value: onnx.ValueInfoProto, bound: str) -> tuple[int, ...]:
        dimensions = value.type.tensor_type.shape.dim
        return tuple(letters[d.dim_param][bound] if d.dim_param else d.dim_value for d in dimensions)

    return {value.name: [shape(value, bound) for bound in ("min", "opt", "max")] for value in model.graph.input}


def add_plans(folder: Path, manifest: dict[str, Any], flavour: str, asked: str | None) -> dict[str, float]:
    """Build PLANNED for every capability, as files in `folder` and entries of manifest["engines"]; seconds by file."""
    trt, seconds = load(flavour), {}
    for capability in capabilities(flavour, asked):
        for graph in PLANNED:
            source, start = folder / manifest["graphs"][graph]["file"], time.perf_counter()
            shapes = profiles(manifest, graph, onnx.load(source))
            plan = build_plan(trt, source, shapes, capability if asked else None, manifest["precision"] == "fp16")
            file = f"{graph}.{flavour}-sm_{capability.replace('.', '')}.plan"
            (folder / file).write_bytes(plan)
            about = {"version": trt.__version__, "compute_capability": capability}
            manifest["engines"].append({"file": file, "graph": graph, "flavour": flavour, **about})
            seconds[file] = time.perf_counter() - start
    manifest["built_with"][flavour] = trt.__version__
    return seconds
