"""Plans are added to a bundle that is there, from its graphs alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import onnx
import pytest
from emulated_gpu import EmulatedGpu

from export import add_plans
from export.tensorrt import build_plans
from fusioner_rt import Session, known_answer
from fusioner_rt.bundle import Bundle, read_manifest, write_manifest
from fusioner_rt.errors import FusionerError, OutputUnwritable, PlanUnusable, UsageError

ROOT = Path(__file__).parents[2]
RTX = "tensorrt-rtx"
OTHER_MASKS = r"the new plans label .*% of .* as ONNX Runtime does, 99%"
OTHER_ANSWER = (
    r"do not give the bundle's known answer \(backend .* are allowed in fp16\); build the bundle without --fp16"
)


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
    assert "not run here" in done.stdout or build_plans.this_gpu()
    opened = Bundle.open(bundle)
    assert {(plan.graph, plan.capability) for plan in opened.plans} == {
        (graph, capability) for graph in build_plans.PLANNED for capability in ("8.9", "8.0+")
    }
    assert all(plan.precision == "fp16" for plan in opened.plans)
    assert {path.name: path.read_bytes() for path in bundle.glob("*.onnx")} == before


def test_a_build_that_fails_leaves_the_bundle_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    manifest = (bundle / "manifest.json").read_bytes()

    def refused(*_: object, **__: object) -> None:
        raise build_plans.TensorRTRefused("no")

    monkeypatch.setattr(build_plans.Network, "build", refused)
    with pytest.raises(build_plans.TensorRTRefused):
        add_plans.add(bundle, "tensorrt-rtx", None, shown=False)
    assert (bundle / "manifest.json").read_bytes() == manifest
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    assert not list(bundle.glob("*.plan"))


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], dict[str, Any]]:
    """`add` builds emulated plans; what is special of one, by graph and compute capability, is put in here."""
    special: dict[tuple[str, str], dict[str, Any]] = {}

    def build(folder: Path, manifest: dict[str, Any], options: build_plans.PlanOptions, **_: object) -> None:
        write_manifest(folder, manifest)
        for target in build_plans.targets(options):
            for graph in build_plans.PLANNED:
                emulated_gpu.plan(folder, graph, options.flavour, capability=target.label)
                entry = json.loads((folder / "manifest.json").read_text())["engines"][-1]
                alter(folder / entry["file"], **special.get((graph, target.label), {}))
                manifest["engines"].append(entry)

    monkeypatch.setattr(build_plans, "check", lambda *_, **__: None)
    monkeypatch.setattr(build_plans, "add_plans", build)
    return special


def alter(plan: Path, **fields: Any) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | fields))


@pytest.fixture
def turned(bundle: Path) -> dict[str, Any]:
    """What makes a plan of `image_fusion` draw other masks: another bundle's graph, with its channels turned."""
    model = onnx.load(bundle / "image_fusion.onnx")
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "refined":
                node.output[index] = "refined.right"
    model.graph.node.append(onnx.helper.make_node("Neg", ["refined.right"], ["refined"]))
    onnx.save(model, bundle.parent / "turned.onnx")
    return {"graph": str(bundle.parent / "turned.onnx")}


