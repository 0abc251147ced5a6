"""docs/words.md: its Python blocks run in their order, and its commands run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "words.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    for name in ("docs", "models"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    lines = run([sys.executable, "-c", "".join(blocks("python"))], tmp_path).splitlines()
    assert lines[0] == lines[1]  # a text and a list
    assert lines[2] == lines[3] == lines[4]  # three spellings of a group
    assert "'cat|cats, ...'" in lines[5]


def test_the_commands_run(tmp_path: Path) -> None:
    (script,) = blocks("sh")
    there = Path(sys.executable).parent
    said = run(["env", f"PATH={there}:/usr/bin:/bin", "sh", "-ec", script], tmp_path)
    assert said.count("docs/pictures/cat.jpg: cat ") == 3
