"""Code blocks of a page of the documentation, and a folder to run them in."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks_of(page: str, language: str) -> list[str]:
    """The code blocks of a language, in their order. page: its Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def run_there(command: list[str], folder: Path) -> str:
    """Run a command in a folder that has the checkout's docs and models, whose bundle it finds. Returns what it prints."""
    for name in ("docs", "models"):
        (folder / name).symlink_to(ROOT / name)
    finds = os.environ | {"FUSIONER_ENGINE": str(ROOT / "models/demo/bundle")}
    done = subprocess.run(command, cwd=folder, env=finds, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
