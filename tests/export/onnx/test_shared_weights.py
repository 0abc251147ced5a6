"""Shared weights lie in one file, once, and a graph read with it is the graph that was."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.onnx.shared_weights import FILE, LEAST, share
from fusioner_rt.onnx.runtime import OnnxRuntime


def graph_of(*arrays):
    """A graph that sums its weights' squares, each by itself."""
    nodes = [helper.make_node("ReduceSumSquare", [f"w{i}"], [f"y{i}"], keepdims=0) for i in range(len(arrays))]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, []) for i in range(len(arrays))]
    kept = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    graph = helper.make_graph(nodes, "g", [], outputs, kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def places(graph):
    """(offset, length) of every weight that lies apart."""
    said = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.graph.initializer]
    return [(int(one["offset"]), int(one["length"])) for one in said if one]


array = st.tuples(st.sampled_from([1, 255, 256, 257, 1023, 1024, 1500, 5000]), st.integers(0, 2)).map(
    lambda of: np.random.default_rng(of[1]).normal(size=of[0]).astype(np.float32)
)


@settings(max_examples=40, deadline=None)
@given(made=st.lists(st.lists(array, min_size=1, max_size=4), min_size=1, max_size=3))
def test_equal_weights_are_stored_once_and_read_back_bit_by_bit(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("weights")
    graphs = {str(index): graph_of(*arrays) for index, arrays in enumerate(made)}
    before = {name: graph.SerializeToString() for name, graph in graphs.items()}
    lean = share(graphs, folder / FILE)
    assert {name: graph.SerializeToString() for name, graph in graphs.items()} == before
    size = (folder / FILE).stat().st_size
    large = {one.tobytes() for arrays in made for one in arrays if one.nbytes >= LEAST}
    taken = {place for graph in lean.values() for place in places(graph)}
    assert len(taken) == len(large)
    assert sum(length for _, length in taken) == sum(map(len, large))
    end = 0
    for offset, length in sorted(taken):
        assert end <= offset < end + 4096, "they do not overlap, and less than a page is lost between two"
        assert offset % (4096 if length >= 4096 else 64) == 0
        end = offset + length
    assert end == size
    for index, (name, graph) in enumerate(lean.items()):
        onnx.save_model(graph, folder / f"{name}.onnx")
        read = onnx.load(folder / f"{name}.onnx")
        for tensor, expected in zip(read.graph.initializer, made[index], strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)


def test_the_same_graphs_give_the_same_bytes_and_a_graph_runs_from_its_path_and_from_its_bytes(tmp_path):
    large = np.random.default_rng(0).normal(size=(70, 33)).astype(np.float32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lean = share({"g": graph_of(large, large[:2])}, tmp_path / name / FILE)
        onnx.save_model(lean["g"], tmp_path / name / "g.onnx")
    for file in (FILE, "g.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    path, runtime = tmp_path / "a" / "g.onnx", OnnxRuntime("onnxruntime-cpu")
    for content in (None, path.read_bytes()):
        assert runtime.load(path, content)({})["y0"] == pytest.approx(
            np.square(large, dtype=np.float64).sum(), rel=1e-6
        )


def test_a_bundle_holds_the_weights_of_a_picture_once(tiny_bundle, tiny_bundle_fp16):
    for folder in (tiny_bundle, tiny_bundle_fp16):
        graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
        whole = [name for name, entry in graphs.items() if entry.get("weights") == FILE]
        assert {"image_fusion", "image", "fusion"} <= set(whole)
        assert not {"text", "mask_scores", "mask_tiles"} & set(whole)
        read = {name: onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in whole}
        taken = {name: set(places(graph)) for name, graph in read.items()}
        assert taken["image"] | taken["fusion"] < taken["image_fusion"]
        assert not taken["image"] & taken["fusion"]
        for name in ("image_fusion", "image", "fusion"):
            in_graph = sum(t.ByteSize() for t in read[name].graph.initializer if not t.external_data)
            assert in_graph < 0.1 * sum(length for _, length in taken[name])
