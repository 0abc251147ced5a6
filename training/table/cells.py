"""Assigns runs to cells. Recipes with the same model, training and data share a run, whatever their names."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass, replace

from training.recipe import Recipe
from training.table.scores import Asked, Classes, Scores, counted


def trained_as(recipe: Recipe) -> str:
    """A key of the checkpoint, fold and seed aside: equal for recipes that share a training."""
    parts = (recipe.model, replace(recipe.training, seed=0), replace(recipe.data, fold=None))
    return json.dumps([asdict(part) for part in parts], sort_keys=True)


def asked(recipe: Recipe) -> Asked:
    """How the recipe is scored."""
    data, protocol = recipe.evaluation, recipe.protocol
    return Asked(
        data.dataset, data.folds, protocol.words, protocol.masks, protocol.mode, protocol.window, protocol.threshold
    )


def scored_as(recipe: Recipe) -> str:
    """A key of the scores: `trained_as` and `asked`."""
    return _key(trained_as(recipe), asked(recipe))


def _key(trained: str, asked: Asked) -> str:
    return f"{trained} {asked}"


@dataclass(frozen=True)
class Value:
    """A figure in percent, by seed, with mean and sample standard deviation."""

    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else None


Runs = dict[tuple[int | None, int], Scores]  # by fold and seed


def by_recipe(scores: list[Scores], known: dict[str, Recipe]) -> dict[str, Runs]:
    """Runs by `scored_as`, without those of unknown recipes."""
    trained = {recipe.name: trained_as(recipe) for recipe in known.values()}
    found: dict[str, Runs] = {}
    for run in scores:
        if run.recipe in trained:
            found.setdefault(_key(trained[run.recipe], run.asked), {})[run.fold, run.seed] = run
    return found


def values(recipe: Recipe, runs: Runs, keys: tuple[str, ...]) -> dict[str, Value]:
    """Our figures by key, without keys for which no seed has all folds."""
    least = recipe.protocol.least
    seeds = sorted({seed for _, seed in runs})
    folds: tuple[int | None, ...] = folds_of(keys) or recipe.scored_folds or (None,)
    by_seed = {seed: {fold: runs[fold, seed] for fold in folds if (fold, seed) in runs} for seed in seeds}
    found: dict[str, Value] = {}
    for key in keys:
        numbers = [_number(key, by_seed[seed], folds, least) for seed in seeds]
        if kept := tuple(number for number in numbers if number is not None):
            found[key] = Value(kept)
    return found


def baselines(found: dict[str, Recipe], scored: dict[str, Runs]) -> dict[str, tuple[Recipe, Runs]]:
    """Rows of the baselines that were scored with the runs: name → a recipe with it, and its scores as runs of seed 0.

    A baseline depends on the encoders, not on the trained model. Equal scores of several encoders make one row.
    """
    gathered: dict[tuple[str, str], tuple[Recipe, Runs]] = {}
    for recipe in found.values():
        encoders = f"{recipe.model.image_encoder}, {recipe.model.text_encoder}"
        for (fold, _), run in sorted(scored.get(scored_as(recipe), {}).items(), key=lambda item: item[0][1]):
            for label, classes in run.baselines.items():
                name = label.partition(" > ")[0]  # "aligned cosine > 0.04" without its threshold, which differs by fold
                plain = replace(run, seed=0, classes=classes, fb_iou=None, baselines={}, recipe="", seconds=None)
                gathered.setdefault((name, encoders), (recipe, {}))[1].setdefault((fold, 0), plain)
    rows: dict[str, tuple[Recipe, Runs]] = {}
    for (name, encoders), (recipe, runs) in gathered.items():
        if all(runs != existing for _, existing in rows.values()):
            rows[name if name not in rows else f"{name} ({encoders})"] = recipe, runs
    return rows


def folds_of(keys: tuple[str, ...]) -> tuple[int, ...]:
    """The folds of keys such as "5^0" and "fold 1"."""
    return tuple(fold for key in keys if (fold := _fold(key)) is not None)


def recipe_of(found: dict[str, Recipe], row: str, column: str) -> Recipe | None:
    """The first recipe of this row and column; a table may repeat a row."""
    return next((r for r in found.values() if (r.place.row, r.place.column) == (row, column)), None)


def _number(key: str, runs: dict[int | None, Scores], folds: tuple[int | None, ...], least: int) -> float | None:
    fold = _fold(key)
    if fold is not None:
        return _mean(runs[fold].classes, least) if fold in runs else None
    if set(runs) != set(folds):
        return None
    if key == "mean of classes":
        return _average([s.iou for run in runs.values() for s in run.counted(least).values()])
    per_fold = [run.fb_iou if key == "FB-IoU" else _mean(run.classes, least) for run in runs.values()]
    complete = [number for number in per_fold if number is not None]
    return _average(complete) if len(complete) == len(per_fold) else None


def _mean(classes: Classes, least: int) -> float | None:
    return _average([score.iou for score in counted(classes, least).values()])


def _average(numbers: list[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def _fold(key: str) -> int | None:
    match = re.fullmatch(r"(?:\d+\^|fold )(\d+)", key)
    return int(match[1]) if match else None
