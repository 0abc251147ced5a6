"""Scores a checkpoint or an engine bundle on pictures with masks: intersection over union per class.

  python -m training.evaluate models/demo/checkpoint --data DIR
  python -m training.evaluate models/demo/bundle --data DIR            # the deployed thing, through fusioner_rt.Session
  python -m training.evaluate runs/fold1/checkpoint --data DIR --classes cat,chair,cow --baselines

Known-words protocol (the paper's): each picture is asked for the classes its mask holds. --baselines adds, on the same
pictures, "everything is foreground" and the aligned cosine without fusion, at the best of several thresholds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from fusioner_rt import Session
from fusioner_rt.errors import FusionerError
from training import alignment, checkpoint, scoring
from training.data import DataError, MaskFolder
from training.feature_cache import FeatureCache, word_vectors
from training.metrics import ClassIoU

COSINE_THRESHOLDS = tuple(round(float(t), 2) for t in np.arange(-0.06, 0.20, 0.02))


def evaluate(
    target: Path,
    data: MaskFolder,
    split: str,
    classes: list[int],
    baselines: bool,
    cache_folder: Path,
    threshold: float,
) -> dict[str, ClassIoU]:
    """One ClassIoU per candidate: "model", and with `baselines` "everything" and "aligned cosine > T"."""
    names = data.names(split)
    results: dict[str, ClassIoU] = {}
    if (target / "manifest.json").is_file():
        if baselines:
            raise FusionerError(
                "--baselines needs a checkpoint: the aligned cosine is computed from the PyTorch encoders"
            )
        with Session(target) as session:
            results["model"] = scoring.score(scoring.deployed(session, data, threshold), data, names, classes, "bundle")
        return results
    model = checkpoint.load(target)
    cache = FeatureCache(
        cache_folder, data, model.image_encoder, model.config.encoder_sha256["image"], model.preprocessing()
    )
    cache.fill(names, (False,))
    vectors = word_vectors(cache_folder, model, data.words)
    results["model"] = scoring.score(scoring.fusioner(model, cache, vectors, threshold), data, names, classes, "model")
    if baselines:
        results["everything"] = scoring.score(scoring.everything, data, names, classes, "everything")
        aligned = alignment.ridge(model, cache_folder)
        candidates = {
            f"aligned cosine > {t}": scoring.score(
                scoring.aligned_cosine(aligned, cache, vectors, t), data, names, classes, f"cosine > {t}"
            )
            for t in COSINE_THRESHOLDS
        }
        best = max(
            candidates, key=lambda label: candidates[label].mean([i for i in classes if candidates[label].union[i]])
        )
        results[best] = candidates[best]
    return results


def table(results: dict[str, ClassIoU], data: MaskFolder, classes: list[int], least: int) -> str:
    """Markdown: a row per class; the mean over classes with at least `least` pictures."""
    lines = ["| class | pictures | " + " | ".join(results) + " |", "|---|---|" + "---|" * len(results)]
    pictures = next(iter(results.values())).pictures
    shown = [index for index in classes if pictures[index]]
    for index in shown:
        lines.append(
            f"| {data.words[index]} | {pictures[index]} | "
            + " | ".join(f"{r.iou(index):.1f}" for r in results.values())
            + " |"
        )
    counted = [index for index in shown if pictures[index] >= least]
    if counted:
        lines.append(
            f"| mean of {len(counted)} with {least}+ pictures | | "
            + " | ".join(f"{r.mean(counted):.1f}" for r in results.values())
            + " |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "target", type=Path, help="a checkpoint folder, or an engine bundle (then nothing of PyTorch computes)"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures, index masks and class names")
    parser.add_argument("--split", default="val", help="which list of pictures (default: %(default)s)")
    parser.add_argument("--classes", default="", help="score only these, comma separated (default: every class)")
    parser.add_argument(
        "--least", type=int, default=15, help="pictures a class needs to count in the mean (default: %(default)s)"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="on the probability (default: %(default)s)")
    parser.add_argument("--baselines", action="store_true", help="score two baselines on the same pictures")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/features"),
        help="where frozen features are kept (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    try:
        data = MaskFolder(given.data)
        chosen = [word.strip() for word in given.classes.split(",") if word.strip()]
        classes = [data.index(name) for name in chosen] or list(range(1, len(data.classes)))
        if not given.target.is_dir():
            raise DataError(
                f"{given.target} is no folder; expected a checkpoint (config.json) or an engine bundle (manifest.json)"
            )
        results = evaluate(given.target, data, given.split, classes, given.baselines, given.cache, given.threshold)
    except FusionerError as error:
        print(f"training.evaluate: {error}", file=sys.stderr)
        return error.exit_code
    print(table(results, data, classes, given.least))
    if given.json:
        figures = {
            label: {data.words[i]: round(r.iou(i), 2) for i in classes if r.union[i]} for label, r in results.items()
        }
        given.json.write_text(
            json.dumps({"target": given.target.name, "split": given.split, "iou": figures}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
