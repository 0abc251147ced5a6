"""The exported graphs say what the model says, at every size, and hold nothing a backend or a reader would mind."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.onnx.model_graphs import decoder_graph, fusion_graph, joined
from training import checkpoint
from training.model import tiny


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def graphs(tiny_bundle):
    return {name: onnx.load(tiny_bundle / f"{name}.onnx") for name in ("text", "image_fusion")}


def run(graph, **inputs):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.parametrize(
    ("pictures", "vocabularies", "words", "height", "width"),
    [(1, 1, 1, 32, 32), (2, 2, 3, 96, 64), (1, 5, 1, 64, 160), (3, 3, 64, 32, 96)],
)
def test_image_fusion_is_the_model_for_any_pictures_words_and_size(
    model, graphs, pictures, vocabularies, words, height, width
):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(pictures, 3, height, width, generator=generator)
    vectors = torch.randn(vocabularies, words, model.text_encoder.width, generator=generator)
    with torch.no_grad():
        expected = model(pixels, vectors)
    for ours, theirs in zip(run(graphs["image_fusion"], pixels=pixels, words=vectors), expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


@pytest.fixture(scope="module")
def parts(tiny_bundle, model):
    """The two parts of image_fusion that are graphs of their own in every bundle, and its decoder."""
    made = {name: onnx.load(tiny_bundle / f"{name}.onnx") for name in ("image", "fusion")}
    return made | {"decoder": decoder_graph(model)}


def in_turn(parts, pixels, words):
    (tokens,) = run(parts["image"], pixels=pixels)
    fused, refined = run(parts["fusion"], tokens=torch.from_numpy(tokens), words=words)
    if "decoder" in parts:
        (fused,) = run(parts["decoder"], fused=torch.from_numpy(fused))
    return fused, refined


@pytest.mark.parametrize(
    ("pictures", "vocabularies", "words", "height", "width"),
    [(1, 1, 1, 32, 32), (2, 2, 3, 96, 64), (1, 5, 1, 64, 160), (3, 3, 64, 32, 96)],
)
def test_the_parts_in_turn_are_the_whole(graphs, parts, pictures, vocabularies, words, height, width):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(pictures, 3, height, width, generator=generator)
    vectors = torch.randn(vocabularies, words, 24, generator=generator)
    expected = run(graphs["image_fusion"], pixels=pixels, words=vectors)
    for ours, theirs in zip(in_turn(parts, pixels, vectors), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(theirs).max())


@pytest.mark.parametrize(
    "changed",
    [
        {"fusion": "late"},
        pytest.param({"fusion": "none", "decoder": ()}, marks=pytest.mark.slow),
        pytest.param({"aligned": 16, "decoder": ()}, marks=pytest.mark.slow),  # also in runtime/tensorrt/test_aligned_sessions.py
        pytest.param({"aligned": 16, "fusion": "late"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_kind_of_model_is_its_parts_and_their_whole(parts, changed):
    torch.manual_seed(0)
    model = checkpoint.build(replace(tiny().config, **changed)).eval()
    model.image_encoder.load_state_dict(tiny().image_encoder.state_dict())
    if model.aligned is not None:
        torch.nn.init.normal_(model.aligned.unknown)
        model.aligned.names = torch.nn.functional.normalize(torch.randn(3, 24), dim=-1)
    own = {"image": parts["image"], "fusion": fusion_graph(model)}
    if model.decoder is not None:
        model.decoder = tiny().decoder
        own["decoder"] = decoder_graph(model)
    whole = joined(own)
    pixels, vectors = torch.randn(1, 3, 64, 96), torch.randn(3, 5, 24)
    with torch.no_grad():
        expected = model(pixels, vectors)
    for found in (run(whole, pixels=pixels, words=vectors), in_turn(own, pixels, vectors)):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("prompts", "tokens"), [(1, 1), (1, 64), (9, 13)])
def test_text_is_the_encoder_for_any_prompts_and_padding(model, graphs, prompts, tokens):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 40, (prompts, tokens), generator=generator)
    mask = (torch.arange(tokens) <= torch.randint(0, tokens, (prompts, 1), generator=generator)).long()
    with torch.no_grad():
        expected = model.text_encoder(ids, mask)
    (ours,) = run(graphs["text"], input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=0, atol=1e-6)


def test_every_dimension_but_colours_and_channels_is_free(graphs, parts):
    def dimensions(name):
        graph = (graphs | parts)[name].graph
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*graph.input, *graph.output)
        }

    assert dimensions("text") == {"input_ids": ["N", "L"], "attention_mask": ["N", "L"], "embeddings": ["N", 24]}
    assert dimensions("image_fusion") == {
        "pixels": ["P", 3, "H", "W"], "words": ["B", "K", 24], "features": ["B", "h", "w", 32], "refined": ["B", "K", 32],
    }  # fmt: skip
    tokens, fused = ["P", "h", "w", 72], ["B", "h", "w", 32]
    assert dimensions("image") == {"pixels": ["P", 3, "H", "W"], "tokens": tokens}
    assert dimensions("fusion") == {
        "tokens": tokens, "words": ["B", "K", 24], "fused": fused, "refined": ["B", "K", 32],
    }  # fmt: skip
    assert dimensions("decoder") == {"fused": fused, "features": ["B", "h'", "w'", 32]}


def test_graphs_hold_plain_operators_only(graphs):
    for graph in graphs.values():
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
        kinds = [node.op_type for node in graph.graph.node]
        assert not {"If", "Loop", "Scan", "Attention"} & set(kinds)
        for node in graph.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert not attributes.get("antialias", 0)
    kinds = [node.op_type for node in graphs["image_fusion"].graph.node]
    assert kinds.count("LayerNormalization") == 7
    assert kinds.count("InstanceNormalization") == 2


def test_graphs_say_nothing_of_the_machine_that_exported_them(graphs, tiny_bundle):
    for name in ("text", "image_fusion", "image", "fusion", "mask_scores", "mask_labels", "mask_probabilities"):
        content = (tiny_bundle / f"{name}.onnx").read_bytes()
        assert b".py" not in content
        assert b"site-packages" not in content
