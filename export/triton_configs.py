"""Configurations of models for NVIDIA Triton Inference Server, as the messages of its model_config.proto, and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusioner_rt.bundle import Bundle
from fusioner_rt.manifest import GraphEntry
from fusioner_rt.plans import Plan

Message = dict[str, Any]
_OPTIONS = ("BACKGROUND", "THRESHOLD", "MODE", "WINDOW", "SIZE")
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint16": "TYPE_UINT16"}
PICTURE_FILE, WORDS_FILE = "picture", "words"
"""In a model's folder `warmup`."""


class Enum(str):
    """A name of the proto, which has no quotes."""


@dataclass(frozen=True)
class ServerOptions:
    """What a model repository is asked for.

    name: of the model; of others it is the beginning. gpu: instances work on the first GPU. instances: of the model, each a
    process with a session. max_batch: pictures of a call and of a request. max_wait: milliseconds that a request waits for
    others to share a call. cache: of responses, where the server has one. pixels: an input of raw pixels, too, without a
    cache. queue: requests that may wait. deadline: seconds that one may wait. max_pixels: of a picture or label map.
    max_words: of a request. stream, engines: the further models. bundle: the parameter, a path, relative to the model's folder.
    """

    name: str
    gpu: bool = False
    instances: int = 1
    max_batch: int = 8
    max_wait: float = 0.0
    cache: bool = False
    pixels: bool = False
    queue: int = 64
    deadline: float = 30.0
    max_pixels: int = 40_000_000
    max_words: int = 1000
    stream: bool = False
    engines: bool = False
    bundle: str = "bundle"


def pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """A message as protobuf's text. Lists are repeated fields; a mapping in a mapping is a message."""
    lines = []
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{pbtxt(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # texts, numbers and booleans are written alike in both


def whole(options: ServerOptions, words: Sequence[int]) -> Message:
    """The model of the whole way. words: shape of the warm-up's."""
    picture = _tensor("PICTURE", "TYPE_STRING", [1])
    if options.pixels:
        picture |= {"optional": True}
    pixels = [_tensor("PIXELS", "TYPE_UINT8", [-1, -1, 3]) | _RAGGED | {"optional": True}] if options.pixels else []
    on_gpu = [_parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no")] if options.gpu and options.pixels else []
    return {
        "name": options.name,
        "backend": "python",
        "max_batch_size": options.max_batch,
        "input": [picture, *pixels, *_option_inputs(_RAGGED)],
        "output": _outputs([]),
        "instance_group": [_instances(options)],
        "dynamic_batching": _batching(options),
        "response_cache": {"enable": options.cache},
        "model_warmup": [_warmup(words)],
        "parameters": [*_parameters(options), *on_gpu],
    }


def stream(options: ServerOptions, name: str) -> Message:
    """The decoupled model, which asks that of the whole way."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [_tensor("PICTURE", "TYPE_STRING", [-1]), *_option_inputs({})],
        "output": _outputs([-1]),
        "instance_group": [{"count": 1, "kind": Enum("KIND_CPU")}],
        "model_transaction_policy": {"decoupled": True},
        "parameters": [_parameter("model", options.name), _parameter("at_once", 2 * options.max_batch)],
    }


def prepare(options: ServerOptions, name: str, bundle: Bundle) -> Message:
    """The ensemble's first step."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": options.max_batch,
        "input": [_tensor("PICTURE", "TYPE_STRING", [1]), *_option_inputs({})],
        "output": [
            _tensor("pixels", "TYPE_FP32", [3, -1, -1]),
            _tensor("words", "TYPE_FP32", [-1, bundle.text_width]),
            _tensor("ASKED", "TYPE_STRING", [1]),
        ],
        "instance_group": [{"count": options.instances, "kind": Enum("KIND_CPU")}],
        "parameters": _parameters(options),
    }


def masks(options: ServerOptions, name: str, bundle: Bundle) -> Message:
    """The ensemble's last step."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": options.max_batch,
        "input": [*_graph_tensors(bundle.graphs["image_fusion"], "outputs"), _tensor("ASKED", "TYPE_STRING", [1])],
        "output": _outputs([], "NAMES"),
        "instance_group": [{"count": options.instances, "kind": Enum("KIND_CPU")}],
        "parameters": _parameters(options),
    }


def engine(
    options: ServerOptions, name: str, graph: GraphEntry, plan: Plan | None, profiles: Sequence[Message]
) -> Message:
    """A graph of the bundle as it is: a plan of TensorRT, or the ONNX graph. profiles: of the plan, as the manifest has them."""
    batch = options.max_batch
    group: Message = {"count": 1, "kind": Enum("KIND_GPU" if options.gpu else "KIND_CPU")}
    if plan is not None:
        limits = [min(shapes[2][0] for shapes in profile["inputs"].values()) for profile in profiles]
        batch = min(batch, max(limits))
        group["profile"] = [str(number) for number in range(len(profiles))]
    return {
        "name": name,
        "platform": "tensorrt_plan" if plan is not None else "onnxruntime_onnx",
        "max_batch_size": batch,
        "input": _graph_tensors(graph, "inputs"),
        "output": _graph_tensors(graph, "outputs"),
        "instance_group": [group],
        "dynamic_batching": _batching(options),
    }


def ensemble(options: ServerOptions, names: Mapping[str, str], batch: int) -> Message:
    """prepare, image_fusion and masks, one after the other. names: of the ensemble and its steps. batch: the engine's."""
    own = ["PICTURE", "WORDS", *_OPTIONS]
    outputs = ["LABELS", "CONFIDENCE", "SHARES", "NAMES"]
    steps = {
        "prepare": (own, ["pixels", "words", "ASKED"]),
        "image_fusion": (["pixels", "words"], ["features", "refined"]),
        "masks": (["features", "refined", "ASKED"], outputs),
    }
    return {
        "name": names["ensemble"],
        "platform": "ensemble",
        "max_batch_size": batch,
        "input": [_tensor("PICTURE", "TYPE_STRING", [1]), *_option_inputs({})],
        "output": _outputs([], "NAMES"),
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": names[step],
                    "model_version": -1,
                    "input_map": [{"key": tensor, "value": tensor} for tensor in taken],
                    "output_map": [{"key": tensor, "value": tensor} for tensor in given],
                }
                for step, (taken, given) in steps.items()
            ]
        },
    }


