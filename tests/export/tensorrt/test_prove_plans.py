"""Plans are proved where they run. Without a GPU: on the emulated one, whose TensorRT is ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, plan

from export import gates
from export.tensorrt.prove_plans import prove
from fusioner_rt.bundle import Bundle
from fusioner_rt.onnx.runtime import OnnxRuntime
from training import checkpoint


def proved(folder: Path, tiny_checkpoint: Path, pictures: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    bundle, runtime = Bundle.open(folder), OnnxRuntime("onnxruntime-cpu")
    graphs = {name: runtime.load(bundle.graph(name)) for name in bundle.graphs}
    return prove(bundle, checkpoint.load(tiny_checkpoint), graphs, bundle.preprocessing, pictures)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return [gates.textured(seed, (64, 96)) for seed in (1, 2)]


def test_plans_pass_every_gate_where_they_run(planned, tiny_checkpoint, pictures, monkeypatch) -> None:
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    (record,) = proved(planned, tiny_checkpoint, pictures).values()
    assert record["run"]
    assert record["parity"]["mask_agreement"] > 0.99
    assert record["batch"]["equal_pictures"] == 4
    assert record["words"]["mask_agreement"] > 0.99
    assert not gpu.memory


def test_a_plan_that_confuses_the_pictures_of_a_batch_is_refused(
    planned, tiny_checkpoint, pictures, monkeypatch
) -> None:
    """The known failure of engines: right for one picture, wrong for several."""
    gpu = EmulatedGpu(planned)
    module = emulated_gpu.install(monkeypatch, gpu)
    deserialize = module.Runtime.deserialize_cuda_engine

    def confused(self: Any, content: bytes) -> Any:
        engine = deserialize(self, content)
        run = engine.session.run

        class Session:
            get_inputs, get_outputs = engine.session.get_inputs, engine.session.get_outputs

            def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
                found = run(names, inputs)
                if len(inputs.get("pixels", ())) > 1:
                    found[0] = found[0][::-1].copy()
                return found

        engine.session = Session()
        return engine

    monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", confused)
    with pytest.raises(gates.BatchFailed, match="different pictures in a batch"):
        proved(planned, tiny_checkpoint, pictures)


def test_a_plan_of_another_gpu_or_without_one_is_said_not_to_have_run(
    planned, tiny_checkpoint, pictures, monkeypatch
) -> None:
    (record,) = proved(planned, tiny_checkpoint, pictures).values()
    assert record["run"] is False
    assert "no GPU here" in record["why"]
    emulated_gpu.install(monkeypatch, EmulatedGpu(planned, capability=(7, 5)))
    (record,) = proved(planned, tiny_checkpoint, pictures).values()
    assert record["why"] == "for compute capability 8.0+, the GPU here has 7.5"


def test_a_text_plan_that_holds_the_prompts_of_one_word_alone_passes(
    tiny_bundle, tmp_path, tiny_checkpoint, pictures, monkeypatch
) -> None:
    """As that of a model with so many templates that several words' are more than a profile's prompts."""
    folder = tmp_path / "templates"
    shutil.copytree(tiny_bundle, folder)
    templates = len(Bundle.open(folder).templates)
    prompts = {name: [[1, 1], [templates, 8], [templates, 64]] for name in ("input_ids", "attention_mask")}
    plan(folder, "image_fusion")
    plan(folder, "text", profiles=[prompts])
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder))
    (record,) = proved(folder, tiny_checkpoint, pictures).values()
    assert record["run"]
    assert 0 < record["parity"]["embeddings"]["error"] <= record["parity"]["embeddings"]["allowed"]


def test_a_plan_for_one_picture_skips_the_gate_of_batches(
    tiny_bundle, tmp_path, tiny_checkpoint, pictures, monkeypatch
) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(tiny_bundle, folder)
    single = {
        "pixels": [[1, 3, 32, 32], [1, 3, 96, 96], [1, 3, 1024, 1024]],
        "words": [[1, 1, 24], [1, 20, 24], [1, 64, 24]],
    }
    plan(folder, "image_fusion", profiles=[single])
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder))
    (record,) = proved(folder, tiny_checkpoint, pictures).values()
    assert record["run"]
    assert "fewer pictures than the bundle" in record["batch"]["why"]


def test_a_gpu_that_tensorrt_itself_refuses_is_said_not_to_have_run(
    tiny_bundle, tmp_path, tiny_checkpoint, pictures, monkeypatch
) -> None:
    folder = tmp_path / "refused"
    shutil.copytree(tiny_bundle, folder)
    plan(folder, "image_fusion", diagnostics=2)
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder))
    (record,) = proved(folder, tiny_checkpoint, pictures).values()
    assert record["run"] is False
    assert "built for other GPUs" in record["why"]
