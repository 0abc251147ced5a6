"""--fp16 is in the graph: where it should be, nowhere else, and counted from the graph rather than believed."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.onnx.half_precision import (
    BF16,
    FP16,
    PrecisionNotReached,
    WeightsOverflow,
    emulated,
    half_weight_share,
    prove_half,
    to_half,
)

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope="module")
def halves(tiny_bundle_fp16):
    return {name: onnx.load(tiny_bundle_fp16 / f"{name}.onnx") for name in ("text", "image_fusion")}


def operand_types(model):
    """(operator, float types of its operands) for every node."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        yield node.op_type, {types[name] for name in node.input if types.get(name) in (FLOAT, HALF)}


def test_products_are_float16_and_normalisations_float32(halves):
    seen = {}
    for model in halves.values():
        for kind, types in operand_types(model):
            seen.setdefault(kind, set()).update(types)
    assert seen["MatMul"] == {HALF}
    assert seen["Conv"] == {HALF}
    for kind in ("LayerNormalization", "InstanceNormalization", "Softmax", "ReduceL2"):
        assert seen[kind] == {FLOAT}, kind


def test_the_outside_of_an_fp16_graph_is_float32(halves):
    for model in halves.values():
        outside = (*model.graph.input, *model.graph.output)
        assert {v.type.tensor_type.elem_type for v in outside} <= {FLOAT, TensorProto.INT64}


def test_nearly_all_weights_of_an_fp16_bundle_are_float16_and_none_of_an_fp32_one(
    halves, tiny_bundle, tiny_bundle_fp16
):
    for name, model in halves.items():
        assert prove_half(name, model) > 0.99
        assert half_weight_share(onnx.load(tiny_bundle / f"{name}.onnx")) == 0
    full, half = ((folder / "weights.bin").stat().st_size for folder in (tiny_bundle, tiny_bundle_fp16))
    assert half < 0.6 * full


def test_a_graph_that_claims_fp16_and_is_fp32_is_refused(tiny_bundle):
    with pytest.raises(PrecisionNotReached, match=r"image_fusion graph holds 0\.0% .*--fp16"):
        prove_half("image_fusion", onnx.load(tiny_bundle / "image_fusion.onnx"))


def test_weights_stored_in_float16_but_widened_before_use_do_not_count(halves):
    planted = onnx.ModelProto()
    planted.CopyFrom(halves["image_fusion"])
    weights = {t.name for t in planted.graph.initializer if t.data_type == HALF}
    widened = []
    for node in planted.graph.node:
        for index, name in enumerate(node.input):
            if name in weights:
                node.input[index] = f"{name}.wide"
                widened.append(name)
    casts = [helper.make_node("Cast", [name], [f"{name}.wide"], to=FLOAT) for name in dict.fromkeys(widened)]
    nodes = [*casts, *planted.graph.node]
    del planted.graph.node[:]
    planted.graph.node.extend(nodes)
    assert half_weight_share(planted) == 0
    with pytest.raises(PrecisionNotReached):
        prove_half("image_fusion", planted)


def small_graph(weight, bias=0.0):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["y"], axis=-1),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(weight, np.float32), "w"),
        numpy_helper.from_array(np.float32([bias]), "b"),
    ]
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["N", 2]) for name in "xy")
    return helper.make_model(
        helper.make_graph(nodes, "small", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_a_converted_graph_computes_the_same_to_half_precision():
    graph = small_graph([[0.5, -1.25], [2.0, 0.3]], 0.1)
    x = np.random.default_rng(0).standard_normal((5, 2), np.float32)
    full, half = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (graph, to_half(graph))
    )
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, rtol=0, atol=8 * np.finfo(np.float16).eps)
    assert list(operand_types(to_half(graph))) == [
        ("Cast", {FLOAT}), ("MatMul", {HALF}), ("Add", {HALF}), ("Cast", {HALF}), ("Softmax", {FLOAT}),
    ]  # fmt: skip


def test_a_weight_float16_cannot_hold_is_named():
    with pytest.raises(WeightsOverflow, match=r"weight w reaches 1e\+05"):
        to_half(small_graph([[1e5, 0], [0, 1]]))


def test_a_bf16_graph_is_emulated_by_rounding_what_every_operator_gives():
    graph = to_half(small_graph([[0.5, -1.25], [2.0, 0.3]], 0.1), BF16)
    assert graph.opset_import[0].version == 22  # the first whose convolutions take bfloat16
    assert [(t.name, t.data_type) for t in graph.graph.initializer] == [
        ("w.bf16", TensorProto.BFLOAT16), ("b.bf16", TensorProto.BFLOAT16),
    ]  # fmt: skip
    assert prove_half("small", graph, BF16) == 1
    with pytest.raises(PrecisionNotReached):
        prove_half("small", graph, FP16)
    x = np.random.default_rng(0).standard_normal((50, 2), np.float32)
    emulation = emulated(graph, BF16)
    found = onnxruntime.InferenceSession(emulation.SerializeToString()).run(None, {"x": x})[0]

    def rounded(values):
        return torch.from_numpy(np.asarray(values, np.float32)).bfloat16().float().numpy()

    total = rounded(rounded(rounded(x) @ rounded([[0.5, -1.25], [2.0, 0.3]])) + rounded(0.1))
    expected = torch.softmax(torch.from_numpy(total), -1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * np.finfo(np.float32).eps)
    exact = onnxruntime.InferenceSession(small_graph([[0.5, -1.25], [2.0, 0.3]], 0.1).SerializeToString())
    assert np.abs(exact.run(None, {"x": x})[0] - expected).max() > 1e-4  # rounding is not optimised away


def test_a_float16_graph_and_its_emulation_agree_to_float16(halves, tiny_bundle_fp16):
    """ONNX Runtime has float16 operators: what the emulation does for bfloat16 is held against them."""
    shapes = {"input_ids": (3, 7), "attention_mask": (3, 7)}
    inputs = {name: np.ones(shape, np.int64) for name, shape in shapes.items()}
    emulation = emulated(halves["text"], FP16).SerializeToString()
    found, real = (
        onnxruntime.InferenceSession(source).run(None, inputs)[0]
        for source in (emulation, str(tiny_bundle_fp16 / "text.onnx"))
    )
    np.testing.assert_allclose(found, real, rtol=0, atol=8 * np.finfo(np.float16).eps)


def test_bfloat16_holds_what_float16_cannot():
    large = small_graph([[1e5, 0], [0, 1]])
    assert to_half(large, BF16)
    with pytest.raises(WeightsOverflow, match=r"bf16 ends at 3\.39e\+38; build without --bf16"):
        to_half(small_graph([[3.4e38, 0], [0, 1]]), BF16)


def test_weights_are_rounded_to_nearest_and_to_no_less_than_float16(halves, tiny_bundle):
    full = {t.name: numpy_helper.to_array(t) for t in onnx.load(tiny_bundle / "image_fusion.onnx").graph.initializer}
    compared = 0
    for tensor in halves["image_fusion"].graph.initializer:
        if tensor.data_type == HALF:
            original = full[tensor.name.removesuffix(".fp16")]
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), original.astype(np.float16))
            compared += original.size
    assert compared > 50_000
