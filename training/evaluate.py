"""Scores a checkpoint, or an engine bundle through the runtime, on pictures with masks (paper 4.1).

examples:
  python -m training.evaluate models/demo/checkpoint --data DIR
      every class; each picture is asked for the classes that it shows
  python -m training.evaluate models/demo/bundle --data DIR
      the same of the deployed thing: pictures go through fusioner_rt.Session
  python -m training.evaluate runs/fold1/checkpoint --data DIR --baselines --json scores.json --sheet sheet.png
      a model of a fold: by its training record, the classes that it never saw; beside it, what needs no training
  python -m training.evaluate runs/fold1/checkpoint --data DIR --classes seen --words all
      the other classes, all of them asked for in every picture
  python -m training.evaluate models/demo/checkpoint --data DIR --folds pascal-5i
      every class, with a mean for each fold

protocols (the paper's: --words known --masks classwise --mode joint --window whole):
  --words known   of the scored classes, a picture is asked for those that it shows.
  --words all     every picture is asked for every scored class, also where it shows none: a wrong word costs IoU.
  --masks         labels: a pixel has its best word, as a label map holds it; classwise: each word has a mask of its
                  own, and masks may overlap (the paper's, section 3.1.3).
  --mode          joint: one pass for all words of a picture; independent: each word alone.
  --window        whole: the picture as one input; sliding: overlapping windows of 1/SCALE of its edges, each enlarged
                  to the network's input, probabilities averaged where they overlap. Costs about (2 SCALE - 1)² passes.

figures, in percent; pixels marked "ignore" count nowhere:
  IoU        of a class, over the pixels of all pictures that were asked for it; mIoU: its mean over classes
  FB-IoU     every (picture, word) pair as two classes, the word and the rest, whatever the word: the mean of both IoUs
  confusion  where the pixels of each word went; "background" is what belongs to no word that was asked for (--masks labels)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fusioner_rt import Session
from fusioner_rt.bundle import MANIFEST, read_manifest
from fusioner_rt.errors import FusionerError, UsageError
from fusioner_rt.files import writable_folder, writable_place, write_result
from training import alignment, checkpoint, scorecard, scoring, sheet
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
    """What is scored: a checkpoint's model or a bundle's session, behind one predictor. `with` closes it."""

    def __init__(self, folder: Path, data: PictureMasks, cache_folder: Path) -> None:
        """Raises CheckpointError, WeightsNotFound, and what opening a bundle raises."""
        self.folder, self.data, self.cache_folder = folder, data, cache_folder
        self.kind = kind(folder)
        self._session = Session(folder) if self.kind == "bundle" else None
        self._model = checkpoint.load(folder) if self.kind == "checkpoint" else None
        self._vectors: tuple[Tensor, set[int]] | None = None

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session:
            self._session.close()

    def predictor(self, protocol: Protocol, names: list[str], scale: float = 2.0) -> scoring.Predictor:
        """names: the pictures it will be asked for; a checkpoint's features of them are computed where none are kept."""
        how: Any = protocol.mode
        classwise = protocol.masks == "classwise"
        if classwise and protocol.window == "sliding":
            raise UsageError("--masks classwise is not offered with --window sliding", "choose one of the two")
        if self._session is not None:
            if protocol.window == "whole":
                predictor = scoring.deployed_classwise if classwise else scoring.deployed
                return predictor(self._session, self.data, protocol.threshold, how)
            crops = scoring.deployed_crops(self._session, self.data, how)
        else:
            if protocol.window == "whole":
                cache = self.features(names)
                of_features = scoring.fusioner_classwise if classwise else scoring.fusioner
                return of_features(self.model, cache, self.vectors, protocol.threshold, how)
            crops = scoring.fusioner_crops(self.model, self.vectors, how)
        return scoring.sliding(crops, self.data, protocol.threshold, scale)

    @property
    def model(self) -> Fusioner:
        if self._model is None:
            raise UsageError(
                f"{self.folder} is an engine bundle, and --baselines needs a checkpoint: the aligned "
                "cosine is computed from the PyTorch encoders",
                "name the checkpoint it was built from, or leave --baselines out",
            )
        return self._model

    @property
    def vectors(self) -> Tensor:
        """(classes, t), by class index."""
        return self._known()[0]

    def readable(self, classes: list[int]) -> list[int]:
        """Those that it can be asked for: a table of names may lack some. A bundle's session refuses them itself."""
        return classes if self._model is None else [index for index in classes if index in self._known()[1]]

    def _known(self) -> tuple[Tensor, set[int]]:
        if self._vectors is None:
            self._vectors = class_vectors(self.cache_folder, self.model, self.data)
        return self._vectors

    def features(self, names: list[str]) -> FeatureCache:
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
    """One ClassIoU per candidate: "model", and with `baselines` "everything" and "aligned cosine > T"."""
    if baselines:
        check_baselines(target)
    data = target.data
    if protocol.words == "known":  # what shows none of the classes is not asked for anything
        wanted = set(classes)
        names = [name for name in tqdm(names, "masks", unit="picture", leave=False) if wanted & set(data.present(name))]
    if not names:
        raise DataError(f"no picture of {data.root} shows any of the classes that are to be scored")
    predict = target.predictor(protocol, names, scale)
    results = {"model": scoring.score(predict, data, names, classes, target.kind, protocol.words)}
    if baselines:
        results["everything"] = scoring.score(scoring.everything, data, names, classes, "everything", protocol.words)
        aligned = alignment.ridge(target.model, target.cache_folder)
        cosine = scoring.aligned_cosine(
            aligned, target.features(names), target.vectors, COSINE_THRESHOLDS, protocol.masks == "classwise"
        )
        candidates = scoring.score_each(
            cosine, len(COSINE_THRESHOLDS), data, names, classes, "aligned cosine", protocol.words
        )

        def worth(index: int) -> float:  # by the classes that the mean is taken over
            result = candidates[index]
            return result.mean(result.counted(classes, protocol.least) or result.counted(classes, 1))

        best = max(range(len(candidates)), key=worth)
        results[f"aligned cosine > {COSINE_THRESHOLDS[best]}"] = candidates[best]
    return results