_RAGGED = {"allow_ragged_batch": True}
"""Requests of a batch may have different shapes: a model of the Python backend gets each by itself."""


def _tensor(name: str, kind: str, dims: Sequence[int]) -> Message:
    return {"name": name, "data_type": Enum(kind), "dims": list(dims)}


def _option_inputs(ragged: Message) -> list[Message]:
    own = [_tensor("WORDS", "TYPE_STRING", [-1]) | ragged, _tensor("BACKGROUND", "TYPE_STRING", [-1]) | ragged]
    own += [_tensor(name, "TYPE_STRING", [1]) for name in _OPTIONS[1:]]
    return own[:1] + [tensor | {"optional": True} for tensor in own[1:]]


def _outputs(batch: Sequence[int], words: str = "WORDS") -> list[Message]:
    """batch: the dimension of pictures where it is not the server's."""
    return [
        _tensor("LABELS", "TYPE_UINT16", [*batch, -1, -1]),
        _tensor("CONFIDENCE", "TYPE_FP32", [*batch, -1, -1]),
        _tensor("SHARES", "TYPE_FP32", [*batch, -1]),
        _tensor(words, "TYPE_STRING", [*batch, -1]),
    ]


def _graph_tensors(graph: GraphEntry, which: str) -> list[Message]:
    """Without the first dimension, which is the server's. Letters become -1."""
    tensors = graph.inputs if which == "inputs" else graph.outputs
    return [
        _tensor(name, _TYPES[tensor.dtype], [edge if isinstance(edge, int) else -1 for edge in tensor.shape[1:]])
        for name, tensor in tensors.items()
    ]


def _instances(options: ServerOptions) -> Message:
    if options.gpu:
        return {"count": options.instances, "kind": Enum("KIND_GPU"), "gpus": [0]}
    return {"count": options.instances, "kind": Enum("KIND_CPU")}


def _batching(options: ServerOptions) -> Message:
    return {
        "max_queue_delay_microseconds": round(options.max_wait * 1000),
        "default_queue_policy": {
            "timeout_action": Enum("REJECT"),
            "default_timeout_microseconds": round(options.deadline * 1_000_000),
            "allow_timeout_override": True,
            "max_queue_size": options.queue,
        },
    }


def _warmup(words: Sequence[int]) -> Message:
    return {
        "name": "a photograph",
        "batch_size": 1,
        "inputs": [
            _map("PICTURE", {"data_type": Enum("TYPE_STRING"), "dims": [1], "input_data_file": PICTURE_FILE}),
            _map("WORDS", {"data_type": Enum("TYPE_STRING"), "dims": list(words), "input_data_file": WORDS_FILE}),
        ],
    }


def _map(key: str, value: Message) -> Message:
    return {"key": key, "value": value}


def _parameter(name: str, value: object) -> Message:
    return _map(name, {"string_value": str(value)})


def _parameters(options: ServerOptions) -> list[Message]:
    return [
        _parameter("bundle", options.bundle),
        _parameter("max_pixels", options.max_pixels),
        _parameter("max_words", options.max_words),
    ]


def warmup_bytes(element: bytes) -> bytes:
    """A tensor of BYTES with one element, as the server reads it from a file."""
    return len(element).to_bytes(4, "little") + element


def plan_of(bundle: Bundle, manifest: Mapping[str, Any]) -> tuple[Plan | None, list[Message]]:
    """The first plan of image_fusion that the server's TensorRT may load, and its profiles. TensorRT-RTX's it does not."""
    for plan, entry in zip(bundle.plans, manifest["engines"], strict=True):
        if plan.graph == "image_fusion" and plan.flavour == "tensorrt":
            return plan, list(entry["profiles"])
    return None, []
