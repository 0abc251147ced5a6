"""The pages on deploying against the code: their blocks run, their commands exist, and their errors are the code's, each and all."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from documented import blocks_of
from error_messages import raised, template

from fusioner_rt import Session, errors
from fusioner_rt.errors import FusionerError

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("deploy", "embed", "nvidia", "jetson", "troubleshooting")
}
PAGE = "".join(PAGES.values())
MESSAGES, NOTES = PAGES["troubleshooting"].partition("## GPUs and plans, by message")[2].split("### Notes")
RUNTIME = (
    "ladder",
    "open_backend",
    "known_answer",
    "check_finite",
    "plans",
    "tensorrt/*",
    "gpu/device_segmentation",
    "gpu/driver",
    "gpu/executor",
    "gpu/foreign_arrays",
    "gpu/kernel_launcher",
    "gpu/onnxruntime_engine",
    "gpu/pipeline",
    "gpu/pipeline_pool",
    "gpu/preprocess",
    "onnx/executor",
    "onnx/runtime",
)
"""Modules of a session on a GPU."""
BUILD = ("tensorrt.build_plans", "tensorrt.report", "add_plans", "compile_kernels")
NOT_MET = {
    "…: TensorRT … (…); …",  # around those that have rows
    # Calls that an application which launches the kernels itself can get wrong, and a session does not.
    "…: … programs for … pictures; a GPU takes at most 2**31 and 65535",
    "…: arguments …, expected …",
    "…: … is …, expected a multiple of 16",
    "size is …x… pixels; the kernels make edges of 1 to …; give a smaller one",
    "a batch of … pictures; expected 1 to …",
    "… lies at …; expected an address that is a multiple of 16",
    "… lies on GPU …; expected memory of …; copy it there",
    "… at … is no memory of a GPU (…); expected memory of …",
}


blocks = partial(blocks_of, PAGE)


@cache
def classes() -> dict[str, type[FusionerError]]:
    """Every error there is, by its name."""
    for file in (ROOT / "export").rglob("*.py"):
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    found, waiting = {}, [FusionerError]
    while waiting:
        one = waiting.pop()
        found[one.__name__] = one
        waiting += one.__subclasses__()
    return found


@cache
def messages(folders: tuple[str, ...] = ("fusioner_rt", "export")) -> list[tuple[str, str]]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [(message.kind, message.text) for file in files for message in raised(file, set(classes()))]


def cells(text: str) -> list[list[str]]:
    """The tables' rows without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if "has" not in row[0].split("`")[0]]


def fragments(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def errors_of(row: list[str]) -> list[tuple[str, int]]:
    return [(name, int(code)) for name, code in re.findall(r"([A-Z]\w+) (\d+)", row[1])]


ROWS = cells(MESSAGES)


def test_the_table_is_read_whole() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 4, row
        assert fragments(row[0]), row
        assert errors_of(row), row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: fragments(row[0])[0])
def test_every_message_is_one_that_its_error_is_raised_with(row: list[str]) -> None:
    for name, code in errors_of(row):
        assert classes()[name].exit_code == code, name
    named = {name for name, _ in errors_of(row)}
    for fragment in fragments(row[0]):
        assert [kind for kind, text in messages() if kind in named and fragment in text], fragment


def test_every_message_of_a_session_on_a_gpu_has_a_row() -> None:
    files = sorted({file for name in RUNTIME for file in (ROOT / "fusioner_rt").glob(f"{name}.py")})
    rows = [(name, fragment) for row in ROWS for name, _ in errors_of(row) for fragment in fragments(row[0])]
    said = {(one.kind, one.text) for file in files for one in raised(file, set(classes())) if one.text not in NOT_MET}
    assert len(said) > 50
    for kind, text in said:
        assert any(name == kind and fragment in text for name, fragment in rows), (kind, text)
    assert {text for _, text in messages()} >= NOT_MET  # none of them is gone


