"""The data sets' command line: convert an export, check a data set, prepare its masks."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable

from fusioner_rt.command_end import run_command, say, say_lines
from fusioner_rt.command_parser import CommandParser, path_argument
from fusioner_rt.errors import UsageError
from training import lacks
from training.data import DataError, counted
from training.datasets import KINDS, coco, mosaic, sbd
from training.datasets import convert as conversion
from training.datasets.check import check
from training.datasets.check_folder import check_folder
from training.datasets.exports import FORMS, open_export
from training.datasets.fss import Fss1000
from training.datasets.splits import FOLDS
from training.datasets.voc import PascalVoc

Run = Callable[[argparse.Namespace], int]

_EXAMPLES = """\
examples:
  python -m training.datasets convert EXPORT --out mine        LabelMe, COCO or YOLO-seg into the folder that training reads
  python -m training.datasets check mine --sheet masks.png     what is in it, what would stop a training, and a picture of it
  python -m training.datasets check pascal-5i --data VOCdevkit         what is there, what is missing, where it belongs
  python -m training.datasets convert-sbd --sbd benchmark_RELEASE --data VOCdevkit
  python -m training.datasets prepare --data coco                      COCO's masks as PNG files, once
  python -m training.datasets mosaic-4 --data FSS-1000 --out Mosaic-4  the paper's Mosaic-4 from FSS-1000

Nothing is downloaded: `check KIND --data DIR` says where each data set comes from, and under which terms.
"""

_CHECK = (
    """\
examples:
  python -m training.datasets check mine --sheet masks.png
      a folder of one's own: images/, masks/, classes.txt, train.txt, val.txt; opens every picture and mask, and draws some
  python -m training.datasets check mine --split 0.2
      without train.txt and val.txt, a fifth of its pictures is kept for validation, as training does with --split 0.2
  python -m training.datasets check folder --data mine --folds pascal-5i
      also, per fold, how many pictures are left to train on and how many are scored
  python -m training.datasets check pascal-5i --data VOCdevkit --split val --folds coco-20i-to-voc
      what a model trained on COCO is scored on (paper 4.6): the validation pictures are enough
  python -m training.datasets check fss-1000 --data FSS-1000 --thorough
      opens every picture and mask, and compares their sizes

exit code: 0 where the data set is usable, 72 where it is not.

"""
    + KINDS["folder"].layout
)

_CONVERT = """\
examples:
  python -m training.datasets convert labels --out mine
      a folder of LabelMe's JSON files; polygons, rectangles, circles and masks, later shapes over earlier ones
  python -m training.datasets convert annotations/instances.json --pictures photos --out mine --split 0.2
      a COCO JSON with polygons or run-length codes; smaller shapes over larger ones, crowds do not count
  python -m training.datasets convert yolo-export --out mine --unmarked ignored
      data.yaml, images/ and labels/; pixels of no shape do not count, for the shapes do not mark everything
  python -m training.datasets convert export --from coco --out mine --link
      chooses the form where a folder holds several; pictures are linked to, not copied

DIR/ is what training reads: images/, masks/ (index masks), classes.txt, train.txt and val.txt. Without a split of the export's
own, a tenth of the pictures is kept for validation. Labels that differ in case, spaces or by a synonym (tv, TV/monitor) are one
class, by the most frequent spelling. The labels background and __ignore__ are index 0 and pixels that do not count.
"""

_PREPARE = """\
examples:
  python -m training.datasets prepare --data coco                 both splits, into annotations/masks_train2014, masks_val2014
  python -m training.datasets prepare --data coco --split val     what scoring needs

