"""docs/interfaces.md: its Python blocks run in their order, but for FiftyOne's, and its commands are ones that exist."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cvat_cli._internal.commands_all import COMMANDS
from cvat_cli._internal.common import FunctionLoader, configure_common_arguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interfaces.md").read_text()


def command(start: str) -> list[str]:
    """The words of the command of the page that starts so."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    (found,) = [line for line in lines if line.startswith(start)]
    return shlex.split(found)


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration's bundle stands for the installed one."""
    monkeypatch.setenv("FUSIONER_ENGINE", str(ROOT / "models/demo/bundle"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_their_order() -> None:
    program = "".join(block for block in blocks("python") if "fiftyone" not in block)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<PIL.Image.Image image mode=L size=600x400") == 3
    assert done.stdout.splitlines()[-1] == "cat mask"


def test_cvat_cli_takes_its_command_and_loads_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = argparse.ArgumentParser()
    configure_common_arguments(parser)
    COMMANDS.configure_parser(parser)
    given = parser.parse_args(command("cvat-cli")[1:])
    function = FunctionLoader(given.function_module, given.function_file, given.function_parameters).load()
    assert given.task_id == 7
    assert [label.name for label in function.spec.labels] == ["cat", "sofa"]


def test_label_studios_backend_starts_and_answers() -> None:
    started = [sys.executable, *command("python")[1:], "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(started, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as backend:
        assert backend.stdout is not None
        address = backend.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
            assert json.load(answer)["status"] == "UP"
        backend.terminate()
