"""The benchmark of the service: wrk asks it, a row per case, and the page has the record's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import command, machine, service

PAGE = (machine.ROOT / "docs/serve.md").read_text()
RECORD = machine.ROOT / "docs/records/service.jsonl"
SHORT = ["--seconds", "1", "--rounds", "1", "--clients", "1,4", "--busy"]


@pytest.mark.parametrize("clients", [(4,), pytest.param((1, 4), marks=pytest.mark.slow)])
def test_a_row_per_case_and_beyond_capacity_only_answers_and_refusals(
    clients: tuple[int, ...], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "service.jsonl"
    given = ["--engine", str(tiny_bundle), "--json", str(record), "--minutes", "0.05", *SHORT]
    given += ["--clients", ",".join(map(str, clients))]
    assert service.main(given) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    *measured, beyond, memory = rows
    bare, served = measured[: -2 * len(clients)], measured[-2 * len(clients) :]
    assert {row["case"] for row in bare} == {"bare"}
    assert [(row["case"], row["clients"], row["max_batch"]) for row in served] == [
        ("service", count, batch) for count in clients for batch in (1, 8)
    ]
    for row in (*bare, *served):
        assert row["pictures_a_second"] > 0
        assert row["processor_ms_a_picture"] > 0
        assert row["generator"].startswith("wrk ")
    for row in served:
        assert row["statuses"].keys() == {"200"}
        assert (row["time_outs"], row["broken"]) == (0, 0)
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] < 30_000
    assert beyond["statuses"].keys() == {"200", "503"}
    assert (beyond["time_outs"], beyond["broken"], beyond["without_retry_after"]) == (0, 0, 0)
    assert memory["looks"][-1]["requests"] > memory["looks"][0]["requests"] > 0
    assert memory["looks"][-1]["bytes"] > 30e6
    assert service.main(["--from", str(record)]) == 0
    assert capsys.readouterr().out == printed


def test_rounds_are_told_by_medians_sums_and_the_longest_wait() -> None:
    rounds = [
        {
            "p50_ms": number,
            "max_ms": number,
            "time_outs": number,
            "statuses": {str(200 + number % 2): number},
            "x": None,
        }
        for number in (3, 1, 8)
    ]
    assert service.together(rounds) == {
        "p50_ms": 3, "max_ms": 8, "time_outs": 12, "statuses": {"200": 8, "201": 4}, "x": None
    }  # fmt: skip


def test_without_wrk_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert service.main(SHORT) == service.GeneratorMissing.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install wrk" in line


def test_a_service_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(service.LoadFailed, match="the service did not start"):
        service.Service(tmp_path)


def test_the_page_has_the_records_table_and_the_command_that_makes_it() -> None:
    rows = command.read(RECORD, "service") if RECORD.exists() else []
    between = PAGE.partition("<!-- load -->\n")[2].partition("<!-- /load -->\n")[0]
    assert between.strip() == (service.table(rows) if rows else "")
    assert "python -m benchmarks.service" in PAGE