def check_baselines(target: Target) -> None:
    """Raises UsageError where there is nothing to compute the aligned cosine from."""
    encoder = target.model.config.image_encoder
    if not encoder.startswith("efficientnet-lite"):
        raise UsageError(
            "--baselines needs the image encoder's own ImageNet classifier, which efficientnet-lite "
            f"has; this checkpoint has {encoder}",
            "leave --baselines out",
        )


def kind(folder: Path) -> str:
    """ "checkpoint" or "bundle". Raises DataError."""
    if (folder / MANIFEST).is_file():
        return "bundle"
    if (folder / "config.json").is_file():
        return "checkpoint"
    raise DataError(
        f"{folder} holds neither config.json nor {MANIFEST}; expected a checkpoint folder or an engine bundle"
    )


def display(folder: Path) -> str:
    """A name that tells runs apart: most checkpoints lie in a folder called just that."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("checkpoint", "bundle") else folder.name


def record(folder: Path) -> dict[str, Any]:
    """What the target says of its training, {} where it says nothing. Raises CheckpointError, ManifestInvalid."""
    if kind(folder) == "bundle":
        found = read_manifest(folder).get("training")
        return found if isinstance(found, dict) else {}
    return checkpoint.read_config(folder)[1]


def choice(recorded: dict[str, Any], dataset: str | None, folds: str | None, fold: int | None) -> Choice:
    """What to score: what was asked for, completed by the training record. Raises UsageError."""
    if folds is None:
        folds = recorded.get("folds") or ""
    if fold is not None and not folds:
        raise UsageError(f"--fold {fold} needs --folds, which says how the classes are split: {', '.join(FOLDS)}")
    if fold is None and folds:
        fold = recorded.get("fold")
    holdout = recorded.get("holdout") or recorded.get("plan", {}).get("holdout") or ()
    return Choice(dataset or recorded.get("dataset") or "folder", folds, fold if folds else None, tuple(holdout))


@dataclass(frozen=True)
class Scored:
    """classes: indices, each once. what: in words. folds: those of each fold, where no single one was chosen."""

    classes: list[int]
    what: str
    folds: dict[str, list[int]]


def scored(data: PictureMasks, chosen: Choice, wanted: str) -> Scored:
    """wanted: "" for the classes held out of training, or every class where none were; "unseen", "seen", "all"; or names.

    Raises DataError, UsageError.
    """
    everyone = list(range(1, len(data.classes)))
    unseen: list[int] = []
    if chosen.folds and chosen.fold is not None:
        unseen = held_out_indices(data, chosen.folds, chosen.fold)
    for name in chosen.holdout:
        with contextlib.suppress(DataError):  # another data set than it was trained on may lack it
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
        seen = [index for index in everyone if index not in unseen]
        return Scored(seen, f"{len(seen)} classes not held out of {fold}", {})
    if wanted and wanted != "all":
        classes = [data.index(word.strip()) for word in wanted.split(",") if word.strip()]
        if not classes:
            raise UsageError(f"--classes {wanted!r} names no class", f"{data.root} has: {', '.join(data.classes[1:])}")
        return Scored(list(dict.fromkeys(classes)), "the classes asked for", {})
    return Scored(everyone, f"all {len(everyone)} classes", folds)


def _each_fold(data: PictureMasks, split: str) -> dict[str, list[int]]:
    """Class indices by fold, without the folds of which the data set has no class. Raises DataError."""
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
    made = {
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
        "protocol": {**asdict(protocol), "scale": scale if protocol.window == "sliding" else None},
        "seconds": round(seconds, 1),
        **made["model"],
        "confusion": (
            scorecard.confusion(results["model"], words, scored.classes) if protocol.masks == "labels" else None
        ),
        "baselines": {name: {key: part[key] for key in shared} for name, part in made.items() if name != "model"},
        "versions": _versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def run(given: argparse.Namespace) -> None:
    """What the command line asks for. Raises FusionerError."""
    recorded = record(given.target)
    chosen = choice(recorded, given.dataset, given.folds, given.fold)
    data = open_dataset(chosen.dataset, given.data)
    what = scored(data, chosen, given.classes.strip())
    protocol = Protocol(given.words, given.masks, given.mode, given.window, given.least, given.threshold)
    if given.confusion and given.masks == "classwise":
        raise UsageError(
            "a pixel of masks that overlap was not given to one word", subject="--confusion needs --masks labels"
        )
    writable_folder(given.cache)
    for file in (given.json, given.csv, given.confusion, given.sheet):
        if file:
            writable_place(file)
    names, words = data.names(given.split), data.words
    asked = [name.strip() for name in given.sheet_pictures.split(",") if name.strip()]
    sheet.check(data, asked, names)
    title = f"{display(given.target)}: {what.what}"
    how = f"{protocol.words} words, {protocol.masks}, {protocol.mode}, {protocol.window} picture{'s' if protocol.window == 'whole' else ''}"
    if protocol.window == "sliding":
        how = f"{protocol.words} words, {protocol.mode}, sliding windows at scale {given.scale:g}"
    with Target(given.target, data, given.cache) as target:
        readable = target.readable(what.classes)
        if unreadable := [words[index] for index in what.classes if index not in readable]:
            print(f"Left out, since the text encoder cannot read them: {', '.join(unreadable)}.\n")
            what = replace(what, classes=readable)
        if not what.classes:
            raise DataError(
                f"of the classes that are to be scored, {given.target} can read none", "give other --classes"
            )
        print(f"# {title}\n\nDataset {chosen.dataset}, split {given.split}; {how}.")
        print(f"Scored: {', '.join(words[index] for index in what.classes)}.\n", flush=True)
        start = time.perf_counter()
        results = evaluate(target, names, what.classes, protocol, given.scale, given.baselines)
        seconds = time.perf_counter() - start
        made = document(target, recorded, chosen, given.split, what, protocol, given.scale, results, seconds)
        print(scorecard.markdown(made))
        if not results["model"].counted(what.classes, protocol.least):
            print(
                f"\nNo class is shown by {protocol.least} pictures, so none counts in the mean; --least 1 counts them all."
            )
        if given.baselines:
            print(
                "\nThe cosine's threshold is the best of several on these very pictures, which favours that baseline."
            )
        if pairs := scorecard.confused(results["model"], words, what.classes):
            print(f"\n{pairs}")
        if given.json:
            write_result(given.json, lambda stream: scorecard.write_json(made, stream))
        if given.csv:
            write_result(given.csv, lambda stream: scorecard.write_csv(made, stream))
        if given.confusion:
            caption = f"{title}\n{how}"
            write_result(
                given.confusion,
                lambda stream: scorecard.draw_confusion(results["model"], words, what.classes, caption, stream),
            )
        if given.sheet:
            shown = asked or sheet.choose(data, names, what.classes, given.sheet_rows) or names[: given.sheet_rows]
            predict = target.predictor(replace(protocol, masks="labels"), shown, given.scale)  # colours cannot overlap
            rows = sheet.rows(predict, data, shown, names, what.classes, protocol.words)
            picture = sheet.draw(rows, words, f"{display(given.target)} · {how}")
            write_result(given.sheet, lambda stream: picture.save(stream, "PNG"))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "target", type=Path, help="a checkpoint folder, or an engine bundle (then nothing of PyTorch computes)"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set's folder")
    what = parser.add_argument_group("what is scored (defaults: what the checkpoint's training record says)")
    what.add_argument("--dataset", choices=tuple(KINDS), help="kind of data set (last default: folder)")
    what.add_argument("--folds", metavar="SPLIT", help=f"split of the classes: {', '.join(FOLDS)}")
    what.add_argument("--fold", type=int, metavar="N", help="the fold whose classes were held out")
    what.add_argument(
        "--classes",
        default="",
        metavar="NAMES",
        help="score these, comma separated, or: unseen (held out), seen (the others), all (default: unseen, or all where "
        "nothing was held out)",
    )
    what.add_argument("--split", default="val", help="which list of pictures (default: %(default)s)")
    how = parser.add_argument_group("protocol")
    how.add_argument("--words", choices=("known", "all"), default="known", help="default: %(default)s")
    how.add_argument("--masks", choices=("labels", "classwise"), default="labels", help="default: %(default)s")
    how.add_argument("--mode", choices=("joint", "independent"), default="joint", help="default: %(default)s")
    how.add_argument("--window", choices=("whole", "sliding"), default="whole", help="default: %(default)s")
    how.add_argument(
        "--scale", type=_scale, default=2.0, help="of sliding windows: how much larger they see (default: %(default)s)"
    )
    how.add_argument(
        "--threshold", type=_probability, default=0.5, metavar="P", help="on the probability (default: %(default)s)"
    )
    how.add_argument(
        "--least",
        type=int,
        default=15,
        metavar="N",
        help="pictures a class needs to count in mIoU (default: %(default)s)",
    )
    how.add_argument(
        "--baselines",
        action="store_true",
        help='beside it, "everything is foreground" and the aligned cosine without fusion at its best threshold '
        "(efficientnet-lite checkpoints)",
    )
    out = parser.add_argument_group("output (a Markdown table is printed)")
    out.add_argument("--json", type=Path, metavar="FILE", help="every figure; the schema is in training/scorecard.py")
    out.add_argument("--csv", type=Path, metavar="FILE", help="a line per class")
    out.add_argument("--confusion", type=Path, metavar="FILE.png", help="picture of the confusion matrix")
    out.add_argument("--sheet", type=Path, metavar="FILE.png", help="pictures, truth and prediction side by side")
    out.add_argument("--sheet-rows", type=_count, default=12, metavar="N", help="pictures on it (default: %(default)s)")
    out.add_argument("--sheet-pictures", default="", metavar="NAMES", help="these pictures, comma separated")
    out.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/features"),
        metavar="DIR",
        help="where frozen features are kept (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        run(given)
    except FusionerError as error:
        print(f"training.evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _scale(text: str) -> float:
    return _within(text, 1, 16)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; give a whole number, 1 or more")
    return int(text)


def _probability(text: str) -> float:
    return _within(text, 0, 1)


def _within(text: str, least: float, most: float) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) <= most:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}; give a number from {least} to {most}")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
