"""docs/steadiness.md: its first Python block runs; with the second, which needs trackers, it runs in tests/interfaces."""

from __future__ import annotations

import sys
from pathlib import Path

from documented import blocks_of, run_there

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "steadiness.md").read_text()


def test_its_block_about_masks_runs(tmp_path: Path) -> None:
    steady, _ = blocks_of(PAGE, "python")
    lines = run_there([sys.executable, "-c", steady], tmp_path).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("<Segmentation 451x300: cat ") for line in lines)
