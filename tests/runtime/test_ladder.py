"""The ladder with each of its dependencies removed in turn, and with plans that do not fit this machine.

Packages are removed in fresh processes. No GPU is needed: whatever this machine has is hidden from them, and where a
rung on a GPU is to work it runs on the emulated one (emulated_gpu.py). The plans are TensorRT-RTX's own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, plan
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.bundle import write_manifest
from fusioner_rt.cli import main
from fusioner_rt.errors import FusionerError
from fusioner_rt.ladder import CHOICES, LADDER
from fusioner_rt.manifest import MANIFEST

ROOT = Path(__file__).parents[2]
BUILT = "11.4.0.106"  # of the full TensorRT, which is not installed where these tests run

TRY = """
import json, sys
for name in filter(None, sys.argv[2].split(",")):
    sys.modules[name] = None
if "gpu-package" in sys.argv:
    import onnxruntime
    onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    import fusioner_rt.onnx.runtime
    fusioner_rt.onnx.runtime.driver_missing = lambda: None
import numpy as np
from fusioner_rt import FusionerError, Session
from fusioner_rt.ladder import CHOICES

picture = np.arange(61 * 93 * 3, dtype=np.uint32).reshape(61, 93, 3).astype(np.uint8)
said = {}
for requested in CHOICES:
    try:
        with Session(sys.argv[1], requested, cache=False) as session:
            mask = session.segment(picture, "cat, sofa")
            backend = session.backend
            said[requested] = {"effective": backend.effective, "why": backend.why, "note": backend.note,
                               "passed_over": dict(backend.passed_over), "sum": float(mask.confidence.sum(dtype=float))}
    except FusionerError as error:
        said[requested] = {"code": error.exit_code, "error": str(error)}
