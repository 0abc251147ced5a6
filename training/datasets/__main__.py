"""The data sets' command line: check a data set, prepare its masks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from fusioner_rt.command_parser import CommandParser, path_argument, unforeseen
from fusioner_rt.errors import FusionerError, UsageError
from training.data import DataError
from training.datasets import KINDS, coco, mosaic, sbd
from training.datasets.check import check
from training.datasets.fss import Fss1000
from training.datasets.splits import FOLDS
from training.datasets.voc import PascalVoc

Run = Callable[[argparse.Namespace], int]

_EXAMPLES = """\
examples:
  python -m training.datasets check pascal-5i --data VOCdevkit         what is there, what is missing, where it belongs
  python -m training.datasets convert-sbd --sbd benchmark_RELEASE --data VOCdevkit
  python -m training.datasets prepare --data coco                      COCO's masks as PNG files, once
  python -m training.datasets mosaic-4 --data FSS-1000 --out Mosaic-4  the paper's Mosaic-4 from FSS-1000

Nothing is downloaded: `check KIND --data DIR` says where each data set comes from, and under which terms.
"""

_CHECK = """\
examples:
  python -m training.datasets check folder --data mine
      a folder of one's own: images/, masks/, classes.txt, train.txt, val.txt
  python -m training.datasets check folder --data mine --folds pascal-5i
      also, per fold, how many pictures are left to train on and how many are scored
  python -m training.datasets check pascal-5i --data VOCdevkit --split val --folds coco-20i-to-voc
      what a model trained on COCO is scored on (paper 4.6): the validation pictures are enough
  python -m training.datasets check fss-1000 --data FSS-1000 --thorough
      opens every picture and mask, and compares their sizes

exit code: 0 where the data set is usable, 72 where it is not.
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
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except FusionerError as error:
        print(f"training.datasets: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"training.datasets: {unforeseen(error)}", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print("training.datasets: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="python -m training.datasets", description=__doc__, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="check | prepare | convert-sbd | mosaic-4")

    def command(name: str, run: Run, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=raw)
        parser.set_defaults(run=run)
        return parser

    added = command(
        "check", _check, "what is there, and what is missing", "Says whether a data set is complete.", _CHECK
    )
    added.add_argument("kind", choices=KINDS, metavar="KIND", help=f"one of: {', '.join(KINDS)}")
    added.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="the data set's folder")
    added.add_argument("--split", choices=("train", "val"), help="look at this split alone")
    added.add_argument("--folds", choices=FOLDS, default="", help="count per fold of this split (table 6)")
    added.add_argument("--fold", type=int, help="of --folds, this one alone")
    added.add_argument("--thorough", action="store_true", help="open every picture and mask, and compare their sizes")

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


def _check(given: argparse.Namespace) -> int:
    chosen = (given.split,) if given.split else ()
    usable = check(given.kind, given.data, chosen, given.folds, given.fold, given.thorough)
    return 0 if usable else DataError.exit_code


def _prepare(given: argparse.Namespace) -> int:
    data = coco.Coco(given.data)
    for split in (given.split,) if given.split else ("train", "val"):
        print(f"{split}: {coco.prepare(data, split):,} masks written, in {data.masks(split)}")
    return 0


def _convert(given: argparse.Namespace) -> int:
    voc = PascalVoc(given.data)
    print(f"{sbd.convert(given.sbd, voc):,} masks written, in {voc.home / 'SegmentationClassAug'}")
    return 0


def _mosaic(given: argparse.Namespace) -> int:
    if given.seed < 0:
        raise DataError(f"the seed is {given.seed}; expected 0 or more", "give another --seed")
    data = Fss1000(given.data)
    count = mosaic.write(data, given.out, given.seed, given.side)
    missing = data.missing_test_classes
    if missing:
        print(
            f"{len(missing)} of FSS-1000's 240 test classes were not there: this is a smaller Mosaic-4 than the paper's"
        )
    print(f"{count:,} mosaics written, in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
