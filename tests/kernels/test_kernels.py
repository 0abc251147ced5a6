"""Runs kernel_laws.py where the kernels can run: on a GPU, else by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LAWS = Path(__file__).with_name("kernel_laws.py")
GROUPS = ["probabilities", "labels", "masks or batch", "not (probabilities or labels or masks or batch)"]


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_keep_their_laws(group: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "ignore::RuntimeWarning", "-k", group, str(LAWS)]
    done = subprocess.run(command, cwd=LAWS.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
