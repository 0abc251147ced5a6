"""What the repository promises about itself: what the wheel holds, and what may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SHARED = {"fusioner_rt.gpu.kernel_contract"}
"""Modules that every room may import: numbers and names alone."""


def imported(file: Path) -> set[str]:
    """Top-level names a file imports, wherever in it, but for SHARED."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            names |= {(node.module or "").partition(".")[0]} if not modules & SHARED else set()
    return names


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("fusioner_rt", {"torch", "triton", "onnx", "training", "export", "kernels", "benchmarks", "tqdm"}),
        ("training", {"export", "benchmarks", "onnx"}),
        ("kernels", {"training", "export", "fusioner_rt", "benchmarks"}),
    ],
)
def test_a_room_imports_only_what_the_design_lets_it(room: str, forbidden: set[str]) -> None:
    for file in (ROOT / room).rglob("*.py"):
        assert not imported(file) & (forbidden | {"pickle"}), file


def test_the_wheel_holds_the_runtime_alone(tmp_path: Path) -> None:
    """Built without a network: the files hatchling would pack are asked of hatchling itself."""
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fusioner_rt/serve/page/samples/cat.jpg" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fusioner_rt"}


def test_no_large_file_but_the_demonstration_model() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    files = [Path(name) for name in listed if name and not name.startswith("models/")]
    assert [str(file) for file in files if (ROOT / file).is_file() and (ROOT / file).stat().st_size > 1_000_000] == []
