"""The trainer's command line: a recipe, a data folder, and a flag for every field that a recipe may set."""

from __future__ import annotations

import argparse
import os
import tomllib
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from fusioner_rt.command_parser import CommandParser, path_argument
from fusioner_rt.errors import UsageError
from training import recipe
from training.model import FusionerConfig
from training.recipe import ALLOWED, Choice, Plan, Recipe

TEACHING = """\
Trains the fusion and the decoder; the encoders stay frozen.

  python -m training.train demo --data DIR --epochs 4
      the demonstration model on a folder of your own; the result is runs/demo/checkpoint
  python -m training.train table4/b0-full --data VOC --fold 1 --seed 2
      a row of the paper's tables: the classes of fold 1 are never seen
  torchrun --nproc-per-node 8 -m training.train my.toml --data DIR --batch 64 --precision bf16
      a recipe of your own, on 8 GPUs; the same figures as on one

A recipe is a small TOML file that names the encoders, the fusion, the schedule and the data set. training/recipe.py shows
one, --list prints those that come with the project. A flag replaces a value of the recipe.

The data folder, unless --dataset names a public data set with a layout of its own:
  DIR/images/NAME.jpg   pictures (or .png, .webp, ...)
  DIR/masks/NAME.png    8-bit class indices of the same size; 255 = ignored
  DIR/classes.txt       a class a line, the background's name first (index 0)
  DIR/train.txt         the names of the pictures to train on, a line each
  DIR/val.txt           those that every epoch is scored on

A recipe with a [sets] table trains on several such folders below DIR at once, and says of each what an unmarked pixel means,
what its classes are called, which words its pictures may show unmarked, whether they may be mirrored, and how often they
are drawn: training/datasets/many.py teaches it. --from CHECKPOINT goes on from trained weights.

After every epoch OUT holds log.csv (a row per epoch), steps.csv (a row per step), curve.png and the whole state. The same
command resumes from that state; on a CPU the result has the same bits as that of an uninterrupted run.
"""

# Help texts by field; a field without one has no flag (a test compares them with the dataclasses).
MODEL_HELP = {
    "image_encoder": "frozen picture encoder, by its name in training/encoders",
    "text_encoder": "frozen text encoder, likewise",
    "width": "channels of fused pixels and words, d",
    "layers": "layers of the fusion transformer",
    "heads": "its attention heads",
    "fusion": "early: joint attention; late: separate MLPs; none",
    "decoder": "channels of each decoder stage, comma separated; 0 = no decoder",
    "aligned": "channels of the aligned residual (training/aligned_residual.py), such as 64; 0 = none. GPUs need width + "
    "aligned to be a multiple of 16",
    "temperature": "of the sigmoid over cosines",
}
PLAN_HELP = {
    "epochs": "passes over the pictures",
    "steps": "end after so many optimiser steps, whatever the epochs; 0 = the epochs decide",
    "batch": "pictures a step, over all processes",
    "accumulate": "compute a step's batch in so many parts: less memory, the same result",
    "rate": "largest learning rate",
    "warmup": "epochs in which the rate grows, at most half of the run",
    "weight_decay": "of AdamW, on all trained weights",
    "clip": "largest norm of the gradient",
    "precision": "fp32; bf16 or fp16: mixed, the weights stay fp32",
    "ema": "decay a step of averaged weights, which are then scored and kept; 0 = the last weights",
    "positive_weight": "weight in the loss of pixels that show their word",
    "jaccard": "weight of the soft intersection over union of the words that are shown, beside cross entropy",
    "choice": "weight of the cross entropy over all words of a picture at once, which keeps names apart",
    "words": "most words per picture",
    "exact_words": "exactly that many words in every picture, not 1 to that many",
    "absent": "share of absent words after a picture's first",
    "alone": "chance of a picture being asked only for words that it does not show, so that it is marked nowhere",
    "unknown": "chance of a word being fused as one that training never showed (with an aligned residual)",
    "trust": "factor, after training, of what the aligned residual says of a word that training never showed",
    "yielding": "factor, after training, of the score of such a word: below 1 it leaves pixels to words that training showed",
    "near": "share of absent words taken from the nearest to one that is shown, by their vectors",
    "word_noise": "noise on the word vectors, relative to their length",
    "word_rate": "learning rate of the words' projection and an aligned residual's directions, relative (0: as aligned; the "
    "projection's without an alignment: 1)",
    "names": "chance of a class going by an ImageNet name for what its mask shows (efficientnet-lite encoders)",
    "strangers": "chance of a word being any ImageNet name, so that words never seen are looked for (efficientnet-lite)",
    "augment": "none; flip; full: crop, scale, affine, colour, noise, and no feature cache",
    "patience": "stop after so many epochs without a better validation score and keep the best; 0 = never",
    "least": "validation pictures a class needs to count in the score",
    "seed": "of everything random",
}
CHOICE_HELP = {
    "dataset": "layout of the data folder: folder, or a public data set's name",
    "folds": "a split into folds, e.g. pascal-5i; '' = no class is held out",
    "fold": "which fold's classes are held out of training",
    "holdout": "further classes to hold out, comma separated",
    "without": "sets of the recipe's [sets] table to leave out, comma separated: names that no other set has are never seen",
    "split": "of a folder without train.txt and val.txt: the share of its pictures kept for validation, such as 0.1",
}
SECTIONS: tuple[tuple[str, str, Any, dict[str, str]], ...] = (
    ("model", "model (paper 3.1, table 7)", FusionerConfig, MODEL_HELP),
    ("training", "training (paper 4.1)", Plan, PLAN_HELP),
    ("data", "data", Choice, CHOICE_HELP),
)


