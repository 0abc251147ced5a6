"""docs/triton.md: its commands and its client run, and its tables have every input and output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented import blocks_of

from fusioner_rt.serve import v2
from tests.triton.conftest import ROOT
from tests.triton.server import Server

PAGE = (ROOT / "docs/triton.md").read_text()


def test_the_commands_write_a_model_and_show_its_readme(tmp_path: Path) -> None:
    for name in ("models", "export", "fusioner_rt", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (script,) = blocks_of(PAGE, "sh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "docker run" in done.stdout
    assert (tmp_path / "triton/demo/1/model.py").is_file()


def test_the_stream_of_the_page_runs(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks_of(PAGE, "python")
    exec(code.replace("127.0.0.1:8001", server.grpc), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\(1, \d+, \d+\) \[\[", line) for line in lines)


def test_the_tables_have_every_input_and_output() -> None:
    section = PAGE.split("\n## Ask it\n")[1].split("\n## ")[0]
    named = [
        set(re.findall(r"`([A-Z]+)`", line.split(" | ")[0])) for line in section.splitlines() if line.startswith("| `")
    ]
    assert set().union(*named) == {"PICTURE", "PIXELS", *v2.OPTIONS, "LABELS", "CONFIDENCE", "SHARES"}
