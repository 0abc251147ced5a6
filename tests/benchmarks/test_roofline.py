"""The roofline: products and bytes counted from graphs, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import roofline
from benchmarks.graph_cost import Cost, graph_cost, graph_costs, node_flops

FLOAT = TensorProto.FLOAT


def saved(
    folder: Path, nodes: list[Any], inputs: dict[str, list[Any]], output: str, weights: dict[str, np.ndarray]
) -> Path:
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    file = folder / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_product_counts_two_for_each_multiplication(tmp_path: Path) -> None:
    file = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["a", 3, 5]}, "y", {"w": zeros(5, 7)})
    assert graph_cost(file, {"x": zeros(2, 3, 5)}) == Cost(
        flops=2 * 2 * 3 * 5 * 7,
        least=4 * (2 * 3 * 5 + 5 * 7 + 2 * 3 * 7),
        by_operator=4 * (2 * 3 * 5 + 5 * 7 + 2 * 3 * 7),
        constants=4 * 5 * 7,
    )


def test_a_convolution_counts_its_kernel_at_every_output_and_a_groups_inputs_alone(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4, group=2)
    file = saved(tmp_path, [node], {"x": [1, 6, "h", "w"]}, "y", {"w": zeros(8, 3, 3, 3)})
    assert graph_cost(file, {"x": zeros(1, 6, 9, 11)}).flops == 2 * (8 * 5 * 6) * 3 * 9


@pytest.mark.parametrize(
    ("kind", "attributes", "inputs", "output", "flops"),
    [
        ("Gemm", {}, [(3, 5), (5, 7)], (3, 7), 2 * 3 * 5 * 7),
        ("Gemm", {"transA": 1}, [(5, 3), (5, 7)], (3, 7), 2 * 3 * 5 * 7),
        ("FusedMatMul", {"transA": 1}, [(2, 5, 3), (2, 5, 7)], (2, 3, 7), 2 * 2 * 3 * 5 * 7),
        ("Einsum", {"equation": "bhwd,bkd->bkhw"}, [(2, 3, 4, 5), (2, 6, 5)], (2, 6, 3, 4), 2 * 2 * 3 * 4 * 5 * 6),
        ("Einsum", {"equation": "ab,b->ab"}, [(3, 4), (4,)], (3, 4), 0),
        ("MultiHeadAttention", {"num_heads": 4}, [(2, 9, 32), (2, 11, 32), (2, 11, 32)], (2, 9, 32), 4 * 2 * 9 * 11 * 32),
        ("MultiHeadAttention", {"num_heads": 4}, [(2, 9, 4, 3, 8)], (2, 9, 32), 4 * 2 * 9 * 9 * 32),
        ("Attention", {}, [(2, 4, 9, 8), (2, 4, 11, 8), (2, 4, 11, 8)], (2, 4, 9, 8), 4 * 2 * 4 * 9 * 11 * 8),
        ("Softmax", {}, [(3, 5)], (3, 5), 0),
    ],
)  # fmt: skip
def test_operators_count_what_a_page_of_arithmetic_says(
    kind: str, attributes: dict[str, Any], inputs: list[Any], output: tuple[int, ...], flops: int
) -> None:
    node = helper.make_node(kind, [f"i{index}" for index in range(len(inputs))], ["y"], **attributes)
    assert node_flops(node, inputs, output) == flops


def test_packed_attention_of_onnx_runtime_counts_its_projection_too() -> None:
    node = helper.make_node("Attention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=4)
    assert node_flops(node, [(2, 9, 16), (16, 96)], (2, 9, 32)) == 2 * 2 * 9 * 16 * 96 + 4 * 2 * 9 * 9 * 32


def test_what_depends_on_weights_alone_counts_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["w", "w"], ["ww"]), helper.make_node("MatMul", ["x", "ww"], ["y"])]
    file = saved(tmp_path, nodes, {"x": [3, 5]}, "y", {"w": zeros(5, 5)})
    assert graph_cost(file, {"x": zeros(3, 5)}).flops == 2 * 3 * 5 * 5


def test_a_folded_weight_counts_once_however_often_its_graph_is_called(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["v", "w"], ["vw"]), helper.make_node("MatMul", ["x", "vw"], ["y"])]
    file = saved(tmp_path, nodes, {"x": ["a", 5]}, "y", {"v": zeros(5, 2), "w": zeros(2, 7)})
    calls = [(file, {"x": zeros(rows, 5)}, 0.0, 0.0) for rows in (3, 3, 4)]
    (cost,) = roofline.counted(calls).values()
    assert cost.least == 4 * (5 * 7 + (3 + 3 + 4) * (5 + 7))


def test_parts_share_the_whole_and_bytes_that_cross_their_border_count_in_both(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["first/a"]), helper.make_node("Relu", ["first/a"], ["first/b"]),
        helper.make_node("MatMul", ["first/b", "v"], ["second/c"]), helper.make_node("Relu", ["second/c"], ["y"]),
    ]  # fmt: skip
    file = saved(tmp_path, nodes, {"x": [3, 5]}, "y", {"w": zeros(5, 7), "v": zeros(7, 2)})
    costs = graph_costs(file, {"x": zeros(3, 5)}, ("first/", "second/"))
    assert costs["first/"] == Cost(2 * 3 * 5 * 7, 4 * (15 + 35 + 21), 4 * (15 + 35 + 21 + 21 + 21), 4 * 35)
    assert costs["second/"] == Cost(2 * 3 * 7 * 2, 4 * (21 + 14 + 6), 4 * (21 + 14 + 6), 4 * 14)
    assert costs[""] == Cost(0, 4 * (6 + 6), 4 * (6 + 6))


@pytest.mark.parametrize(
    ("graph", "stage"),
    [
        ("image", "image"), ("image_fusion", "image_fusion"), ("fusion", "fusion"), ("decoder", "decoder"),
        ("decoder_first", "decoder"), ("decoder_up_3", "decoder"), ("decoder_scores", "scores"), ("mask_scores", "scores"),
        ("mask_tiles", "labels"), ("mask_labels", "labels"), ("another", "another"),
    ],
)  # fmt: skip
def test_a_graph_belongs_to_the_stage_of_the_longest_name_it_begins_with(graph: str, stage: str) -> None:
    assert roofline.stage_of(graph) == stage


def decoder_by_hand(h: int, w: int) -> int:
    """training.model.tiny's: d = 32, two 3×3 convs to 32 and 24 channels, the second on twice the edge, 1×1 to 32."""
    return 2 * h * w * 9 * 32 * 32 + 2 * (4 * h * w) * (9 * 32 * 24 + 24 * 32)


