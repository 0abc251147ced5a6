"""Sessions of a bundle that scores by softmax, on the emulated GPU (emulated_gpu.py), against the CPU backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, planned_copy
from made_pictures import scene

from fusioner_rt import Session

WORDS = ["cat", "tree", "red car", "wall"]


@pytest.fixture(scope="module")
def sessions(clip_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Session]]:
    """On the emulated GPU, and on the CPU."""
    folder = planned_copy(clip_bundle, tmp_path_factory.mktemp("softmax") / "planned")
    gpu = EmulatedGpu(folder)
    with pytest.MonkeyPatch.context() as patch:
        emulated_gpu.install(patch, gpu)
        with (
            Session(folder, backend="tensorrt-rtx", cache=False) as ours,
            Session(folder, backend="onnxruntime-cpu", cache=False) as cpu,
        ):
            assert ours.backend.effective == "tensorrt-rtx"
            yield ours, cpu
    assert not gpu.wrong


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": (40, 31)},
        {"threshold": 0.4},
        {"probabilities": True},
        {"mode": "independent"},
        {"background": "grass, sky"},
        {"window": "sliding"},
        {"window": "sliding", "probabilities": True, "size": (64, 65)},
    ],
)
def test_masks_are_those_of_the_cpu(sessions: tuple[Session, Session], options: dict[str, Any]) -> None:
    pictures = [scene(61, 93), scene(61, 93, 3), scene(120, 50, 2)]
    found, expected = (session.segment(pictures, WORDS, **options) for session in sessions)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-4)
        assert (ours.labels == theirs.labels).mean() > 0.998
        assert ours.threshold == theirs.threshold
        if theirs.probabilities is not None:
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)


def test_windows_that_were_encoded_are_asked_again(sessions: tuple[Session, Session]) -> None:
    for session in sessions:
        encoded = session.encode(scene(61, 93), window="sliding")
        again, direct = (session.segment(one, WORDS, window="sliding") for one in (encoded, scene(61, 93)))
        np.testing.assert_array_equal(again.labels, direct.labels)
