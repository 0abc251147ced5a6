"""Scores a checkpoint, or an engine bundle through the runtime, on pictures with masks (paper 4.1).

examples:
  python -m training.evaluate models/demo/checkpoint --data DIR
      every class; a picture is asked for the classes that it shows
  python -m training.evaluate models/demo/bundle --data DIR
      the same for the deployed bundle, through fusioner_rt.Session
  python -m training.evaluate engines/clip-b16 --data VOC --dataset pascal-5i --classes all --words all --background common
      training-free CLIP on PASCAL VOC, every picture asked for all 20 classes
  python -m training.evaluate runs/fold1/checkpoint --data DIR --baselines --json scores.json --sheet scores.png
      a fold's model on the classes that its training held out, beside baselines that need no training
  python -m training.evaluate runs/fold1/checkpoint --data DIR --classes seen --words all
      the classes it was trained on; every picture is asked for all of them
  python -m training.evaluate models/demo/checkpoint --data DIR --folds pascal-5i
      every class, with a mean for each fold

protocols (the paper's: --words known --masks classwise --mode joint --window whole):
  --words known   a picture is asked for the scored classes that it shows.
  --words all     every picture is asked for every scored class, shown or not: a wrong word costs IoU.
  --masks         labels: a pixel has one word, the best; classwise: each word has its own mask, and masks may overlap
                  (the paper's, section 3.1.3).
  --mode          joint: one pass for all words of a picture; independent: one pass per word.
  --window        whole: the picture as one input; sliding: overlapping windows of 1/SCALE of its edges, each enlarged
                  to the network's input, probabilities averaged where they overlap. Costs about (2 SCALE - 1)² passes.
                  A bundle with windows of its own, such as CLIP's, takes those.

figures, in percent; pixels marked "ignore" do not count:
  IoU        of a class, over the pixels of all pictures asked for it; mIoU: its mean over classes
  FB-IoU     mean IoU of foreground and background, over all (picture, word) pairs together
  confusion  predicted words of each word's pixels; "background" is none of the picture's words (--masks labels)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fusioner_rt import Session
from fusioner_rt.atomic_files import writable_folder, writable_place, write_result
from fusioner_rt.bundle import read_manifest
from fusioner_rt.command_end import run_command, say_lines
from fusioner_rt.command_parser import CommandParser, path_argument
from fusioner_rt.errors import UsageError
from fusioner_rt.manifest import MANIFEST, Windows
from fusioner_rt.session import Mode, Window
from training import alignment, checkpoint, lacks, scorecard, scoring, sheet
from training.batches import feature_cache
from training.data import DataError, PictureMasks
from training.datasets import KINDS, open_dataset
from training.datasets.splits import FOLDS, held_out, held_out_indices
from training.feature_cache import FeatureCache
from training.metrics import ClassIoU
from training.model import Fusioner
from training.recipe import Choice, Protocol
from training.words import class_vectors

COSINE_THRESHOLDS = tuple(round(float(t), 2) for t in np.arange(-0.06, 0.20, 0.02))
RECORDED = ("recipe", "seed", "dataset", "folds", "fold", "holdout", "pictures")
PACKAGES = ("fusioner-rt", "numpy", "torch", "onnxruntime", "onnxruntime-gpu", "pillow")


class Target:
    """The scored model: a checkpoint's or a bundle's, behind one predictor. A context manager."""

    def __init__(
        self,
        folder: Path,
        data: PictureMasks,
        cache_folder: Path,
        background: str | None = None,
        moved: checkpoint.Moved | None = None,
    ) -> None:
        """background: of every question to a bundle, as `Session.segment` takes it. moved: of a checkpoint.

        Raises CheckpointError, WeightsNotFound, UsageError, and the errors of opening a bundle.
        """
        self.folder, self.data, self.cache_folder, self.background = folder, data, cache_folder, background
        self.kind = kind(folder)
        if background and self.kind == "checkpoint":
            raise UsageError(
                f"{folder} is a checkpoint, and background words are a session's",
                "leave --background out, or build a bundle and score that",
            )
        self._session = Session(folder) if self.kind == "bundle" else None
        self._model = checkpoint.load(folder, moved) if self.kind == "checkpoint" else None
        self._vectors: tuple[Tensor, set[int]] | None = None

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session:
            self._session.close()

    def predictor(self, protocol: Protocol, names: list[str], scale: float = 2.0) -> scoring.Predictor:
        """A predictor of `names`; a checkpoint's features of these pictures are cached first. Raises UsageError."""
        mode = cast(Mode, protocol.mode)
        classwise = protocol.masks == "classwise"
        if classwise and protocol.window == "sliding" and not self.windows:
            raise UsageError("--masks classwise is not offered with --window sliding", "choose one of the two")
        if self._session is not None:
            window = cast(Window, protocol.window)
            if window == "whole" or self.windows:
                return scoring.deployed(
                    self._session, self.data, protocol.threshold, mode, self.background, window, classwise
                )
            crops = scoring.deployed_crops(self._session, self.data, mode, self.background)
        else:
            if protocol.window == "whole":
                cache = self.features(names)
                of_features = scoring.fusioner_classwise if classwise else scoring.fusioner
                return of_features(self.model, cache, self.vectors, protocol.threshold, mode)
            crops = scoring.fusioner_crops(self.model, self.vectors, mode)
        return scoring.sliding(crops, self.data, protocol.threshold, scale)

    @property
    def windows(self) -> Windows | None:
        """Sliding windows of a bundle's own."""
        return self._session.bundle.windows if self._session else None

    @property
    def threshold(self) -> float:
        """The model's own."""
        return self._session.bundle.threshold if self._session else self.model.config.threshold

    @property
    def model(self) -> Fusioner:
        if self._model is None:
            raise UsageError(
                f"{self.folder} is an engine bundle, and --baselines needs a checkpoint: the aligned "
                "cosine needs the PyTorch encoders",
                "name the checkpoint it was built from, or leave --baselines out",
            )
        return self._model

    @property
    def vectors(self) -> Tensor:
        """(classes, t), by class index."""
        return self._class_vectors()[0]

    def readable(self, classes: list[int]) -> list[int]:
        """The classes whose words a checkpoint can read (a table of names lacks some). A bundle checks words itself."""
        return classes if self._model is None else [index for index in classes if index in self._class_vectors()[1]]

    def _class_vectors(self) -> tuple[Tensor, set[int]]:
        if self._vectors is None:
            self._vectors = class_vectors(self.cache_folder, self.model, self.data)
        return self._vectors

    def features(self, names: list[str]) -> FeatureCache:
        """The cache, filled for these pictures."""
        cache = feature_cache(self.cache_folder, self.data, self.model, torch.device("cpu"))
        cache.fill(names, (False,))
        return cache


