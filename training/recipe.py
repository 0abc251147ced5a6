"""A recipe: a small TOML file with what to train, on which data, and the row of the paper's tables that it fills.

extends = "paper"                                # another recipe; its values are the defaults
about = "Table 1, model B: CLIP ViT-L/14 with its own text tower, early fusion"
[model]                                          # fields of training.model.FusionerConfig
image_encoder = "open_clip:ViT-L-14:openai"
[training]                                       # fields of Plan
epochs = 50
[data]                                           # fields of Choice: what to train on
dataset = "pascal-5i"
folds = "pascal-5i"
[sets.street]                                    # instead of one data set several, each as training.datasets.many tells
[evaluation]                                     # fields of Choice and Protocol: what to score; default: as [data]
[table]                                          # fields of Place: the row it fills
table = "1"
row = "B · CLIP-L · CLIP-L"
column = "early"
[paper]                                          # the paper's figures in percent, by column of that row
"5^0" = 61.9
"""

from __future__ import annotations

import difflib
import math
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fusioner_rt.errors import FusionerError
from training.datasets.many import SetChoice
from training.model import FUSIONS, IDENTITY, FusionerConfig

SECTIONS = ("model", "training", "data", "sets", "evaluation", "table", "paper")
MINIMUM = {"width": 1, "layers": 0, "heads": 1, "decoder": 1}  # of model fields
ALLOWED = {"fusion": FUSIONS, "precision": ("fp32", "bf16", "fp16"), "augment": ("none", "flip", "full")}
FOLDER = Path(__file__).with_name("recipes")


class RecipeError(FusionerError):
    """A recipe is missing, or holds an unknown name or an invalid value."""

    exit_code = 73
    is_input = True


@dataclass(frozen=True)
class Plan:
    """How to train; FusionerConfig says which model. An epoch is one pass over the pictures."""

    epochs: int = 12
    steps: int = 0  # optimiser steps of the run; 0 = decided by `epochs`
    batch: int = 8  # pictures a step, over all processes
    accumulate: int = 1  # number of parts in which a step's batch is computed
    rate: float = 1e-3  # peak learning rate (paper 4.1: warm-up to 0.001, then a cosine)
    warmup: float = 10.0  # epochs of linear warm-up; at most half of the run
    weight_decay: float = 0.05
    clip: float = 1.0  # the gradient's norm is clipped to this
    precision: str = "fp32"  # "bf16" and "fp16": mixed precision, weights stay fp32
    ema: float = 0.0  # decay per step of averaged weights, which the checkpoint keeps; 0 = keep the last weights
    positive_weight: float = 1.0  # loss weight of pixels that show their word
    jaccard: float = 0.0  # weight of the soft-IoU loss beside cross entropy; the paper has none
    choice: float = 0.0  # weight of the cross entropy over all words of a picture, which keeps names apart
    words: int = 4  # per picture, 1..words, present and absent
    exact_words: bool = False  # exactly `words` in every picture
    absent: float = 0.5  # probability that a word after the first is absent
    alone: float = 0.0  # probability that every word of a picture is absent: teaches to mark nothing
    unknown: float = 0.4  # probability that an aligned residual takes a word for one that training never showed
    trust: float = 1.0  # factor, after training, of what the aligned residual says of an unknown word
    yielding: float = 1.0  # factor, after training, of an unknown word's score; below 1 known words win over it
    near: float = 0.0  # share of absent words taken from the nearest to one that is present, by their vectors
    word_noise: float = 0.0  # standard deviation added to unit word vectors
    # relative learning rate of the word projection and an aligned residual's directions; 0 keeps their initial alignment
    word_rate: float = 0.0
    names: float = 0.5  # probability that a class gets the ImageNet name of what its mask shows
    strangers: float = 0.0  # probability that a word is any ImageNet name: teaches to look for unknown words
    augment: str = "flip"  # "none"; "flip"; "full": also crop, scale, affine, colour, noise, and no feature cache
    patience: int = 0  # epochs without a better validation score before the run stops; 0 = never
    least: int = 15  # pictures a class needs to count in the validation score
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("precision", "augment"):
            self._require(name, ALLOWED[name].__contains__, f"one of {', '.join(ALLOWED[name])}")
        for name in ("epochs", "batch", "accumulate", "words"):
            self._require(name, lambda value: value >= 1, "1 or more")
        for name in (
            "steps",
            "warmup",
            "weight_decay",
            "word_noise",
            "word_rate",
            "jaccard",
            "choice",
            "patience",
            "least",
            "seed",
        ):
            self._require(name, lambda value: value >= 0, "0 or more")
        for name in ("absent", "alone", "near", "unknown", "names", "strangers", "ema"):
            self._require(name, lambda value: 0 <= value <= 1, "a number from 0 to 1")
        self._require("ema", lambda value: value != 1, "below 1, such as 0.999: 1 keeps the first weights for ever")
        for name in ("rate", "clip", "positive_weight", "trust"):
            self._require(name, lambda value: value > 0, "a number above 0")
        self._require(
            "yielding", lambda value: 0.01 <= value <= 1, "a number from 0.01 to 1"
        )  # half precision holds its channel
        for name in vars(self):
            if name != "clip":  # where inf means: no clipping
                self._require(name, lambda value: value != math.inf, "a finite number")
        self._require("seed", lambda value: value < 1 << 63, "below 2**63")

    def _require(self, name: str, valid: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, name)
        if not valid(value):
            raise RecipeError(
                f"training.{name} is {value!r}; expected {expected}",
                f"set it in the recipe's [training], or by --{name.replace('_', '-')}",
            )


