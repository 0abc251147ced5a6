"""The README's code blocks do what they say."""

from __future__ import annotations

import json
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


def figures(page: str, header: str) -> dict[str, list[str]]:
    """The cells of the table with this header, by the first cell of each row; bold is not kept."""
    rows = page[page.index(f"{header}\n") :].partition("\n\n")[0].replace("**", "").splitlines()[2:]
    return {name: cells for name, *cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)}


MODELS = {"ViT-S/16": "vits", "ViT-B/16": "vitb", "ViT-L/14": "vitl", "demonstration": "demo"}
LATENCY = [json.loads(line) for line in (ROOT / "docs" / "records" / "latency.jsonl").read_text().splitlines()]


def recorded(row: str, candidate: str) -> float:
    """Milliseconds of 20 words and one picture: the last run's, as benchmarks/latency_report.py counts."""
    model = MODELS[re.split("[, ]", row)[0]]
    if "process to first mask" in row:
        return {line["candidate"]: line for line in LATENCY if (line["what"], line["model"]) == ("cold", model)}[
            candidate
        ]["process_p50_ms"]
    edge = int(re.findall(r"(\d+)²", row)[0])
    asked = ("latency", candidate, model, edge, 20, 1)
    axes = ("what", "candidate", "model", "output", "words", "batch")
    return [line["p50_ms"] for line in LATENCY if tuple(line[axis] for axis in axes if axis in line) == asked][-1]


def test_the_table_of_speed_is_the_records() -> None:
    table = figures(README, "| model, label map | PyTorch | ONNX Runtime, one graph | OpenVINO, one graph | ours |")
    assert len(table) == 6
    for row, cells in table.items():
        assert [int(cell) for cell in cells] == [
            round(recorded(row, candidate)) for candidate in ("eager", "ort", "openvino", "ours")
        ], row
    assert f"OpenVINO in bfloat16 takes {recorded('ViT-S/16, 224²', 'openvino-bf16'):.0f} ms in the first row" in README


def test_the_longer_table_of_speed_is_the_records() -> None:
    page = (ROOT / "docs" / "latency.md").read_text()
    (header,) = re.findall(r"^\| model, label map .*$", page, flags=re.MULTILINE)
    table = figures(page, header)
    assert len(table) == 10
    for row, (*peers, ours, encoded) in table.items():
        took = recorded(row, "ours")
        assert ours == f"{took:.0f} ms"
        told = [f"{(ms := recorded(row, peer)):.0f} ms, {ms / took:.1f}×" for peer in ("eager", "ort", "openvino")]
        assert peers == told
        ms = recorded(row, "ours-words")
        assert encoded == f"{ms:.0f} ms, {ms / took:.0%}"


def test_the_table_of_the_mask_head_is_the_records() -> None:
    page = (ROOT / "docs" / "mask_head.md").read_text()
    (header,) = re.findall(r"^\| output \| naive torch .*$", page, flags=re.MULTILINE)
    lines = (ROOT / "docs" / "records" / "mask_head.jsonl").read_text().splitlines()
    axes = ("maps", "size", "channels", "words", "candidate")
    measured = {tuple(row[axis] for axis in axes): row for row in map(json.loads, lines)}
    columns = [*(("smooth", peer) for peer in ("naive", "compile", "onnx", "lowres", "ours")), ("random", "ours")]
    for size, cells in figures(page, header).items():
        for cell, (maps, candidate) in zip(cells, columns, strict=True):
            row = measured[maps, int(size.removesuffix("²")), 512, 20, candidate]
            if "skipped" in row:
                assert cell == f"needs {row['needs_bytes'] / 1e9:.0f} GB"
                continue
            mb = row["peak_bytes"] / 1e6
            assert cell == f"{row['p50_ms']:.0f} ms, " + (f"{mb / 1000:.1f} GB" if mb > 510 else f"{mb:.0f} MB")


def test_the_table_of_quality_is_the_models_own() -> None:
    """models/demo/README.md has each set's figures before and after; README the latter."""
    whole = figures(
        (ROOT / "models" / "demo" / "README.md").read_text(),
        "| set | pictures | classes | known words | all words | absent word paints |",
    )
    table = figures(README, "| set | classes | asked for what a picture shows | for all words of the set |")
    assert len(table) == 5
    for name, cells in table.items():
        _, *row = whole[name]
        assert cells == [cell.split()[-1] for cell in row[:3]]
    hardest = min(float(cells[3].split()[-1]) for cells in whole.values())
    assert f"{hardest}" in {cells[2] for cells in table.values()}  # what is bad is told


def test_every_make_target_and_file_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", README):
        assert (ROOT / link).exists(), link
