"""Sessions of a model with an aligned residual, on the emulated GPU (emulated_gpu.py), against the CPU backend and PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
import torch
from emulated_gpu import EmulatedGpu, planned_copy
from made_pictures import scene

from export.build_engine import Options, build
from fusioner_rt import Session
from kernels import reference
from training import checkpoint
from training.model import tiny

WORDS = ["cat", "tree", "red car", "wall"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path, tiny_traces: None) -> Path:
    """A checkpoint and a planned bundle of the tiny model with an aligned residual that knows one of WORDS."""
    folder = tmp_path_factory.mktemp("aligned")
    torch.manual_seed(0)
    model = checkpoint.build(replace(tiny().config, aligned=16))
    model.image_encoder.load_state_dict(tiny().image_encoder.state_dict())  # type: ignore[attr-defined]
    assert model.aligned is not None
    model.aligned.keep(model.word_vectors(WORDS[:1]))
    torch.nn.init.normal_(model.aligned.unknown)
    checkpoint.save(model, folder / "checkpoint", {})
    limits: dict[str, Any] = {"max_words": 64, "max_batch": 4, "kernels": "sm_80", "backend": "onnxruntime"}
    build(Options(folder / "checkpoint", folder / "bundle", pictures=picture_folder, **limits), shown=False)
    planned_copy(folder / "bundle", folder / "planned")
    return folder


@pytest.mark.parametrize(
    ("input_size", "options"),
    [
        (None, {}), (None, {"size": (40, 31)}), (None, {"probabilities": True}), (None, {"mode": "independent"}),
        (None, {"background": "grass, sky"}), (64, {}), pytest.param(64, {"mode": "independent"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_masks_are_those_of_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, input_size: int | None, options: dict[str, Any]
) -> None:
    gpu = EmulatedGpu(folder / "planned")
    emulated_gpu.install(monkeypatch, gpu)
    pictures = [scene(61, 93), scene(61, 93, 3), scene(120, 50, 2)]
    opened: dict[str, Any] = {"cache": False, "input_size": input_size}
    with (
        Session(folder / "planned", backend="tensorrt-rtx", **opened) as ours,
        Session(folder / "planned", backend="onnxruntime-cpu", **opened) as cpu,
    ):
        assert ours.backend.effective == "tensorrt-rtx"
        found, expected = (session.segment(pictures, WORDS, **options) for session in (ours, cpu))
    assert not gpu.wrong
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)
        assert (one.labels == other.labels).mean() > 0.998


def test_the_cpu_gives_what_pytorch_gives(folder: Path) -> None:
    model, rgb = checkpoint.load(folder / "checkpoint"), scene(61, 93)
    with torch.no_grad():
        pixels = torch.from_numpy(model.preprocessing()(rgb))[None]
        features, refined = model(pixels, model.word_vectors(WORDS)[None])
        maps = reference.score_maps(features, refined)
        expected = reference.probabilities(*maps, (61, 93), model.config.temperature)[0].numpy()
    with Session(folder / "bundle", backend="onnxruntime-cpu", cache=False) as session:
        found = session.segment(rgb, WORDS, probabilities=True).probabilities
    np.testing.assert_allclose(found, expected, atol=2e-4)
