"""Named profiles: what each allows, within what the bundle does, for every manifest."""

import itertools

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.build_engine import UsageError, parse
from export.tensorrt.profiles import NAMES, distinct, shapes


def graph(**inputs):
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()
    ]
    return onnx.helper.make_model(onnx.helper.make_graph([], "profiled", values, []))


IMAGE = graph(pixels=("P", 3, "H", "W"), words=("B", "K", 24))
TEXT = graph(input_ids=("N", "L"), attention_mask=("N", "L"))


def manifest(words=(1, 20, 256), batch=(1, 1, 8), size=(32, 320, 1024), multiple=32, templates=32, tokens=64):
    bounds = ("min", "opt", "max")
    ranges = {"words": words, "batch": batch, "size": size}
    return {
        "profiles": {name: dict(zip(bounds, values, strict=True)) for name, values in ranges.items()},
        "tokenizer": {"max_tokens": tokens},
        "templates": ["a {category}"] * templates,
        "preprocessing": {"multiple": multiple},
    }


@st.composite
def manifests(draw):
    multiple = draw(st.sampled_from([1, 8, 14, 16, 32]))
    size = sorted(multiple * draw(st.integers(1, 80)) for _ in range(3))
    most_words, most_batch = draw(st.integers(1, 2000)), draw(st.integers(1, 64))
    return manifest(
        (1, min(20, most_words), most_words), (1, 1, most_batch), tuple(size), multiple,
        draw(st.integers(1, 300)), draw(st.integers(1, 100)),
    )  # fmt: skip


@given(manifests(), st.sampled_from([IMAGE, TEXT]), st.sampled_from(NAMES))
def test_every_set_is_ascending_and_within_what_the_bundle_takes(about, model, name):
    found, widest = shapes(name, about, model), shapes("any-size", about, model)
    for value in model.graph.input:
        least, usual, most = found[value.name]
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            assert least[axis] <= usual[axis] <= most[axis]
            assert widest[value.name][0][axis] <= least[axis]
            assert most[axis] <= widest[value.name][2][axis]
            if dimension.dim_param in ("H", "W"):
                assert most[axis] >= about["profiles"]["size"]["opt"] >= least[axis]
                assert least[axis] % about["preprocessing"]["multiple"] == 0
                assert most[axis] % about["preprocessing"]["multiple"] == 0
            if dimension.dim_param in ("P", "B", "K", "N", "L"):
                assert least[axis] == 1  # one picture may be fused with B vocabularies


def test_the_sets_are_what_their_names_say():
    about = manifest()
    assert shapes("any-size", about, IMAGE) == {
        "pixels": [(1, 3, 32, 32), (1, 3, 320, 320), (8, 3, 1024, 1024)],
        "words": [(1, 1, 24), (1, 20, 24), (8, 256, 24)],
    }
    assert shapes("latency", about, IMAGE) == {
        "pixels": [(1, 3, 160, 160), (1, 3, 320, 320), (1, 3, 640, 640)],
        "words": [(1, 1, 24), (1, 20, 24), (1, 64, 24)],
    }
    assert shapes("throughput", about, IMAGE) == {
        "pixels": [(1, 3, 32, 32), (8, 3, 320, 320), (8, 3, 1024, 1024)],
        "words": [(1, 1, 24), (8, 20, 24), (8, 256, 24)],
    }
    ids = [shapes(name, about, TEXT)["input_ids"] for name in ("any-size", "latency", "throughput")]
    assert ids == [[(1, 1), (32, 16), (256, 64)], [(1, 1), (32, 16), (256, 64)], [(1, 1), (256, 16), (256, 64)]]


def test_latency_keeps_to_the_encoders_step_and_to_the_bundles_range():
    found = shapes("latency", manifest((1, 20, 30), (1, 1, 1), (224, 238, 448), multiple=14), IMAGE)
    assert found["pixels"] == [(1, 3, 224, 224), (1, 3, 238, 238), (1, 3, 448, 448)]
    assert found["words"][2] == (1, 30, 24)
    found = shapes("latency", manifest(size=(14, 322, 1022), multiple=14), IMAGE)
    assert [shape[2] for shape in found["pixels"]] == [154, 322, 644]  # half of 322 is 11.5 steps


def test_sets_that_are_the_same_for_a_graph_are_built_once_and_order_is_kept():
    for order in itertools.permutations(NAMES):
        assert list(distinct(order, manifest(), IMAGE)) == list(order)
    assert list(distinct(("latency", "any-size", "throughput"), manifest(), TEXT)) == ["latency", "throughput"]
    one = manifest(batch=(1, 1, 1))
    assert list(distinct(("any-size", "throughput"), one, IMAGE)) == ["any-size"]


def test_the_command_line_takes_known_names_once_each():
    assert parse(["--profiles", "latency,any-size"]).profiles == ("latency", "any-size")
    assert parse([]).profiles == ()
    for wrong in ("fast", "latency,latency", "", "latency,"):
        with pytest.raises(SystemExit) as stopped:
            parse(["--profiles", wrong])
        assert stopped.value.code == UsageError.exit_code