def evaluate(
    target: Target,
    names: list[str],
    classes: list[int],
    protocol: Protocol,
    scale: float = 2.0,
    baselines: bool = False,
) -> dict[str, ClassIoU]:
    """Pixel counts by candidate: "model", and with `baselines` "everything" and "aligned cosine > T".

    Raises DataError, UsageError.
    """
    if baselines:
        check_baselines(target)
    data = target.data
    if protocol.words == "known":  # other pictures have no words
        scored = set(classes)
        names = [name for name in tqdm(names, "masks", unit="picture", leave=False) if scored & set(data.present(name))]
    if not names:
        raise DataError(
            f"no picture of {data.root} shows any of the classes that are to be scored",
            "give other --classes or --split",
        )
    predict = target.predictor(protocol, names, scale)
    results = {"model": scoring.score(predict, data, names, classes, target.kind, protocol.words)}
    if baselines:
        results["everything"] = scoring.score(scoring.everything, data, names, classes, "everything", protocol.words)
        threshold, result = _best_cosine(target, names, classes, protocol)
        results[f"aligned cosine > {threshold}"] = result
    return results


def _best_cosine(target: Target, names: list[str], classes: list[int], protocol: Protocol) -> tuple[float, ClassIoU]:
    """The aligned cosine's threshold with the highest mIoU on these pictures, and its pixel counts."""
    cosine = scoring.aligned_cosine(
        alignment.ridge(target.model, target.cache_folder), target.features(names), target.vectors,
        COSINE_THRESHOLDS, protocol.masks == "classwise",
    )  # fmt: skip
    results = scoring.score_each(
        cosine, len(COSINE_THRESHOLDS), target.data, names, classes, "aligned cosine", protocol.words
    )

    def miou(result: ClassIoU) -> float:
        return result.mean(result.counted(classes, protocol.least) or result.counted(classes, 1))

    return max(zip(COSINE_THRESHOLDS, results, strict=True), key=lambda pair: miou(pair[1]))


