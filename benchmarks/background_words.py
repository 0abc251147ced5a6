"""What background words do: pixels painted of a word that a picture does not show, and mIoU with all words asked.

  python -m benchmarks.background_words --data DIR                    # the demonstration bundle, background="common"
  python -m benchmarks.background_words --data DIR --classes "cat, dog, horse" --background "wall, grass, road"

DIR is a data set of training (python -m training.evaluate --help): pictures, masks and their classes. Each validation picture
is asked for every scored class that it lacks, one at a time, and then for all scored classes together; both without and with
background words. One Markdown table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import command
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import UsageError
from training.data import PictureMasks, decode_as, present
from training.datasets import open_dataset
from training.metrics import ClassIoU

KINDS = ("without", "with")


@dataclass
class Found:
    """painted: per question, the share of pixels that an absent word took. iou: of all scored classes asked together."""

    iou: ClassIoU
    painted: list[float] = field(default_factory=list)


def measure(
    session: Session, data: PictureMasks, names: list[str], classes: list[int], background: str
) -> tuple[dict[str, Found], int]:
    """What was found without and with background words, and the number of pictures that lack a class."""
    found = {kind: Found(ClassIoU(len(data.classes))) for kind in KINDS}
    lacking = 0
    for name in tqdm(names, unit="picture", leave=False):
        truth = data.mask(name)
        picture = session.encode(decode_as(data, name, (truth.shape[0], truth.shape[1])))
        absent = [index for index in classes if index not in present(truth)]
        lacking += bool(absent)
        for kind, hidden in zip(KINDS, (None, background), strict=True):
            for index in absent:
                result = session.segment(picture, [data.words[index]], background=hidden)
                found[kind].painted.append(float(np.count_nonzero(result.labels)) / result.labels.size)
            result = session.segment(picture, [data.words[index] for index in classes], background=hidden)
            found[kind].iou.add_labels(truth, result.labels.astype(np.int64), classes)
    return found, lacking


def table(found: dict[str, Found], classes: list[int], lacking: int, words: list[str]) -> str:
    lines = [
        "| background words | area painted of an absent word, % | of these questions over 1% painted, % | mIoU, all words asked, % |",
        "|---|---|---|---|",
    ]
    for kind, one in found.items():
        painted = 100 * np.array(one.painted)
        lines.append(
            f"| {kind} | {painted.mean():.2f} | {100 * (painted > 1).mean():.1f} | {one.iou.mean(classes):.1f} |"
        )
    questions = len(found[KINDS[0]].painted)
    asked = ", ".join(words[index] for index in classes)
    return "\n".join([*lines, "", f"{questions} questions of {lacking} pictures that lack a word; words: {asked}."])


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--dataset", default="folder", metavar="KIND", help="kind of data set (folder)")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="engine bundle (the one a session finds)")
    parser.add_argument("--classes", metavar='"A, B"', help="classes to ask for (all)")
    parser.add_argument("--background", default="common", metavar='"A, B"', help="background words (common)")
    given = parser.parse_args(arguments)
    return command.exit_status("background_words.py", lambda: run(given), "nothing was measured to its end")


def run(given: argparse.Namespace) -> int:
    """Raises FusionerError."""
    data = open_dataset(given.dataset, given.data)
    wanted = given.classes.split(",") if given.classes else data.classes[1:]
    classes = [data.index(name.strip()) for name in wanted]
    if not (names := data.names("val")):
        raise UsageError(f"{given.data} has no validation pictures", "give a data set with some")
    with Session(given.engine) as session:
        found, lacking = measure(session, data, names, classes, given.background)
    print(table(found, classes, lacking, data.words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
