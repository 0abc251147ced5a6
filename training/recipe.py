"""A recipe: a small TOML file that says what to train, on which data, and which row of the paper's tables it stands for.

extends = "paper"                                # another recipe, whose values hold where this one is silent
about = "Table 1, model B: CLIP ViT-L/14 with its own text tower, early fusion"
[model]                                          # fields of training.model.FusionerConfig
image_encoder = "open_clip:ViT-L-14:openai"
[training]                                       # fields of Plan
epochs = 50
[data]                                           # fields of Choice: what is trained on
dataset = "pascal-5i"
folds = "pascal-5i"
[evaluation]                                     # fields of Choice and Protocol: what is scored; like [data] by default
[table]                                          # fields of Place: where its figures go
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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fusioner_rt.errors import FusionerError
from training.model import FusionerConfig

SECTIONS = ("model", "training", "data", "evaluation", "table", "paper")
LEAST = {"width": 1, "layers": 0, "heads": 1, "decoder": 1}  # of a model's fields
FOLDER = Path(__file__).with_name("recipes")


class RecipeError(FusionerError):
    """A recipe that is missing, or that holds a name or a value that no recipe has."""

    exit_code = 73


@dataclass(frozen=True)
class Plan:
    """How to train; what it is stays in FusionerConfig. An epoch is every picture once."""

    epochs: int = 12
    steps: int = 0  # of the optimiser in all; 0 = as many as the epochs have
    batch: int = 8  # pictures a step, over all processes
    accumulate: int = 1  # parts that a step's batch is computed in
    rate: float = 1e-3  # paper 4.1: warmed up to 0.001, then a cosine
    warmup: float = 10.0  # epochs in which the rate grows; at most half of the run
    weight_decay: float = 0.05
    clip: float = 1.0  # largest norm of the gradient
    precision: str = "fp32"  # "bf16" and "fp16": mixed, the weights stay fp32
    ema: float = 0.0  # decay of the averaged weights that are kept, per step; 0 = the last weights
    positive_weight: float = 1.0  # of a pixel that shows its word, against one that does not
    jaccard: float = 0.0  # weight of the soft intersection over union, beside cross entropy; the paper has none
    words: int = 4  # per picture, 1..words, present and absent
    exact_words: bool = False  # exactly `words` in every picture
    absent: float = 0.5  # share of the absent words among those after the first
    word_noise: float = 0.0  # standard deviation added to unit word vectors
    word_rate: float = 0.0  # learning rate of the words' projection, relative; 0 keeps the alignment it starts from
    names: float = 0.5  # chance that a class goes by the classifier's name for what its mask shows
    strangers: float = 0.0  # chance of a word being any name at all: what is unknown is then looked for, not refused
    augment: str = "flip"  # "none"; "flip"; "full": crop, scale, affine, colour and noise too, without a feature cache
    patience: int = 0  # epochs without a better validation score before the run stops; 0 = never
    least: int = 15  # pictures that a class needs to count in the validation score
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("precision", ("fp32", "bf16", "fp16")), ("augment", ("none", "flip", "full"))):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"training.{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in ("epochs", "batch", "accumulate", "words"):
            if getattr(self, name) < 1:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; expected 1 or more")
        for name in (
            "steps",
            "warmup",
            "weight_decay",
            "word_noise",
            "word_rate",
            "jaccard",
            "patience",
            "least",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("absent", "names", "strangers", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if self.ema == 1:
            raise RecipeError(
                "training.ema is 1, which keeps the first weights for ever; expected below 1, such as 0.999"
            )
        for name in ("rate", "clip", "positive_weight"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; expected a number above 0")
        for name, value in vars(self).items():
            if value == math.inf and name != "clip":  # a gradient may be left as it is
                raise RecipeError(f"training.{name} is inf; expected a finite number")


@dataclass(frozen=True)
class Choice:
    """A data set, and which of its classes are held out of training and scored afterwards."""

    dataset: str = "folder"  # a name of training.datasets
    folds: str = ""  # a split of training.datasets.splits, e.g. "pascal-5i"; "" = no class is held out
    fold: int | None = None
    holdout: tuple[str, ...] = ()  # further classes to hold out


@dataclass(frozen=True)
class Protocol:
    """How masks are scored (paper 4.1)."""

    words: str = "known"  # "known": the classes in the picture; "all": every class of the fold at once
    masks: str = "labels"  # "labels": a pixel has the best word; "classwise": the paper's, each word has its own mask
    mode: str = "joint"  # "joint": one pass; "independent": each word alone
    window: str = "whole"  # "whole": one picture; "sliding": overlapping windows
    least: int = 15  # pictures that a class needs to count in the mean
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
    evaluation: Choice = field(default_factory=Choice)
    protocol: Protocol = field(default_factory=Protocol)
    place: Place = field(default_factory=Place)
    paper: dict[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)  # that a table runs
    scored_folds: tuple[int, ...] = ()  # folds that a table runs


def names() -> list[str]:
    """The recipes that come with the project, as `read` takes them."""
    return sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.toml"))


def read(name: str, overrides: dict[str, dict[str, Any]] | None = None) -> Recipe:
    """A recipe by its name or its file's path. `overrides`: section → field → value. Raises RecipeError."""
    document = _merged(name, ())
    unknown = set(document) - {*SECTIONS, "about", "seeds", "folds"} | set(overrides or ()) - set(SECTIONS)
    if unknown:
        raise RecipeError(
            f"recipe {name}: no recipe has {', '.join(sorted(unknown))}",
            f"sections are {', '.join(SECTIONS)}, fields stand inside them",
        )
    for section, values in (overrides or {}).items():
        document[section] = {**document.get(section, {}), **values}
    data = document.get("data", {})
    protocol_fields = {f.name for f in fields(Protocol)}
    evaluation = {**data, **document.get("evaluation", {})}
    try:
        return Recipe(
            name=str(Path(name).with_suffix("")) if name in names() else Path(name).stem,
            about=str(document.get("about", "")),
            model=_section(FusionerConfig, document.get("model", {}), name, "model"),
            training=_section(Plan, document.get("training", {}), name, "training"),
            data=_section(Choice, data, name, "data"),
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
        raise RecipeError(f"recipe {name}: {error}") from None


def _merged(name: str, below: tuple[str, ...]) -> dict[str, Any]:
    """The TOML document with what it extends; sections are merged, other values replaced."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if str(file) in below:
        raise RecipeError(f"recipe {name} extends itself, by way of {' and '.join(below)}")
    try:
        document = tomllib.loads(file.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(name, names(), 3, 0.4)
        meant = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise RecipeError(
            f"no recipe is called {name!r}{meant} `python -m training.train --list` prints those there are",
            "a .toml file will do, too",
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file} cannot be read as TOML ({error})") from None
    for section in SECTIONS:
        if not isinstance(document.get(section, {}), dict):
            raise RecipeError(f"{section} is {document[section]!r}; expected a section, [{section}]", subject=file)
    parent = document.pop("extends", None)
    if parent is None:
        return document
    if str(parent).endswith(".toml"):
        parent = file.parent / str(parent)  # beside the recipe that names it, wherever the command runs
    merged = _merged(str(parent), (*below, str(file)))
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
    for key, least in LEAST.items() if kind is FusionerConfig else ():
        value = checked.get(key, least)
        if min(value if isinstance(value, tuple) else (value,), default=least) < least:
            raise RecipeError(f"recipe {recipe}: {section}.{key} is {value!r}; expected {least} or more")
    return kind(**checked)


def _typed(wanted: Any, value: Any, where: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if wanted is float and type(value) is int:
        value = float(value)
    accepted = [typing.get_origin(t) or t for t in (typing.get_args(wanted) if _is_union(wanted) else (wanted,))]
    if type(value) not in accepted:
        raise RecipeError(f"{where} is {value!r}; expected {' or '.join(t.__name__ for t in accepted)}")
    if type(value) is tuple and not all(type(item) is typing.get_args(wanted)[0] for item in value):
        raise RecipeError(f"{where} is {list(value)!r}; expected a list of {typing.get_args(wanted)[0].__name__}")
    return value


def _is_union(wanted: Any) -> bool:
    return typing.get_origin(wanted) is not None and type(None) in typing.get_args(wanted)
