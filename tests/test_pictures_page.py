"""docs/pictures.md: its Python blocks run in their order and print what they say, and its commands run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
from documented import blocks_of

from fusioner_rt.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pictures.md").read_text()


blocks = partial(blocks_of, PAGE)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is a checkout that may be written to."""
    for name in ("docs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSIONER_ENGINE", str(ROOT / "models/demo/bundle"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # open(...).read(), for short
def test_the_python_blocks_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    script = "".join(blocks("python"))
    said = re.findall(r"print\(.*\)  # (.*)$", script, flags=re.MULTILINE)
    assert len(said) == script.count("print(")
    Path("page.py").write_text(script)
    runpy.run_path("page.py")
    assert capsys.readouterr().out.splitlines() == said


def test_the_commands_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for line in "".join(blocks("sh")).splitlines():
        command, _, piped = line.partition("#")[0].partition("<")
        with open(piped.strip() or "docs/demo.jpg") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert main(shlex.split(command)[1:]) == 0
        said += capsys.readouterr().out.splitlines()
    assert sum(line.startswith("docs/pictures/cat.jpg: cat ") for line in said) == 3
    assert said[-1].startswith("stdin: cat ")
