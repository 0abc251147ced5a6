"""What an application installs, and what its first picture costs: run by `make bare` in an environment with `.[cpu]` and
`./models/demo` alone.

A photograph is segmented from an empty folder, by the installed packages. Fails where PyTorch or Triton can be imported, the environment holds more than 300 MB, or segmenting a photograph with
words never seen takes more than 3 s of processor time, start-up included.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_MEGABYTES, MAX_SECONDS = 300, 3.0


def main() -> int:
    present = [name for name in ("torch", "triton", "onnx") if importlib.util.find_spec(name)]
    prefix = Path(sys.prefix)
    megabytes = megabytes_of(prefix)
    with tempfile.TemporaryDirectory() as folder:
        command = [prefix / "bin" / "fusioner-rt", "segment", "cat.jpg", "--words", "cat, sofa"]
        shutil.copy(ROOT / "docs/pictures/cat.jpg", folder)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FUSIONER_ENGINE")
        }
        environment |= {"FUSIONER_CACHE": f"{folder}/cache", "XDG_DATA_HOME": f"{folder}/data"}
        seconds = []
        for _ in range(2):  # words new, words cached
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, cwd=folder, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(
        f"environment {megabytes:.0f} MB; processor time {seconds[0]:.2f} s with new words, {seconds[1]:.2f} s with cached ones"
    )
    if present or megabytes > MAX_MEGABYTES or seconds[0] > MAX_SECONDS:
        print(
            f"expected none of {present or 'torch, triton'}, {MAX_MEGABYTES} MB and {MAX_SECONDS} s at most",
            file=sys.stderr,
        )
        return 1
    return 0


def megabytes_of(folder: Path) -> float:
    """What a folder takes on the disk, in MiB."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.lstat().st_blocks * 512 for file in files) / 2**20


if __name__ == "__main__":
    sys.exit(main())
