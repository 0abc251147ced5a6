"""SECURITY.md and docs/operating.md: every number is the code's, and what they say of the network holds.

Run as a script it prints the table of exit codes.
"""

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fusioner_rt import errors
from fusioner_rt.serve.errors import ServiceError
from fusioner_rt.serve.settings import Settings

ROOT = Path(__file__).parents[1]
SECURITY, OPERATING = ROOT / "SECURITY.md", ROOT / "docs/operating.md"

EVERYTHING = """
import json, sys, time
start, asked = time.monotonic(), []
def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        asked.append([event, str(arguments)])
sys.addaudithook(heard)
import fusioner_rt
from fusioner_rt import Session
with Session(sys.argv[1], cache=False, backend="onnxruntime-cpu") as session:
    labels = session.segment(sys.argv[2], "cat, sofa").labels
names, values = [line.split() for line in open("/proc/self/net/snmp") if line.startswith("Ip:")]
sent = int(values[names.index("OutNoRoutes")])
sent += sum(int(line.split()[1]) for line in open("/proc/self/net/snmp6") if line.startswith("Ip6OutNoRoutes"))
found = sorted(set(labels.reshape(-1).tolist()))
print(json.dumps({"asked": asked, "found": found, "sent": sent, "seconds": time.monotonic() - start}))
"""


def exit_codes() -> str:
    """The table of errors, by exit code, and of the kinds that the service adds."""
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FusionerError)]
    kinds = sorted([*own, ServiceError, *ServiceError.__subclasses__()], key=lambda kind: kind.exit_code)
    rows = ["| code | kind | input at fault | meaning |", "|--:|---|---|---|"]
    for kind in kinds:
        meaning = " ".join(str(inspect.getdoc(kind)).split()).split(": ")[0].split(". ")[0].rstrip(".")
        rows.append(f"| {kind.exit_code} | {kind.__name__} | {'yes' if kind.is_input else ''} | {meaning} |")
    return "\n".join(rows) + "\n"


def limits() -> list[tuple[str, str]]:
    """The numbers of SECURITY.md, and where each is in the code."""
    return re.findall(r"^\| [^|]+ \| (\d+) \| `([\w.()]+)` \|", SECURITY.read_text(), flags=re.MULTILINE)


def test_every_exit_code_is_in_the_table() -> None:
    assert exit_codes() in OPERATING.read_text()


@pytest.mark.parametrize(("number", "place"), limits())
def test_every_limit_is_the_codes(number: str, place: str) -> None:
    name, _, parameter = place.rstrip(")").partition("(")
    module, _, name = name.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert int(number) == (inspect.signature(found).parameters[parameter].default if parameter else found)


def test_the_limits_are_all_read() -> None:
    rows = SECURITY.read_text().partition("## Limits")[2].partition("\n## ")[0].count("\n|")
    assert len(limits()) == rows - 2 > 10


def test_the_limits_of_the_service_are_all_there() -> None:
    numbers = {one.name for one in fields(Settings) if type(one.default) in (int, float)}
    told = {name for _, place in limits() for name in re.findall(r"Settings\((\w+)\)", place)}
    assert told == numbers - {"max_wait", "workers"}  # which bound nothing that a client sends


def test_readers_are_led_to_both_pages() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        assert "(SECURITY.md)" in text
        assert "(docs/operating.md)" in text


@pytest.mark.parametrize(
    ("name", "code"), re.findall(r"^\| (SIG\w+) \|.*\| (\d+) \|$", OPERATING.read_text(), flags=re.MULTILINE)
)
def test_a_signal_ends_the_command_with_its_code(name: str, code: str, tmp_path: Path) -> None:
    """It comes while the command waits for a picture from stdin, when everything is set up."""
    reads = [sys.executable, "-m", "fusioner_rt", "segment", "-", "--words", "cat", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*reads, "--engine", str(ROOT / "models/demo/bundle"), "-v"], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if "words: 1" in line:  # the last that is told before the picture is read
            break
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if name == "SIGKILL" else int(code))
    assert int(code) == 128 + getattr(signal, name)


def everything(*before: str) -> dict[str, Any]:
    """Import, session and segment in a process of its own. before: what starts it."""
    done = subprocess.run(
        [*before, sys.executable, "-c", EVERYTHING, "models/demo/bundle", "docs/pictures/cat.jpg"], cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_nothing_is_looked_up_and_nothing_waits_for_a_network() -> None:
    """In a network namespace of its own the kernel counts what would be sent, by libraries in C too, and there is no way to send it."""
    with_network, without = everything(), everything("unshare", "--map-root-user", "--net")
    assert with_network["asked"] == without["asked"] == []
    assert without["sent"] == 0
    assert with_network["found"] == without["found"] != [0]
    assert without["seconds"] < 2 * with_network["seconds"] + 4  # who waits for an answer waits 5 s at least


def test_what_is_sent_without_a_network_is_counted() -> None:
    """The test above can fail: a name is looked up, by the C library."""
    asked = EVERYTHING.replace(
        "import fusioner_rt\n", "import fusioner_rt, subprocess\nsubprocess.run(['getent', 'hosts', 'a.example'])\n"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", asked, "models/demo/bundle", "docs/pictures/cat.jpg"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout)["sent"] > 0, done.stderr


SOURCES = [
    file
    for folder in ("fusioner_rt", "export", "kernels", "training", "benchmarks", "examples", "tests/campaign")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if re.search(r"^\s*(import|from) onnxruntime\b", file.read_text(), flags=re.MULTILINE)
]
"""Files that import it; of the tests, which conftest.py comes before, that."""


WATCHED = """
import importlib, os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print("off" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "on")
            raise SystemExit
sys.meta_path.insert(0, Watch())
for name in sys.argv[1:]:
    runpy.run_path(name) if name.endswith(".py") else importlib.import_module(name)
import onnxruntime  # by a function of the file: what it imports at its top came first
"""


@pytest.mark.parametrize("file", [*SOURCES, ROOT / "tests/conftest.py"], ids=lambda file: str(file.relative_to(ROOT)))
def test_onnx_runtime_is_imported_with_its_telemetry_off(file: Path) -> None:
    """A finder of modules sees the variable at the moment of the import, in a fresh process that loads the file as it is loaded."""
    is_module = (file.parent / "__init__.py").exists()
    load = ".".join(file.relative_to(ROOT).with_suffix("").parts) if is_module else str(file)
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = [str(ROOT), *([] if is_module else [str(file.parent)])]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, load], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**environment, "PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert done.stdout == "off\n", done.stdout + done.stderr[-800:]


def test_the_files_that_import_onnx_runtime_are_found() -> None:
    assert {"runtime.py", "cli.py", "build_bundle.py", "roofline.py"} <= {file.name for file in SOURCES}


if __name__ == "__main__":
    print(exit_codes(), end="")