@dataclass(frozen=True)
class Choice:
    """A data set and its held-out classes: training leaves them out, evaluation scores them."""

    dataset: str = "folder"  # a name of training.datasets
    folds: str = ""  # a name of training.datasets.splits.FOLDS, e.g. "pascal-5i"; "" = no class is held out
    fold: int | None = None
    holdout: tuple[str, ...] = ()  # further classes to hold out
    without: tuple[str, ...] = ()  # sets of the [sets] table that training leaves out
    split: float = 0.0  # of a folder without train.txt and val.txt: the share of its pictures kept for validation

    def __post_init__(self) -> None:
        if not 0 <= self.split < 1:
            raise RecipeError(f"data.split is {self.split!r}; expected a number from 0 to below 1", "give --split 0.1")


@dataclass(frozen=True)
class Protocol:
    """How masks are scored (paper 4.1)."""

    words: str = "known"  # "known": the scored classes in the picture; "all": every scored class
    masks: str = "labels"  # "labels": one word per pixel; "classwise" (the paper's): one mask per word
    mode: str = "joint"  # "joint": all words in one pass; "independent": one pass per word
    window: str = "whole"  # "whole": the picture as one input; "sliding": overlapping windows
    least: int = 15  # pictures a class needs to count in the mean
    threshold: float = 0.5


@dataclass(frozen=True)
class Place:
    """A recipe's row in a table."""

    table: str = ""  # "1" … "7", or a name of ours
    row: str = ""
    column: str = ""


@dataclass(frozen=True)
class Recipe:
    name: str
    about: str = ""
    model: FusionerConfig = field(default_factory=FusionerConfig)
    training: Plan = field(default_factory=Plan)
    data: Choice = field(default_factory=Choice)
    sets: dict[str, SetChoice] = field(default_factory=dict)
    evaluation: Choice = field(default_factory=Choice)
    protocol: Protocol = field(default_factory=Protocol)
    place: Place = field(default_factory=Place)
    paper: dict[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)  # training.table runs each of them
    scored_folds: tuple[int, ...] = ()  # likewise


def names() -> list[str]:
    """Names of the project's recipes, as `read` takes them."""
    return sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.toml"))


def read(name: str, overrides: dict[str, dict[str, Any]] | None = None) -> Recipe:
    """A recipe by name or by the path of a .toml file. overrides: section → field → value. Raises RecipeError."""
    document = _merged(name, ())
    unknown = set(document) - {*SECTIONS, "about", "seeds", "folds"} | set(overrides or ()) - set(SECTIONS)
    if unknown:
        raise RecipeError(
            f"recipe {name}: no recipe has {', '.join(sorted(unknown))}",
            f"sections are {', '.join(SECTIONS)}; put fields inside them",
        )
    for section, values in (overrides or {}).items():
        document[section] = {**document.get(section, {}), **values}
    data = document.get("data", {})
    if document.get("model", {}).get("aligned") and document.get("training", {}).get("unknown") == 0:
        raise RecipeError(
            f"recipe {name}: unknown is 0, so that nothing teaches an aligned model the words that training does not show",
            "set training.unknown, such as 0.4, or model.aligned = 0",
        )
    if data.get("without") and not document.get("sets"):
        raise RecipeError(f"recipe {name} has no [sets] table to leave sets out of", "leave --without out")
    protocol_fields = {f.name for f in fields(Protocol)}
    evaluation = {**data, **document.get("evaluation", {})}
    try:
        return Recipe(
            name=str(Path(name).with_suffix("")) if name in names() else Path(name).stem,
            about=str(document.get("about", "")),
            model=_section(FusionerConfig, document.get("model", {}), name, "model"),
            training=_section(Plan, document.get("training", {}), name, "training"),
            data=_section(Choice, data, name, "data"),
            sets={key: SetChoice.of(values, f"sets.{key}") for key, values in document.get("sets", {}).items()},
            evaluation=_section(
                Choice, {k: v for k, v in evaluation.items() if k not in protocol_fields}, name, "evaluation"
            ),
            protocol=_section(
                Protocol, {k: v for k, v in evaluation.items() if k in protocol_fields}, name, "evaluation"
            ),
            place=_section(Place, document.get("table", {}), name, "table"),
            paper={str(k): float(v) for k, v in document.get("paper", {}).items()},
            seeds=tuple(int(seed) for seed in document.get("seeds", (0,))),
            scored_folds=tuple(int(fold) for fold in document.get("folds", ())),
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"recipe {name}: {error}", "correct it in the recipe, or by its flag") from None