def check_baselines(target: Target) -> None:
    """Raises UsageError where the aligned cosine cannot be computed."""
    encoder = target.model.config.image_encoder
    if not encoder.startswith("efficientnet-lite"):
        raise UsageError(
            "--baselines needs the image encoder's own ImageNet classifier, which efficientnet-lite "
            f"has; this checkpoint has {encoder}",
            "leave --baselines out",
        )


def kind(folder: Path) -> str:
    """ "checkpoint" or "bundle". Raises CheckpointError, DataError."""
    if (folder / MANIFEST).is_file():
        return "bundle"
    if (folder / "config.json").is_file():
        return "checkpoint"
    if other := checkpoint.other_than_checkpoint(folder):
        raise other
    raise DataError(
        f"{folder} holds neither config.json nor {MANIFEST}; expected a checkpoint folder or an engine bundle",
        "name the folder that holds one of the two files",
    )


def display(folder: Path) -> str:
    """The folder's name, with its parent's where it is just "checkpoint" or "bundle"."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("checkpoint", "bundle") else folder.name


def record(folder: Path) -> dict[str, Any]:
    """The target's training record, {} without one. Raises CheckpointError, ManifestInvalid."""
    if kind(folder) == "bundle":
        found = read_manifest(folder).get("training")
        return found if isinstance(found, dict) else {}
    return checkpoint.read_config(folder)[1]


def choice(recorded: dict[str, Any], dataset: str | None, folds: str | None, fold: int | None) -> Choice:
    """The data and classes to score: the arguments, completed from the training record. Raises UsageError."""
    if folds is None:
        folds = recorded.get("folds") or ""
    if fold is not None and not folds:
        raise UsageError(
            f"--fold {fold} needs --folds, which says how the classes are split", f"give one of {', '.join(FOLDS)}"
        )
    if fold is None and folds:
        fold = recorded.get("fold")
    holdout = recorded.get("holdout") or recorded.get("plan", {}).get("holdout") or ()
    return Choice(dataset or recorded.get("dataset") or "folder", folds, fold if folds else None, tuple(holdout))


@dataclass(frozen=True)
class Scored:
    """classes: unique indices. description: for titles. folds: class indices by fold, where no single fold was chosen."""

    classes: list[int]
    description: str
    folds: dict[str, list[int]]