def test_the_direct_form_of_the_decoder_counts_what_its_definition_says(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((1, 3, 96, 64), np.float32)
    words = rng.standard_normal((1, 5, 24), np.float32)
    costs = roofline.direct(tiny_bundle, pixels, words)
    low = 6, 4  # the encoder gives a token every 16 pixels
    features = costs["scores"].flops // (2 * 5 * 32)
    assert features == 4 * low[0] * low[1]
    assert costs["decoder"].flops == decoder_by_hand(*low)


def test_watched_graphs_tell_what_a_session_ran_and_count_weights_once(tiny_bundle: Path) -> None:
    from fusioner_rt import Session

    calls: list[Any] = []
    rgb = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    with roofline.watching(calls), Session(tiny_bundle, "onnxruntime-cpu", cache=False, threads=1) as session:
        session.set_vocabulary("cat, sofa")
        calls.clear()
        session.segment(rgb)
        once = roofline.counted(calls)
        session.segment(rgb)
        twice = roofline.counted(calls)
    assert set(once) <= set(roofline.STAGES)
    assert {"scores", "labels"} <= set(once)
    assert sum(roofline.spans(calls).values()) > 0
    for stage, cost in once.items():
        assert twice[stage].flops == 2 * cost.flops
        assert twice[stage].constants == cost.constants
        assert twice[stage].least == 2 * cost.least - cost.constants
    from fusioner_rt.onnx.runtime import OnnxRuntime

    assert OnnxRuntime.load.__qualname__ == "OnnxRuntime.load"  # nothing stays watched


def test_bad_arguments_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--words", "200"]) == 2
    assert "150 names are listed at most" in capsys.readouterr().err
