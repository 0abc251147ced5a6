"""Cameras: the newest frame, dropped ones counted, until Ctrl-C; through a real RTSP connection."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import clip, shown
from rtsp_camera import camera

from fusioner_rt import Session, video
from fusioner_rt.cli import main
from fusioner_rt.errors import VideoUnreachable


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with camera() as given:
        yield given


def test_the_newest_frames_come_and_the_dropped_ones_are_counted(session: Session, url: str) -> None:
    with video.frames(url) as frames:
        assert (frames.live, frames.expected) == (True, None)
        seen = []
        for one in session.stream(frames, threshold=0, live=frames.live):
            seen.append((one.index, one.dropped, frames.time(one.index)))
            assert one.result.labels.shape == (64, 96)
            time.sleep(0.1)  # five frames of the camera's
            if len(seen) == 5:
                break
    assert sum(dropped for _, dropped, _ in seen) >= 8
    for (index, _, at), (following, dropped, later) in itertools.pairwise(seen):
        assert following == index + dropped + 1
        assert later > at


def test_a_camera_is_recorded_for_as_long_as_is_asked(
    url: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--words", "cat", "--engine", str(tiny_bundle), "--backend", "onnxruntime-cpu", "--threads", "2"]
    assert main(["segment", url, *asked, "--to", "0.5", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(f"{url}: ")
    lines = [json.loads(line) for line in (tmp_path / "pan.jsonl").read_text().splitlines()]
    assert f", {sum(line.get('dropped', 0) for line in lines)} dropped, " in said.out
    assert 0 <= lines[0]["time"] <= lines[-1]["time"] < 0.5
    assert (lines[0]["time"] == 0) == ("dropped" not in lines[0])  # the first may be too old already
    found = [float(at) for at, _ in shown(tmp_path / "pan.overlay.mp4")]
    assert found == pytest.approx([line["time"] for line in lines], abs=1e-4)
    assert main(["segment", url, *asked, "--resume"]) == 2
    assert "is live, and what it showed is gone" in capsys.readouterr().err


def test_ctrl_c_is_the_end_and_the_files_get_their_names(url: str, tiny_bundle: Path, tmp_path: Path) -> None:
    asked = ["--words", "cat", "--engine", str(tiny_bundle), "--backend", "onnxruntime-cpu", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", "segment", url, *asked],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        partial = tmp_path / "pan.partial.jsonl"
        while not (partial.exists() and partial.read_bytes().count(b"\n") >= 5):
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (0, "")
    count = (tmp_path / "pan.jsonl").read_bytes().count(b"\n")
    assert said.startswith(f"{url}: {count} frames, ")
    assert len(shown(tmp_path / "pan.overlay.mp4")) == count >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pan.jsonl", "pan.overlay.mp4"]


def test_a_camera_that_goes_leaves_what_was_written(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusioner_rt.video.sources.SILENCE", 1.0)
    monkeypatch.setattr("rtsp_camera.range", lambda _: range(60), raising=False)
    with camera() as url:
        asked = ["--words", "cat", "--engine", str(tiny_bundle), "--backend", "onnxruntime-cpu"]
        assert main(["segment", url, *asked, "--out", str(tmp_path)]) == 16
    told = capsys.readouterr().err
    assert told.count("\n") == 2, told
    gone, left = told.splitlines()
    assert "gives no video" in gone
    assert "pan.overlay.partial.mp4" in left
    assert "--resume" not in left
    assert len(shown(tmp_path / "pan.overlay.partial.mp4")) >= 3


def test_a_camera_that_gives_nothing_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver says "again" for as long as it is asked."""
    monkeypatch.setattr("fusioner_rt.video.sources.SILENCE", 0.3)

    class Camera:
        def __init__(self, real: Any) -> None:
            self._real, self._given = real, 0

        def demux(self, stream: Any) -> Iterator[Any]:
            for packet in itertools.islice(self._real.demux(stream), self._given, 3):
                self._given += 1
                time.sleep(0.2)  # which is not silence
                yield packet
            raise BlockingIOError

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    path = clip(tmp_path / "whole_frames.avi", codec="mjpeg")
    with video.frames(path, live=True) as frames:
        frames.source = frames.source._replace(kind="camera")
        frames._container = Camera(frames._container)  # type: ignore[assignment]
        read = iter(frames)
        for _ in range(3):
            assert isinstance(next(read), np.ndarray)
        with pytest.raises(VideoUnreachable, match=r"the camera gives no frame for 0\.3 s; check that it is there"):
            list(read)
