"""The benchmark of videos: a row per case, and the page has the record's table."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import command, machine, video
from fusioner_rt.video import frames

PAGE = (machine.ROOT / "docs/video.md").read_text()
RECORD = machine.ROOT / "docs/records/video.jsonl"


def test_a_row_per_case_and_the_memory_over_more_frames_than_the_clip_has(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "SIZE", (72, 128))
    monkeypatch.setattr(video, "STEP", 4)
    record = tmp_path / "video.jsonl"
    given = [
        "--engine",
        str(tiny_bundle),
        "--json",
        str(record),
        "--seconds",
        "0.24",
        "--rounds",
        "1",
        "--frames",
        "20",
    ]
    assert video.main([*given, "--busy"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    *rows, memory = [json.loads(line) for line in record.read_text().splitlines()]
    assert [row["case"] for row in rows] == list(video.NAMES)
    for row in rows:
        assert row["frames"] == 6
        assert row["frames_a_second"] > 0
        assert row["processor_ms_a_frame"] > 0
    assert [look["frames"] for look in memory["looks"]] == [4, 8, 12, 16, 20]
    assert memory["looks"][-1]["bytes"] > 30e6
    assert video.main(["--from", str(record)]) == 0
    assert capsys.readouterr().out == printed


def test_the_clip_moves_over_each_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "SIZE", (72, 128))
    video.make_clip(tmp_path / "clip.mp4", 0.48)
    with frames(tmp_path / "clip.mp4") as clip:
        pictures = list(clip)
        assert clip.rate == 25
    assert len(pictures) == 12
    assert {picture.shape for picture in pictures} == {(72, 128, 3)}
    for one, other in itertools.pairwise(pictures):
        assert not np.array_equal(one, other)


def test_the_page_has_the_records_table_and_the_command_that_makes_it() -> None:
    rows = command.read(RECORD, "video") if RECORD.exists() else []
    between = PAGE.partition("<!-- speed -->\n")[2].partition("<!-- /speed -->\n")[0]
    assert between.strip() == (video.table(rows) if rows else "")
    assert "python -m benchmarks.video --rounds 3 --frames 5000 --json docs/records/video.jsonl" in PAGE
