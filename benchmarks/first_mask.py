"""From nothing to a first mask, over HTTP and in the page: run by `make bare-serve`; without --page, by a Python that needs no packages.

An environment is made anew and `.[cpu,serve]` and `./models/demo` are installed, downloads included; the service is started there with
an empty cache, and asked for the masks of a photograph. Prints seconds of each step, the megabytes of the environment, and the most
memory that the service took. Fails where there is no mask.

--page starts it once more, with another empty cache, and a headless Chromium, which runs by then, loads the page and clicks its first
sample. Prints seconds to the page, from the click to the painted masks, megabytes that the browser received and the service's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.bare_environment import megabytes_of

if TYPE_CHECKING:
    from driven_page import Page

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", action="store_true", help="in the page, too; needs tests/page/requirements.txt, Chromium"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, env=clean_environment(folder))
        subprocess.run(
            [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
             "-c", "constraints.txt", ".[cpu,serve]", "./models/demo"],
            check=True, env=clean_environment(folder), cwd=ROOT,
        )  # fmt: skip
        installing = time.monotonic() - begun
        print(f"installed in {installing:.0f} s, {megabytes_of(folder / 'venv'):.0f} MB")
        over_http(folder, installing)
        if given.page:
            in_page(folder, installing)
    return 0


def over_http(folder: Path, installing: float) -> None:
    begun = time.monotonic()
    with started(folder, "http") as (service, address):
        serving = time.monotonic()
        picture = urllib.request.Request(
            f"{address}/v1/segment?words=cat,sofa",
            (ROOT / "docs/pictures/cat.jpg").read_bytes(),
            {"Content-Type": "image/jpeg"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(picture, timeout=60) as reply:
            words = json.load(reply)["words"]
        answered = time.monotonic()
        memory = most_memory(service)
    if not any(word["area"] for word in words):
        raise SystemExit("over HTTP: no mask")
    print(
        f"over HTTP: serving after {serving - begun:.1f} s; a first mask {answered - serving:.1f} s later, "
        f"{memory:.0f} MB of memory; {installing + answered - begun:.0f} s in all"
    )


def in_page(folder: Path, installing: float) -> None:
    sys.path.append(str(ROOT / "tests/page"))
    from driven_page import Page, chromium

    driver = chromium(folder / "chromium")
    try:
        begun = time.monotonic()
        with started(folder, "page") as (service, address):
            serving = time.monotonic()
            loading, masking, received = first_mask_in(Page(driver, f"{address}/", folder))
            memory = most_memory(service)
    finally:
        driver.quit()
    print(
        f"in the page: serving after {serving - begun:.1f} s; the page {loading:.1f} s later, a first mask {masking:.1f} s after the "
        f"click on a sample, {received:.2f} MB to the browser, {memory:.0f} MB of memory; "
        f"{installing + serving - begun + loading + masking:.0f} s in all"
    )


def first_mask_in(page: Page) -> tuple[float, float, float]:
    """Seconds until the page shows its samples, from a click on the first to painted masks, and MB that the browser received."""
    begun = time.monotonic()
    page.open()
    loaded = time.monotonic()
    page.all("#samples button")[0].click()
    page.until(lambda: page.all(".result") and not page.one("#busy").is_displayed() and page.painted())
    return loaded - begun, time.monotonic() - loaded, page.received() / 2**20


@contextmanager
def started(folder: Path, name: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service of that environment with a cache of its own, and its address."""
    service = subprocess.Popen(
        [folder / "venv/bin/fusioner-rt", "serve", "--port", "0"],
        cwd=folder, env=clean_environment(folder / name), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield service, address_of(service)
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate()
    if service.returncode:
        raise SystemExit(f"the service ended with {service.returncode}")


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's, but for where packages, bundles and caches are found. folder: for caches."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FUSIONER_ENGINE")}
    return kept | {"FUSIONER_CACHE": f"{folder}/cache", "XDG_DATA_HOME": f"{folder}/data"}


def most_memory(service: subprocess.Popen[str]) -> float:
    """The most that it was resident so far, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def address_of(service: subprocess.Popen[str]) -> str:
    """Where a service says that it serves."""
    assert service.stderr is not None
    for line in service.stderr:
        if "serving on" in line:
            return line.split()[-1]
    raise RuntimeError("it ended before it served")


if __name__ == "__main__":
    sys.exit(main())
