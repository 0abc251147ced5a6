"""TensorRT takes the graphs as they are. TensorRT-RTX builds without a GPU, so where it is installed it is asked."""

import json
import sys

import onnx
import pytest

from export import tensorrt_engine
from fusioner_rt.errors import UsageError


def test_a_missing_flavour_is_said_with_the_command_that_installs_it(monkeypatch):
    for flavour, module in tensorrt_engine.MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(tensorrt_engine.TensorRTMissing, match=f"pip install {flavour},"):
            tensorrt_engine.load(flavour)
    assert tensorrt_engine.choose("auto") == "onnxruntime"


def test_profiles_give_every_input_a_smallest_usual_and_largest_shape(tiny_bundle):
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    shapes = tensorrt_engine.profiles(manifest, "image_fusion", onnx.load(tiny_bundle / "image_fusion.onnx"))
    assert shapes["pixels"] == [(1, 3, 32, 32), (1, 3, 96, 96), (4, 3, 1024, 1024)]
    assert shapes["words"] == [(1, 1, 24), (1, 20, 24), (4, 64, 24)]
    shapes = tensorrt_engine.profiles(manifest, "text", onnx.load(tiny_bundle / "text.onnx"))
    assert shapes["input_ids"] == shapes["attention_mask"] == [(1, 1), (2, 16), (256, 64)]


def test_capabilities_are_read_from_gpu_names():
    assert tensorrt_engine.capabilities("tensorrt-rtx", "sm_80,sm_120") == ["8.0", "12.0"]


def test_a_gpu_tensorrt_rtx_does_not_know_is_refused_before_the_work():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    tensorrt_engine.check("tensorrt-rtx", "sm_80,sm_120")
    with pytest.raises(UsageError, match=r"sm_89.*sm_120"):
        tensorrt_engine.check("tensorrt-rtx", "sm_99")


def test_tensorrt_rtx_builds_both_precisions_for_two_gpus(tiny_bundle, tiny_bundle_fp16, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    for folder in (tiny_bundle, tiny_bundle_fp16):
        manifest = json.loads((folder / "manifest.json").read_text())
        for graph in tensorrt_engine.PLANNED:
            (tmp_path / f"{graph}.onnx").write_bytes((folder / f"{graph}.onnx").read_bytes())
        seconds = tensorrt_engine.add_plans(tmp_path, manifest, "tensorrt-rtx", "sm_80,sm_89")
        assert {(e["graph"], e["compute_capability"]) for e in manifest["engines"]} == {
            (graph, capability) for graph in tensorrt_engine.PLANNED for capability in ("8.0", "8.9")
        }
        for engine in manifest["engines"]:
            assert (tmp_path / engine["file"]).stat().st_size > 100_000
            assert seconds[engine["file"]] > 0


def test_tensorrt_refuses_a_graph_in_the_parsers_own_words(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Det", ["x"], ["y"])], "odd", [value], [out])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "odd.onnx")
    with pytest.raises(tensorrt_engine.TensorRTRefused, match=r"does not accept odd\.onnx: .*Det"):
        tensorrt_engine.build_plan(trt, tmp_path / "odd.onnx", {}, "8.0", half=False)


def test_a_graph_tensorrt_reads_as_fp32_is_not_called_fp16(tiny_bundle):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    from export.precision import PrecisionNotReached

    with pytest.raises(PrecisionNotReached, match="read 0% of image_fusion"):
        tensorrt_engine.build_plan(trt, tiny_bundle / "image_fusion.onnx", {}, "8.0", half=True)
