"""Plans are added to a bundle that is there, from its graphs alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import emulated_gpu
import pytest
from emulated_gpu import EmulatedGpu

from export import add_plans, tensorrt_engine
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import PlanUnusable, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tiny_bundle_fp16: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_fp16, folder)
    return folder


def test_plans_are_added_in_a_process_without_torch_and_others_stay(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    before = {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}
    for options in (["--for", "sm_89"], ["--profiles", "latency,any-size"]):
        code = (
            "import sys; sys.modules['torch'] = None; from export.add_plans import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, str(bundle), "--backend", "tensorrt-rtx", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "image_fusion.tensorrt-rtx-sm_80_plus.plan" in done.stdout
    assert "not run here" in done.stdout or tensorrt_engine.this_gpu()
    opened = Bundle.open(bundle)
    assert {(plan.graph, plan.capability) for plan in opened.plans} == {
        (graph, capability) for graph in tensorrt_engine.PLANNED for capability in ("8.9", "8.0+")
    }
    assert all(entry["precision"] == "fp16" for entry in opened.manifest["engines"])
    assert {path.name: path.read_bytes() for path in bundle.glob("*.onnx")} == before


def test_a_build_that_fails_leaves_the_bundle_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    manifest = (bundle / "manifest.json").read_bytes()

    def refused(*_: object, **__: object) -> None:
        raise tensorrt_engine.TensorRTRefused("no")

    monkeypatch.setattr(tensorrt_engine.Network, "build", refused)
    with pytest.raises(tensorrt_engine.TensorRTRefused):
        add_plans.add(bundle, "tensorrt-rtx", None, shown=False)
    assert (bundle / "manifest.json").read_bytes() == manifest
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    assert not list(bundle.glob("*.plan"))


def test_plans_that_give_other_masks_than_their_graphs_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    """With the emulated TensorRT: the plan of `image_fusion` runs another bundle's graph, with its channels turned."""
    import onnx

    emulated_gpu.plan(bundle, "image_fusion")
    gpu = EmulatedGpu(bundle)
    emulated_gpu.install(monkeypatch, gpu)
    assert add_plans._compare(bundle, "tensorrt-rtx", picture_folder)["mask_agreement_with_onnxruntime"] > 0.999

    model = onnx.load(bundle / "image_fusion.onnx")
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "refined":
                node.output[index] = "refined.right"
    model.graph.node.append(onnx.helper.make_node("Neg", ["refined.right"], ["refined"]))
    onnx.save(model, bundle.parent / "turned.onnx")
    (plan,) = bundle.glob("*.plan")
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"graph": str(bundle.parent / "turned.onnx")}))
    from fusioner_rt.bundle import write_manifest

    write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    with pytest.raises(add_plans.PlansDisagree, match=r"the new plans label .*% of .* as ONNX Runtime does, 99%"):
        add_plans._compare(bundle, "tensorrt-rtx", picture_folder)


def test_a_plan_that_does_not_load_on_a_gpu_that_it_is_for_fails_the_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    emulated_gpu.plan(bundle, "image_fusion", diagnostics=32)
    emulated_gpu.install(monkeypatch, EmulatedGpu(bundle))
    with pytest.raises(PlanUnusable, match="no plan, or a damaged one"):
        add_plans._compare(bundle, "tensorrt-rtx", picture_folder)
    emulated_gpu.install(monkeypatch, EmulatedGpu(bundle, capability=(7, 5)))
    assert add_plans._compare(bundle, "tensorrt-rtx", picture_folder)["run"] is False


def test_no_pictures_are_said(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    emulated_gpu.plan(bundle, "image_fusion")
    emulated_gpu.install(monkeypatch, EmulatedGpu(bundle))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures in this folder"):
        add_plans._compare(bundle, "tensorrt-rtx", tmp_path / "empty")


def test_what_is_wrong_is_said_in_one_line(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert add_plans.main([str(tmp_path / "absent"), "--backend", "tensorrt-rtx"]) == 30
    assert add_plans.main([str(bundle), "--backend", "tensorrt", "--for", "sm_80"]) == 2
    assert add_plans.main([str(bundle), "--backend", "tensorrt"]) == 87
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("add_plans: ") for line in said)
