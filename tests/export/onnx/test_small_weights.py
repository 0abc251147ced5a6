"""Weights in 8 and 4 bits: exact codes of an encoder that was rounded first, and what the file saves."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.onnx import model_graphs
from export.onnx.half_precision import to_half
from export.onnx.round_weights import round_weights
from export.onnx.small_weights import GROUP, Rounded, small, whole
from training.encoders.bert import Bert
from training.model import Fusioner, tiny


def made() -> Fusioner:
    """The tiny model with a BERT of two layers, 128 channels wide, of random weights."""
    own = tiny()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = Bert(900, 128, 2, 4, 256, 32, 1e-12, own.text_encoder.tokenizer_file)
    own.text_encoder = bert.eval().requires_grad_(False)
    return own


@functools.cache
def rounded(half: bool) -> tuple[dict[bytes, Rounded], onnx.ModelProto]:
    """The codes of the encoder's weights, and the graph of the encoder that was rounded."""
    model = made()
    codes = round_weights(model.text_encoder, half)
    graph = model_graphs.text_graph(model)
    return codes, to_half(graph) if half else graph


IDS = np.random.default_rng(0).integers(0, 900, (3, 7))
MASK = (np.arange(7) < np.array([[7], [2], [5]])).astype(np.int64)


def run(graph: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": IDS, "attention_mask": MASK})
    return np.asarray(found)


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_small_graph_is_the_graph_of_the_rounded_encoder(half: bool) -> None:
    codes, graph = rounded(half)
    stored = small(graph, codes)
    onnx.checker.check_model(stored, full_check=True)
    np.testing.assert_allclose(run(stored), run(graph), rtol=0, atol=1e-3 if half else 2e-6)
    kinds = [tensor.data_type for tensor in stored.graph.initializer]
    assert kinds.count(onnx.TensorProto.INT8) == 2 * 4
    assert kinds.count(onnx.TensorProto.UINT8) == 2 * 2 + 1 + 2, "queries, keys, the table of tokens, and two constants"
    assert stored.ByteSize() < (0.5 if half else 0.27) * graph.ByteSize()


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_whole_graph_comes_back_weight_by_weight(half: bool) -> None:
    codes, graph = rounded(half)
    again = whole(small(graph, codes))
    onnx.checker.check_model(again, full_check=True)
    before, after = ({t.name: t for t in g.graph.initializer} for g in (graph, again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(numpy_helper.to_array(after[name]), numpy_helper.to_array(tensor))
    assert {n.op_type for n in again.graph.node} == {n.op_type for n in graph.graph.node}
    np.testing.assert_array_equal(run(again), run(graph))


def test_a_graph_without_codes_stays_what_it_is() -> None:
    _, graph = rounded(False)
    assert whole(graph) == graph
    assert small(graph, {}) == graph


def test_a_weight_errs_at_most_half_a_step() -> None:
    model = made()
    layer = model.text_encoder.encoder["layer"][0].intermediate["dense"]  # type: ignore[attr-defined]
    table = model.text_encoder.embeddings["word_embeddings"]  # type: ignore[attr-defined]
    before, rows = layer.weight.clone(), table.weight.clone()
    round_weights(model.text_encoder, half=False)
    step = before.abs().amax(1, keepdim=True) / 127
    assert ((layer.weight - before).abs() <= 0.501 * step).all()
    groups = rows.unflatten(1, (-1, GROUP))
    error = (table.weight - rows).unflatten(1, (-1, GROUP)).square().sum(-1)
    plain = (groups / groups.abs().amax(-1, keepdim=True) * 7).round() / 7 * groups.abs().amax(-1, keepdim=True)
    assert (error <= (plain - groups).square().sum(-1) * 1.001 + 1e-9).all(), (
        "clipping never errs more than not to clip"
    )