def scored(data: PictureMasks, chosen: Choice, wanted: str) -> Scored:
    """The classes to score. wanted: "unseen" (held out of training), "seen", "all", names, or "": unseen, else all.

    Raises DataError, UsageError.
    """
    all_classes = list(range(1, len(data.classes)))
    unseen: list[int] = []
    if chosen.folds and chosen.fold is not None:
        unseen = held_out_indices(data, chosen.folds, chosen.fold)
    for name in chosen.holdout:
        with contextlib.suppress(DataError):  # a data set other than the training's may lack it
            unseen.append(data.index(name))
    unseen = list(dict.fromkeys(unseen))
    fold = f"fold {chosen.fold} of {chosen.folds}" if chosen.folds and chosen.fold is not None else "training"
    folds = _each_fold(data, chosen.folds) if chosen.folds and chosen.fold is None else {}
    if wanted in ("unseen", "seen") and not unseen:
        raise UsageError(
            f"--classes {wanted} needs to know what was held out, and the target's training record "
            "names neither a fold nor classes",
            "give --folds and --fold, or the classes' names",
        )
    if wanted == "unseen" or (not wanted and unseen):
        return Scored(unseen, f"{len(unseen)} classes held out of {fold}", {})
    if wanted == "seen":
        seen = [index for index in all_classes if index not in unseen]
        return Scored(seen, f"{len(seen)} classes not held out of {fold}", {})
    if wanted and wanted != "all":
        classes = [data.index(word) for word in _names(wanted)]
        if not classes:
            raise UsageError(f"--classes {wanted!r} names no class", f"{data.root} has: {', '.join(data.classes[1:])}")
        return Scored(list(dict.fromkeys(classes)), "the classes asked for", {})
    return Scored(all_classes, f"all {len(all_classes)} classes", folds)


def _each_fold(data: PictureMasks, split: str) -> dict[str, list[int]]:
    """Class indices by fold, without folds that have no class in this data set. Raises DataError."""
    held_out(split, 0)
    found = {}
    for fold in range(len(FOLDS[split])):
        with contextlib.suppress(DataError):
            found[str(fold)] = held_out_indices(data, split, fold)
    if not found:
        raise DataError(f"{data.root} has no class of {split}", "give a split that fits the data set")
    return found


