"""The comparison of two bundles runs to its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import against
from fusioner_rt.errors import BundleMissing, FusionerError, PictureMissing

SMALL = ["--sides", "33,70", "--words", "12", "--repeats", "2", "--busy"]


def test_a_bundle_beside_itself_labels_every_pixel_alike(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert against.main([str(tiny_bundle), str(tiny_bundle), *SMALL, "--json", str(tmp_path / "rows.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert [line.count("|") for line in printed.splitlines()[:6]] == [5] * 6
    assert "33² 100.0%, 70² 100.0%" in printed
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["what"] for row in rows] == ["bundle", "call", "call"]
    assert all(min(row["p50_ms"]) > 0 for row in rows[1:])
    assert rows[0]["mb"][0] == rows[0]["mb"][1] > 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["nowhere"], BundleMissing), (["models/demo/bundle", "--picture", "nowhere.jpg"], PictureMissing)],
)
def test_what_is_missing_ends_it_in_one_line(
    arguments: list[str], error: type[FusionerError], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert against.main([str(tiny_bundle), *arguments, *SMALL]) == error.exit_code
    assert capsys.readouterr().err.count("\n") == 1
