"""What the tests of videos share: a session, and clips of a few frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made_videos import clip

from fusioner_rt import Session


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session(tiny_bundle, "onnxruntime-cpu", threads=2) as opened:
        opened.set_vocabulary("cat, sofa")
        yield opened


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames, ten a second, with sound."""
    return clip(tmp_path_factory.mktemp("films") / "film.mp4", sound=0.8, g="4")
