"""The benchmark of Triton Inference Server: the page has the record's table. It is run where the server is: tests/triton."""

from __future__ import annotations

from pathlib import Path

from benchmarks import command, machine, triton_server

PAGE = (machine.ROOT / "docs/triton.md").read_text()
RECORD = machine.ROOT / "docs/records/triton.jsonl"


def test_the_page_has_the_records_table_and_the_command_that_makes_it() -> None:
    rows = command.read(RECORD, "triton") if RECORD.exists() else []
    between = PAGE.partition("<!-- load -->\n")[2].partition("<!-- /load -->\n")[0]
    assert between.strip() == (triton_server.table(rows) if rows else "")
    assert "python -m benchmarks.triton_server --json docs/records/triton.jsonl" in PAGE


def test_requests_are_as_long_as_they_say(tmp_path: Path) -> None:
    for body, picture in zip(triton_server.bodies(tmp_path), triton_server.PICTURES, strict=True):
        content = body.read_bytes()
        head, rest = content[: triton_server.HEADER], content[triton_server.HEADER :]
        assert head.strip().endswith(b"}")
        size = int.from_bytes(rest[:4], "little")
        assert rest[4 : 4 + size] == picture.read_bytes()
