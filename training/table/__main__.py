"""Prints a table of the paper beside ours, and runs what is missing.

  python -m training.table 1                            # the paper's table 1, with ours where runs/ holds scores
  python -m training.table 1 --run --data VOC --dry-run # the commands that would fill it
  python -m training.table 1 --run --data VOC --only clip-l     # train and score some rows; again: goes on
  python -m training.table 2 --run --data pascal-5i=VOC --data coco-20i=COCO
  python -m training.table 5 --run --data coco-20i=COCO --data pascal-5i=VOC      # trained there, scored here
  python -m training.table 1 --run --data VOC --only moco -- --image-encoder mocov3-vitb16:/weights/moco.pth.tar --workers 8
                                                        # what stands after -- goes to each training.train as it is
  python -m training.table ./mine --run --data DIR      # recipes of your own: a row for each .toml file in mine/
  python -m training.table ours --record docs/record.json --plot docs/ours.png    # from a committed record

A row is a recipe, training/recipes/**/*.toml: what to train and how to score it. `python -m training.train` trains each
recipe once per fold and seed into RUNS/RECIPE-foldN-seedS, `python -m training.evaluate` scores it into scores.json there.
Recipes with the same model, training and data share a run: table 4's B0 is table 1's row B. Failed runs are listed at the
end, each with its log; the others go on.

Cells: paper / ours. A fold's figure is the mean over its classes; mIoU is the mean over folds, once all are there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fusioner_rt.atomic_files import writable_place
from fusioner_rt.command_end import run_command, say_lines
from fusioner_rt.command_parser import CommandParser, path_argument
from fusioner_rt.errors import UsageError
from training import lacks
from training.checkpoint import Moved
from training.recipe import Recipe
from training.table import cells, layout, markdown, plot, runs, scores


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)

    def run() -> int:
        return _main(_parser().parse_args(arguments[:end]), tuple(arguments[end + 1 :]))

    return run_command("training.table", run, "the same command goes on from here", lacks)


def _main(given: argparse.Namespace, flags: tuple[str, ...]) -> int:
    if given.run and given.record:
        raise UsageError("--record reads finished runs and --run makes new ones", "give one of them")
    if given.dry_run and not given.run:
        raise UsageError("--dry-run lists what --run would do", "give both")
    if flags and not given.run:
        raise UsageError(
            f"what stands after -- is for training.train, which only --run starts: {' '.join(flags)}",
            "add --run, or leave it out",
        )
    moved = tuple(
        part
        for kind, place in (("image", given.image_weights), ("text", given.text_weights))
        if place
        for part in (f"--{kind}-weights", str(place))
    )
    if moved and not given.run:
        raise UsageError(f"{moved[0]} is for checkpoints that --run scores", "add --run, or leave it out")
    if given.jobs < 1:
        raise UsageError(f"--jobs is {given.jobs}; expected 1 or more", "leave it out to run one at a time")
    for file in (given.write_record, given.plot):
        if file:
            writable_place(file)
    known = layout.catalogue()
    found = layout.of_table(given.table, known)
    known = {**known, **found}
    table = layout.read(given.table, found)
    failure = None
    if given.run:
        places = runs.Places(
            given.runs, _folders(given.data), given.evaluation_data, given.cache, flags, given.baselines, moved
        )
        missing = runs.missing(_only(found, given.only), _scored(given, known), places, known)
        if given.dry_run:
            say_lines(runs.listing(missing))
            return 0
        for folder in (*places.data.values(), places.evaluation_data):
            if folder is not None and not folder.is_dir():
                raise UsageError(
                    f"{folder} is no folder; expected one with a data set's pictures and masks", "give another folder"
                )
        try:
            runs.start(missing, places, given.jobs)
        except runs.RunsFailed as error:  # raised once the table is printed
            failure = error
    scored = _scored(given, known)
    say_lines(markdown.render(table, found, scored))
    if given.write_record:
        identities = {cells.scored_as(recipe) for recipe in found.values()}
        kept = [run for identity in identities for run in scored.get(identity, {}).values()]
        scores.write_record(given.write_record, kept)
    if given.plot:
        plot.write(given.plot, table, found, scored)
    if failure:
        raise failure
    return 0


def _scored(given: argparse.Namespace, known: dict[str, Recipe]) -> dict[str, cells.Runs]:
    found = scores.read_record(given.record) if given.record else scores.read_runs(given.runs)
    return cells.by_recipe(found, known)


def _folders(data: list[str]) -> dict[str, Path]:
    """`DIR` and `DATASET=DIR` → folder by data set; "" is any data set."""
    if not data:
        raise UsageError("--run needs --data, the folder of pictures and masks to train on", "give --data DIR")
    pairs = [part.split("=", 1) if "=" in part else ["", part] for part in data]
    return {dataset: Path(folder) for dataset, folder in pairs}


def _only(found: dict[str, Recipe], texts: list[str]) -> dict[str, Recipe]:
    """The recipes whose name or row contains one of the texts; without texts, all. Raises UsageError."""
    if not texts:
        return found
    chosen = {
        name: recipe
        for name, recipe in found.items()
        if any(text.lower() in label.lower() for text in texts for label in (name, recipe.place.row))
    }
    if not chosen:
        raise UsageError(f"--only {' '.join(texts)} fits no row", f"the table's recipes: {', '.join(found)}")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m training.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "table",
        help="1, 2, 3, 4, 5 or 7; ours, or what else recipes name in [table]; or a folder of recipes, written with a /",
    )
    parser.add_argument(
        "--runs",
        type=path_argument,
        default=Path("runs"),
        help="folder of the runs (default: %(default)s)",
        metavar="DIR",
    )
    parser.add_argument("--record", type=path_argument, metavar="FILE", help="read a record instead of --runs")
    parser.add_argument(
        "--write-record", type=path_argument, metavar="FILE",
        help="keep the table's scores in one small JSON file: machine, versions, date, and every run's classes",
    )  # fmt: skip
    parser.add_argument("--plot", type=path_argument, metavar="FILE", help="also draw a bar chart (.png, .svg, .pdf)")
    run = parser.add_argument_group("running what is missing")
    run.add_argument(
        "--run", action="store_true", help="train and score every run without scores, then print the table"
    )
    run.add_argument(
        "--data", action="append", default=[], metavar="[DATASET=]DIR",
        help="where the data set lies; with DATASET= (pascal-5i, coco-20i, fss-1000, mosaic-4) once for each",
    )  # fmt: skip
    run.add_argument(
        "--evaluation-data",
        type=path_argument,
        metavar="DIR",
        help="where the data set to score on lies (default: as --data)",
    )
    run.add_argument(
        "--cache", type=path_argument, metavar="DIR", help="of frozen features (default: training.train's own)"
    )
    run.add_argument(
        "--only", action="append", default=[], metavar="ROW",
        help="run only rows whose name or recipe holds this text, upper or lower case; may be repeated",
    )  # fmt: skip
    run.add_argument(
        "--baselines", action="store_true", help="score the baselines too, in each recipe's first seed: further rows"
    )
    Moved.add_flags(run)
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    run.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
