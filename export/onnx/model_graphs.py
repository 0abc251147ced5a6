"""The model as ONNX graphs: prompts to vectors, and a picture with words to features and refined words.

The latter is a whole, `image_fusion`, joined of parts: `image` depends on the picture alone, words take part in `fusion`,
and `decoder` follows. A CPU runs `image` and `fusion` in the form of export/onnx/for_cpu.py, and the decoder as the graphs
of export/onnx/winograd_decoder.py: the part `decoder` is in no bundle but as the end of image_fusion.

The graphs hold plain operators (opset 20) that both ONNX Runtime and TensorRT take: attention is MatMul and Softmax,
normalisations are whole, no Resize is antialiased. Every dimension but 3 and the channels is dynamic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
import onnx.compose
import torch
from torch import Tensor, nn

from export.onnx.half_precision import half_weight_share
from export.onnx.mask_head_graphs import IR_VERSION, OPSET
from training.model import Fusioner


def text_graph(model: Fusioner) -> onnx.ModelProto:
    """`text`: input_ids (N, L) int64, attention_mask (N, L) int64 → embeddings (N, t) float32, unit length."""
    encoder = model.text_encoder
    example = (torch.ones(3, 7, dtype=torch.int64), torch.ones(3, 7, dtype=torch.int64))
    names = {"input_ids": {0: "N", 1: "L"}, "attention_mask": {0: "N", 1: "L"}}
    return traced(encoder, example, names, {"embeddings": ["N", encoder.width]})


def image_fusion_graph(model: Fusioner) -> onnx.ModelProto:
    """`image_fusion`: pixels (P, 3, H, W), words (B, K, t) → features (B, h, w, D), refined (B, K, D), all float32.

    P is B, or 1: the picture is then encoded once and fused with B vocabularies. H and W are multiples of the image
    encoder's `multiple`.
    """
    return joined(picture_graphs(model))


def picture_graphs(model: Fusioner) -> dict[str, onnx.ModelProto]:
    """The parts of image_fusion by name: `image`, `fusion`, and `decoder` where the model has one."""
    parts = {"image": image_graph(model), "fusion": fusion_graph(model)}
    return parts if model.decoder is None else parts | {"decoder": decoder_graph(model)}


def image_graph(model: Fusioner) -> onnx.ModelProto:
    """`image`: pixels (P, 3, H, W) → tokens (P, h, w, c), float32, unit length."""
    multiple, encoder = model.image_encoder.multiple, model.image_encoder
    example = (torch.randn(2, 3, 3 * multiple, 2 * multiple),)
    return traced(encoder, example, {"pixels": {0: "P", 2: "H", 3: "W"}}, {"tokens": ["P", "h", "w", encoder.width]})


def fusion_graph(model: Fusioner) -> onnx.ModelProto:
    """`fusion`: tokens (P, h, w, c), words (B, K, t) → fused (B, h, w, D), refined (B, K, D), float32; P is B, or 1.

    D: of the mask head's features, `FusionerConfig.channels`.
    """
    example = (torch.randn(2, 6, 4, model.image_encoder.width), torch.randn(3, 5, model.text_encoder.width))
    names = {"tokens": {0: "P", 1: "h", 2: "w"}, "words": {0: "B", 1: "K"}}
    width = model.config.channels
    return traced(_Fusion(model), example, names, {"fused": ["B", "h", "w", width], "refined": ["B", "K", width]})


def decoder_graph(model: Fusioner) -> onnx.ModelProto:
    """`decoder`: fused (B, h, w, D) → features (B, h', w', D), float32. Of a model that has a decoder."""
    width = model.config.channels
    example = (torch.randn(2, 6, 4, width),)
    return traced(_Decoder(model), example, {"fused": {0: "B", 1: "h", 2: "w"}}, {"features": ["B", "h'", "w'", width]})


def joined(parts: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """`image_fusion` of its parts, whose values get the parts' names before theirs. Without a decoder, the features are
    what `fusion` gives."""
    image, fusion = (onnx.compose.add_prefix(parts[name], f"{name}/") for name in ("image", "fusion"))
    whole = onnx.compose.merge_models(image, fusion, [("image/tokens", "fusion/tokens")])
    features = "fusion/fused"
    if "decoder" in parts:
        decoder = onnx.compose.add_prefix(parts["decoder"], "decoder/")
        whole = onnx.compose.merge_models(whole, decoder, [("fusion/fused", "decoder/fused")])
        features = "decoder/features"
    names = {"image/pixels": "pixels", "fusion/words": "words", features: "features", "fusion/refined": "refined"}
    _rename(whole.graph, names)
    whole.graph.name = "image_fusion"
    del whole.opset_import[1:]  # one of each part, all equal
    by_name = {value.name: value for value in whole.graph.output}
    channels = by_name["features"].type.tensor_type.shape.dim[3].dim_value
    del whole.graph.output[:]
    whole.graph.output.extend(by_name[name] for name in ("features", "refined"))
    return _tidy(whole, {"features": ["B", "h", "w", channels], "refined": ["B", "K", channels]})


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]


class _Fusion(nn.Module):
    """`Fusioner.attend` whose expansion of one picture to B vocabularies is left open in the graph."""

    def __init__(self, model: Fusioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        # ONNX's Expand takes P = 1 and P = B alike; torch's own would tie P to one of them while tracing.
        batch = _onnx("Shape", (words,), torch.int64, (1,), {"start": 0, "end": 1})
        shape = torch.cat([batch, torch.ones(3, dtype=torch.int64)])
        tokens = _onnx("Expand", (tokens, shape), tokens.dtype, (words.shape[0], *tokens.shape[1:]))
        return self.model.attend(tokens, words)


class _Decoder(nn.Module):
    def __init__(self, model: Fusioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, fused: Tensor) -> Tensor:
        return self.model.decode(fused)


def _onnx(
    kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: tuple[int, ...], attributes: Any = None
) -> Tensor:
    """One ONNX operator, written into the trace as it is."""
    return torch.onnx.ops.symbolic(kind, inputs, attributes or {}, dtype=dtype, shape=shape, version=OPSET)


def traced(
    module: Any, example: tuple[Tensor, ...], inputs: dict[str, dict[int, str]], outputs: dict[str, list[Any]]
) -> onnx.ModelProto:
    """A module as a graph, traced on example inputs.

    inputs: by name, the letters of the dimensions that may change, by axis. outputs: by name, all their dimensions.
    """
    with _quiet():
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            dynamic_shapes=tuple(inputs.values()), verbose=False,
        )  # fmt: skip
    assert program is not None
    return _tidy(program.model_proto, outputs)


def _tidy(model: onnx.ModelProto, outputs: dict[str, list[Any]]) -> onnx.ModelProto:
    """The same graph with its outputs' dimensions named, and without the exporter's notes.

    The notes are half a megabyte of source paths and stack traces. With them, every machine's graph would be another file.
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
    """A manifest's entry of a graph: its file and its weights' file where it has one, its share of float16 weights, and
    dtype and shape of its inputs and outputs."""

    def values(infos: Iterable[onnx.ValueInfoProto]) -> dict[str, Any]:
        return {
            info.name: [
                onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name,
                [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim],
            ]
            for info in infos
        }

    beside = sorted({e.value for t in graph.graph.initializer for e in t.external_data if e.key == "location"})
    return {
        "file": f"{name}.onnx",
        **({"weights": beside[0]} if beside else {}),
        "fp16_weight_share": round(half_weight_share(graph), 4),
        "inputs": values(graph.graph.input),
        "outputs": values(graph.graph.output),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which prints its progress and warns of its own internals. It raises what fails."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
