"""Scores a checkpoint or a bundle on several data sets in one table: what it knows, what it confuses, what it invents.

  python -m training.across models/demo/bundle --data DIR
      every set of the recipe "many" that lies below DIR, on its validation list
  python -m training.across models/demo/bundle --data DIR --background common --json scores.json
      with hidden background words beside every question

figures, in percent:
  known     mIoU where each picture is asked for the set's classes that it shows
  all       mIoU where each picture is asked for all of the set's classes at once
  FB-IoU    of foreground and background, over all pairs of pictures and words, all words asked
  salience  the mean share of a picture that an absent word gets, asked alone: names of other sets that the recipe says
            the picture cannot show. A model that knows names paints nothing.
Classes that fewer than --least pictures show do not count in a mean. Pixels marked 255, and unmarked ones of sets that are not
exhaustive, count nowhere.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusioner_rt.atomic_files import writable_folder, writable_place, write_result
from fusioner_rt.command_end import run_command, say_lines
from fusioner_rt.command_parser import CommandParser, path_argument
from training import evaluate, recipe, scoring
from training.data import DataError
from training.datasets.many import ManySets
from training.metrics import ClassIoU
from training.recipe import Protocol

ABSENT = 3
"""Absent words asked of a picture, each alone."""


@dataclass
class SetScores:
    """One set's. painted: share of every picture that an absent word got, one question each."""

    name: str
    pictures: int
    classes: list[int]
    known: ClassIoU
    every: ClassIoU
    painted: list[float] = field(default_factory=list)

    def figures(self, words: Sequence[str], least: int) -> dict[str, Any]:
        counted = self.every.counted(self.classes, least)
        return {
            "pictures": self.pictures, "counted": [words[index] for index in counted],
            "known": _rounded(self.known.mean(counted)), "all": _rounded(self.every.mean(counted)),
            "fb_iou": _rounded(self.every.fb_iou()),
            "salience": _rounded(100 * float(np.mean(self.painted)) if self.painted else math.nan),
            "classes": {
                words[index]: {
                    "known": _rounded(self.known.iou(index)), "all": _rounded(self.every.iou(index)),
                    "pictures": int(self.every.pictures[index]),
                }
                for index in self.classes if self.every.pictures[index]
            },
        }  # fmt: skip


def score_set(
    target: evaluate.Target, data: ManySets, name: str, names: list[str], protocol: Protocol, seed: int = 0
) -> SetScores:
    """names: the set's pictures, as of `data`."""
    classes = target.readable(data.own_classes(name))
    predict = target.predictor(protocol, names)
    known = scoring.score(predict, data, names, classes, f"{name}, known words", "known")
    every = scoring.score(predict, data, names, classes, f"{name}, all words", "all")
    found = SetScores(name, len(names), classes, known, every)
    vocabulary = set(target.readable(list(range(1, len(data.classes))))) - set(data.own_classes(name))
    random = np.random.default_rng(seed)
    for picture in tqdm(names, f"{name}, absent words", unit="picture", leave=False):
        mask = data.mask(picture)
        absent = sorted(vocabulary - data.never_absent(picture, data.present(picture)))
        for index in random.permutation(absent)[:ABSENT]:
            labels = predict(picture, [int(index)], (mask.shape[0], mask.shape[1]))
            found.painted.append(float((labels > 0).mean()))
    return found


def table(scores: dict[str, dict[str, Any]]) -> str:
    lines = ["| set | pictures | classes | known | all | FB-IoU | salience |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, one in scores.items():
        cells = (_shown(one[key]) for key in ("known", "all", "fb_iou", "salience"))
        lines.append(f"| {name} | {one['pictures']} | {len(one['counted'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def run(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Raises FusionerError."""
    choices = recipe.read(given.recipe).sets
    if not choices:
        raise DataError(f"recipe {given.recipe} has no [sets] table", "name one that has, such as many")
    there = {name: choice for name, choice in choices.items() if (given.data / (choice.folder or name)).is_dir()}
    if not there:
        raise DataError(f"{given.data} holds none of the sets {', '.join(choices)}", "name the folder above them")
    writable_folder(given.cache)
    if given.json:
        writable_place(given.json)
    data = ManySets(given.data, there)
    scores = {}
    with evaluate.Target(given.target, data, given.cache, given.background) as target:
        protocol = Protocol(least=given.least, threshold=target.threshold)
        for name in there:
            pictures = [picture for picture in data.names("val") if picture.startswith(f"{name}/")][:: given.every]
            found = score_set(target, data, name, pictures, protocol)
            scores[name] = found.figures(data.words, given.least)
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("training.across", lambda: _main(arguments), "nothing was written")


def _main(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(
        prog="python -m training.across", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("target", type=path_argument, help="a checkpoint folder, or an engine bundle")
    add("--data", type=path_argument, required=True, metavar="DIR", help="the folder above the sets")
    add("--recipe", default="many", metavar="RECIPE", help="whose [sets] table says what they mean (many)")
    add("--background", metavar='"A, B"', help="of a bundle: hidden words asked beside the others, or common")
    add("--least", type=int, default=3, metavar="N", help="pictures a class needs to count in a mean (3)")
    add("--every", type=evaluate.count, default=1, metavar="N", help="take every N-th picture (1)")
    add("--json", type=path_argument, metavar="FILE", help="every figure, per set and class")
    add(
        "--cache",
        type=path_argument,
        default=Path("runs/features"),
        metavar="DIR",
        help="kept features (runs/features)",
    )
    given = parser.parse_args(arguments)
    scores = run(given)
    say_lines(table(scores))
    if given.json:
        document = {
            "format": "fusioner-rt scores across sets", "target": evaluate.display(given.target),
            "recipe": given.recipe, "background": given.background, "sets": scores,
        }  # fmt: skip
        content = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
        write_result(given.json, lambda stream: stream.write(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
