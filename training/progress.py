"""A run's state after every epoch, its log as CSV, and its learning curves as a picture.

OUT/log.csv    a row per epoch: epoch, steps, loss, validation mIoU, learning rate, seconds
OUT/steps.csv  a row per step: step, loss, learning rate
OUT/curve.png  the loss per step, the learning rate and the validation score
OUT/state      the same command resumes from here; removed once the run is complete
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fusioner_rt.atomic_files import TEMPORARY, write_result
from fusioner_rt.errors import OutputUnwritable, UsageError, one_line
from fusioner_rt.replaced_bundles import check_files
from training.checkpoint import CheckpointError, write_tensors
from training.encoders import with_weights
from training.optimisation import Optimiser

EPOCH_COLUMNS = ("epoch", "steps", "loss", "miou", "rate", "seconds")
STEP_COLUMNS = ("step", "loss", "rate")


class Progress:
    """The record of a run, saved after every epoch: a kill costs one epoch at most.

    settings: plain JSON of everything that the result depends on.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.folder = out, out / "state"
        self.settings = json.loads(json.dumps(settings))
        self.encoder_sha256: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []  # a dict of EPOCH_COLUMNS for each epoch
        self.steps: list[tuple[int, float, float]] = []  # STEP_COLUMNS
        self.best: dict[str, Tensor] = {}  # trained weights of the best epoch, for runs that may stop early

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation score, counted from 1; the last epoch if none has a score."""
        scores = [-math.inf if row["miou"] is None else row["miou"] for row in self.history]
        return scores.index(max(scores)) + 1 if scores and max(scores) > -math.inf else self.epoch

    def exhausted(self, patience: int) -> bool:
        """Whether the validation score has not improved for `patience` epochs (0: never)."""
        return bool(patience) and self.epoch - self.best_epoch >= patience

    def end_epoch(self, loss: float, score: float, seconds: float) -> None:
        """Adds a row to the log. score: mIoU in percent, NaN where no class was scored."""
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "steps": len(self.steps),
                "loss": loss,
                "miou": None if math.isnan(score) else score,
                "rate": self.steps[-1][2],
                "seconds": seconds,
            }
        )

    def resume(self, optimiser: Optimiser, encoder_sha256: dict[str, str] | None = None) -> bool:
        """Restores OUT/state; False without one. encoder_sha256: of the weights of "image" and "text", which `save` keeps.

        Raises UsageError for other settings, CheckpointError for a damaged state or other weights.
        """
        self.encoder_sha256 = encoder_sha256 or {}
        if not (self.folder / "state.json").is_file():
            return False
        try:
            state = json.loads((self.folder / "state.json").read_text())
            self._check_encoders(state["settings"]["model"], state.get("encoder_sha256", {}))
            self._check_settings(state["settings"], "an unfinished run")
            tensors = load_file(self.folder / state["tensors"])
            optimiser.restore(tensors, state)
            self.history = state["history"]
            self.best = {n.removeprefix("best."): v for n, v in tensors.items() if n.startswith("best.")}
            self.steps = self._read_steps(state["steps"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.folder} cannot be resumed from ({one_line(error)})",
                "remove it to start again",
            ) from None
        return True

    def _check_encoders(self, model: dict[str, Any], recorded: dict[str, str]) -> None:
        """Puts the given place of an encoder's weights into the settings of a state where the same weights lie there."""
        for kind, digest in recorded.items():
            name, before = (str(settings.get(f"{kind}_encoder")) for settings in (self.settings["model"], model))
            same_kind = name == before or with_weights(name, Path("w")) == with_weights(before, Path("w")) is not None
            found = self.encoder_sha256.get(kind, digest)
            if same_kind and found != digest:
                raise UsageError(
                    f"{self.out} holds a run on {kind} encoder weights with sha256 {digest[:12]}…, but {name} has {found[:12]}…",
                    f"name the file that it was begun with: --{kind}-encoder NAME:FILE, another --out, or remove it",
                )
            if same_kind:
                model[f"{kind}_encoder"] = name

    def check_finished(self, record: dict[str, Any]) -> None:
        """Raises UsageError where a finished run in OUT has other settings."""
        self._check_settings(record, "a finished run")

    def _check_settings(self, settings: dict[str, Any], run: str) -> None:
        differing = _differences(settings, self.settings)
        if differing:
            raise UsageError(
                f"{self.out} holds {run} with other settings ({differing})",
                "give its settings, another --out, or remove it",
            )

    def save(self, optimiser: Optimiser) -> None:
        """Writes the log, then the state. Raises OutputUnwritable.

        A kill at any moment leaves a whole state: state.json names its tensors' file and is replaced after that is written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.out / "steps.csv", _csv(STEP_COLUMNS, self.steps))
        _write(self.out / "log.csv", _csv(EPOCH_COLUMNS, [[row[c] for c in EPOCH_COLUMNS] for row in self.history]))
        _write(self.out / "curve.png", curve(self.steps, self.history))
        tensors, values = optimiser.state()
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        file = self.folder / f"epoch{self.epoch}.safetensors"
        try:
            write_tensors(file, tensors)
        except OSError as error:
            raise OutputUnwritable(
                f"cannot be written ({error.strerror or error})",
                "free its disk and run the same command again: it resumes from the last epoch",
                subject=file,
            ) from None
        state = {"tensors": file.name, "settings": self.settings, "encoder_sha256": self.encoder_sha256}
        state |= {"history": self.history, **values}
        _write(self.folder / "state.json", json.dumps(state, indent=1).encode())
        for name in set(_of_states(self.folder)) - {file.name, "state.json"}:
            (self.folder / name).unlink()

    def finish(self) -> None:
        """Removes the state. A kill at any moment leaves a whole one, or none that counts."""
        (self.folder / "state.json").unlink(missing_ok=True)
        for name in _of_states(self.folder):
            (self.folder / name).unlink()
        with contextlib.suppress(OSError):  # it holds what is none of ours, or is not there
            self.folder.rmdir()

    def _read_steps(self, count: int) -> list[tuple[int, float, float]]:
        """The first `count` rows of steps.csv; a kill between log and state leaves more rows."""
        with (self.out / "steps.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1 : count + 1]
        return [(int(step), float(loss), float(rate)) for step, loss, rate in rows]


def check_place(out: Path) -> None:
    """Check that a run may be kept there: in place of another's files, and of nothing else. Raises OutputUnwritable."""
    check_files(out / "state", _of_states(out / "state"), "no state has")
    for table, columns, others in (("log.csv", EPOCH_COLUMNS, ["curve.png"]), ("steps.csv", STEP_COLUMNS, [])):
        file = out / table
        ours = file.is_file() and file.read_bytes().startswith(_csv(columns, []))
        for foreign in [out / name for name in [table, *others] if not ours and os.path.lexists(out / name)]:
            raise OutputUnwritable(
                "is of no training, and one would replace it",
                "move it elsewhere, or give another --out",
                subject=foreign,
            )