def parser() -> argparse.ArgumentParser:
    command = CommandParser(
        prog="python -m training.train",
        usage="%(prog)s RECIPE --data DIR [--out DIR] [--fold N] [--seed N] [any field of the recipe]",
        description=TEACHING,
        epilog="recipes: " + ", ".join(recipe.names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe's name, or a .toml file")
    command.add_argument("--data", type=path_argument, metavar="DIR", help="the data folder")
    command.add_argument("--out", type=path_argument, metavar="DIR", help="default: runs/RECIPE[-foldN][-seedN]")
    command.add_argument(
        "--cache", type=path_argument, default=Path("runs/features"), metavar="DIR",
        help="where frozen features are kept (default: %(default)s; about 0.8 MB a picture with EfficientNet-Lite0)",
    )  # fmt: skip
    command.add_argument(
        "--download", action="store_true", help="fetch encoder weights that are not on this machine yet"
    )
    command.add_argument(
        "--from",
        dest="start",
        type=path_argument,
        metavar="CHECKPOINT",
        help="start from a checkpoint of the same model",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
        help="threads that read features ahead, or processes that augment pictures (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
        help='any value of the recipe in TOML, e.g. data.fold=2 or model.text_encoder="bert:FOLDER"',
    )  # fmt: skip
    command.add_argument("--list", action="store_true", help="print the recipes and what each is for")
    for section, title, kind, texts in SECTIONS:
        group = command.add_argument_group(f"{title}; the recipe's value holds where none is given")
        for name, type_ in typing.get_type_hints(kind).items():
            if name in texts:
                _add_flag(group, section, name, type_, texts[name])
    return command


def overrides(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The fields set by flags: section → field → value, as `recipe.read` takes them."""
    found: dict[str, dict[str, Any]] = {}
    for text in given.set:
        section, name, value = _setting(text)
        found.setdefault(section, {})[name] = value
    for section, _, kind, _ in SECTIONS:
        for field in fields(kind):
            value = getattr(given, f"{section}.{field.name}", None)
            if value is not None:
                found.setdefault(section, {})[field.name] = value
    return found


def default_out(chosen: Recipe, seeded: bool) -> Path:
    """runs/RECIPE[-foldN][-without-SET][-seedN]; seeded: a flag set the seed."""
    fold = "" if chosen.data.fold is None else f"-fold{chosen.data.fold}"
    fold += "".join(f"-without-{name}" for name in chosen.data.without)
    return Path("runs") / f"{chosen.name}{fold}{f'-seed{chosen.training.seed}' if seeded else ''}"


def listing() -> str:
    """A line per recipe: its name and its `about`."""
    names = recipe.names()
    return "\n".join(f"{name:{max(map(len, names))}}  {recipe.read(name).about}" for name in names)


def _add_flag(group: argparse._ArgumentGroup, section: str, name: str, type_: Any, text: str) -> None:
    flag, place = "--" + name.replace("_", "-"), f"{section}.{name}"
    if type_ is bool:
        group.add_argument(flag, dest=place, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    parsers: dict[Any, Any] = {
        int: int,
        int | None: int,
        float: float,
        str: str,
        tuple[int, ...]: _channels,
        tuple[str, ...]: _words,
    }
    group.add_argument(flag, dest=place, type=parsers[type_], choices=ALLOWED.get(name), default=None,
                       metavar=None if name in ALLOWED else name.upper(), help=text)  # fmt: skip


def _setting(text: str) -> tuple[str, str, Any]:
    """SECTION.FIELD=VALUE. A value that is not TOML is text: a shell removes quotes."""
    place, separator, value = text.partition("=")
    section, dot, name = place.strip().partition(".")
    if not (separator and dot and section and name):
        raise UsageError(f"--set {text} sets nothing; expected SECTION.FIELD=VALUE", "write it as training.epochs=4")
    try:
        return section, name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return section, name, value.strip()


def _channels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if int(part))
    except ValueError:
        raise UsageError(f"{text!r} are no channels; expected whole numbers or 0", "separate them by commas") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
