"""The CPU's form of a graph computes what the graph does, for any size, and keeps its outside and its weights."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.onnx.for_cpu import APART, for_cpu
from export.onnx.half_precision import BF16, FP16, emulated, to_half
from export.onnx.model_graphs import traced
from training.encoders.vision_transformer import VisionTransformer
from training.model import FeedForward, FusionLayer

EPS = np.finfo(np.float32).eps


class QuickGelu(FeedForward):
    """An MLP layer with the activation of OpenAI's CLIP."""

    def forward(self, x):
        inner = self.up(self.norm(x))
        return x + self.down(inner * torch.sigmoid(1.702 * inner))


class Fusion(nn.Module):
    """Two fusion layers and one MLP layer; 256 wide, so a hidden layer is 1024 wide."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(FusionLayer(256, 8), FusionLayer(256, 8), QuickGelu(256))

    def forward(self, pixels, words):
        """pixels (B, h, w, 256), words (B, K, 256) → (B, h·w+K, 256)."""
        return self.layers(torch.cat([pixels.flatten(1, 2), words], dim=1))


def scattered(module):
    """No weight is left at 0 or 1, where a mistake would not show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, value in module.named_parameters():
            if value.ndim < 2:
                nn.init.normal_(value, 1.0 if "gamma" in name or "norm" in name else 0.0, 0.3)
    return module.eval()


@pytest.fixture(scope="module")
def encoder():
    module = scattered(VisionTransformer(width=24, depth=2, heads=3, patch=4, side=12, layer_scale=True))
    names = {"pixels": {0: "P", 2: "H", 3: "W"}}
    return traced(module, (torch.randn(2, 3, 12, 8),), names, {"tokens": ["P", "h", "w", 24]})


@pytest.fixture(scope="module")
def fusion():
    names = {"pixels": {0: "B", 1: "h", 2: "w"}, "words": {0: "B", 1: "K"}}
    example = torch.randn(2, 3, 2, 256), torch.randn(2, 5, 256)
    return traced(scattered(Fusion()), example, names, {"fused": ["B", "L", 256]})


@pytest.fixture(scope="module")
def graphs(encoder, fusion):
    return {"encoder": encoder, "fusion": fusion}


@pytest.fixture(scope="module")
def sessions(graphs):
    return {name: (session(graph), session(for_cpu(graph))) for name, graph in graphs.items()}


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def inputs(name, batch, h, w, words, spread=1.0):
    rng = np.random.default_rng([batch, h, w, words])
    if name == "encoder":
        shapes = {"pixels": (batch, 3, 4 * h, 4 * w)}
    else:
        shapes = {"pixels": (batch, h, w, 256), "words": (batch, words, 256)}
    return {key: (rng.standard_normal(shape) * spread).astype(np.float32) for key, shape in shapes.items()}


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["encoder", "fusion"]), batch=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 7),
    words=st.integers(1, 5), spread=st.sampled_from([0.0, 1.0, 30.0]),
)  # fmt: skip
def test_a_graph_for_the_cpu_computes_what_the_graph_does(sessions, name, batch, h, w, words, spread):
    given_inputs = inputs(name, batch, h, w, words, spread)
    plain, fast = (one.run(None, given_inputs)[0] for one in sessions[name])
    assert fast.shape == plain.shape
    # Sums of up to 1041 terms in another order, through six layers: some hundred roundings of values up to the largest.
    assert np.abs(fast - plain).max() <= 100 * EPS * np.abs(plain).max()


def test_attention_biases_and_residuals_are_where_the_cpu_wants_them(graphs):
    for name, layers in (("encoder", 2), ("fusion", 2)):
        before, found = kinds(graphs[name]), kinds(for_cpu(graphs[name]))
        assert found["MultiHeadAttention"] == layers
        assert "Softmax" not in found
        assert "Sigmoid" not in found
        activations = before["Gelu"] + before["Sigmoid"]
        assert found["Gemm"] == 2 * activations + layers  # both halves of every MLP, and what follows attention


def test_rows_of_a_hidden_layer_do_not_collide_in_the_cache(graphs):
    padded = [node for node in for_cpu(graphs["fusion"]).graph.node if node.output[0].endswith(".apart")]
    assert len(padded) == 3 * 3  # weight, bias and the next weight, of three layers
    zeros = {t.name: tuple(t.dims) for t in for_cpu(graphs["fusion"]).graph.initializer if "zeros" in t.name}
    assert set(zeros.values()) == {(256, APART), (APART,), (APART, 256)}
    assert not any("zeros" in tensor.name for tensor in for_cpu(graphs["encoder"]).graph.initializer)


