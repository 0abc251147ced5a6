"""What the page is made of: few bytes, and nothing from elsewhere."""

from __future__ import annotations

import json
import re

from driven_page import ROOT

FOLDER = ROOT / "fusioner_rt/serve/page"
FILES = {str(file.relative_to(FOLDER)): file for file in FOLDER.rglob("*") if file.is_file()}


def test_the_files_are_few_bytes_and_name_no_other_place() -> None:
    assert sum(file.stat().st_size for file in FILES.values()) < 300_000
    for name, file in FILES.items():
        if not name.endswith(".jpg"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|\bon[a-z]+=|<style|style=", text), name


def test_every_sample_has_its_source_and_licence() -> None:
    samples = json.loads(FILES["samples/samples.json"].read_text())
    assert {f"samples/{sample['file']}" for sample in samples} == {name for name in FILES if name.endswith(".jpg")}
    licences = (ROOT / "docs/pictures/README.md").read_text()
    for sample in samples:
        assert f"`{sample['file']}`" in licences
        assert sample["source"]
        assert f"| {sample['licence']} |" in licences
