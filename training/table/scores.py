"""Scores of runs: the scores.json files of training.evaluate, or a record that holds many runs in one file."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusioner_rt.atomic_files import write_result
from fusioner_rt.errors import FusionerError, one_line
from training.scorecard import FORMAT, versions

RECORD_FORMAT, FORMAT_VERSION = "fusioner-rt table record", 1
_PACKAGES = ("torch", "numpy", "open_clip_torch", "timm", "transformers")


class ScoresInvalid(FusionerError):
    """A scores file or a record is invalid."""

    exit_code = 74
    is_input = False


@dataclass(frozen=True)
class ClassScore:
    iou: float  # percent
    pictures: int  # that show the class


Classes = dict[str, ClassScore]


@dataclass(frozen=True)
class Asked:
    """The scored data and the protocol, the fold aside."""

    dataset: str
    folds: str  # "" without folds
    words: str
    masks: str
    mode: str
    window: str
    threshold: float


@dataclass(frozen=True)
class Scores:
    """One run, scored on the classes of one fold."""

    recipe: str  # of its training
    asked: Asked
    fold: int | None
    seed: int
    classes: Classes
    fb_iou: float | None = None
    baselines: dict[str, Classes] = field(default_factory=dict)  # by name, e.g. "everything"
    seconds: float | None = None  # of training

    def counted(self, least: int) -> Classes:
        """The classes with at least `least` pictures."""
        return counted(self.classes, least)


def counted(classes: Classes, least: int) -> Classes:
    return {word: score for word, score in classes.items() if score.pictures >= least}


def run_name(recipe: str, fold: int | None, seed: int) -> str:
    """A run's folder name in `--runs`."""
    return recipe.replace("/", "-") + ("" if fold is None else f"-fold{fold}") + f"-seed{seed}"


def read_runs(folder: Path) -> list[Scores]:
    """Every folder/*/scores.json of a checkpoint that was trained by a recipe. Raises ScoresInvalid."""
    found = []
    for file in sorted(folder.glob("*/scores.json")):
        document = _document(file, FORMAT)
        try:
            training = document["training"]
            if "recipe" not in training:  # not trained by a recipe: no row of a table
                continue
            found.append(_scores(document, training["recipe"], training["seed"], _seconds(file.with_name("log.csv"))))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ScoresInvalid(
                f"{file} lacks or garbles {one_line(error)}", "score the run again with training.evaluate --json"
            ) from None
    return found


def read_record(file: Path) -> list[Scores]:
    """The runs of a record of `write_record`. Raises ScoresInvalid."""
    document = _document(file, RECORD_FORMAT)
    try:
        return [_scores(run, run["recipe"], run["seed"], run["seconds"]) for run in document["runs"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScoresInvalid(
            f"{file} lacks or garbles {one_line(error)}", "write it again with --write-record"
        ) from None


def write_record(file: Path, scores: list[Scores]) -> None:
    """Writes a record: JSON with a line per run, and the machine and versions that wrote it."""
    runs = [
        {
            "recipe": s.recipe, "fold": s.fold, "seed": s.seed, "seconds": s.seconds,
            "dataset": s.asked.dataset, "folds": s.asked.folds,
            "protocol": {name: getattr(s.asked, name) for name in ("words", "masks", "mode", "window", "threshold")},
            "fb_iou": _rounded(s.fb_iou),
            "classes": _plain(s.classes), "baselines": {name: {"classes": _plain(c)} for name, c in s.baselines.items()},
        }
        for s in sorted(scores, key=lambda s: (s.recipe, -1 if s.fold is None else s.fold, s.seed, str(s.asked)))
    ]  # fmt: skip
    head = {
        "format": RECORD_FORMAT,
        "format_version": FORMAT_VERSION,
        "date": time.strftime("%Y-%m-%d"),
        "device": _device(),
        "versions": versions(_PACKAGES),
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    body = ",\n".join("  " + json.dumps(run, ensure_ascii=False) for run in runs)
    text = "{\n" + ",\n".join([*lines, f' "runs": [\n{body}\n ]']) + "\n}\n"
    write_result(file, lambda stream: stream.write(text.encode()))


def _document(file: Path, expected: str) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ScoresInvalid(f"{file} cannot be read as JSON ({error})", "write it again") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        raise ScoresInvalid(f'{file} is something else; expected "format": "{expected}"', "name another file")
    if document.get("format_version") != FORMAT_VERSION:
        raise ScoresInvalid(
            f"{file} has format version {document.get('format_version')}",
            f"this code reads {FORMAT_VERSION}: write it again",
        )
    return document


def _scores(document: dict[str, Any], recipe: Any, seed: Any, seconds: float | None) -> Scores:
    fold, fb_iou, protocol = document["fold"], document["fb_iou"], document["protocol"]
    return Scores(
        str(recipe),
        Asked(
            str(document["dataset"]), document["folds"] or "", protocol["words"], protocol["masks"], protocol["mode"],
            protocol["window"], float(protocol["threshold"]),
        ),
        None if fold is None else int(fold),
        int(seed),
        _classes(document["classes"]),
        None if fb_iou is None else float(fb_iou),
        {name: _classes(values["classes"]) for name, values in document["baselines"].items()},
        None if seconds is None else float(seconds),
    )  # fmt: skip


def _classes(values: dict[str, Any]) -> Classes:
    return {word: ClassScore(float(v["iou"]), int(v["pictures"])) for word, v in values.items() if v["iou"] is not None}


def _plain(classes: Classes) -> dict[str, dict[str, float]]:
    return {word: {"iou": round(score.iou, 3), "pictures": score.pictures} for word, score in classes.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _seconds(log: Path) -> float | None:
    """Seconds of training, from log.csv of training.train; None without it."""
    try:
        with log.open(newline="") as lines:
            return round(sum(float(row["seconds"]) for row in csv.DictReader(lines)), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return f"{named[1] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
