"""The site of docs/, as `make site` has built it: what is on it, and that a fault in a page ends a build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check_site import Page, check, faults
from documented import ROOT
from write_source import COMMANDS, kinds

SITE = ROOT / "build/site"
LINKS = {
    "[there](nowhere.md)": "nowhere.md",
    "[there](index.md#nothing)": "nothing",
    "[there][fusioner_rt.Session.no]": "Session.no",
}
NAME = {"::: fusioner_rt.session.Nowhere": "Nowhere"}
PICTURE = {"![there](nowhere.jpg)": "nowhere.jpg"}


def test_the_site_is_whole() -> None:
    check(SITE)
    pages = {file.stem for file in (ROOT / "docs").glob("*.md")}
    assert {file.stem for file in SITE.glob("*.html")} >= pages


def test_reference_has_every_command_and_every_error() -> None:
    commands, errors = (Page((SITE / f"{name}.html").read_text()) for name in ("commands", "errors"))
    assert {re.sub(r"[^a-z0-9_-]", "", name.replace(" ", "-").lower()) for name, _ in COMMANDS} <= commands.anchors
    assert {f"{kind.exit_code}-{kind.__name__.lower()}" for kind in kinds()} <= errors.anchors


def test_reference_has_what_the_package_offers() -> None:
    import fusioner_rt

    anchors = {anchor.rpartition(".")[2] for anchor in Page((SITE / "api.html").read_text()).anchors}
    assert set(fusioner_rt.__all__) - {"__version__"} <= anchors
    assert {name for name in vars(fusioner_rt.Session) if not name.startswith("_")} <= anchors


@pytest.mark.parametrize("faulty", [{}, LINKS, NAME, PICTURE], ids=["none", "links", "name", "picture"])
def test_a_fault_in_a_page_ends_a_build_and_is_named(tmp_path: Path, faulty: dict[str, str]) -> None:
    """A site of one page, by the configuration of the real one. faulty: what it holds, and how that is named."""
    shutil.copytree(ROOT / "docs/site", tmp_path / "docs/site")
    shutil.copytree(ROOT / "docs/site", tmp_path / "build/site-source/site")
    (tmp_path / "fusioner_rt").symlink_to(ROOT / "fusioner_rt")
    configuration = (ROOT / "mkdocs.yml").read_text()
    menu, rest = configuration.index("\nnav:\n"), configuration.index("\ntheme:\n")
    (tmp_path / "mkdocs.yml").write_text(f"{configuration[:menu]}\nnav: [Start: index.md]{configuration[rest:]}")
    (tmp_path / "build/site-source/index.md").write_text("# A page\n\n" + "\n\n".join(faulty))
    program = "import build_site, pathlib, sys; build_site.generate(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "mkdocs.yml"], cwd=ROOT / "docs/site", capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert bool(done.returncode) == bool(faulty), done.stdout + done.stderr
    told = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)  # without colours
    for named in faulty.values():
        assert named in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<a href="nowhere.html">', "leads to no file"),
        ('<a href="#nowhere">', "leads to no such anchor"),
        ('<script src="https://example.org/a.js">', "from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "from elsewhere"),
        ("<style>@import url(https://example.org/a.css)</style>", "from elsewhere"),
    ],
)
def test_what_a_page_should_not_hold_is_found(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "index.html").write_text(
        "<p id=here><a href='#here'>here</a> <a href='https://example.org'>elsewhere</a>"
    )
    assert faults(tmp_path) == []
    (tmp_path / "index.html").write_text(text)
    (fault,) = faults(tmp_path)
    assert said in fault