def document(
    target: Target, recorded: dict[str, Any], chosen: Choice, split: str, scored: Scored, protocol: Protocol, scale: float,
    results: dict[str, ClassIoU], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The JSON document (training/scorecard.py)."""
    words, least = target.data.words, protocol.least
    training = {**recorded.get("plan", {}), **recorded}
    figures = {
        name: scorecard.figures(result, words, scored.classes, least, scored.folds) for name, result in results.items()
    }
    shared = ("classes", "miou", "fb_iou", "miou_per_fold")
    return {
        "format": scorecard.FORMAT,
        "format_version": 1,
        "target": display(target.folder),
        "kind": target.kind,
        "training": {name: training[name] for name in RECORDED if name in training},
        "dataset": chosen.dataset,
        "folds": chosen.folds or None,
        "fold": chosen.fold,
        "split": split,
        "protocol": {
            **asdict(protocol),
            "scale": scale if protocol.window == "sliding" and not target.windows else None,
            **({"background": target.background} if target.background else {}),
        },
        "seconds": round(seconds, 1),
        **figures["model"],
        "confusion": (
            scorecard.confusion(results["model"], words, scored.classes) if protocol.masks == "labels" else None
        ),
        "baselines": {name: {key: part[key] for key in shared} for name, part in figures.items() if name != "model"},
        "versions": scorecard.versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def run(given: argparse.Namespace) -> None:
    """Runs a parsed command line. Raises FusionerError."""
    recorded = record(given.target)
    chosen = choice(recorded, given.dataset, given.folds, given.fold)
    data = open_dataset(chosen.dataset, given.data)
    selected = scored(data, chosen, given.classes.strip())
    protocol = Protocol(given.words, given.masks, given.mode, given.window, given.least, given.threshold or 0.0)
    _check_outputs(given)
    names = data.names(given.split)
    sheet.check(data, given.sheet_pictures, names)
    title = f"{display(given.target)}: {selected.description}"
    with Target(given.target, data, given.cache, given.background, _moved(given)) as target:
        caption = _caption(protocol, given.scale, target.windows)
        if given.background:
            caption += f", beside background words ({given.background})"
        if given.threshold is None:
            protocol = replace(protocol, threshold=target.threshold)
        selected = _readable(target, selected)
        scored_words = ", ".join(data.words[index] for index in selected.classes)
        say_lines(f"# {title}\n\nDataset {chosen.dataset}, split {given.split}; {caption}.")
        say_lines(f"Scored: {scored_words}.\n")
        start = time.perf_counter()
        results = evaluate(target, names, selected.classes, protocol, given.scale, given.baselines)
        seconds = time.perf_counter() - start
        scores = document(target, recorded, chosen, given.split, selected, protocol, given.scale, results, seconds)
        _print_scores(scores, results["model"], data.words, selected.classes)
        if given.json:
            write_result(given.json, lambda stream: scorecard.write_json(scores, stream))
        if given.csv:
            write_result(given.csv, lambda stream: scorecard.write_csv(scores, stream))
        if given.confusion:
            text = f"{title}\n{caption}"
            write_result(
                given.confusion,
                lambda stream: scorecard.draw_confusion(results["model"], data.words, selected.classes, text, stream),
            )
        if given.sheet:
            _write_sheet(given, target, names, selected.classes, protocol, caption)
    if kind(given.target) == "checkpoint":
        say_lines(f"\n{checkpoint.next_build(given.target, data)}")


def _moved(given: argparse.Namespace) -> checkpoint.Moved | None:
    """Raises UsageError for a bundle, which holds its weights."""
    if kind(given.target) == "bundle" and (given.image_weights or given.text_weights):
        raise UsageError(
            f"{given.target} is an engine bundle, which holds its encoders' weights",
            "leave --image-weights and --text-weights out",
        )
    return checkpoint.Moved(given.image_weights, given.text_weights, given.again)


def _check_outputs(given: argparse.Namespace) -> None:
    """Raises UsageError, OutputUnwritable."""
    if given.confusion and given.masks == "classwise":
        raise UsageError(
            "--confusion needs --masks labels: a pixel of masks that overlap was not given to one word",
            "give --masks labels, or leave --confusion out",
        )
    writable_folder(given.cache)
    for file in (given.json, given.csv, given.confusion, given.sheet):
        if file:
            writable_place(file)


def _caption(protocol: Protocol, scale: float, own: Windows | None) -> str:
    if protocol.window == "sliding" and own:
        return f"{protocol.words} words, {protocol.masks}, the bundle's windows of {own.side} by {own.stride} pixels"
    if protocol.window == "sliding":
        return f"{protocol.words} words, {protocol.mode}, sliding windows at scale {scale:g}"
    return f"{protocol.words} words, {protocol.masks}, {protocol.mode}, {protocol.window} pictures"


def _readable(target: Target, selected: Scored) -> Scored:
    """The selected classes that the text encoder can read; prints the others. Raises DataError where none is left."""
    readable = target.readable(selected.classes)
    unreadable = [target.data.words[index] for index in selected.classes if index not in readable]
    if unreadable:
        say_lines(f"Left out, since the text encoder cannot read them: {', '.join(unreadable)}.\n")
    if not readable:
        raise DataError(f"of the classes that are to be scored, {target.folder} can read none", "give other --classes")
    return replace(selected, classes=readable)


def _print_scores(scores: dict[str, Any], model: ClassIoU, words: list[str], classes: list[int]) -> None:
    say_lines(scorecard.markdown(scores))
    least = scores["protocol"]["least"]
    if not model.counted(classes, least):
        say_lines(f"\nNo class is shown by {least} pictures, so none counts in the mean; --least 1 counts them all.")
    if scores["baselines"]:
        say_lines(
            "\nThe cosine's threshold is the best of several on these very pictures, which favours that baseline."
        )
    if pairs := scorecard.confused(model, words, classes):
        say_lines(f"\n{pairs}")


def _write_sheet(
    given: argparse.Namespace, target: Target, names: list[str], classes: list[int], protocol: Protocol, caption: str
) -> None:
    data = target.data
    shown = given.sheet_pictures or sheet.choose(data, names, classes, given.sheet_rows) or names[: given.sheet_rows]
    predict = target.predictor(replace(protocol, masks="labels"), shown, given.scale)  # colours cannot overlap
    rows = sheet.rows(predict, data, shown, names, classes, protocol.words)
    picture = sheet.draw(rows, data.words, f"{display(given.target)} · {caption}")
    write_result(given.sheet, lambda stream: picture.save(stream, "PNG"))


def parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "target", type=path_argument, help="a checkpoint folder, or an engine bundle (then nothing of PyTorch computes)"
    )
    parser.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="the data set's folder")
    checkpoint.Moved.add_flags(parser)
    _add_selection(parser.add_argument_group("what is scored (defaults: what the checkpoint's training record says)"))
    _add_protocol(parser.add_argument_group("protocol"))
    _add_outputs(parser.add_argument_group("output (a Markdown table is printed)"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset", choices=tuple(KINDS), help="kind of data set (last default: folder)")
    group.add_argument("--folds", metavar="SPLIT", help=f"split of the classes: {', '.join(FOLDS)}")
    group.add_argument("--fold", type=int, metavar="N", help="the fold whose classes were held out")
    group.add_argument(
        "--classes", default="", metavar="NAMES",
        help="score these, comma separated, or: unseen (held out), seen (the others), all (default: unseen, or all where "
        "nothing was held out)",
    )  # fmt: skip
    group.add_argument("--split", default="val", help="which list of pictures (default: %(default)s)")


def _add_protocol(group: argparse._ArgumentGroup) -> None:
    for flag, choices in (
        ("--words", ("known", "all")),
        ("--masks", ("labels", "classwise")),
        ("--mode", ("joint", "independent")),
        ("--window", ("whole", "sliding")),
    ):
        group.add_argument(flag, choices=choices, default=choices[0], help="default: %(default)s")
    group.add_argument(
        "--scale", type=_scale, default=2.0, help="of sliding windows: how much larger they see (default: %(default)s)"
    )
    group.add_argument(
        "--threshold", type=_probability, metavar="P", help="on the probability (default: the model's own)"
    )
    group.add_argument(
        "--background", metavar='"A, B"',
        help="of a bundle: hidden words asked beside the others, whose pixels are background, or common",
    )  # fmt: skip
    group.add_argument(
        "--least", type=int, default=15, metavar="N",
        help="pictures a class needs to count in mIoU (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--baselines", action="store_true",
        help='beside it, "everything is foreground" and the aligned cosine without fusion at its best threshold '
        "(efficientnet-lite checkpoints)",
    )  # fmt: skip


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json", type=path_argument, metavar="FILE", help="every figure; the schema is in training/scorecard.py"
    )
    group.add_argument("--csv", type=path_argument, metavar="FILE", help="a line per class")
    group.add_argument("--confusion", type=path_argument, metavar="FILE.png", help="picture of the confusion matrix")
    group.add_argument(
        "--sheet", type=path_argument, metavar="FILE.png", help="pictures, truth and prediction side by side"
    )
    group.add_argument(
        "--sheet-rows", type=count, default=12, metavar="N", help="pictures on it (default: %(default)s)"
    )
    group.add_argument(
        "--sheet-pictures", type=_names, default=[], metavar="NAMES", help="these pictures, comma separated"
    )
    group.add_argument(
        "--cache", type=path_argument, default=Path("runs/features"), metavar="DIR",
        help="where frozen features are kept (default: %(default)s)",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments

    def score() -> int:
        given = parser().parse_args(arguments)
        given.again = f"python -m training.evaluate {shlex.join(arguments)}"
        run(given)
        return 0

    return run_command("training.evaluate", score, "its files are whole or as they were", lacks)


def _scale(text: str) -> float:
    return _within(text, 1, 16)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; give a whole number, 1 or more")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _probability(text: str) -> float:
    return _within(text, 0, 1)


def _within(text: str, min_: float, max_: float) -> float:
    with contextlib.suppress(ValueError):
        if min_ <= float(text) <= max_:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}; give a number from {min_} to {max_}")


if __name__ == "__main__":
    sys.exit(main())
