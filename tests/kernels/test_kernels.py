"""Runs kernel_laws.py where the kernels can run: on a GPU, else by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.variants import variant

LAWS = Path(__file__).with_name("kernel_laws.py")
LAWS_OF = ["probabilities", "labels", "masks or batch", "not (probabilities or labels or masks or batch)"]
SCORINGS = ("not softmax", "softmax")
GROUPS = [f"({laws}) and {scoring}" for scoring in SCORINGS for laws in LAWS_OF]
SOME = [(scoring, "14") for scoring in SCORINGS]  # few and small examples; `make slow` draws all
ALL = [pytest.param(group, "1", marks=pytest.mark.slow) for group in GROUPS]


@pytest.mark.parametrize(("group", "divisor"), [*SOME, *ALL])
def test_kernels_keep_their_laws(group: str, divisor: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LAWS_DIVISOR": divisor}
    environment.pop("PYTEST_XDIST_WORKER", None)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "ignore::RuntimeWarning", "-k", group]
    command += [*(["-m", "not slow"] if divisor != "1" else []), str(LAWS)]
    done = subprocess.run(command, cwd=LAWS.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "measure.float32", "maps.float32.few", "labels.float16.few", "probabilities.float16", "masks",
        "softmax_labels.float32.few", "softmax_probabilities.float32", "softmax_masks", "names.float16", "resize_rows.float32",
        "resize_columns.uint8",
    ],
)  # fmt: skip
def test_kernels_compile_where_a_size_is_one(name: str) -> None:
    """A launch from torch makes a constant of an argument that is 1, which the interpreter does not."""
    chosen = variant(name, 80)
    sizes = {argument: 1 for argument, kind in chosen.types.items() if kind == "i32"}
    types = {argument: chosen.types.get(argument, "constexpr") for argument in chosen.kernel.arg_names}
    constants = {**chosen.constants, **chosen.tilings[0].constants, **sizes}
    source = ASTSource(chosen.kernel, {**types, **dict.fromkeys(sizes, "constexpr")}, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4}).asm["cubin"]