def _merged(name: str, extended_by: tuple[str, ...]) -> dict[str, Any]:
    """The TOML document over the recipes it extends; sections are merged, other values replaced."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if str(file) in extended_by:
        raise RecipeError(
            f"recipe {name} extends itself, by way of {' and '.join(extended_by)}", "remove one of their extends"
        )
    try:
        document = tomllib.loads(file.read_text())
    except FileNotFoundError:
        similar = difflib.get_close_matches(name, names(), 3, 0.4)
        question = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise RecipeError(
            f"no recipe is called {name!r}",
            f"{question}`python -m training.train --list` prints the recipes; a .toml file works, too",
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read as TOML ({error})", "correct it", subject=file) from None
    for section in SECTIONS:
        if not isinstance(document.get(section, {}), dict):
            raise RecipeError(
                f"{section} is {document[section]!r}; expected a section",
                f"write [{section}] and its fields below it",
                subject=file,
            )
    parent = document.pop("extends", None)
    if parent is None:
        return document
    if str(parent).endswith(".toml"):
        parent = file.parent / str(parent)  # relative to this recipe, not to the working directory
    merged = _merged(str(parent), (*extended_by, str(file)))
    for key, value in document.items():
        merged[key] = {**merged.get(key, {}), **value} if key in SECTIONS else value
    return merged


def _section(kind: Any, values: dict[str, Any], recipe: str, section: str) -> Any:
    """A dataclass from a TOML table, each value checked against its field's type."""
    types = typing.get_type_hints(kind)
    checked = {}
    for key, value in values.items():
        if key not in types:
            raise RecipeError(f"recipe {recipe}: [{section}] has no field {key!r}", f"it has: {', '.join(types)}")
        checked[key] = _typed(types[key], value, f"recipe {recipe}: {section}.{key}")
    for key, minimum in MINIMUM.items() if kind is FusionerConfig else ():
        value = checked.get(key, minimum)
        if min(value if isinstance(value, tuple) else (value,), default=minimum) < minimum:
            raise RecipeError(
                f"recipe {recipe}: {section}.{key} is {value!r}; expected {minimum} or more",
                f"set it in the recipe's [{section}], or by --{key.replace('_', '-')}",
            )
    if checked.get("fusion") == IDENTITY:
        raise RecipeError(
            f"recipe {recipe}: fusion {IDENTITY!r} has no weights to train",
            "build it as it is: python export/build_engine.py --model clip-b16",
        )
    return kind(**checked)


def _typed(expected: Any, value: Any, place: str) -> Any:
    """value, with lists as tuples and whole numbers as floats where the type asks for it. Raises RecipeError."""
    if isinstance(value, list):
        value = tuple(value)
    if expected is float and type(value) is int:
        value = float(value)
    accepted = [typing.get_origin(t) or t for t in (typing.get_args(expected) if _is_union(expected) else (expected,))]
    if type(value) not in accepted:
        raise RecipeError(
            f"{place} is {value!r}; expected {' or '.join(t.__name__ for t in accepted)}",
            "correct it in the recipe, or by its flag",
        )
    if type(value) is tuple and not all(type(item) is typing.get_args(expected)[0] for item in value):
        raise RecipeError(
            f"{place} is {list(value)!r}; expected a list of {typing.get_args(expected)[0].__name__}",
            "correct it in the recipe, or by its flag",
        )
    return value


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) is not None and type(None) in typing.get_args(kind)
