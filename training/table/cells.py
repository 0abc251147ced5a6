"""Which run fills which cell. Recipes that resolve to the same model, training and data are one run, whatever their names."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass, replace

from training.recipe import Recipe
from training.table.scores import Asked, Classes, Scores, counted


def trained_as(recipe: Recipe) -> str:
    """What makes a checkpoint, fold and seed aside: equal for recipes that need one training."""
    parts = (recipe.model, replace(recipe.training, seed=0), replace(recipe.data, fold=None))
    return json.dumps([asdict(part) for part in parts], sort_keys=True)


def asked(recipe: Recipe) -> Asked:
    how = recipe.protocol
    return Asked(recipe.evaluation.dataset, recipe.evaluation.folds, how.words, how.mode, how.window, how.threshold)


def scored_as(recipe: Recipe) -> str:
    """What makes its scores: `trained_as`, and what is asked of the checkpoint."""
    return _key(trained_as(recipe), asked(recipe))


def _key(trained: str, what: Asked) -> str:
    return f"{trained} {what}"


@dataclass(frozen=True)
class Value:
    """Percent, over the seeds that have it: their mean and sample standard deviation."""

    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else None


Runs = dict[tuple[int | None, int], Scores]  # by fold and seed


def by_recipe(scores: list[Scores], known: dict[str, Recipe]) -> dict[str, Runs]:
    """The runs of each `scored_as`. Scores of recipes that are not known are left out."""
    trained = {recipe.name: trained_as(recipe) for recipe in known.values()}
    found: dict[str, Runs] = {}
    for run in scores:
        if run.recipe in trained:
            found.setdefault(_key(trained[run.recipe], run.asked), {})[run.fold, run.seed] = run
    return found


def values(recipe: Recipe, runs: Runs, keys: tuple[str, ...]) -> dict[str, Value]:
    """Ours by key; a key that no seed has all folds of is left out."""
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


def baselines(found: dict[str, Recipe], scored: dict[str, Runs], keys: tuple[str, ...]) -> dict[str, dict[str, Value]]:
    """Baselines that were scored beside the runs, as further rows. They do not depend on the model, but on its encoders."""
    rows: dict[str, dict[str, Value]] = {}
    for recipe in found.values():
        runs = scored.get(scored_as(recipe), {})
        labels = dict.fromkeys(label.partition(" > ")[0] for s in runs.values() for label in s.baselines)
        for label in labels:
            standing: Runs = {}
            for (fold, _), run in sorted(runs.items(), key=lambda item: item[0][1], reverse=True):
                for name, classes in run.baselines.items():
                    if name.partition(" > ")[0] == label:
                        standing[fold, 0] = replace(run, classes=classes, fb_iou=None)
            row = values(recipe, standing, keys)
            name = f"{label} ({recipe.model.image_encoder}, {recipe.model.text_encoder})"
            if row and row not in rows.values():
                rows.setdefault(label if label not in rows else name, row)
    return rows


def folds_of(keys: tuple[str, ...]) -> tuple[int, ...]:
    """The folds that keys such as "5^0" and "fold 1" stand for."""
    return tuple(fold for key in keys if (fold := _fold(key)) is not None)


def recipe_of(found: dict[str, Recipe], row: str, column: str) -> Recipe | None:
    """The first of the recipes with this place; a row may stand in a table twice."""
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