def add(
    bundle: Path, pictures: Path, gpus: str | None, here: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The proofs after `add_plans.add` where the GPU has the capability `here`, by the plans' own."""
    gpu = EmulatedGpu(bundle, capability=here)
    emulated_gpu.install(monkeypatch, gpu)
    manifest = add_plans.add(bundle, RTX, pictures, shown=False, build_for=gpus)
    assert not gpu.memory
    assert read_manifest(Bundle.open(bundle).folder) == manifest
    files = {entry["file"]: entry["compute_capability"] for entry in manifest["engines"]}
    return {files[file]: proof for file, proof in manifest["gates"]["plans"].items()}


def masks(bundle: Path, pictures: Path, whole: bool) -> list[np.ndarray]:
    """Labels of the words that plans are proved with, by ONNX Runtime on the CPU. whole: by image_fusion, as plans are."""
    words = ["person", "cat", "sofa", "tree", "car"]
    with Session(bundle, backend="onnxruntime-cpu", cache=False) as session:
        if whole:
            session._executor._in_parts, session._executor._decoder = False, None  # type: ignore[attr-defined]
        return [session.segment(path, words).labels for path in sorted(pictures.glob("*.png"))]


def test_each_new_plan_is_run_where_it_runs_and_others_are_said_not_to_have_run(
    bundle: Path, building: object, monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    proofs = add(bundle, picture_folder, "sm_86,sm_89", (8, 9), monkeypatch)
    assert proofs["8.6"] == {"run": False, "why": "for compute capability 8.6, the GPU here has 8.9"}
    assert proofs["8.9"]["run"] is True
    assert proofs["8.9"]["pictures"] == 3
    # The plan here is image_fusion run whole: it rounds to float16 between operators, which the CPU's parts do not.
    plan, parts = (masks(bundle, picture_folder, whole) for whole in (True, False))
    agreed = min(float((one == other).mean()) for one, other in zip(plan, parts, strict=True))
    assert proofs["8.9"]["mask_agreement_with_onnxruntime"] == pytest.approx(agreed, abs=0.0005)
    assert agreed > 0.995


def test_a_plan_of_another_gpu_is_not_proved_by_an_older_plan_that_runs_here(
    bundle: Path, building: object, monkeypatch: pytest.MonkeyPatch, picture_folder: Path, capsys: Any
) -> None:
    older = add(bundle, picture_folder, None, (8, 0), monkeypatch)
    assert older["8.0+"]["run"] is True
    proofs = add(bundle, picture_folder, "sm_120", (8, 0), monkeypatch)
    assert proofs["12.0"] == {"run": False, "why": "for compute capability 12.0, the GPU here has 8.0"}
    assert proofs["8.0+"] == older["8.0+"]
    assert len(Bundle.open(bundle).plans) == 4
    command = [str(bundle), "--backend", RTX, "--for", "sm_121", "--pictures", str(picture_folder)]
    assert add_plans.main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if ".plan" in line]
    assert {line.split("-")[-1][:4] for line in said if "not run here" in line} == {"12.0", "12.1"}
    assert sum("not run here" in line for line in said) == 4  # text plans as well


def test_the_proof_of_a_plan_that_was_damaged_goes_with_it(
    bundle: Path, building: object, monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    assert add(bundle, picture_folder, None, (8, 0), monkeypatch).keys() == {"8.0+"}
    (bundle / next(plan.file.name for plan in Bundle.open(bundle).plans if plan.graph == "image_fusion")).unlink()
    assert add(bundle, picture_folder, "sm_120", (8, 0), monkeypatch).keys() == {"12.0"}


def test_a_new_plan_is_proved_itself_though_the_bundle_has_one_that_sessions_prefer(
    bundle: Path,
    building: dict[Any, Any],
    turned: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
) -> None:
    emulated_gpu.plan(bundle, "image_fusion", capability="8.9")
    (exact,) = bundle.glob("*.plan")
    building["image_fusion", "8.0+"] = turned
    with pytest.raises(add_plans.PlansDisagree, match=OTHER_ANSWER):
        add(bundle, picture_folder, None, (8, 9), monkeypatch)

    del building["image_fusion", "8.0+"]
    alter(exact, **turned)
    write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    proofs = add(bundle, picture_folder, None, (8, 9), monkeypatch)
    assert proofs.keys() == {"8.0+"}
    assert proofs["8.0+"]["run"] is True


@pytest.mark.parametrize("answer", [True, False])
def test_plans_that_give_other_masks_than_their_graphs_are_refused(
    bundle: Path,
    answer: bool,
    building: dict[Any, Any],
    turned: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
) -> None:
    if not answer:  # the pictures show it too
        monkeypatch.setattr(known_answer, "compare", lambda *_: None)
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    building["image_fusion", "8.0+"] = turned
    with pytest.raises(add_plans.PlansDisagree, match=OTHER_ANSWER if answer else OTHER_MASKS):
        add(bundle, picture_folder, None, (8, 0), monkeypatch)
    assert {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()} == before


def test_a_plan_that_does_not_load_on_a_gpu_that_it_is_for_fails_the_build(
    bundle: Path, building: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    building["image_fusion", "8.0+"] = {"diagnostics": 32}
    with pytest.raises(PlanUnusable, match="no plan, or a damaged one"):
        add(bundle, picture_folder, None, (8, 0), monkeypatch)
    proofs = add(bundle, picture_folder, None, (7, 5), monkeypatch)
    assert proofs["8.0+"] == {"run": False, "why": "for compute capability 8.0+, the GPU here has 7.5"}


def test_a_text_plan_that_does_not_load_is_noted_beside_the_proof(
    bundle: Path, building: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    assert "notes" not in add(bundle, picture_folder, None, (8, 0), monkeypatch)["8.0+"]
    building["text", "8.0+"] = {"diagnostics": 32}
    (note,) = add(bundle, picture_folder, None, (8, 0), monkeypatch)["8.0+"]["notes"]
    assert "words are encoded on the CPU" in note


def test_no_pictures_are_said(bundle: Path, building: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures in this folder"):
        add(bundle, tmp_path / "empty", None, (8, 0), monkeypatch)


def test_plans_of_fp32_are_refused_where_they_give_zeros(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert add_plans.main([str(tmp_path / "bundle"), "--backend", RTX, "--for", "sm_75"]) == 2
    assert "with --fp16, or leave it out and run the bundle with onnxruntime-cuda" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert add_plans.main([str(tmp_path / "absent"), "--backend", "tensorrt-rtx"]) == 30
    assert add_plans.main([str(bundle), "--backend", "tensorrt", "--for", "sm_80"]) == 2
    assert add_plans.main([str(bundle), "--backend", "tensorrt"]) == 87
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("add_plans: ") for line in said)


@pytest.mark.slow
def test_damaged_and_lost_plans_are_built_again_and_whole_ones_stay(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    for target in ("sm_89", "sm_120"):
        assert add_plans.main([str(bundle), "--backend", "tensorrt-rtx", "--for", target]) == 0
    whole = (bundle / "text.tensorrt-rtx-sm_120.plan").read_bytes()
    (bundle / "text.tensorrt-rtx-sm_89.plan").write_bytes(b"half copied")
    (bundle / "image_fusion.tensorrt-rtx-sm_120.plan").unlink()
    with pytest.raises(FusionerError, match=r"copy the bundle again, or .*add_plans\.py"):
        Bundle.open(bundle)
    assert add_plans.main([str(bundle), "--backend", "tensorrt-rtx", "--for", "sm_89"]) == 0
    held = {(plan.graph, plan.capability) for plan in Bundle.open(bundle).plans}
    assert held == {("text", "8.9"), ("image_fusion", "8.9"), ("text", "12.0")}
    assert (bundle / "text.tensorrt-rtx-sm_120.plan").read_bytes() == whole


def test_a_bundle_that_another_build_changed_meanwhile_is_left_to_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    prove = add_plans._prove

    def meanwhile(*given: object) -> object:
        (bundle / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes() + b"\n")
        return prove(*given)

    monkeypatch.setattr(add_plans, "_prove", meanwhile)
    with pytest.raises(add_plans.BundleChanged, match="run it again"):
        add_plans.add(bundle, "tensorrt-rtx", None, shown=False, build_for="sm_89")
    assert not list(bundle.glob("*.plan"))


def test_plans_go_to_where_a_link_leads_and_not_over_a_file_that_came_meanwhile(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add_plans, "_prove", lambda *_: {})
    monkeypatch.setattr(build_plans, "check", lambda *_, **__: None)
    monkeypatch.setattr(build_plans, "add_plans", lambda folder, *_, **__: (folder / "new.plan").write_text("plan"))
    link = bundle.with_name("link")
    link.symlink_to(bundle.name)
    add_plans.add(link, "tensorrt-rtx", None, shown=False)
    assert link.is_symlink()
    assert (bundle / "new.plan").read_text() == "plan"

    def meanwhile(*_: object) -> dict[str, Any]:
        (bundle / "NOTES.md").write_text("mine")
        return {}

    monkeypatch.setattr(add_plans, "_prove", meanwhile)
    with pytest.raises(OutputUnwritable, match=r"holds NOTES\.md"):
        add_plans.add(link, "tensorrt-rtx", None, shown=False)
    assert (bundle / "NOTES.md").read_text() == "mine"


def test_a_mount_point_is_refused_before_the_work(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == bundle)
    with pytest.raises(OutputUnwritable, match="is a mount point"):
        add_plans.add(bundle, "tensorrt-rtx", None, shown=False)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_file_of_the_users_stops_new_plans_before_they_are_built(bundle: Path) -> None:
    (bundle / "NOTES.md").write_text("mine")
    with pytest.raises(OutputUnwritable, match=r"holds NOTES\.md"):
        add_plans.add(bundle, "tensorrt-rtx", None, shown=False)
    assert (bundle / "NOTES.md").read_text() == "mine"