print(json.dumps(said))
"""


def tried(bundle: Path, without: str = "", *more: str) -> dict[str, dict[str, Any]]:
    """What becomes of every backend that can be asked for, in a process that lacks these modules."""
    command = [sys.executable, "-W", "ignore", "-c", TRY, str(bundle), without, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert list(said) == list(CHOICES)
    return said


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def planned(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with plans by TensorRT-RTX, and entries of full TensorRT over bytes that nobody can load here."""
    from export.tensorrt.build_plans import PlanOptions, add_plans

    folder = tmp_path_factory.mktemp("ladder") / "planned"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    add_plans(folder, manifest, PlanOptions("tensorrt-rtx"))
    for entry in list(manifest["engines"]):
        file = f"{entry['graph']}.tensorrt-sm_89.plan"
        (folder / file).write_bytes(b"a plan of full TensorRT")
        manifest["engines"].append(
            {**entry, "file": file, "flavour": "tensorrt", "version": BUILT, "compute_capability": "8.9"}
        )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def changed(planned: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy with fields of the entries of TensorRT-RTX replaced, or the bytes of its plans; the manifest fits them."""

    def change(content: Callable[[bytes], bytes] = lambda whole: whole, **fields: str) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(planned, folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        for entry in manifest["engines"]:
            if entry["flavour"] == "tensorrt-rtx":
                entry.update(fields)
                file = folder / entry["file"]
                file.write_bytes(content(file.read_bytes()))
        write_manifest(folder, manifest)
        return folder

    return change


@pytest.mark.parametrize(
    ("without", "codes", "says"),
    [
        ("", (40, 40, 40, 0), {"tensorrt-rtx": "install NVIDIA's driver"}),
        ("tensorrt", (40, 40, 40, 0), {"tensorrt": "install it: pip install tensorrt"}),
        ("tensorrt_rtx", (40, 40, 40, 0), {"tensorrt-rtx": "install it: pip install tensorrt-rtx"}),
        ("cuda.bindings", (40, 40, 40, 0), {"tensorrt-rtx": "pip install cuda-bindings cuda-core"}),
        ("onnxruntime", (40, 40, 40, 40), {"onnxruntime-cpu": "install it: pip install onnxruntime, or onnxruntime-gpu"}),
        ("tensorrt,tensorrt_rtx,cuda.bindings", (40, 40, 40, 0), {"tensorrt-rtx": "pip install tensorrt-rtx"}),
    ],
)  # fmt: skip
def test_with_each_dependency_removed_auto_takes_the_next_rung_and_a_named_one_is_an_error(
    planned: Path, without: str, codes: tuple[int, ...], says: dict[str, str]
) -> None:
    said = tried(planned, without)
    assert tuple(said[name].get("code", 0) for name in LADDER) == codes
    for name, cure in says.items():
        assert said[name]["error"].endswith(cure) or cure in said[name]["error"].rpartition("; ")[2]
    if codes[-1]:
        for requested in ("auto", "onnxruntime"):
            assert said[requested]["code"] == codes[-1]
            assert says["onnxruntime-cpu"] in said[requested]["error"]
        return
    for requested in ("auto", "onnxruntime"):
        taken = said[requested]
        assert taken["effective"] == "onnxruntime-cpu"
        better = [name for name in CHOICES[requested] if name != "onnxruntime-cpu"]
        assert list(taken["passed_over"]) == better
        for name in better:  # auto passes a rung over for what it says when asked for by name
            assert taken["passed_over"][name] == said[name]["error"].removeprefix(f"backend {name}: ")
        assert taken["sum"] == said["onnxruntime-cpu"]["sum"]
    assert said["onnxruntime-cpu"]["why"].startswith("it was asked for")
    assert said["onnxruntime-cpu"]["passed_over"] == {}


def test_a_bundle_without_plans_is_said_before_a_missing_library(tiny_bundle: Path) -> None:
    said = tried(tiny_bundle, "tensorrt,tensorrt_rtx")
    assert [said[name].get("code", 0) for name in LADDER] == [37, 37, 40, 0]
    for name in ("tensorrt", "tensorrt-rtx"):
        assert said[name]["error"].endswith(f"build them: python export/add_plans.py {tiny_bundle} --backend {name}")
    assert said["auto"]["effective"] == "onnxruntime-cpu"


def failure(bundle: Path, backend: str) -> tuple[int, str]:
    with pytest.raises(FusionerError) as caught:
        Session(bundle, backend, cache=False)
    message = str(caught.value)
    assert "\n" not in message
    return caught.value.exit_code, message


def test_where_cuda_is_listed_and_does_not_start_nothing_runs_on_the_cpu_unasked(tiny_bundle: Path) -> None:
    said = tried(tiny_bundle, "", "gpu-package")
    assert "it fell back to the CPU" in said["onnxruntime-cuda"]["error"]
    assert said["onnxruntime-cuda"]["code"] == 40
    for requested in ("auto", "onnxruntime"):
        assert said[requested]["effective"] == "onnxruntime-cpu"
        assert said[requested]["note"].startswith("onnxruntime-cpu runs, not a better backend; onnxruntime-cuda: ")
        assert said[requested]["sum"] == said["onnxruntime-cpu"]["sum"]


@pytest.fixture
def gpu(planned: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    """A driver that answers; TensorRT-RTX itself is the real one."""
    gpu = EmulatedGpu(planned, capability=(8, 9))
    monkeypatch.setattr("cuda.bindings.driver", gpu)
    return gpu


def test_every_way_in_which_a_plan_does_not_fit_is_an_error_of_its_own_and_auto_goes_on(
    planned: Path, changed: Callable[..., Path], gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that can be told before a plan is loaded, and one that TensorRT-RTX itself tells without a GPU."""
    said = {}

    def ladder_fails(kind: str, bundle: Path, code: int) -> None:
        found, message = failure(bundle, "tensorrt-rtx")
        assert found == code, message
        said[kind] = message
        with Session(bundle, cache=False) as session:
            assert session.backend.effective == "onnxruntime-cpu"
            assert dict(session.backend.passed_over)["tensorrt-rtx"] == message
        shutil.rmtree(tmp_path / "changed")

    gpu.capability = (7, 5)
    ladder_fails("another GPU", changed(), 38)
    gpu.capability = (8, 9)
    ladder_fails("another version", changed(version="1.6.0.12"), 39)
    ladder_fails("no plan of this graph", changed(graph="text"), 37)
    ladder_fails("bytes that are no plan", changed(lambda whole: b"these bytes are no plan" * 9), 44)
    gpu.free = 100 << 20
    ladder_fails("too little memory", changed(), 45)
    assert "--fp16" in said["another GPU"]  # this bundle is fp32, which gives zeros there
    assert said["another GPU"].endswith("--for sm_75")
    assert "pip install tensorrt-rtx==1.6.0.12" in said["another version"]
    assert "no plan, or a damaged one; build it again: " in said["bytes that are no plan"]
    assert len(set(said.values())) == 5


def test_a_plan_altered_after_the_build_is_refused_whatever_the_backend(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is what was proved, whole: a file that is not is no reason to run the rest of it."""
    folder = tmp_path / "altered"
    shutil.copytree(planned, folder)
    (file,) = folder.glob("image_fusion.tensorrt-rtx*.plan")
    whole = file.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    said = set()
    for content, code, says in (
        (whole[: len(whole) // 2], 34, f"has {len(whole) // 2} bytes, the manifest says {len(whole)}"),
        (bytes(altered), 34, "its content is not what the bundle was built with"),
        (None, 33, "is missing, the manifest lists it"),
    ):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        for backend in CHOICES:
            found, message = failure(folder, backend)
            assert (found, says in message) == (code, True)
            assert file.name in message
            said.add(message)
        if content is None:
            file.touch()
    assert len(said) == 3


def test_from_rung_to_rung_the_masks_stay_the_same(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both flavours on the emulated GPU, then each removed: labels but for ties, confidence to the last digits."""
    folder = tmp_path / "both"
    shutil.copytree(tiny_bundle, folder)
    for graph in ("image_fusion", "text"):
        plan(folder, graph)
        plan(folder, graph, flavour="tensorrt", version=BUILT, capability="8.0")
    gpu = EmulatedGpu(folder)
    modules = [
        emulated_gpu.install(monkeypatch, gpu, "tensorrt", BUILT).__name__, emulated_gpu.install(monkeypatch, gpu).__name__
    ]  # fmt: skip
    picture, taken, masks = scene(61, 93), [], []
    for missing in (None, *modules):
        if missing:
            monkeypatch.setitem(sys.modules, missing, None)
        with Session(folder, cache=False) as session:
            taken.append(session.backend)
            masks.append(session.segment(picture, "cat, sofa, red car"))
    assert [backend.effective for backend in taken] == ["tensorrt", "tensorrt-rtx", "onnxruntime-cpu"]
    assert [[name for name, _ in backend.passed_over] for backend in taken] == [list(LADDER[:n]) for n in (0, 1, 3)]
    assert "pip install tensorrt" in dict(taken[1].passed_over)["tensorrt"]
    for one in masks[:2]:
        np.testing.assert_allclose(one.confidence, masks[2].confidence, atol=2e-5)
        assert (one.labels == masks[2].labels).mean() > 0.999


def test_a_rung_made_ready_for_that_is_passed_over_is_a_note_and_named_beside_the_last_rungs_error(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("fusioner_rt.hardware.gpu_is_there", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    Image.fromarray(scene(61, 93)).save(tmp_path / "a.png")
    command = ["segment", str(tmp_path / "a.png"), "--words", "cat", "--engine", str(planned), "--out", str(tmp_path)]
    assert main(command) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("fusioner-rt: note: onnxruntime-cpu runs, not a better backend; tensorrt: ")
    assert "| tensorrt-rtx: the Python package tensorrt-rtx cannot be loaded" in note
    assert main([*command, "--backend", "onnxruntime-cpu"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command) == 40
    (line,) = capsys.readouterr().err.splitlines()
    assert "ONNX Runtime cannot be loaded" in line
    assert "pip install tensorrt-rtx" in line


def test_a_machine_whose_gpus_are_hidden_is_told_nothing_of_them(planned: Path) -> None:
    assert tried(planned)["auto"]["note"] is None
