"""ONNX Runtime's two backends: what is asked of it, and that it never runs on the CPU unasked."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from fusioner_rt import hardware, ladder
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import BackendUnavailable, GraphUnusable
from fusioner_rt.ladder import open_executor
from fusioner_rt.onnx import runtime
from fusioner_rt.onnx.runtime import CPU, CUDA, OnnxRuntime, providers


@pytest.fixture
def gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's package on a machine with a driver and without what else CUDA needs: CUDA is listed, and sessions
    quietly run on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(runtime, "driver_missing", lambda: None)


def test_what_is_asked_of_onnx_runtime() -> None:
    assert providers("onnxruntime-cpu", [CUDA, CPU]) == [CPU]
    assert providers("onnxruntime-cuda", [CUDA, CPU]) == [CUDA, CPU]
    with pytest.raises(BackendUnavailable, match="built without CUDA"):
        providers("onnxruntime-cuda", [CPU])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_to_the_cpu_is_refused_or_told(tiny_bundle: Path, gpu_package: None) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BackendUnavailable, match="fell back"):
        OnnxRuntime("onnxruntime-cuda").load(bundle.graph("mask_scores"))
    for requested in ("auto", "onnxruntime"):
        executor, backend = open_executor(bundle, requested, threads=1)
        executor.close()
        assert (backend.requested, backend.effective) == (requested, "onnxruntime-cpu")
        assert "fell back" in dict(backend.passed_over)["onnxruntime-cuda"]
        assert backend.note is not None
        assert "fell back" in backend.note
    with pytest.raises(BackendUnavailable, match="fell back"):
        open_executor(bundle, "onnxruntime-cuda", threads=1)


@pytest.mark.skipif(hardware.driver_missing() is None, reason="this machine has NVIDIA's driver")
def test_without_a_driver_the_gpu_package_is_not_even_asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver \(.*\); install it, or choose onnxruntime-cpu"):
        open_executor(Bundle.open(tiny_bundle), "onnxruntime-cuda", threads=1)


def test_a_failure_of_cuda_is_not_blamed_on_the_graph_nor_answered_by_the_cpu(
    tiny_bundle: Path,
    tmp_path: Path,
    gpu_package: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where driver and libraries are there and no GPU: asked for CUDA, ONNX Runtime raises when a session is made."""
    real = onnxruntime.InferenceSession

    class Session(real):  # type: ignore[misc, valid-type]
        def _create_inference_session(self, chosen: list, *more: object) -> None:
            if any(CUDA in provider for provider in chosen):
                raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
            super()._create_inference_session(chosen, *more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(BackendUnavailable, match=r"could not start CUDA .*no CUDA-capable device"):
        OnnxRuntime("onnxruntime-cuda").load(Bundle.open(tiny_bundle).graph("mask_scores"))
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(GraphUnusable, match="rebuild the bundle"):
        OnnxRuntime("onnxruntime-cuda").load(path)
    assert capsys.readouterr().out == ""  # ONNX Runtime's own falling back is announced there


def test_a_later_run_that_fails_on_the_gpu_is_not_repeated_on_the_cpu(tiny_bundle: Path) -> None:
    graph = OnnxRuntime("onnxruntime-cpu").load(Bundle.open(tiny_bundle).graph("mask_scores"))
    assert graph._session._enable_fallback is False


def test_a_rung_that_loads_and_cannot_run_is_passed_over(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where ONNX Runtime has no kernels for the GPU, which shows in the first run."""
    from fusioner_rt.onnx.executor import OnnxRuntimeExecutor

    class Failing(OnnxRuntimeExecutor):
        def run(self, *arguments: object) -> list:
            raise GraphUnusable("CUDA error 209: no kernel image is available; rebuild the bundle")

    monkeypatch.setattr(
        "fusioner_rt.open_backend.open_graphs",
        lambda bundle, threads: (Failing(bundle, "onnxruntime-cpu", threads), "CUDA"),
    )
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BackendUnavailable, match=r"a first picture .* no kernel image.*choose another backend"):
        open_executor(bundle, "onnxruntime-cuda", threads=1)
    executor, backend = open_executor(bundle, "onnxruntime", threads=1)
    executor.close()
    assert backend.effective == "onnxruntime-cpu"
    monkeypatch.setattr(Failing, "run", OnnxRuntimeExecutor.run)
    executor, backend = open_executor(bundle, "onnxruntime", threads=1)
    executor.close()
    assert backend.effective == "onnxruntime-cuda"


def test_a_library_that_fails_unforeseen_is_passed_over_but_not_hidden_where_it_was_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ladder.open_rung

    def broken(bundle: Bundle, name: str, *more: object) -> object:
        if name == "tensorrt":
            raise TypeError("deserialize_cuda_engine():\nincompatible arguments")
        return real(bundle, name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "open_rung", broken)
    bundle = Bundle.open(tiny_bundle)
    executor, backend = open_executor(bundle, "auto", threads=1)
    executor.close()
    said = "TypeError: deserialize_cuda_engine(): incompatible arguments; please report this"
    assert dict(backend.passed_over)["tensorrt"] == said
    with pytest.raises(TypeError):
        open_executor(bundle, "tensorrt", threads=1)


def test_an_onnx_runtime_installed_in_part_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of two packages that share a folder when one of them was removed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(BackendUnavailable, match=r"installed in part.*pip uninstall onnxruntime onnxruntime-gpu"):
        OnnxRuntime("onnxruntime-cpu")


def test_a_note_is_made_where_a_gpu_does_nothing_and_not_otherwise(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)

    def note(requested: str) -> str | None:
        executor, backend = open_executor(bundle, requested, threads=1)
        executor.close()
        return backend.note

    monkeypatch.setattr(hardware, "gpu_is_there", lambda: False)
    assert note("auto") is None
    monkeypatch.setattr(hardware, "gpu_is_there", lambda: True)
    assert "does nothing; ask fusioner-rt doctor" in (note("auto") or "")
    assert note("onnxruntime-cpu") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert note("auto") is None


def test_a_gpu_is_told_from_the_file_system_without_a_driver(tmp_path: Path) -> None:
    assert not hardware.gpu_is_there(tmp_path)
    card = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x020000\n")  # its maker has network cards too
    assert not hardware.gpu_is_there(tmp_path)
    (card / "class").write_text("0x030200\n")
    assert hardware.gpu_is_there(tmp_path)
    container = tmp_path / "container"
    (container / "dev").mkdir(parents=True)
    (container / "dev" / "nvidiactl").touch()
    assert not hardware.gpu_is_there(container)
    (container / "dev" / "nvidia3").touch()
    assert hardware.gpu_is_there(container)
    assert hardware.driver_version(tmp_path) is None
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("580.65.06\n")
    assert hardware.driver_version(tmp_path) == "580.65.06"


def test_an_unknown_backend_names_those_there_are(tiny_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"'cuda' is unknown.*" + ", ".join(ladder.LADDER)):
        open_executor(Bundle.open(tiny_bundle), "cuda", threads=1)


def test_a_graph_that_cannot_be_loaded_names_the_file_and_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(GraphUnusable, match=r"broken\.onnx.*rebuild the bundle: python export/build_engine\.py"):
        OnnxRuntime("onnxruntime-cpu").load(path)


def test_a_graph_that_refuses_its_inputs_names_their_shapes(tiny_bundle: Path) -> None:
    graph = OnnxRuntime("onnxruntime-cpu").load(Bundle.open(tiny_bundle).graph("mask_scores"))
    with pytest.raises(GraphUnusable, match=r"features \(1, 2\)"):
        graph({"features": np.zeros((1, 2), np.float32), "refined": np.zeros((1, 2), np.float32)})
