"""The scores of one evaluation as a JSON document, and its Markdown table, CSV and confusion matrix.

{"format": "fusioner-rt scores", "format_version": 1,
 "target": its folder's name, with the parent's for "checkpoint" and "bundle" ("fold1/checkpoint"), "kind": "checkpoint" or "bundle",
 "training": {"recipe", "seed", "dataset", "folds", "fold", "holdout", "pictures"}    as far as recorded
 "dataset", "folds", "fold", "split": what was scored; null without folds
 "protocol": {"words", "masks", "mode", "window", "scale", "least", "threshold"}, and "background" where asked beside
 "seconds": duration of the evaluation
 "classes": {word: {"iou", "precision", "recall", "pictures"}}       percent; number of pictures that show the class
 "counted": [word]       classes that `least` pictures show
 "miou": mean over the counted, "fb_iou"
 "miou_per_fold": {fold: mIoU}       where several folds are scored, else {}
 "confusion": {"words": [background, word...], "pixels": [[...]]}       rows truth, columns prediction; null
    for masks that overlap ("classwise")
 "baselines": {name: {"classes", "miou", "fb_iou", "miou_per_fold"}}
 "versions": {package: version}, "date": ISO 8601, UTC}
A figure is null where nothing was counted.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import json
import math
import platform
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from training.metrics import ClassIoU

FORMAT = "fusioner-rt scores"
MAX_CONFUSED = 8  # pairs of confused words in `confused`


def figures(
    result: ClassIoU, words: list[str], classes: list[int], least: int, folds: dict[str, list[int]]
) -> dict[str, Any]:
    """The figures of a model or a baseline. folds: name → class indices."""
    return {
        "classes": {
            words[index]: {
                "iou": _number(result.iou(index)),
                "precision": _number(result.precision(index)),
                "recall": _number(result.recall(index)),
                "pictures": int(result.pictures[index]),
            }
            for index in classes
        },
        "counted": [words[index] for index in result.counted(classes, least)],
        "miou": _number(result.mean(result.counted(classes, least))),
        "fb_iou": _number(result.fb_iou()),
        "miou_per_fold": {
            fold: _number(result.mean(result.counted(indices, least))) for fold, indices in folds.items()
        },
    }


def confusion(result: ClassIoU, words: list[str], classes: list[int]) -> dict[str, Any]:
    """The document's "confusion"."""
    indices = [0, *classes]
    return {
        "words": ["background", *(words[index] for index in classes)],
        "pixels": result.confusion[np.ix_(indices, indices)].tolist(),
    }


def markdown(document: dict[str, Any]) -> str:
    """A table with a row per class that pictures show, and the means below."""
    baselines = document["baselines"]
    heads = ["class", "pictures", "IoU", "precision", "recall", *(f"{name}, IoU" for name in baselines)]
    lines = [" | ".join(["", *heads, ""]).strip(), "|---" * len(heads) + "|"]
    shown = {word: row for word, row in document["classes"].items() if row["pictures"]}
    for word, row in shown.items():
        cells = [word, str(row["pictures"]), *(_cell(row[key]) for key in ("iou", "precision", "recall"))]
        lines.append(_row(cells + [_cell(baseline["classes"][word]["iou"]) for baseline in baselines.values()]))
    columns = [document, *baselines.values()]
    least = document["protocol"]["least"]

    def mean(name: str, values: list[float | None]) -> str:
        return _row([name, "", _cell(values[0]), "", "", *(_cell(value) for value in values[1:])])

    for fold in document["miou_per_fold"]:
        lines.append(mean(f"**mIoU of fold {fold}**", [column["miou_per_fold"][fold] for column in columns]))
    count = len(document["counted"])
    lines.append(mean(f"**mIoU** ({count} with {least}+ pictures)", [column["miou"] for column in columns]))
    lines.append(mean("**FB-IoU**", [column["fb_iou"] for column in columns]))
    return "\n".join(lines)


def confused(result: ClassIoU, words: list[str], classes: list[int]) -> str:
    """A table of the most confused pairs of words; "" without any."""
    pairs = result.most_confused(classes, MAX_CONFUSED)
    if not pairs:
        return ""
    names = ["background", *words[1:]]
    lines = ["| pixels of | given to another word | share |", "|---|---|---|"]
    for pair in pairs:
        lines.append(_row([names[pair.truth], names[pair.prediction], f"{pair.share:.1f} %"]))
    return "\n".join(lines)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version, and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_json(document: dict[str, Any], stream: IO[bytes]) -> None:
    stream.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def write_csv(document: dict[str, Any], stream: IO[bytes]) -> None:
    """A line per class: class, pictures, iou, precision, recall, and each baseline's IoU; empty where nothing was counted."""
    text = io.StringIO()
    baselines = document["baselines"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pictures", "iou", "precision", "recall", *(f"{name}: iou" for name in baselines)])
    for word, row in document["classes"].items():
        ious = [baseline["classes"][word]["iou"] for baseline in baselines.values()]
        writer.writerow([word, row["pictures"], row["iou"], row["precision"], row["recall"], *ious])
    stream.write(text.getvalue().encode())


def draw_confusion(result: ClassIoU, words: list[str], classes: list[int], title: str, stream: IO[bytes]) -> None:
    """A PNG: rows truth, columns prediction, each row in percent of its pixels; without classes that have no pixels."""
    from matplotlib.figure import Figure

    shown = [index for index in classes if result.pictures[index] or result.found[index]]
    shares = result.normalised_confusion(shown)
    names = ["background", *(words[index] for index in shown)]
    side = len(names)
    size = 2.6 + 0.46 * side
    figure = Figure(figsize=(size + 0.6, size), dpi=110, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(side), names, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(side), names)
    axes.set_xlabel("given to")
    axes.set_ylabel("pixels of")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(np.arange(side + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(side + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e7ec", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if side <= 40:  # more cells are too small for figures
        for row, column in np.argwhere(shares >= 0.5):
            ink = "white" if shares[row, column] > 55 else "#20304a"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(picture, shrink=0.6, label="% of the row's pixels")
    figure.savefig(stream, format="png")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
