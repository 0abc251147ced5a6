"""docs/words.md: its Python blocks run in their order, and its commands run."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from documented import blocks_of, run_there

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "words.md").read_text()


blocks = partial(blocks_of, PAGE)


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    lines = run_there([sys.executable, "-c", "".join(blocks("python"))], tmp_path).splitlines()
    assert lines[0] == lines[1]  # a text and a list
    assert lines[2] == lines[3] == lines[4]  # three spellings of a group
    assert "'cat|cats, ...'" in lines[5]


def test_the_commands_run(tmp_path: Path) -> None:
    there = Path(sys.executable).parent
    said = run_there(["env", f"PATH={there}:/usr/bin:/bin", "sh", "-ec", "".join(blocks("sh"))], tmp_path)
    assert said.count("docs/pictures/cat.jpg: cat ") == 4
    assert "23 words, " in said  # cat, kitten, sofa and those of the background