def test_every_error_about_gpus_and_plans_has_a_row() -> None:
    named = {name for row in ROWS for name, _ in errors_of(row)}
    about = {"CUDA", "GPU", "kernel", "TensorRT", "backend", "plan"}
    of_runtime = {
        name
        for name, kind in classes().items()
        if kind.__module__ == "fusioner_rt.errors" and any(word in (kind.__doc__ or "") for word in about)
    }
    of_build = {kind.__name__ for kind in classes().values() if kind.__module__ in {f"export.{name}" for name in BUILD}}
    assert len(of_runtime) >= 10
    assert (of_runtime | of_build) <= named


def test_every_note_is_in_the_source() -> None:
    source = [
        template(node, {})
        for file in (ROOT / "fusioner_rt").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Constant, ast.JoinedStr))
    ]
    rows = cells(NOTES)
    assert len(rows) >= 4
    for row in rows:
        for fragment in fragments(row[0]):
            assert any(fragment in text for text in source), fragment


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's reader stands in: the repository, with a bundle of their own in engines/demo."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "models", "export", "fusioner_rt", "benchmarks", "kernels", "tests"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "models/demo/bundle", folder / "engines/demo")
    return folder


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "FUSIONER_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_blocks_run_or_call_a_session_as_it_can_be(checkout: Path) -> None:
    on_cpu, of_frames, in_a_service, on_gpu = blocks("python")
    said = run([sys.executable, "-c", on_cpu + of_frames], checkout)
    assert "not tensorrt: " in said
    assert said.splitlines()[-1].startswith("2 [0.")  # the last of three frames
    service: dict[str, Any] = {}
    exec(in_a_service, service)
    of = {
        errors.UsageError: 400,
        errors.WordsInvalid: 422,
        errors.PictureTooLarge: 413,
        errors.SessionClosed: 500,
        errors.BundleMissing: 500,
    }
    assert {kind: service["http_status"](kind("")) for kind in of} == of
    tree = ast.parse(on_gpu)
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("session.")
    ]
    assert len(calls) == 2
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        signature = inspect.signature(getattr(Session, call.func.attr))
        signature.bind(None, *call.args, **{str(keyword.arg): None for keyword in call.keywords})


def test_the_commands_that_need_no_gpu_run_in_the_order_of_the_page(checkout: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    done = []
    for line in (line for block in blocks_of(PAGES["nvidia"], "sh") for line in block.splitlines()):
        program, *rest = shlex.split(line)
        if program == "fusioner-rt":
            done.append(run([sys.executable, "-m", "fusioner_rt", *rest], checkout))
        elif rest[0].startswith("export/"):
            done.append(run([sys.executable, *rest], checkout))
    added, doctor, info = done
    assert "image_fusion.tensorrt-rtx" in added
    assert "image_fusion.tensorrt-rtx" in doctor
    assert "image_fusion.tensorrt-rtx" in info


def test_every_command_and_option_named_exists() -> None:
    commands = re.findall(r"(?:python )(?:-m )?([\w./]+)((?: [^`\n|]*)?)", PAGE)
    assert {name for name, _ in commands} >= {"export/build_engine.py", "export/add_plans.py", "benchmarks/session.py"}
    known = {}
    for name in {name for name, _ in commands} - {"pytest"}:
        program = [name] if name.endswith(".py") else ["-m", name]
        known[name] = run([sys.executable, *program, "--help"], ROOT)
    for name, rest in commands:
        for option in re.findall(r"(?<=\s)--[\w-]+", rest):
            assert option in known[name], (name, option)
        for path in re.findall(r"(?<=\s)(?:tests|benchmarks|export)/[\w./]+", rest):
            assert (ROOT / path).exists(), path
    command_line = [ROOT / "fusioner_rt" / "cli.py", *(ROOT / "fusioner_rt" / "commands").glob("*.py")]
    everywhere = "".join([*known.values(), *(file.read_text() for file in command_line)])
    for option in re.findall(r"`(--[a-z][\w-]+)", PAGE):
        assert option in everywhere or option in ("--gpus",), option


def test_every_file_link_and_extra_named_exists() -> None:
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"`((?:tests|docs|examples|export|kernels)/[\w./]*)`", PAGE):
        assert (ROOT / path).exists(), path
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"\.\[([\w,-]+)\]", PAGE + (ROOT / "README.md").read_text()):
        for extra in extras.split(","):
            assert f"\n{extra} = [" in project, extra
