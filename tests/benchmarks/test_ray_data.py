"""The benchmark of Ray Data: the page has the record's table. It is run where Ray is: `make ray`."""

from __future__ import annotations

import pytest

from benchmarks import command, machine, ray_data

PAGE = (machine.ROOT / "docs/ray.md").read_text()
RECORD = machine.ROOT / "docs/records/ray.jsonl"


def test_the_page_has_the_records_table_whatever_machine_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "cores", lambda: 64)
    between = PAGE.partition("<!-- load -->\n")[2].partition("<!-- /load -->\n")[0]
    assert between.strip() == ray_data.table(command.read(RECORD, "ray data"))
