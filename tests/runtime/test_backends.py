from pathlib import Path

import onnxruntime
import pytest

from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import BackendUnavailable, GraphUnusable
from fusioner_rt.onnxruntime_backend import CPU, CUDA, OnnxRuntime, choose


@pytest.mark.parametrize(
    ("requested", "available", "providers"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CUDA, CPU], [CUDA, CPU]),
        ("onnxruntime", [CUDA, CPU], [CUDA, CPU]),
        ("onnxruntime-cpu", [CUDA, CPU], [CPU]),
        ("onnxruntime-cuda", [CUDA, CPU], [CUDA, CPU]),
    ],
)
def test_what_is_asked_of_onnx_runtime(requested: str, available: list[str], providers: list[str]) -> None:
    assert choose(requested, available)[0] == providers


@pytest.mark.parametrize("requested", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "abacus"])
def test_backends_that_cannot_be_had_name_those_that_can(requested: str) -> None:
    with pytest.raises(BackendUnavailable, match="onnxruntime-cpu"):
        choose(requested, [CPU])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_to_the_cpu_is_told_or_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with the GPU package and no driver: CUDA is listed, and sessions quietly run on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    graph = Bundle.open(tiny_bundle).graph("mask_scores")
    runtime = OnnxRuntime("auto")
    runtime.load(graph)
    assert runtime.backend.requested == "auto"
    assert runtime.backend.effective == "onnxruntime-cpu"
    assert "fell back" in runtime.backend.why
    with pytest.raises(BackendUnavailable, match="fell back"):
        OnnxRuntime("onnxruntime-cuda").load(graph)


def test_a_graph_that_cannot_be_loaded_names_the_file_and_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(GraphUnusable, match=r"broken\.onnx.*rebuild the bundle: python export/build_engine\.py"):
        OnnxRuntime("onnxruntime-cpu").load(path)


def test_a_graph_that_refuses_its_inputs_names_their_shapes(tiny_bundle: Path) -> None:
    import numpy as np

    graph = OnnxRuntime("onnxruntime-cpu").load(Bundle.open(tiny_bundle).graph("mask_scores"))
    with pytest.raises(GraphUnusable, match=r"features \(1, 2\)"):
        graph({"features": np.zeros((1, 2), np.float32), "refined": np.zeros((1, 2), np.float32)})
