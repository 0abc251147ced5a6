"""docs/ray.md: its blocks run, and its table of rows is the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented import blocks_of
from pyarrow import parquet as pq

from fusioner_rt.ray.segmenter import schema_of_masks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ray.md").read_text()
DATA = PAGE.partition("\n## Ray Serve\n")[0]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    for name in ("docs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def own_ray() -> dict[str, str]:
    """An environment that leads to no Ray of the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def test_the_commands_run(there: Path) -> None:
    (script,) = blocks_of(DATA, "bash")
    script = script.replace("fusioner-rt ", f"{sys.executable} -m fusioner_rt ")
    done = subprocess.run(["bash", "-euc", script], cwd=there, env=own_ray(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(there / "seen/masks").to_pylist()
    assert {Path(row["path"]).name for row in rows} == {"astronaut.jpg", "cat.jpg", "coffee.jpg"}
    assert all((there / "seen" / row["labels"]).exists() for row in rows)
    assert len(pq.read_table(there / "cups/masks")) > 3


def test_the_python_blocks_run(there: Path) -> None:
    code = "\n".join([*blocks_of(DATA, "python"), "print('pixels:', cat.sum())"])
    done = subprocess.run([sys.executable, "-c", code], cwd=there, env=own_ray(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *rows, pixels = done.stdout.splitlines()[-4:]
    assert sum("'person': 0." in row and row.endswith(" None") for row in rows) == 3
    assert int(pixels.partition(": ")[2]) > 50_000
    assert len(pq.read_table(there / "masks")) == 3


def test_the_table_has_every_column() -> None:
    table = PAGE.partition("\n### Rows\n")[2].partition("\n### ")[0]
    said = {
        name for first in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", first)
    }
    assert said == {"path", *schema_of_masks(labels=True).names}
