"""The campaign finds what is planted: each fault by its case's name, with its input, and nothing where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

PLANTED = '''
"""Planted."""

import ctypes, os, signal, time

from tests.campaign.cases import Case

kept = []

def case(number, random, bench):
    value = random.randrange(1000)
    (bench.folder / "input").write_bytes(bytes(max(1, 1000 - number)))
    def run():
        FAULT
    return Case(run, f"planted {number}, {value}", seconds=0.5, hangs=HANGS, memory=64 << 20)
'''
FAULTS = {
    "sound": ("kept.append(number)", ""),
    "crash": ("if number == 3: ctypes.string_at(8)", "died of SIGSEGV"),
    "killed": ("if number == 3: os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
    "hang": ("if number == 3: time.sleep(1e6)", "it hangs (Fatal Python error: Aborted"),
    "slow": (
        "end = time.process_time() + 0.7\n        while number == 3 and time.process_time() < end: pass",
        "s of CPU",
    ),
    "wrong": ("if number == 3: return 'a wrong mask'", "a wrong mask"),
    "escape": (
        "if number == 3: raise KeyError('no kind')",
        "an exception escaped: KeyError: 'no kind' (worker.py:",
    ),
    "exit": ("if number == 3: os._exit(7)", "its process exited with 7"),
    "peak": ("number == 3 and bytearray(100 << 20)", "MiB of memory"),
}


def campaign(folder: Path, fault: str, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code of a run over one planted kind, its lines of JSON, and what it printed."""
    (folder / "planted").mkdir()
    (folder / "planted/planted.py").write_text(
        PLANTED.replace("HANGS", "2" if "sleep" in fault else "60").replace("FAULT", fault)
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    given = [
        "--only",
        "planted.planted",
        "--bundle",
        str(folder),
        "--json",
        str(folder / "lines"),
        "--keep",
        str(folder / "kept"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *given, *options], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "lines").read_text().splitlines()]
    return done.returncode, lines, done.stdout + done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_planted_is_found_by_its_name_with_its_input(tmp_path: Path, name: str) -> None:
    fault, found = FAULTS[name]
    code, lines, printed = campaign(tmp_path, fault, "--cases", "5")
    summary = lines.pop()
    assert summary["kinds"]["planted.planted"]["cases"] == summary["cases"] == 5, printed
    if not found:
        assert (code, lines) == (0, [])
        return
    assert code == 1
    assert [line["case"] for line in lines] == ["planted.planted-18-3"], printed
    assert found in lines[0]["found"]
    assert lines[0]["what"].startswith("planted 3, ")
    assert len((Path(lines[0]["kept"]) / "input").read_bytes()) == 997


def test_memory_that_is_not_given_back_is_found(tmp_path: Path) -> None:
    code, lines, printed = campaign(tmp_path, "kept.append(bytearray(200_000))", "--cases", "300")
    assert code == 1, printed
    assert [line["case"] for line in lines[:-1]] == ["planted.planted-18"]
    assert lines[-1]["kinds"]["planted.planted"]["memory_kb_per_1000_cases"] > 10_000


def test_an_end_by_a_signal_is_found(tmp_path: Path) -> None:
    code, lines, _ = campaign(tmp_path, "import atexit; number or atexit.register(ctypes.string_at, 8)", "--cases", "5")
    assert code == 1
    assert (lines[0]["what"], lines[0]["found"][:27]) == ("the end of the process", "its process died of SIGSEGV")


def test_of_findings_alike_the_smallest_input_is_kept(tmp_path: Path) -> None:
    code, lines, _ = campaign(tmp_path, "return f'a wrong mask of {number}'", "--cases", "5")
    assert code == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [lines[-2]["case"]]


def test_a_case_is_made_again_by_its_name(tmp_path: Path) -> None:
    code, (once, _), _ = campaign(tmp_path, "return 'wrong' if number == 4 else None", "--cases", "5")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    again = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--case", once["case"], "--keep", str(tmp_path / "again")], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (code, again.returncode) == (1, 1)
    assert f"{once['case']}: {once['what']}: {once['found']}" in again.stderr


def test_every_kind_says_what_it_breaks() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    from tests.campaign import KINDS

    assert {"bundles", "memory", "signals", "soak", "words"} <= {*KINDS}
    told = " ".join(listed.stdout.split())
    assert all(f"{kind}: " in told for kind in KINDS)
    assert "for as long as it is given, and reports" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--case", "pictures-18-x"], "a case is named KIND-SEED-NUMBER"),
        (["--case", "paintings-18-1"], "there is no kind paintings"),
        (["--only", "paintings"], "there is no kind paintings"),
        (["--minutes", "-1"], "invalid"),
        (["--minutes", "nan"], "invalid"),
        (["--cases", "0"], "no whole number of 1 or more"),
        (["--bundle", "nowhere"], "there is no bundle nowhere"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_runs(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.campaign.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_what_security_says_of_the_long_run_is_its_record() -> None:
    record = json.loads((ROOT / "docs/records/campaign.jsonl").read_text())
    assert record["findings"] == 0
    assert record["seconds"] >= 30 * 60
    assert not record["interrupted"]
    told = f"{record['cases']:,} cases in {record['seconds'] // 60} minutes, no finding"
    assert told in " ".join((ROOT / "SECURITY.md").read_text().split())
