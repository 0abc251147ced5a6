"""A plan for one picture at a time serves lists and independent words too, one after another."""

from __future__ import annotations

import shutil
from pathlib import Path

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, plan
from made_pictures import scene

from fusioner_rt import Session


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_a_plan_for_one_picture_takes_many_one_by_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(tiny_bundle, folder)
    shapes = {
        "pixels": [[1, 3, 32, 32], [1, 3, 96, 96], [1, 3, 96, 96]],
        "words": [[1, 1, 24], [1, 3, 24], [1, 3, 24]],
    }
    plan(folder, "image_fusion", profiles=[shapes])
    emulated_gpu.install(monkeypatch, EmulatedGpu(folder))
    pictures, words = [scene(50, 50, seed) for seed in range(3)], ["cat", "tree", "red car"]
    with (
        Session(folder, backend="tensorrt-rtx", cache=False) as gpu,
        Session(folder, backend="onnxruntime-cpu", cache=False) as cpu,
    ):
        for ours, theirs in zip(
            gpu.segment(pictures, words, mode=mode), cpu.segment(pictures, words, mode=mode), strict=True
        ):
            np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-5)
