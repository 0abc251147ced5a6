"""Checks that a data set is complete: what is missing, where it belongs, and how many pictures show each class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fusioner_rt.command_end import say, say_lines
from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import FusionerError
from training.data import DataError, PictureMasks, present
from training.datasets import KINDS, fss, open_dataset, splits

SAMPLE = 20_000  # masks opened per split where annotations do not tell the classes; --thorough opens all
SHOWN = 10  # problems and unusual classes listed


def check(
    kind: str,
    root: Path,
    chosen: tuple[str, ...] = (),
    folds: str = "",
    fold: int | None = None,
    thorough: bool = False,
) -> bool:
    """Prints a report; True where the data set is usable. chosen: the splits to check, all by default.

    Raises DataError for an unknown kind, split or fold.
    """
    if kind not in KINDS:
        open_dataset(kind, root)
    if folds:
        splits.held_out(folds, fold or 0)
    expected = KINDS[kind]
    unknown = set(chosen) - set(expected.splits)
    if unknown:
        raise DataError(f"{kind} has no split {', '.join(sorted(unknown))}; expected {' or '.join(expected.splits)}")
    problems: list[str] = []
    shown: dict[str, dict[str, list[int]]] = {}
    say(f"{kind} in {root}")
    try:
        data = open_dataset(kind, root)
        say_lines(f"  classes: {len(data.classes) - 1} and the background")
        for split in chosen or expected.splits:
            try:
                shown[split] = _inspect(data, split, thorough, problems, (expected.counts or {}).get(split))
            except FusionerError as error:
                problems.append(f"{split}: {error}")
        if shown:
            _print_classes(data, shown)
            if isinstance(data, fss.Fss1000) and data.missing_test_classes:
                missing = data.missing_test_classes
                say_lines(f"  of the 240 test classes {len(missing)} are missing: {first_of(missing)}")
            print_folds(data, shown, folds or expected.folds, fold, problems)
    except FusionerError as error:
        problems.append(str(error))
    if not problems:
        say_lines("usable")
        return True
    say_lines(f"not usable: {len(problems)} problem{'s' * (len(problems) > 1)}")
    for problem in problems[:SHOWN]:
        say(f"  - {problem}")
    if len(problems) > SHOWN:
        say_lines(f"  … and {len(problems) - SHOWN} more")
    say_lines(f"\nexpected layout:\n{expected.layout}\n\nwhere it comes from:\n{expected.source}")
    return False


def _inspect(
    data: PictureMasks, split: str, thorough: bool, problems: list[str], complete: int | None
) -> dict[str, list[int]]:
    """Prints a split's size; returns picture → classes it shows. Unreadable pictures go to `problems`.

    complete: the number of pictures of the complete data set, where it is known.
    """
    names = data.names(split)
    annotated = not thorough and _tells_classes(data, split)
    opened = names
    if not thorough and not annotated and len(names) > SAMPLE:
        opened = [names[i] for i in np.linspace(0, len(names) - 1, SAMPLE).astype(int)]
    note = f" (the complete data set has {complete:,})" if complete not in (None, len(names)) else ""
    source = f"{len(opened):,} masks opened, which the counts below are of"
    if annotated:
        source = "classes from the annotations"
    elif opened is names:
        source = "every mask opened"
    say_lines(f"  {split}: {len(names):,} pictures{note}; {source}")
    shown = {}
    for name in tqdm(opened, desc=f"{split} masks", unit="mask", leave=False):
        try:
            shown[name] = _opened(data, name) if thorough else data.present(name)
        except FusionerError as error:
            problems.append(f"{split} {name}: {error}")
    return shown


def _tells_classes(data: PictureMasks, split: str) -> bool:
    """Whether `data.present` reads annotations, not masks."""
    prepared = getattr(data, "is_prepared", lambda split: False)
    return type(data).present is not PictureMasks.present and not prepared(split)


def _opened(data: PictureMasks, name: str) -> list[int]:
    """The classes in a mask, after its size is compared with its picture's. Raises FusionerError."""
    height, width = decode(data.picture(name)).shape[:2]
    mask = data.mask(name)
    if mask.shape != (height, width):
        raise DataError(
            f"the mask has {mask.shape[1]}×{mask.shape[0]} pixels, the picture {width}×{height}", "they must agree"
        )
    if not (mask > 0).any() and isinstance(data, fss.Fss1000):
        raise DataError("the mask marks no pixel; expected white where the class is", "fetch it again")
    return present(mask)


def _print_classes(data: PictureMasks, shown: dict[str, dict[str, list[int]]]) -> None:
    """Pictures per class; of more than a hundred classes, only those with fewer pictures than most."""
    counts = {split: Counter(i for classes in pictures.values() for i in classes) for split, pictures in shown.items()}
    indices = range(1, len(data.classes))
    if len(indices) <= 100:
        width = max(len(name) for name in data.classes)
        say_lines(f"  {'pictures that show':<{width + 5}}" + "".join(f"{split:>8}" for split in shown))
        for index in indices:
            line = "".join(f"{counts[split][index]:>8,}" for split in shown)
            say_lines(f"  {index:>4} {data.classes[index]:<{width}}{line}")
        return
    for split, count in counts.items():
        if not count:
            continue
        usual = Counter(count.values()).most_common(1)[0][0]
        fewer = [f"{data.classes[i]} {n}" for i, n in sorted(count.items()) if n < usual]
        say_lines(
            f"  {split}: {len(count)} classes, most with {usual} pictures{'; fewer: ' + first_of(fewer) if fewer else ''}"
        )


def print_folds(
    data: PictureMasks, shown: dict[str, dict[str, list[int]]], split: str, fold: int | None, problems: list[str]
) -> None:
    """Per fold: the number of training and of scored pictures."""
    if not split:
        return
    say_lines(f"  folds of {split}")
    found = 0
    for number in range(len(splits.FOLDS[split])) if fold is None else (fold,):
        try:
            held = splits.held_out_indices(data, split, number)
        except DataError:
            say_lines(f"    {number}: none of its classes is here")
            continue
        found += 1
        parts = []
        for name, pictures in shown.items():
            with_held = sum(bool(set(held) & set(classes)) for classes in pictures.values())
            if name == "train":
                parts.append(f"{len(pictures) - with_held:,} training pictures show none of them")
            else:
                parts.append(f"{with_held:,} validation pictures show one")
        say_lines(f"    {number}: {', '.join(data.classes[i] for i in held)}: {'; '.join(parts)}")
    if not found:
        problems.append(f"no class of {split} is here; give --folds a split that fits the data set")


def first_of(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
