from pathlib import Path

import onnxruntime
import pytest

from fusioner_rt.backends import open_executor
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import BackendUnavailable, GraphUnusable
from fusioner_rt.onnxruntime_backend import CPU, CUDA, OnnxRuntime, providers


def test_what_is_asked_of_onnx_runtime() -> None:
    assert providers("onnxruntime-cpu", [CUDA, CPU]) == [CPU]
    assert providers("onnxruntime-cuda", [CUDA, CPU]) == [CUDA, CPU]
    with pytest.raises(BackendUnavailable, match="built without CUDA"):
        providers("onnxruntime-cuda", [CPU])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_to_the_cpu_is_refused_or_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with the GPU package and no driver: CUDA is listed, and sessions quietly run on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BackendUnavailable, match="fell back"):
        OnnxRuntime("onnxruntime-cuda").load(bundle.graph("mask_scores"))
    for requested in ("auto", "onnxruntime"):
        executor, backend = open_executor(bundle, requested, threads=1)
        executor.close()
        assert (backend.requested, backend.effective) == (requested, "onnxruntime-cpu")
        assert "fell back" in dict(backend.passed_over)["onnxruntime-cuda"]
    with pytest.raises(BackendUnavailable, match="fell back"):
        open_executor(bundle, "onnxruntime-cuda", threads=1)


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
