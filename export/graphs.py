"""The model as two ONNX graphs: prompts to vectors, and a picture with words to features and refined words.

Plain operators only (opset 20): attention as MatMul and Softmax, normalisations whole, no antialiased Resize; so ONNX
Runtime and TensorRT both take them as they are. Every dimension but 3 and the channels is dynamic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.mask_head_graph import IR_VERSION, OPSET
from export.precision import half_weight_share
from training.model import Fusioner


def text_graph(model: Fusioner) -> onnx.ModelProto:
    """`text`: input_ids (N, L) int64, attention_mask (N, L) int64 → embeddings (N, t) float32, unit length."""
    encoder = model.text_encoder
    example = (torch.ones(3, 7, dtype=torch.int64), torch.ones(3, 7, dtype=torch.int64))
    names = {"input_ids": {0: "N", 1: "L"}, "attention_mask": {0: "N", 1: "L"}}
    return _export(encoder, example, names, {"embeddings": ["N", encoder.width]})


def image_fusion_graph(model: Fusioner) -> onnx.ModelProto:
    """`image_fusion`: pixels (P, 3, H, W), words (B, K, t) → features (B, h, w, d), refined (B, K, d), all float32.

    P is B, or 1: the picture is then encoded once and fused with B vocabularies. H and W are multiples of the image
    encoder's `multiple`.
    """
    multiple, width = model.image_encoder.multiple, model.config.width
    example = (torch.randn(2, 3, 3 * multiple, 2 * multiple), torch.randn(3, 5, model.text_encoder.width))
    names = {"pixels": {0: "P", 2: "H", 3: "W"}, "words": {0: "B", 1: "K"}}
    outputs = {"features": ["B", "h", "w", width], "refined": ["B", "K", width]}
    return _export(_OnePictureManyVocabularies(model), example, names, outputs)


class _OnePictureManyVocabularies(nn.Module):
    """`Fusioner.forward` whose expansion of one picture to B vocabularies is left open in the graph."""

    def __init__(self, model: Fusioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.encode(pixels)
        # ONNX's Expand takes P = 1 and P = B alike; torch's own would tie P to one of them while tracing.
        batch = _onnx("Shape", (words,), torch.int64, (1,), {"start": 0, "end": 1})
        shape = torch.cat([batch, torch.ones(3, dtype=torch.int64)])
        tokens = _onnx("Expand", (tokens, shape), tokens.dtype, (words.shape[0], *tokens.shape[1:]))
        return self.model.fuse(tokens, words)


def _onnx(
    kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: tuple[int, ...], attributes: Any = None
) -> Tensor:
    """One ONNX operator, written into the trace as it stands."""
    return torch.onnx.ops.symbolic(kind, inputs, attributes or {}, dtype=dtype, shape=shape, version=OPSET)


def _export(
    module: Any, example: tuple[Tensor, ...], inputs: dict[str, dict[int, str]], outputs: dict[str, list[Any]]
) -> onnx.ModelProto:
    with _quiet():
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            dynamic_shapes=tuple(inputs.values()), verbose=False,
        )  # fmt: skip
    assert program is not None
    return tidy(program.model_proto, outputs)


def tidy(model: onnx.ModelProto, outputs: dict[str, list[Any]]) -> onnx.ModelProto:
    """The same graph with its outputs' dimensions named, and without the exporter's notes.

    The notes hold source paths and stack traces of the machine that exported: half a megabyte that would make every
    build's hash its own.
    """
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "fusioner-rt", ""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        noted.doc_string = ""
        del noted.metadata_props[:]
    del graph.value_info[:]
    for value in graph.output:
        for dimension, name in zip(value.type.tensor_type.shape.dim, outputs[value.name], strict=True):
            if isinstance(name, str):
                dimension.dim_param = name
    onnx.checker.check_model(model, full_check=False)
    return model


def described(name: str, graph: onnx.ModelProto) -> dict[str, Any]:
    """A manifest's entry of a graph: its file, its share of float16 weights, dtype and shape of its inputs and outputs."""

    def values(infos: Iterable[onnx.ValueInfoProto]) -> dict[str, Any]:
        return {
            info.name: [
                onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name,
                [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim],
            ]
            for info in infos
        }

    return {
        "file": f"{name}.onnx",
        "fp16_weight_share": round(half_weight_share(graph), 4),
        "inputs": values(graph.graph.input),
        "outputs": values(graph.graph.output),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; what fails is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
