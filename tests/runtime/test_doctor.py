"""What a person with a problem is told, with one thing after another missing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulated_gpu
import pytest
from emulated_gpu import EmulatedGpu

from fusioner_rt import Session, doctor, hardware
from fusioner_rt.bundle import write_manifest
from fusioner_rt.cli import main
from fusioner_rt.doctor import examine, report
from fusioner_rt.errors import FusionerError
from fusioner_rt.ladder import LADDER
from fusioner_rt.manifest import MANIFEST

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def lacks(findings: doctor.Findings, name: str) -> str:
    (rung,) = (rung for rung in findings.rungs if rung.name == name)
    return " | ".join(map(str, rung.lacks))


def test_the_screen_names_every_part_and_what_will_run(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", str(tiny_bundle)]) == 0
    screen = capsys.readouterr().out
    for part in ("NVIDIA driver", "onnxruntime  ", "tensorrt-rtx", "cuda-bindings", "sm_80", str(tiny_bundle), *LADDER):
        assert part in screen
    assert len(screen.splitlines()) <= 40
    assert "✓ onnxruntime-cpu   works: ONNX Runtime, CPU" in screen
    assert screen.splitlines()[-1] == "--backend auto runs onnxruntime-cpu"


def test_json_tells_the_same(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", str(tiny_bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["auto"] == "onnxruntime-cpu"
    assert [rung["name"] for rung in told["backends"]] == list(LADDER)
    assert [rung["works"] for rung in told["backends"]] == [False, False, False, True]
    assert (told["bundle"]["precision"], told["bundle"]["kernels"], told["bundle"]["plans"]) == ("fp32", ["sm_80"], [])
    assert told["packages"]["cuda-bindings"]


@pytest.mark.parametrize("what", ["graphs", "plans"])
def test_a_session_that_asks_for_a_backend_ends_as_the_doctor_says(tiny_bundle: Path, planned: Path, what: str) -> None:
    folder = tiny_bundle if what == "graphs" else planned
    findings = examine(folder)
    for rung in findings.rungs:
        code = 0
        try:
            Session(folder, backend=rung.name, cache=False).close()
        except FusionerError as error:
            code = error.exit_code
        assert (rung.works, rung.exit_code) == (code == 0, code)
        assert rung.works == (not rung.lacks)
        assert all(lack.cure for lack in rung.lacks)
    with Session(folder, cache=False) as session:
        assert session.backend.effective == findings.auto


def test_without_a_bundle_the_rest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", str(tmp_path / "nowhere")]) == 30
    said = capsys.readouterr()
    assert said.err == ""
    assert "there is no such folder" in " ".join(said.out.split())  # lines are wrapped, wherever a long path ends
    assert "cuda-bindings" in said.out
    assert "✗ onnxruntime-cpu   no bundle to run, see above" in said.out
    assert said.out.splitlines()[-1].startswith("no backend works")


def test_a_broken_bundle_is_said_and_the_rest_is_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bundle, folder)
    (folder / "text.onnx").write_bytes(b"")
    for content, code in ((None, 34), ("{", 31)):
        if content:
            (folder / MANIFEST).write_text(content)
        assert main(["doctor", "--engine", str(folder), "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told["bundle"]["exit_code"] == code
        assert "rebuild it: " in told["bundle"]["problem"]
        assert told["packages"]["cuda-bindings"]
        assert told["auto"] is None


WITHOUT = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from fusioner_rt.cli import main
sys.exit(main(["doctor", "--engine", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("without", "code", "says"),
    [
        (["onnxruntime"], 40, ["→ install it: pip install onnxruntime,", "→ install it: pip install 'onnxruntime-gpu[cuda,cudnn]'"]),
        (["cuda.bindings"], 0, ["cuda-bindings cannot be imported", "→ pip install cuda-bindings cuda-core"]),
        (["tensorrt_rtx", "tensorrt"], 0, ["→ install it: pip install tensorrt\n", "→ install it: pip install tensorrt-rtx\n"]),
        (["onnxruntime", "cuda.bindings", "tensorrt_rtx", "tensorrt"], 40, ["no backend works"]),
        (["numpy"], 40, ["install fusioner-rt again"]),
    ],
)  # fmt: skip
def test_no_missing_package_is_a_traceback(tiny_bundle: Path, without: list[str], code: int, says: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tiny_bundle), *without],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    for part in says:
        assert part in done.stdout + done.stderr


def test_two_onnx_runtimes_in_one_folder_are_a_warning(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"onnxruntime", "onnxruntime-gpu"}
    for name in installed:
        record = tmp_path / f"{name.replace('-', '_')}-1.31.1.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    assert not examine(tiny_bundle).warnings
    monkeypatch.syspath_prepend(tmp_path)
    findings = examine(tiny_bundle)
    assert findings.packages["onnxruntime-gpu"] == "1.31.1"
    (warning,) = findings.warnings
    assert "both installed" in warning.found
    assert "pip uninstall onnxruntime onnxruntime-gpu && " in warning.cure
    assert f"! warning           {warning.found[:60]}" in report(findings)


def test_tensorrt_is_found_under_the_name_of_its_cuda_version(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "tensorrt_cu12-10.16.1.11.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt-cu12\nVersion: 10.16.1.11\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert examine(tiny_bundle).packages["tensorrt"] == "10.16.1.11"


def test_a_package_that_breaks_in_its_own_way_is_told(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11:\\ncannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be loaded (libnvinfer.so.11: cannot open shared object file); install it" in lacks(
        examine(tiny_bundle), "tensorrt"
    )

    def broken(*_: object) -> None:
        raise ZeroDivisionError("within")

    monkeypatch.setattr(doctor, "open_rung", broken)
    assert "ZeroDivisionError: within; reinstall" in lacks(examine(tiny_bundle), "onnxruntime-cpu")


def test_a_gpu_is_shown_with_its_memory_and_tensorrt_works_on_it(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    findings = examine(planned)
    assert findings.auto == "tensorrt-rtx"
    assert findings.exit_code == 0
    assert not findings.warnings
    screen = report(findings)
    assert "GPU 0             Emulated, compute capability 8.0, 8.0 of 80.0 GiB free" in screen
    told = re.sub(r"\s+", " ", screen)
    assert re.search(r"✓ tensorrt-rtx works: image_fusion\S*\.plan on GPU 0 \(Emulated, [^✓]*, TensorRT-RTX 1\.7", told)
    assert findings.to_json()["gpus"][0]["capability"] == "8.0"
    assert "serves CUDA up to 12.4" in screen
    assert not gpu.memory


def test_all_that_a_backend_lacks_is_told_at_once(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((planned / MANIFEST).read_text())
    del manifest["kernels"]
    manifest["engines"][0]["compute_capability"] = "8.9"
    write_manifest(planned, manifest)
    emulated_gpu.install(monkeypatch, EmulatedGpu(planned))
    findings = examine(planned)
    assert "holds no compiled kernels" in lacks(findings, "tensorrt-rtx")
    assert "built for compute capability 8.9, and GPU 0 (Emulated) has 8.0;" in lacks(findings, "tensorrt-rtx")
    assert [warning.found for warning in findings.warnings] == ["the GPU does nothing"]


def test_a_hidden_gpu_and_one_that_fails_are_told(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(EmulatedGpu):
        count = 2

        def cuDeviceGetCount(self) -> tuple[object, int]:  # noqa: N802
            return emulated_gpu.OK, self.count

        def cuDevicePrimaryCtxRetain(self, device: object) -> object:  # noqa: N802
            if int(device) == 1:  # type: ignore[call-overload]
                return (emulated_gpu.real.CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE,)
            return super().cuDevicePrimaryCtxRetain(device)

    gpu = Two(planned)
    emulated_gpu.install(monkeypatch, gpu)
    findings = examine(planned)
    assert len(findings.gpus) == 1
    assert "CUDA_ERROR_DEVICE_UNAVAILABLE" in str(findings.driver.problem)
    assert findings.auto == "tensorrt-rtx"  # the first one is what is run on
    gpu.count = 0
    findings = examine(planned)
    assert findings.auto == "onnxruntime-cpu"
    assert "this process sees no GPU; CUDA_VISIBLE_DEVICES is '', unset it" in lacks(findings, "tensorrt-rtx")


def test_a_gpu_without_its_driver_is_told_from_no_gpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "driver_missing", lambda: "libcuda.so.1: not found")
    monkeypatch.setattr("cuda.bindings.driver.cuInit", _no_driver)
    for there, says in ((True, "an NVIDIA GPU is here and its driver is not"), (False, "no NVIDIA GPU is here")):
        monkeypatch.setattr(hardware, "gpu_is_there", lambda there=there: there)
        assert says in str(examine(tiny_bundle).driver)


def _no_driver(_: int) -> None:
    raise RuntimeError("no driver")


def test_help_shows_the_backends_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    said = capsys.readouterr().out
    for part in ("fusioner-rt doctor --engine engines/mine", "exit code", "onnxruntime-gpu[cuda,cudnn]", *LADDER):
        assert part in said
