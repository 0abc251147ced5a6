"""The README's code blocks do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from documented import blocks_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


blocks = partial(blocks_of, README)


def test_the_python_block_runs_in_a_fresh_process(tmp_path: Path) -> None:
    (program,) = blocks("python")
    for folder in ("docs", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cat.overlay.png").is_file()


def test_the_python_block_on_the_mask_head_runs() -> None:
    text = (ROOT / "docs" / "mask_head.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if line.startswith("fusioner-rt ")]
)
def test_the_command_lines_run(line: str, tmp_path: Path) -> None:
    import shlex

    command = shlex.split(line, comments=True)
    for folder in ("docs", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    program = shutil.which("fusioner-rt", path=str(Path(sys.executable).parent))
    assert program, "the console script is not installed"
    done = subprocess.run([program, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_make_target_and_file_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / link).exists(), link
