"""Signals: the command line is told to end at any moment; what is done is whole, and --resume gives what one run would."""

import json
import random as randoms
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from .cases import Bench, Case
from .reference import pictures, quick

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
PICTURES = 8


def case(number: int, random: Random, bench: Bench) -> Case:
    folder = bench.once("pictures", lambda: _pictures(bench.folder.parent / "signals.pictures"))
    right, seconds = bench.once("right", lambda: _uninterrupted(bench, folder))
    sent = random.choice(SIGNALS)
    moments = [seconds * random.uniform(0.2, 1.1) for _ in range(random.choice((1, 1, 2)))]
    twice = random.random() < 0.2
    told = " and ".join(f"{moment:.2f}" for moment in moments)
    return Case(
        lambda: _interrupted(bench, folder, right, sent, moments, twice),
        f"{sent.name} after {told} s of {seconds:.2f}{', at once again' if twice else ''}", 60, 120,
    )  # fmt: skip


def _pictures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made = randoms.Random(0)
    for index in range(PICTURES):
        pixels = made.choice(pictures())
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def _command(bench: Bench, folder: Path, out: Path, resume: bool) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", "segment", str(folder), "--words", "cat, sofa", "--threshold", "0.2",
         "--engine", str(quick(bench)), "--backend", "onnxruntime-cpu", "--threads", "1", "--out", str(out),
         "--json", str(out / "masks.json"), *(["--resume"] if resume else [])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _uninterrupted(bench: Bench, folder: Path) -> tuple[Any, float]:
    """The JSON of one run, and its seconds: of the second, which finds the words cached."""
    for attempt in range(2):
        out, begun = bench.folder.parent / f"signals.right.{attempt}", time.monotonic()
        process = _command(bench, folder, out, resume=False)
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return json.loads((out / "masks.json").read_text()), time.monotonic() - begun


def _interrupted(
    bench: Bench, folder: Path, right: Any, sent: signal.Signals, moments: list[float], twice: bool
) -> str | None:
    out = bench.folder / "out"
    for turn, moment in enumerate(moments):
        process = _command(bench, folder, out, resume=turn > 0)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            if twice:
                process.send_signal(sent)
        _, told = process.communicate(timeout=60)
        if wrong := _wrong_end(process.returncode, told, sent, out, right):
            return wrong
    process = _command(bench, folder, out, resume=True)
    _, told = process.communicate(timeout=100)
    if process.returncode != 0:
        return f"--resume ended with {process.returncode}: {_line(told)}"
    if json.loads((out / "masks.json").read_text()) != right:
        return "--resume gives another JSON than one run"
    if len(list(out.glob("*.overlay.*"))) != PICTURES:
        return "overlays are missing"
    return None


def _wrong_end(code: int, told: str, sent: signal.Signals, out: Path, right: Any) -> str | None:
    if code not in (0, 128 + sent, -sent):
        return f"it ended with {code}: {_line(told)}"
    if "Traceback" in told and ", in main" in told:  # before that, Python still imports
        return f"a traceback: {_line(told)}"
    if code == 128 + sent and "interrupted" not in told and "Traceback" not in told:
        return f"it does not say that it was interrupted: {_line(told)}"
    if not (out / "masks.json").exists():
        return None
    try:
        written = json.loads((out / "masks.json").read_text())
    except ValueError:
        return "the JSON is cut off"
    allowed = {json.dumps(shape["segmentation"]) for shape in right["annotations"]}
    if not {json.dumps(shape["segmentation"]) for shape in written["annotations"]} <= allowed:
        return "a mask of the JSON is none of a whole run's"
    if sent != signal.SIGKILL and (left := [path.name for path in out.rglob(".fusioner-tmp-*")]):
        return f"it leaves {left[0]}"
    return None


def _line(told: str) -> str:
    return " ".join(told.split())[-400:]
