"""docs/serve.md: its commands run against the service, and its tables are complete."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import blocks_of
from PIL import Image

import fusioner_rt.errors
from fusioner_rt.commands import serve
from fusioner_rt.serve import problem, request
from fusioner_rt.serve.errors import ServiceError
from fusioner_rt.serve.metrics import Metrics
from fusioner_rt.serve.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


def test_the_commands_run(service: Any, there: Path) -> None:
    (script,) = blocks_of(PAGE, "bash")
    address = f"http://{service.host}:{service.port}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=there, env={**os.environ, "SERVICE": address}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    told = {name: json.loads((there / f"{name}.json").read_text()) for name in ("masks", "polygons", "first", "second")}
    assert [word["word"] for word in told["masks"]["words"]] == ["cat", "sofa"]
    assert [word["word"] for word in told["second"]["words"]] == ["ear", "eye"]
    size = told["masks"]["size"]
    assert np.asarray(Image.open(there / "labels.png")).shape == tuple(size)
    assert Image.open(there / "overlay.jpg").width >= size[1]


def test_the_python_block_runs(service: Any, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks_of(PAGE, "python")
    monkeypatch.chdir(there)
    address = f"{service.host}:{service.port}"
    names: dict[str, Any] = {}
    exec(code.replace("127.0.0.1:8080", address).replace('"default"', '"tiny"'), names)
    assert names["labels"].shape == np.asarray(Image.open(there / "docs/pictures/cat.jpg")).shape[:2]


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_tables_have_every_field_option_metric_and_kind(service: Any) -> None:
    fields = set(re.findall(r"^\| `(\w+)`", section("Fields"), re.MULTILINE))
    assert fields == {"picture", *request.FIELDS}

    import argparse

    parser = argparse.ArgumentParser()
    serve.add_to(parser.add_subparsers())
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    options = {text for action in commands["serve"]._actions for text in action.option_strings if text.startswith("--")}
    assert options - {"--help", "--engine"} == set(re.findall(r"`(--[a-z-]+)`", section("Options")))

    rows = re.findall(r"^\| (`--.*?) \| ([\d., a-z]+?) \|", section("Options"), re.MULTILINE)
    told = {
        name: float(default.split()[0])
        for options, defaults in rows
        for name, default in zip(re.findall(r"--([a-z-]+)", options), defaults.split(", "), strict=True)
        if default.split()[0].isdecimal() and name != "port"
    }
    assert len(told) == 10
    assert told == {name: getattr(Settings(), name.replace("-", "_")) for name in told}

    said = set(re.findall(r"fusioner_\w+", section("Metrics and log")))
    metrics: Metrics = service.app.state.service.metrics
    assert said == {family.name + ("_total" if family.type == "counter" else "") for family in metrics.families()}

    rows = re.findall(r"^\| ([\d, ]+?)(?: with .*?)? \| (.*) \|$", section("Problems"), re.MULTILINE)
    listed = {
        kind: {int(status) for status in statuses.split(", ")}
        for statuses, kinds in rows
        for kind in re.findall(r"[A-Z]\w+", kinds)
    }
    known = {**vars(fusioner_rt.errors), **{kind.__name__: kind for kind in ServiceError.__subclasses__()}}
    for kind, statuses in listed.items():
        assert problem.status_of(known[kind]("")) in statuses, kind
    assert listed.keys() >= {kind.__name__ for kind in ServiceError.__subclasses__()}
