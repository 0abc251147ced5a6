"""The pages that the site begins with: their blocks run and print what they say, and their figures are there and small."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import blocks_of
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
THERE = Path(sys.executable).parent


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder. Returns what it prints."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{THERE}:/usr/bin:/bin", "FUSIONER_CACHE": str(folder / "cache"),
        "FUSIONER_ENGINE": str(ROOT / "models/demo/bundle"),
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(page: str) -> list[str]:
    """What the comments beside the prints of a page's Python say that they print, … where they leave it open."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", "".join(blocks_of(page, "python")), flags=re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("docs", "models", "kernels", "fusioner_rt"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_start_page_leads_to_a_mask_in_a_folder_that_holds_a_photograph_alone(tmp_path: Path) -> None:
    """The demonstration's bundle stands for the installed one; tests/test_bundle_packages.py finds that by its package."""
    page = (DOCS / "index.md").read_text()
    shutil.copy(DOCS / "pictures/cat.jpg", tmp_path / "cat.jpg")
    install, command = blocks_of(page, "sh")
    assert shlex.split(install)[:4] == ["pip", "install", "-c", "constraints.txt"]
    for path in ("constraints.txt", "models/demo"):
        assert (ROOT / path).exists()
        assert path in install
    assert run(["sh", "-ec", command], tmp_path).startswith("cat.jpg: cat ")
    written = re.findall(r"`(output/[\w.]+)`", page)
    assert written
    assert all((tmp_path / name).is_file() for name in written)
    assert run([sys.executable, "-c", "".join(blocks_of(page, "python"))], tmp_path).splitlines() == said(page)
    assert (tmp_path / "seen.jpg").is_file()


@pytest.mark.parametrize("name", ["concepts", "api", "errors", "exact"])
def test_the_python_blocks_print_what_they_say(name: str, checkout: Path) -> None:
    page = (DOCS / f"{name}.md").read_text()
    lines = run([sys.executable, "-c", "".join(blocks_of(page, "python"))], checkout).splitlines()
    told = said(page)
    assert told
    assert [line for line in lines if line in told] == told


def test_background_words_take_pixels_and_a_threshold_leaves_them_out(checkout: Path) -> None:
    """What the text of the page on concepts says of its figures."""
    page = "".join(blocks_of((DOCS / "concepts.md").read_text(), "python"))
    ends = """
assert named.shares[0] < plain.shares[0]
assert strict.shares.sum() < session.segment("docs/pictures/astronaut.jpg", "person, rocket").shares.sum()
assert (joint.labels != alone.labels).any()
assert group.shares[0] >= apart.shares.max()
"""
    run([sys.executable, "-c", page + ends], checkout)


def test_the_figures_are_small_pictures_and_each_is_shown() -> None:
    shown = {
        name
        for page in ("index", "concepts", "exact")
        for name in re.findall(r"\]\((figures/[\w.]+)\)", (DOCS / f"{page}.md").read_text())
    }
    files = {f"figures/{file.name}" for file in (DOCS / "figures").iterdir()}
    assert shown == files
    for name in files:
        assert (DOCS / name).stat().st_size < 200_000, name
        if not name.endswith(".svg"):
            assert Image.open(DOCS / name).width <= 1300, name


MEASURED = {
    "How long": ("latency", [r"demonstration, fp16, 224² .*\*\*(34) ms", r"demonstration, fp16, 1024² .*\*\*(51) ms"]),
    "From import": ("latency", [r"ours (0\.41) s, PyTorch (1\.76) s"]),
    "And beside": ("latency", [rf"demonstration, fp16, {size} \| \d+ ms, ([\d.]+)× .*?, [\d.]+× \| \d+ ms, ([\d.]+)×" for size in ("224²", "1024²")]),
    "Other words": ("latency", [r"demonstration, fp16, 224² .* (\d+)% \|"]),
    "The mask head": ("mask_head", [r"\| 1024² \| (\d+) ms, ([\d.]+) GB .*\| (\d+) ms, (\d+) MB \| [^|]*\|$"]),
    "How much memory": ("operating", [r"\| 1920×1080 \| 1 \| \d+ \| (\d+) \|"]),
    "How many pictures": ("serve", [r"`--max-batch 8` \| 64 \| ([\d.]+) \|"]),
    "With Triton": ("triton", [r"each alone \| 2 \| 16 \| ([\d.]+) \|"]),
    "with Ray": ("ray", [r"Ray Data, 2 actor\(s\), of 1 core\(s\) \| ([\d.]+) \|"]),
    "A million": ("scale", [r"demonstration model, 512² \| \d+ \| [\d.]+ \| ([\d.]+) \|"]),
    "Of classes": ("training", [r"early fusion, decoder, MiniLM .* ([\d.]+) ± ([\d.]+) \| [^|]*\|$", r"no fusion \|.* ([\d.]+) \| [^|]*\|$"]),
}  # fmt: skip
"""Where the numbers of a question's answer stand: a page, and what is around them there."""


@pytest.mark.parametrize("question", MEASURED)
def test_what_was_measured_is_what_the_page_it_leads_to_says(question: str) -> None:
    rows = (DOCS / "measured.md").read_text().splitlines()
    (answer,) = (row.split(" | ")[1] for row in rows if question in row.split(" | ")[0])
    page, places = MEASURED[question]
    for place in places:
        found = re.search(place, (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert found, place
        for number in found.groups():
            assert re.search(rf"(?<![\w.]){re.escape(number)}(?![\w.]*\d)", answer), (number, answer)


def test_every_link_between_the_pages_leads_to_a_file() -> None:
    """Where pages are read as files; `make site` checks anchors too."""
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!\w+:|#)([^()#\s]+)", page.read_text()):
            assert (DOCS / link).exists(), (page.name, link)