def test_no_weight_is_changed_copied_or_renamed(graphs):
    for graph in graphs.values():
        weights = {tensor.name: tensor.SerializeToString() for tensor in graph.graph.initializer if tensor.dims}
        fast = {tensor.name: tensor.SerializeToString() for tensor in for_cpu(graph).graph.initializer}
        large = {name for name, tensor in weights.items() if len(tensor) > 1000}
        assert large <= set(fast)
        assert all(fast[name] == weights[name] for name in set(fast) & set(weights))
        assert all(len(fast[name]) < 4 * 256 * APART + 200 for name in set(fast) - set(weights))


def test_inputs_and_outputs_keep_names_types_and_free_dimensions(graphs):
    for graph in graphs.values():
        for half in (graph, to_half(graph, FP16)):
            fast = for_cpu(half)
            onnx.checker.check_model(fast)
            assert list(fast.graph.input) == list(graph.graph.input)
            assert list(fast.graph.output) == list(graph.graph.output)


@pytest.mark.parametrize("half", [FP16, BF16], ids=lambda half: half.name)
def test_half_precision_is_widened_where_it_is_stored_and_nowhere_else(graphs, half):
    for name, graph in graphs.items():
        narrow = to_half(graph, half)
        fast = for_cpu(narrow)
        stored = {tensor.name for tensor in narrow.graph.initializer if tensor.data_type == half.onnx}
        casts = [node for node in fast.graph.node if node.op_type == "Cast"]
        assert {node.input[0] for node in casts} <= stored
        assert len(casts) == len({node.input[0] for node in casts})
        others = [node for node in fast.graph.node if node.op_type != "Cast"]
        assert not any(set(node.input) & stored for node in others)

        given_inputs = inputs(name, 2, 5, 3, 4)
        full, fast_out = (session(one).run(None, given_inputs)[0] for one in (graph, fast))
        rounded = session(emulated(narrow, half)).run(None, given_inputs)[0]
        # Weights alone are rounded now; the half precision graph rounds activations too. Errors are random: at most as large.
        assert np.sqrt(((fast_out - full) ** 2).mean()) <= np.sqrt(((rounded - full) ** 2).mean())