Runs then start without reading some 500 MB of JSON. Interrupted, it goes on where it stopped. To go back, remove the folders.
"""

_SBD = """\
examples:
  python -m training.datasets convert-sbd --sbd benchmark_RELEASE --data VOCdevkit
      dataset/cls/*.mat → VOCdevkit/VOC2012/SegmentationClassAug/*.png; masks that are there already are kept

Needs scipy: pip install -c constraints.txt scipy
"""

_MOSAIC = """\
examples:
  python -m training.datasets mosaic-4 --data FSS-1000 --out Mosaic-4
      600 pictures of 448×448: each of the 2,400 test pictures once, four different classes in each
  python -m training.datasets mosaic-4 --data FSS-1000 --out Mosaic-4-large --side 448 --seed 1
      tiles enlarged to 448×448, arranged otherwise

The same pictures and seed give the same mosaics; list.csv says which pictures each is made of. The paper publishes no list:
figures on another seed's mosaics differ a little.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""

    def run() -> int:
        given = _parser().parse_args(arguments)
        return int(given.run(given))

    return run_command("training.datasets", run, lacks=lacks)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="python -m training.datasets", description=__doc__, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="convert | check | prepare | convert-sbd | mosaic-4")

    def command(name: str, run: Run, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=raw)
        parser.set_defaults(run=run)
        return parser

    added = command(
        "check", _check, "what is there, and what is missing", "Says whether a data set is complete.", _CHECK
    )
    added.add_argument(
        "kind", type=path_argument, metavar="DIR | KIND", help=f"a folder of one's own, or one of: {', '.join(KINDS)}"
    )
    added.add_argument("--data", type=path_argument, metavar="DIR", help="the data set's folder, after a KIND")
    added.add_argument(
        "--split",
        help="train or val: look at this split alone; or the share of a folder without lists that is kept for validation",
    )
    added.add_argument(
        "--sheet", type=path_argument, metavar="FILE", help="draw some pictures of a folder with their masks"
    )
    added.add_argument("--folds", choices=FOLDS, default="", help="count per fold of this split (table 6)")
    added.add_argument("--fold", type=int, help="of --folds, this one alone")
    added.add_argument(
        "--thorough",
        action="store_true",
        help="open every picture and mask, and compare their sizes; a folder of one's own is always checked so",
    )

    added = command(
        "convert",
        _convert_export,
        "LabelMe, COCO or YOLO-seg into the folder that training reads",
        "Turns an export of a labelling tool into pictures and index masks.",
        _CONVERT,
    )
    added.add_argument("export", type=path_argument, metavar="EXPORT", help="its folder, or a COCO JSON")
    added.add_argument(
        "--out",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="where the folder goes; must not exist yet, or be empty",
    )
    added.add_argument("--from", dest="form", choices=FORMS, default="", help="its form (default: found by itself)")
    added.add_argument(
        "--pictures", type=path_argument, metavar="DIR", help="where the pictures lie, if not below EXPORT"
    )
    added.add_argument(
        "--split", type=float, help="share kept for validation (default: the export's own split, or 0.1)"
    )
    added.add_argument(
        "--unmarked",
        choices=conversion.UNMARKED,
        default="background",
        help="what pixels of no shape are (default: %(default)s)",
    )
    added.add_argument("--link", action="store_true", help="link to the pictures in place of copies")

    added = command(
        "prepare", _prepare, "COCO's masks as PNG files", "Writes COCO's instances as index masks, once.", _PREPARE
    )
    added.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="COCO's folder")
    added.add_argument("--split", choices=("train", "val"), help="this split alone (default: both)")

    added = command(
        "convert-sbd", _convert, "SBD's MATLAB masks as PNG files", "Turns SBD as released into index masks.", _SBD
    )
    added.add_argument(
        "--sbd", type=path_argument, required=True, metavar="DIR", help="benchmark_RELEASE, or its dataset folder"
    )
    added.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="VOC's folder")

    added = command(
        "mosaic-4", _mosaic, "the paper's Mosaic-4 from FSS-1000", "Makes Mosaic-4 from FSS-1000's test split.", _MOSAIC
    )
    added.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="FSS-1000's folder")
    added.add_argument(
        "--out", type=path_argument, required=True, metavar="DIR", help="where the data set goes; must not exist yet"
    )
    added.add_argument("--seed", type=int, default=0, help="of the arrangement (default: %(default)s)")
    added.add_argument(
        "--side", type=int, default=224, help="of a tile in pixels; a mosaic has two (default: %(default)s)"
    )
    return parser


def _convert_export(given: argparse.Namespace) -> int:
    export = open_export(given.export, given.form, given.pictures)
    written = conversion.convert(export, given.out, given.split, given.unmarked, given.link)
    say_lines(conversion.summary(written))
    for note in written.notes:
        say(f"  note: {note}")
    lists = ", ".join(f"{len(names):,} in {split}.txt" for split, names in written.names.items())
    pictures = counted(export.count, "picture")
    say(f"{given.out}: from {export.form}, {pictures} {'linked' if given.link else 'copied'}, {lists}")
    say_lines(f"next: python -m training.datasets check {shlex.quote(str(given.out))} --sheet masks.png")
    return 0


def _check(given: argparse.Namespace) -> int:
    kind, folder = (str(given.kind), given.data) if given.data else ("folder", given.kind)
    if kind not in KINDS:
        raise UsageError(f"there is no kind of data set called {kind!r}", f"choose one of {', '.join(KINDS)}")
    if not given.data and str(given.kind) in KINDS and not folder.is_dir():
        raise UsageError(
            f"check {given.kind} lacks its folder", f"python -m training.datasets check {given.kind} --data DIR"
        )
    if kind == "folder":
        usable = check_folder(folder, given.split or "", given.folds, given.fold, given.sheet)
        return 0 if usable else DataError.exit_code
    if given.sheet:
        raise UsageError(
            "--sheet draws a folder of one's own", "leave it out: training.evaluate --sheet draws the others"
        )
    if given.split not in (None, "train", "val"):
        raise UsageError(f"--split is {given.split}; expected train or val", f"{kind} has lists of its own")
    chosen = (given.split,) if given.split else ()
    usable = check(kind, folder, chosen, given.folds, given.fold, given.thorough)
    return 0 if usable else DataError.exit_code


def _prepare(given: argparse.Namespace) -> int:
    data = coco.Coco(given.data)
    for split in (given.split,) if given.split else ("train", "val"):
        say_lines(f"{split}: {coco.prepare(data, split):,} masks written, in {data.masks(split)}")
    return 0


def _convert(given: argparse.Namespace) -> int:
    voc = PascalVoc(given.data)
    say_lines(f"{sbd.convert(given.sbd, voc):,} masks written, in {voc.home / 'SegmentationClassAug'}")
    return 0


def _mosaic(given: argparse.Namespace) -> int:
    if given.seed < 0:
        raise DataError(f"the seed is {given.seed}; expected 0 or more", "give another --seed")
    data = Fss1000(given.data)
    count = mosaic.write(data, given.out, given.seed, given.side)
    missing = data.missing_test_classes
    if missing:
        say_lines(
            f"{len(missing)} of FSS-1000's 240 test classes were not there: this is a smaller Mosaic-4 than the paper's"
        )
    say_lines(f"{count:,} mosaics written, in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
