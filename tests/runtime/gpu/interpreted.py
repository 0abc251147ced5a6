"""Laws of launches without a GPU, in a process of their own: Triton's interpreter is chosen when Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def keep(laws: str, compiled: Path, which: str = "not slow or slow") -> None:
    """Run a file of this folder. which: by their marks. compiled: the kernels' folder that it reads as COMPILED_KERNELS."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COMPILED_KERNELS": str(compiled), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    file = Path(__file__).with_name(laws)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", which, str(file)]
    done = subprocess.run(command, cwd=file.parents[3], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