def _of_states(folder: Path) -> list[str]:
    """The files in OUT/state that a run wrote, or one that was killed began to write."""
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return [
        name for name in names if re.fullmatch(rf"state\.json|epoch\d+\.safetensors|(\.tmp|{TEMPORARY}).*", name)
    ]  # .tmp: safetensors' own


def curve(steps: list[tuple[int, float, float]], history: list[dict[str, Any]]) -> bytes:
    """A PNG: loss per step, raw and smoothed, beside the validation score per epoch, and the learning rate below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    numbers, losses, rates = ([row[column] for row in steps] for column in range(3))
    above.plot(numbers, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="loss of a step")
    above.plot(numbers, smoothed(losses), color="tab:blue", label="loss, smoothed")
    above.set_ylabel("loss")
    scores = above.twinx()
    scored = [row for row in history if row["miou"] is not None]
    scores.plot(
        [row["steps"] for row in scored],
        [row["miou"] for row in scored],
        "o-",
        color="tab:orange",
        label="validation mIoU",
    )
    scores.set_ylim(0, 100)
    scores.set_ylabel("validation mIoU (%)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    below.plot(numbers, rates, color="tab:green")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """An exponential moving average over about `share` of the values, unbiased at the start."""
    decay = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        result.append(total / weight)
    return result


LATER: dict[str, Any] = {
    "model": {"aligned": 0},
    "plan": {"choice": 0.0, "alone": 0.0, "near": 0.0, "unknown": 0.4, "trust": 1.0, "yielding": 1.0},
    "split": 0.0, "without": [],
}  # fmt: skip
"""Settings that records of earlier versions lack, as those versions had them."""


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Up to three settings that differ, each with both values."""
    differing = []
    for section in (*new, *(name for name in ("sets", "from") if name in old and name not in new)):
        was, now = (json.loads(json.dumps(of.get(section, LATER.get(section)))) for of in (old, new))
        if isinstance(was, dict) and isinstance(now, dict):
            was = {**LATER.get(section, {}), **was}
            differing += [f"{key} {was.get(key)!r} there, {now[key]!r} here" for key in now if was.get(key) != now[key]]
        elif was != now:
            differing.append(f"{section} {was!r} there, {now!r} here")
    return "; ".join(differing[:3])


def _csv(columns: tuple[str, ...], rows: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # floats by repr: they read back equal
    return text.getvalue().encode()


def _write(file: Path, content: bytes) -> None:
    write_result(file, lambda stream: stream.write(content))
