"""From nothing to a first mask over HTTP: run by `make bare-serve`, with a Python that needs no packages.

An environment is made anew and `.[cpu,serve]` and `./models/demo` are installed, downloads included; the service is started there with
an empty cache, and asked for the masks of a photograph. Prints seconds of each step, the megabytes of the environment, and the most
memory that the service took. Fails where there is no mask.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bare_environment import megabytes_of

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FUSIONER_ENGINE")
        }
        environment |= {"FUSIONER_CACHE": f"{folder}/cache", "XDG_DATA_HOME": f"{folder}/data"}
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True, env=environment)
        subprocess.run(
            [f"{folder}/venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
             "-c", "constraints.txt", ".[cpu,serve]", "./models/demo"],
            check=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        installed = time.monotonic()
        service = subprocess.Popen(
            [f"{folder}/venv/bin/fusioner-rt", "serve", "--port", "0"],
            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            address = address_of(service)
            serving = time.monotonic()
            picture = urllib.request.Request(
                f"{address}/v1/segment?words=cat,sofa",
                (ROOT / "docs/pictures/cat.jpg").read_bytes(),
                {"Content-Type": "image/jpeg"},
            )
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(picture, timeout=60) as reply:
                words = json.load(reply)["words"]
            answered = time.monotonic()
            memory = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.pid}/status").read_text())
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate()
        assert memory is not None
        print(
            f"installed in {installed - begun:.0f} s, {megabytes_of(Path(folder, 'venv')):.0f} MB; serving after {serving - installed:.1f} s; "
            f"a first mask {answered - serving:.1f} s later, {int(memory[1]) / 1024:.0f} MB of memory; {answered - begun:.0f} s in all"
        )
        return 0 if service.returncode == 0 and any(word["area"] for word in words) else 1


def address_of(service: subprocess.Popen[str]) -> str:
    """Where a service says that it serves."""
    assert service.stderr is not None
    for line in service.stderr:
        if "serving on" in line:
            return line.split()[-1]
    raise RuntimeError("it ended before it served")


if __name__ == "__main__":
    sys.exit(main())
