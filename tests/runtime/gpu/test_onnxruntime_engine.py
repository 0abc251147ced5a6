"""Sessions on ONNX Runtime's CUDA without a GPU: its arrays and streams are the emulated GPU's (emulated_onnxruntime.py)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_onnxruntime
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.bundle import write_manifest
from fusioner_rt.errors import BackendUnavailable, CudaFailed, UsageError

WORDS = ["cat", "tree", "red car"]
BACKEND = "onnxruntime-cuda"


@pytest.fixture
def gpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    gpu = EmulatedGpu(tiny_bundle)
    gpu.runs = emulated_onnxruntime.install(monkeypatch, gpu)  # type: ignore[attr-defined]
    yield gpu
    assert not gpu.wrong


@pytest.fixture
def session(tiny_bundle: Path, gpu: EmulatedGpu) -> Iterator[Session]:
    with Session(tiny_bundle, backend=BACKEND, cache=False) as session:
        yield session


@pytest.fixture
def cpu(tiny_bundle: Path) -> Iterator[Session]:
    with Session(tiny_bundle, backend="onnxruntime-cpu", cache=False) as session:
        yield session


def agree(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-5)
    assert (ours.labels == theirs.labels).mean() > 0.999


def test_masks_are_those_of_the_cpu_and_made_on_the_gpu(session: Session, cpu: Session, gpu: EmulatedGpu) -> None:
    assert session.backend.effective == BACKEND
    assert "ONNX Runtime, CUDA on GPU 0" in session.backend.why
    assert not session.notes
    pictures = [scene(61, 93), scene(50, 50, 2), scene(61, 93, 3), scene(96, 96, 4)]
    for options in ({}, {"size": (40, 31)}, {"threshold": 0.6}, {"mode": "independent"}, {"probabilities": True}):
        gpu.order.clear()
        ours = session.segment(pictures, WORDS, **options)  # type: ignore[call-overload]
        assert {what for what, _ in gpu.order} >= {"kernel", "engine"}
        for one, other in zip(ours, cpu.segment(pictures, WORDS, **options), strict=True):  # type: ignore[call-overload]
            agree(one, other)
            if options.get("probabilities"):
                np.testing.assert_allclose(one.probabilities, other.probabilities, atol=2e-5)


def test_frames_in_bgr_are_prepared_as_rgb(session: Session, gpu: EmulatedGpu) -> None:
    picture = scene(61, 93)
    result = session.segment(picture[..., ::-1], WORDS, channels="bgr")
    np.testing.assert_array_equal(result.labels, session.segment(picture, WORDS).labels)
    with pytest.raises(UsageError, match="takes RGB alone"):
        session.segment_on_device(picture, WORDS, channels="bgr")


def test_a_call_waits_once_and_records_nothing(session: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    for _ in range(2):
        session.segment(scene(61, 93))
    gpu.runs.clear()  # type: ignore[attr-defined]
    gpu.calls.clear()
    session.segment(scene(61, 93))
    assert gpu.runs == ["enqueued"]  # type: ignore[attr-defined]
    assert gpu.calls.count("cuStreamSynchronize") == 1
    assert not {"cuMemAlloc", "cuMemHostAlloc", "cuGraphLaunch", "cuStreamBeginCapture"} & set(gpu.calls)


def test_pictures_in_gpu_memory_give_masks_in_gpu_memory(session: Session, cpu: Session, gpu: EmulatedGpu) -> None:
    session.set_vocabulary(WORDS)
    results = []
    for seed in range(4):  # streams take turns on ONNX Runtime's, and nobody waits before the end
        picture = scene(61, 93, seed)
        given = {
            "version": 3, "shape": picture.shape, "typestr": "|u1", "data": (gpu.lay(picture), False), "strides": None,
        }  # fmt: skip
        held = type("Picture", (), {"__cuda_array_interface__": given})()
        results.append(session.segment_on_device(held, stream=55 + seed % 2))
    gpu.finish_all()
    for seed, result in enumerate(results):
        other = cpu.segment(scene(61, 93, seed), WORDS)
        np.testing.assert_allclose(result.confidence.numpy(), other.confidence, atol=2e-5)
        assert (result.labels.numpy() == other.labels).mean() > 0.999


def test_threads_share_a_session_and_get_what_one_would(session: Session) -> None:
    session.set_vocabulary(WORDS)
    alone = [session.segment(scene(61, 93, seed)) for seed in range(12)]
    found: dict[int, Any] = {}

    def work(start: int) -> None:
        for seed in range(start, 12, 4):
            found[seed] = session.segment(scene(61, 93, seed))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, result in enumerate(alone):
        np.testing.assert_array_equal(found[seed].labels, result.labels)
        np.testing.assert_array_equal(found[seed].confidence, result.confidence)


def test_closing_gives_all_memory_back(tiny_bundle: Path, gpu: EmulatedGpu) -> None:
    with Session(tiny_bundle, backend=BACKEND, cache=False) as session:
        session.segment([scene(61, 93), scene(50, 50)], WORDS)
        assert gpu.memory
    gpu.expect_nothing_left()


@pytest.mark.parametrize("call", ["cuStreamCreate", "cuMemAlloc", "cuEventCreate", "cuLaunchKernel", "cuMemsetD8Async"])
def test_a_gpu_that_fails_is_passed_over_and_leaves_nothing(tiny_bundle: Path, gpu: EmulatedGpu, call: str) -> None:
    gpu.failing = call
    with Session(tiny_bundle, cache=False) as session:
        assert session.backend.effective == "onnxruntime-cpu"
        assert call in dict(session.backend.passed_over)[BACKEND]
    with pytest.raises(CudaFailed, match=call):
        Session(tiny_bundle, backend=BACKEND, cache=False)
    assert not gpu.memory
    assert gpu.retained == 0


def test_without_kernels_the_cpu_prepares_pictures_and_makes_masks_and_says_so(
    tiny_bundle: Path, tmp_path: Path, cpu: Session, gpu: EmulatedGpu
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    shutil.rmtree(folder / "kernels")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["kernels"]
    write_manifest(folder, manifest)
    with Session(folder, backend=BACKEND, cache=False) as session:
        (note,) = session.notes
        assert "masks made on the CPU" in note
        assert "holds no compiled kernels" in note
        agree(session.segment(scene(61, 93), WORDS), cpu.segment(scene(61, 93), WORDS))
        with pytest.raises(BackendUnavailable, match=r"works in GPU memory.*notes"):
            session.segment_on_device(scene(61, 93), WORDS)


def test_without_cudas_bindings_the_cpu_does_too(
    tiny_bundle: Path, gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise BackendUnavailable("cuda-bindings cannot be imported (gone); pip install cuda-bindings cuda-core")

    monkeypatch.setattr("fusioner_rt.gpu.driver.Device", missing)
    with Session(tiny_bundle, backend=BACKEND, cache=False) as session:
        assert "cuda-bindings cannot be imported" in session.notes[0]
        session.segment(scene(61, 93), WORDS)
