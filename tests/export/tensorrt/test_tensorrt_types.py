"""The TensorRT path is type-checked: against the stubs that are published for 10.13 (by others than NVIDIA), and against
stubs made of the bindings of 11.4 and of TensorRT-RTX, for which none are.

The code itself takes TensorRT's module and objects as Any, since neither flavour need be installed. Here copies of it say
what they are, and mypy follows every call from there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bindings_alone as bindings
import pytest

ROOT = Path(__file__).resolve().parents[3]
SAID = {
    # What Any stands for, by file.
    "export/tensorrt/build_plans.py": {
        "config: Any": "config: trt.IBuilderConfig", "errors: Sequence[Any]": "errors: Sequence[trt.ParserError]",
    },
    "export/tensorrt/report.py": {"network: Any": "network: trt.INetworkDefinition", "dtype: Any": "dtype: trt.DataType"},
    "export/tensorrt/progress.py": {},
    "fusioner_rt/tensorrt/versions.py": {
        "config: Any, capabilities": "config: trt.IBuilderConfig, capabilities", "runtime: Any": "runtime: trt.Runtime",
        "ModuleType, config: Any) -> None": "ModuleType, config: trt.IBuilderConfig) -> None",
        "engine: Any": "engine: trt.ICudaEngine",
    },
    "fusioner_rt/tensorrt/loaded_plan.py": {"context: Any": "context: trt.IExecutionContext"},

}  # fmt: skip

RTX_MEMBERS = "|".join(sorted({path.rpartition(".")[2] for path in bindings.RTX_ALONE}))
ALLOWED = (
    rf'has no attribute "({RTX_MEMBERS})"',  # guarded: fusioner_rt/tensorrt/versions.py
    r'"Dims"',  # a sequence of numbers, made from a tuple where one is given: the stubs say neither
    r'"SupportsInt"  \[override\]',  # what TensorRT hands to the progress monitor is an int
    r'argument type "IHostMemory"',  # has the buffer protocol
    r'expression has type "None", variable has type "(ICudaEngine|Runtime)"',  # how an engine is given back
)
SETTINGS = """
[mypy]
python_version = 3.11
check_untyped_defs = True
ignore_missing_imports = True
follow_imports = skip
mypy_path = {stubs}:{sources}
[mypy-tensorrt.*,tensorrt_bindings.*,export.*,fusioner_rt.*]
follow_imports = silent
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the rooms whose TensorRT modules say which of TensorRT's types they mean."""
    folder = tmp_path_factory.mktemp("sources")
    for room in ("export", "fusioner_rt"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name, said in SAID.items():
        text = (folder / name).read_text()
        for vague, exact in said.items():
            assert vague in text, f"{name} has no {vague!r} any more: say in SAID what is there instead"
            text = text.replace(vague, exact)
        text = re.sub(r"\btrt: ModuleType", "_trt: ModuleType", text)
        text = re.sub(r"^ +trt = self\._?trt\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"\bself\._?trt\.", "trt.", text)
        (folder / name).write_text(text.replace("\nimport ", "\nimport tensorrt as trt\nimport ", 1))
    return folder


def published(folder, temporary):
    """tensorrt-stubs, with the five lines put right that are no Python."""
    stubs = bindings.WHEELS / "stubs"
    if not stubs.is_dir():
        pytest.skip(f"tensorrt-stubs are not in {bindings.WHEELS}: make {bindings.WHEELS.name}")
    for package in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(stubs / package, folder / package)
    _mend(folder / "tensorrt_bindings" / "tensorrt.pyi")


def generated(folder, temporary):
    """Made by mypy's stubgen of the bindings of the newest version."""
    _generate("tensorrt_bindings.tensorrt", folder, bindings.environment(bindings.VERSIONS[-1], temporary))


def of_rtx(folder, temporary):
    """The same of the installed TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    _generate("tensorrt_rtx_bindings.tensorrt_rtx", folder, {})


def _generate(module, folder, variables):
    command = [Path(sys.executable).with_name("stubgen"), "--inspect-mode", "-q", "-m", module, "-o", folder / "made"]
    subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True)
    (folder / "tensorrt_bindings").mkdir()
    made = folder / "made" / f"{module.replace('.', '/')}.pyi"
    (folder / "tensorrt_bindings" / "tensorrt.pyi").write_text(made.read_text())
    star = "from tensorrt_bindings.tensorrt import *\nfrom typing import Any\n__version__: str\n"
    (folder / "tensorrt_bindings" / "__init__.pyi").write_text(star)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.pyi").write_text(star + "def nptype(trt_type: DataType) -> Any: ...\n")
    _mend(folder / "tensorrt_bindings" / "tensorrt.pyi")


def _mend(file):
    text = re.sub(r"\bin: ", "in_: ", file.read_text())
    file.write_text(re.sub(r"(channel_axis: [\w.]+)\)", r"\1 = ...)", text))


def complaints(sources, stubs):
    """mypy's errors in our files, a line each."""
    settings = stubs / "mypy.ini"
    settings.write_text(SETTINGS.format(stubs=stubs, sources=sources))
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", stubs / "cache"]
    command += ["--explicit-package-bases", *SAID]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True)
    assert done.returncode < 2 and "errors prevented further checking" not in done.stdout, done.stdout + done.stderr  # noqa: PT018
    lines = done.stdout.splitlines()
    return [line for line in lines if line.startswith(tuple(SAID)) and ": error: " in line]


def test_every_file_that_calls_tensorrt_is_among_those_checked():
    calling = [file for file in bindings.SOURCES if re.search(r"\b_?trt\b", file.read_text())]
    assert {file.relative_to(ROOT).as_posix() for file in calling} == set(SAID)


@pytest.mark.parametrize(
    "stubs", [published, *(pytest.param(stubs, marks=pytest.mark.slow) for stubs in (generated, of_rtx))]
)
def test_the_tensorrt_path_is_type_checked(sources, stubs, tmp_path, tmp_path_factory):
    stubs(tmp_path, str(tmp_path_factory.mktemp("libraries")))
    found = complaints(sources, tmp_path)
    assert [line for line in found if not re.search("|".join(ALLOWED), line)] == []
    # What TensorRT-RTX alone has is complained of with full TensorRT, so the types do reach the calls.
    lacking = [line for line in found if re.search(ALLOWED[0], line)]
    assert any('"IBuilderConfig" has no attribute "set_compute_capability"' in line for line in lacking) == (
        stubs is not of_rtx
    )
    assert stubs is not of_rtx or not lacking
    shutil.copytree(sources, tmp_path / "broken")
    file = tmp_path / "broken" / "export" / "tensorrt" / "build_plans.py"
    planted = {"ignore_mismatch=False": "ignore=False", "VERSION_COMPATIBLE)": "VERSION_COMPATIBLY)"}
    text = file.read_text()
    for right, wrong in planted.items():
        assert right in text
        text = text.replace(right, wrong)
    file.write_text(text)
    noticed = "\n".join(complaints(tmp_path / "broken", tmp_path))
    assert 'Unexpected keyword argument "ignore" for "set_timing_cache"' in noticed
    assert "VERSION_COMPATIBLY" in noticed
