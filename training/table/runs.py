"""Trains and scores a table's missing runs: two subprocesses of the usual commands per run, with a log beside its folder.

No state is kept between calls: a run with scores is done, a run with a checkpoint is only scored, and training.train
resumes an interrupted run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path

from tqdm import tqdm

from fusioner_rt.atomic_files import writable_folder
from fusioner_rt.errors import FusionerError, OutputUnwritable
from training.recipe import Protocol, Recipe, RecipeError
from training.table.cells import Runs, scored_as, trained_as
from training.table.scores import run_name

_PATIENCE = 30  # seconds between terminate and kill after an interrupt


class RunsFailed(FusionerError):
    """Some of a table's runs failed; the others were finished."""

    exit_code = 75
    is_input = False


@dataclass(frozen=True)
class Places:
    """Folders and flags for the commands, beside the recipe."""

    runs: Path
    data: dict[str, Path]  # by data set, "" for any other
    evaluation_data: Path | None = None
    cache: Path | None = None
    flags: tuple[str, ...] = ()  # further flags of training.train
    baselines: bool = False
    moved: tuple[str, ...] = ()  # --image-weights and --text-weights of training.evaluate

    def of(self, dataset: str) -> Path:
        """The data set's folder. Raises RecipeError where none was given."""
        folder = self.data.get(dataset, self.data.get(""))
        if folder is None:
            raise RecipeError(
                f"no folder was given for data set {dataset}",
                f"add --data {dataset}=DIR (given: {', '.join(self.data) or 'none'})",
            )
        return folder


@dataclass
class Run:
    """One training and the scorings of its checkpoint."""

    name: str
    commands: list[list[str]] = field(default_factory=list)


def missing(found: dict[str, Recipe], scored: dict[str, Runs], places: Places, known: dict[str, Recipe]) -> list[Run]:
    """The runs without scores, sorted by seed, then fold: all rows get fold 0 before any gets fold 1.

    known: all recipes; the first with the same training names the run. Raises RecipeError.
    """
    owners: dict[str, str] = {}
    for key, recipe in known.items():
        if recipe.place.table:
            owners.setdefault(trained_as(recipe), key)
            owners.setdefault(scored_as(recipe), key)
    lacking = [
        (seed, -1 if fold is None else fold, fold, recipe)
        for recipe in found.values()
        for seed in recipe.seeds
        for fold in (recipe.scored_folds or (None,))
        if (fold, seed) not in scored.get(scored_as(recipe), {})
    ]
    runs: dict[str, Run] = {}
    planned: set[Path] = set()
    for seed, _, fold, recipe in sorted(lacking, key=lambda item: item[:2]):
        trainer, scorer = owners[trained_as(recipe)], owners[scored_as(recipe)]
        out = places.runs / run_name(known[trainer].name, fold, seed)
        scores = places.runs / run_name(known[scorer].name, fold, seed) / "scores.json"
        if scores in planned:
            continue
        planned.add(scores)
        run = runs.setdefault(out.name, Run(out.name))
        chosen = [] if fold is None else ["--fold", str(fold)]
        cache = [] if places.cache is None else ["--cache", str(places.cache)]
        if not run.commands and not (out / "checkpoint" / "config.json").is_file():
            command = [sys.executable, "-m", "training.train", trainer, *chosen, "--seed", str(seed), "--out", str(out)]
            command += ["--data", str(places.of(recipe.data.dataset)), *cache]
            run.commands.append([*command, *places.flags])
        data = places.evaluation_data or places.of(recipe.evaluation.dataset)
        command = [sys.executable, "-m", "training.evaluate", str(out / "checkpoint"), "--data", str(data), *chosen]
        extra = ["--baselines"] if places.baselines and seed == recipe.seeds[0] else []
        run.commands.append([*command, *_protocol(recipe), *extra, *cache, *places.moved, "--json", str(scores)])
    return list(runs.values())


def _protocol(recipe: Recipe) -> list[str]:
    """Flags of training.evaluate for what the checkpoint's training record does not say."""
    flags = []
    for name in ("dataset", "folds"):
        if getattr(recipe.evaluation, name) != getattr(recipe.data, name):
            flags += [f"--{name}", getattr(recipe.evaluation, name)]
    for field_ in fields(Protocol):
        value = getattr(recipe.protocol, field_.name)
        if value != field_.default:
            flags += [f"--{field_.name}", str(value)]
    return flags


def listing(runs: list[Run]) -> str:
    """The commands as shell lines."""
    return "\n".join(shlex.join(["python", *command[1:]]) for run in runs for command in run.commands)


def start(runs: list[Run], places: Places, jobs: int = 1) -> None:
    """Executes the runs, `jobs` at a time, with a progress bar. Raises RunsFailed after the last run."""
    writable_folder(places.runs)
    failures: list[str] = []
    children = _Children()
    bar = tqdm(total=len(runs), desc="runs", unit="run")
    pool = ThreadPoolExecutor(jobs)
    try:
        results = {pool.submit(_perform, run, places.runs / f"{run.name}.log", children): run for run in runs}
        for result in as_completed(results):
            run = results[result]
            if failure := result.result():
                failures.append(f"{run.name}: {failure}")
                bar.write(f"failed: {failures[-1]}", file=sys.stderr)
            bar.update()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        children.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    if failures:
        raise RunsFailed(
            f"{len(failures)} of {len(runs)} runs failed: {'; '.join(failures)}", "the same command starts them again"
        )


def _perform(run: Run, log: Path, children: _Children) -> str:
    """Executes a run's commands; returns why it failed, or ""."""
    try:
        with log.open("ab") as stream:
            for command in run.commands:
                if "--json" in command:
                    Path(command[-1]).parent.mkdir(parents=True, exist_ok=True)
                stream.write(f"$ {shlex.join(command)}\n".encode())
                stream.flush()
                status = children.call(command, stream)
                if status:
                    return f"{command[2]} exited with {status}; see {log}"
    except OSError as error:
        return str(OutputUnwritable(f"{log} cannot be written ({error.strerror})"))
    return ""


class _Children:
    """The running subprocesses; `stop` ends them after an interrupt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def call(self, command: list[str], log: object) -> int:
        with self._lock:
            if self._stopped:
                return 130
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
            self._running.add(child)
        try:
            return int(child.wait())
        finally:
            with self._lock:
                self._running.discard(child)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
