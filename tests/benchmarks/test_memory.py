"""The benchmark of memory: a row per case, and the operator's page has the record's table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from documented import blocks_of

from benchmarks import command, machine, memory
from fusioner_rt.errors import UsageError

PAGE = (machine.ROOT / "docs/operating.md").read_text()
RECORD = machine.ROOT / "docs/records/memory.jsonl"
SMALL = ["--sizes", "64x80,300x200", "--words", "2", "--calls", "3"]


def test_a_row_per_case_whose_peaks_are_the_processes(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "memory.jsonl"
    assert memory.main(["--engine", str(tiny_bundle), "--json", str(record), *SMALL]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [row["case"] for row in rows] == ["encoding", "steps", "steps", "slope"]
    assert all(row["words"] == 2 for row in rows)
    for row in rows[1:3]:
        peaks = row["peak_bytes"]
        assert tuple(peaks) == memory.STEPS
        assert 30e6 < peaks["open"] < 1e9
        assert peaks["segment"] >= peaks["open"] * 0.9  # opening may have needed more for a moment
    assert rows[3]["calls"] == 3
    assert {"machine", "commit", "date", "onnxruntime", "numpy"} <= rows[0].keys()
    assert memory.main(["--from", str(record)]) == 0
    assert capsys.readouterr().out == printed


def test_probabilities_that_are_refused_have_no_peak(tmp_path: Path) -> None:
    peaks = {**dict.fromkeys(memory.STEPS, 123_456_789), "probabilities": None}
    row = {"what": "memory", "case": "steps", "size": [3, 4], "words": 9, "peak_bytes": peaks}
    assert memory.table([row]).splitlines()[2] == "| 4×3 | 9 | 123 | 123 | 123 | 123 | refused, over 4 GB |"


def test_a_case_that_fails_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--engine", str(tmp_path), *SMALL]) == memory.MeasurementFailed.exit_code
    assert "BundleMissing" in capsys.readouterr().err
    for wrong in ("64", "64x", "0x3", "1x2x3"):
        with pytest.raises(SystemExit) as stopped:
            memory.main(["--sizes", wrong])
        assert stopped.value.code == UsageError.exit_code


def test_the_page_has_the_records_table_and_the_command_that_makes_it() -> None:
    rows = command.read(RECORD, "memory")
    assert {(*row["size"], row["words"]) for row in rows if row["case"] == "steps"} == {
        (*size, count) for size in memory.SIZES for count in memory.WORDS
    }
    section = PAGE.partition("## Memory\n")[2].partition("\n## ")[0]
    assert memory.table(rows) in section
    (line,) = [line for block in blocks_of(section, "sh") for line in block.splitlines() if "benchmarks.memory" in line]
    assert shlex.split(line)[:3] == ["python", "-m", "benchmarks.memory"]