def test_weights_that_are_widened_are_folded_when_the_graph_is_loaded(graphs, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # it warns that such a file is of this machine alone
    fast = for_cpu(to_half(graphs["fusion"], FP16))
    onnxruntime.InferenceSession(fast.SerializeToString(), options, ["CPUExecutionProvider"])
    left = kinds(onnx.load(tmp_path / "optimised.onnx"))
    assert not {"Cast", "Split"} & set(left)
    assert left["Concat"] <= kinds(graphs["fusion"])["Concat"]


def test_a_graph_without_these_patterns_comes_back_as_it_was():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, "H", "W"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Softmax", ["c"], ["s"], axis=-1),
        helper.make_node("Gelu", ["s"], ["g"]), helper.make_node("Add", ["g", "one"], ["y"]),
    ]  # fmt: skip
    weights = [
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"), numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.ones(3, np.float32), "unread"),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "plain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert for_cpu(model) == model


def test_a_product_whose_result_others_read_too_stays(fusion):
    watched = onnx.ModelProto()
    watched.CopyFrom(fusion)
    softmax = next(node.output[0] for node in watched.graph.node if node.op_type == "Softmax")
    watched.graph.output.append(helper.make_tensor_value_info(softmax, TensorProto.FLOAT, None))
    fast = for_cpu(watched)
    assert kinds(fast)["MultiHeadAttention"] == kinds(for_cpu(fusion))["MultiHeadAttention"] - 1
    given_inputs = inputs("fusion", 2, 3, 2, 4)
    for plain, other in zip(
        session(watched).run(None, given_inputs), session(fast).run(None, given_inputs), strict=True
    ):
        assert np.abs(plain - other).max() <= 100 * EPS * np.abs(plain).max()


def test_a_sum_of_two_branches_is_not_a_residual():
    """x of one picture, added to products of B: rows that do not match must not meet in one product."""
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["B", "L", 8])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "L", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Add", ["x", "m"], ["y"])]
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    graph = helper.make_graph(nodes, "branches", [a, x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert for_cpu(model) == model


def a_model(nodes, weights, given_inputs, out="y"):
    """Of nodes that take float32 inputs by shape and weights by array."""
    model = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given_inputs.items()],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def agree(model, fast, **given_inputs):
    for plain, other in zip(session(model).run(None, given_inputs), session(fast).run(None, given_inputs), strict=True):
        assert plain.shape == other.shape
        assert np.abs(plain - other).max() <= 100 * EPS * np.abs(plain).max()


def numbers(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("reader", ["output", "node"])
def test_attention_whose_query_key_or_value_others_read_too_stays(fusion, which, reader):
    watched = onnx.ModelProto()
    watched.CopyFrom(fusion)
    read = next(node.output[which] for node in watched.graph.node if node.op_type == "Split")
    if reader == "node":
        watched.graph.node.append(helper.make_node("Neg", [read], ["other"]))
    name = read if reader == "output" else "other"
    watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    fast = for_cpu(watched)
    assert kinds(fast)["MultiHeadAttention"] == kinds(for_cpu(fusion))["MultiHeadAttention"] - 1
    agree(watched, fast, **inputs("fusion", 2, 3, 2, 4))


def test_one_weight_under_two_layer_scales_is_scaled_by_each():
    nodes, weights = [], {"w": numbers(6, 6), "b": numbers(6), "one": numbers(6), "two": numbers(1, 6)[0]}
    x = "x"
    for scale in ("one", "two"):
        nodes += [
            helper.make_node("Relu", [x], [f"{scale}.relu"]),
            helper.make_node("MatMul", [f"{scale}.relu", "w"], [f"{scale}.product"]),
            helper.make_node("Add", ["b", f"{scale}.product"], [f"{scale}.sum"]),
            helper.make_node("Mul", [f"{scale}.sum", scale], [f"{scale}.scaled"]),
            helper.make_node("Add", [x, f"{scale}.scaled"], [f"{scale}.out"]),
        ]
        x = f"{scale}.out"
    model = a_model(nodes, weights, {"x": ["B", "L", 6]}, x)
    assert kinds(for_cpu(model))["Gemm"] == 2
    agree(model, for_cpu(model), x=numbers(2, 5, 6))


@pytest.mark.parametrize(
    "branch",
    [
        [helper.make_node("ReduceMean", ["x", "axis"], ["a"], keepdims=1)],
        [helper.make_node("Slice", ["x", "zero", "last", "axis"], ["a"])],
        [helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0, 2])],
        [helper.make_node("Expand", ["x", "three"], ["a"])],
        [helper.make_node("Gather", ["x", "zero"], ["a"], axis=1)],
        [helper.make_node("Add", ["x", "many"], ["a"])],
        [helper.make_node("MatMul", ["x", "stack"], ["a"])],
        [helper.make_node("Reshape", ["x", "flat"], ["a"])],
    ],
    ids=lambda branch: branch[0].op_type,
)
def test_a_branch_that_has_other_rows_than_the_residual_is_not_added_in_a_product(branch):
    """Its sum is a broadcast, which a product that starts from the residual cannot make."""
    nodes = [*branch, helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Add", ["x", "m"], ["y"])]
    weights = {
        "w": numbers(4, 4), "many": numbers(3, 1, 4), "stack": numbers(3, 4, 4), "axis": np.array([1]),
        "zero": np.array([0]), "last": np.array([1]), "three": np.array([3, 1, 1]), "flat": np.array([-1, 1, 4]),
    }  # fmt: skip
    read = {name for node in nodes for name in node.input}
    model = a_model(nodes, {name: value for name, value in weights.items() if name in read}, {"x": ["B", "L", 4]})
    assert for_cpu(model) == model


def a_hidden_layer(rows, **gemm):
    """gelu(x W + b) V, of hidden layers 12 wide, by a Reshape to `rows` columns."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Gelu", ["s"], ["g"]), helper.make_node("Reshape", ["g", "to"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], **gemm),
    ]  # fmt: skip
    weights = {"w": numbers(5, 12), "b": numbers(12), "to": np.array([-1, rows]), "v": numbers(12, 12)}
    return a_model(nodes, weights, {"x": ["B", "L", 5]})


def test_a_hidden_layer_is_rewritten_where_the_product_after_it_reads_its_rows_as_they_are():
    model = a_hidden_layer(12)
    assert kinds(for_cpu(model))["Gemm"] == 2
    agree(model, for_cpu(model), x=numbers(2, 6, 5))
    # A square weight the other way round is another product, though its shape is the same.
    for other in (a_hidden_layer(12, transA=1), a_hidden_layer(12, transB=1), a_hidden_layer(6)):
        assert for_cpu(other) == other
