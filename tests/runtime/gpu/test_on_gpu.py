"""What only a GPU can show: TensorRT-RTX's plan and the captured path, against the CPU. Skips where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusioner_rt import Session
from fusioner_rt.bundle import Bundle
from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import FusionerError
from fusioner_rt.gpu.driver import Device

ROOT = Path(__file__).parents[3]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.jpg"))
WORDS = "cat, sofa, person"


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return Device()
    except FusionerError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.fixture(scope="module")
def planned(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$FUSIONER_GPU_BUNDLE, or the demonstration bundle, with a TensorRT-RTX plan: its own, or one built by the user's
    command. No kernels are compiled, no graph is traced.
    """
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    named = Path(os.environ.get("FUSIONER_GPU_BUNDLE", ROOT / "models" / "demo" / "bundle"))
    if any(plan.flavour == "tensorrt-rtx" for plan in Bundle.open(named).plans):
        return named
    pytest.importorskip("onnx", reason=f"{named} has no plan, and onnx, which building one needs, is not installed")
    folder = tmp_path_factory.mktemp("engines") / "demo"
    shutil.copytree(named, folder)
    command = [sys.executable, "export/add_plans.py", str(folder), "--backend", "tensorrt-rtx"]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def test_what_the_check_asks_of_the_shipped_kernels_and_the_path_is_as_it_should_be(device: Device) -> None:
    steps = "versions,cubins,ptx,preprocess,path"
    command = [sys.executable, "benchmarks/gpu_check.py", "--steps", steps, "--json", os.devnull]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plan_runs_here_and_its_masks_are_those_of_the_cpu(planned: Path) -> None:
    with (
        Session(planned, backend="tensorrt-rtx", cache=False) as gpu,
        Session(planned, backend="onnxruntime-cpu", cache=False) as cpu,
    ):
        print(gpu.backend, gpu.notes)
        assert not gpu.notes
        for mode in ("joint", "independent"):
            for ours, theirs in zip(
                gpu.segment(PICTURES, WORDS, mode=mode), cpu.segment(PICTURES, WORDS, mode=mode), strict=True
            ):
                assert (ours.labels == theirs.labels).mean() > 0.99
                assert np.abs(ours.confidence - theirs.confidence).mean() < 0.01


def test_a_steady_state_allocates_nothing(planned: Path, device: Device) -> None:
    frame = decode(PICTURES[0])
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.set_vocabulary(WORDS)
        first, *_ = [session.segment(frame) for _ in range(3)]  # the second records
        free = device.free_bytes
        for _ in range(200):
            result = session.segment(frame)
            np.testing.assert_array_equal(result.labels, first.labels)
            np.testing.assert_array_equal(result.confidence, first.confidence)
        assert device.free_bytes == free


@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_examples_run(planned: Path, library: str) -> None:
    lacks = f"{library} is not installed"
    if library == "pycuda":
        toolkit = "nvcc is here" if shutil.which("nvcc") else "no nvcc is here"
        lacks += f", and has no wheels: pip install '.[pycuda]' builds it where a CUDA toolkit is ({toolkit})"
    pytest.importorskip(library, reason=lacks)
    if library == "torch":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("the installed torch is built for the CPU")
    command = [f"examples/{library}_frames.py", str(PICTURES[0]), "--words", WORDS, "--engine", str(planned)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cat: ")
