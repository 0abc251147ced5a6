"""The benchmark of both scorings runs to its table, and stops where a scoring gives other labels."""

from __future__ import annotations

import pytest

from benchmarks import scorings

SMALL = ["--sizes", "97", "--words", "5", "--maps", "smooth,random", "--repeats", "2", "--busy"]


def test_a_row_per_case_with_both_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert scorings.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines] == [7] * 4
    assert all(float(cell) > 0 for cell in lines[2].split("|")[4:7])


def test_other_labels_end_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = scorings.mask_head_graphs.tiles_graph
    monkeypatch.setattr(scorings.mask_head_graphs, "tiles_graph", lambda _, scoring: tiles(5.0, scoring))
    assert scorings.main(SMALL) == scorings.Disagreement.exit_code
    assert "otherwise" in capsys.readouterr().err
