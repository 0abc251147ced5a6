"""Runs resize_laws.py where the kernels can run: on a GPU, else by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusioner_rt.preprocess import Preprocessing

LAWS = Path(__file__).with_name("resize_laws.py")


@pytest.mark.parametrize(
    ("which", "divisor"), [("not slow", "8"), pytest.param("slow or not slow", "1", marks=pytest.mark.slow)]
)
def test_resize_kernels_keep_their_laws(which: str, divisor: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LAWS_DIVISOR": divisor}
    environment.pop("PYTEST_XDIST_WORKER", None)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", which, str(LAWS)]
    done = subprocess.run(command, cwd=LAWS.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fused_multiply_add_would_give_other_bits() -> None:
    """So that equality of bits above and the machine code without FFMA say something."""
    gain, shift = Preprocessing(320, 32, 1024).gain_and_shift()
    levels = np.arange(256, dtype=np.float32)[:, None]
    fused = (levels.astype(np.float64) * gain - shift).astype(np.float32)
    assert (fused != levels * gain - shift).any()
