"""Checks a folder of one's own before a training: what is in it, and what would stop or spoil a run."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fusioner_rt.atomic_files import writable_place, write_result
from fusioner_rt.command_end import say, say_lines
from fusioner_rt.errors import FusionerError
from training.data import BACKGROUND, IGNORE, DataError, MaskFolder, counted, decode_as, orientation
from training.datasets import KINDS, not_converted
from training.datasets.check import first_of, print_folds
from training.datasets.class_table import class_table
from training.sheet import choose, draw_masks

SHOWN = 10  # problems that are listed
ON_SHEET = 6  # pictures on a sheet
FEW = 10  # training pictures of a class below which it is mentioned
ENOUGH = 400  # training pictures from which on the recipe's epochs have STEPS steps
STEPS = 100  # what docs/own_pictures.md measures
SHARE = 0.1  # kept for validation where neither lists nor --split say


@dataclass
class Inspected:
    """One split. shown: picture → classes it shows; pixels: by index, ignored ones under IGNORE."""

    names: list[str] = field(default_factory=list)
    shown: dict[str, list[int]] = field(default_factory=dict)
    pixels: Counter[int] = field(default_factory=Counter)
    turned: int = 0


def check_folder(
    root: Path, split: str = "", folds: str = "", fold: int | None = None, sheet: Path | None = None
) -> bool:
    """Prints a report and what to run next; True where a training would start. Opens every picture and mask.

    split: train or val to look at one alone, or the share that is kept for validation, as `training.train --split`.
    sheet: a file for a picture of some of them. Raises DataError, OutputUnwritable.
    """
    alone = split if split in ("train", "val") else ""
    if sheet is not None:
        _drawable(sheet)
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder; expected pictures and masks",
            "python -m training.datasets convert EXPORT --out DIR makes one; check --help shows its layout",
        )
    not_converted(root)
    share = 0.0 if alone or not split else _share(split)
    data = MaskFolder(root, share)
    if not share and not alone and not data.has_lists:
        share = SHARE
        data = MaskFolder(root, share)
    problems: list[str] = []
    inspected: dict[str, Inspected] = {}
    say(f"{root}")
    try:
        say_lines(
            f"  classes.txt   {counted(len(data.classes) - 1, 'class', 'classes')} and the background, {data.classes[0]!r}"
        )
        say_lines(f"  images/       {counted(len(data.pictures), 'picture')}")
        say_lines(f"  masks/        {counted(sum(1 for _ in (root / 'masks').rglob('*.png')), 'mask')}")
        for name in (alone,) if alone else ("train", "val"):
            try:
                inspected[name] = _inspect(data, name, problems)
            except FusionerError as error:
                problems.append(str(error))
            else:
                source = f"{name}.txt" if data.has_lists else f"{name} of {share:g}"
                say_lines(f"  {source:<13} {counted(len(inspected[name].names), 'picture')}")
        if inspected and not problems:
            shown = {split: Counter(chain.from_iterable(one.shown.values())) for split, one in inspected.items()}
            say_lines(class_table(data.classes, shown, sum((one.pixels for one in inspected.values()), Counter())))
        if "train" in inspected and not any(inspected["train"].shown.values()) and not problems:
            problems.append(_without_classes(data, inspected["train"]))
        print_folds(data, {name: one.shown for name, one in inspected.items()}, folds, fold, problems)
    except FusionerError as error:
        problems.append(str(error))
    if not problems and sheet is not None:
        _write_sheet(data, inspected, sheet)
        say(f"  drawn: {sheet}")
    for note in _notes(data, inspected) if not problems else ():
        say(f"  note: {note}")
    if problems:
        say_lines(f"not usable: {counted(len(problems), 'problem')}")
        for problem in problems[:SHOWN]:
            say(f"  - {problem}")
        if len(problems) > SHOWN:
            say_lines(f"  … and {len(problems) - SHOWN} more")
        say_lines(f"\nexpected layout:\n{KINDS['folder'].layout}")
        return False
    place, more = shlex.quote(str(root)), "" if data.has_lists or not share else f" --split {share:g}"
    if "train" in inspected and len(inspected["train"].names) < ENOUGH:
        more += f" --steps {STEPS}"
    out = shlex.quote(f"models/{root.resolve().name}")
    say_lines(f"usable; next: python -m training.train demo --data {place}{more} --out {out}")
    return True


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise DataError(f"--split is {text}; expected train, val or a share between 0 and 1", "give such as 0.1")
    return share


def _inspect(data: MaskFolder, split: str, problems: list[str]) -> Inspected:
    found = Inspected(data.names(split))
    alike: dict[str, list[str]] = {}
    for name in tqdm(dict.fromkeys(found.names), desc=f"{split} masks", unit="mask", leave=False):
        try:
            mask = data.mask(name)
            decode_as(data, name, (mask.shape[0], mask.shape[1]))
        except FusionerError as error:
            complaint = re.sub(r"\d+", "", str(error).replace(name, ""))
            alike.setdefault(complaint, []).append(f"{split} {name}: {error}")
            continue
        values, counts = np.unique(mask, return_counts=True)
        found.pixels.update({int(value): int(count) for value, count in zip(values, counts, strict=True)})
        found.shown[name] = [int(value) for value in values if value > 0]
        found.turned += orientation(data.picture(name)) > 1
    for first, *more in alike.values():
        problems.append(first + f" ({counted(len(more), 'more picture')} of {split} alike)" * bool(more))
    return found


def _pictures(one: Inspected, index: int) -> int:
    return sum(index in shown for shown in one.shown.values())


def _without_classes(data: MaskFolder, train: Inspected) -> str:
    if train.pixels[IGNORE] and set(train.pixels) <= {0, IGNORE}:
        return (
            "the training masks hold 0 and 255 alone, and 255 is ignored; expected class indices; write 1 where "
            f"{data.classes[1]} is"
        )
    return "no training mask marks a class; expected indices above 0; write 1 where the first class is"


def _notes(data: MaskFolder, inspected: dict[str, Inspected]) -> list[str]:
    """What does not stop a training, and may spoil it."""
    notes = []
    if data.classes[0].lower() not in BACKGROUND | {"unlabeled", "unlabelled", "void", "none", "other"}:
        notes.append(
            f"line 1 of classes.txt is {data.classes[0]!r}: it is index 0, the background, which is not trained"
        )
    train, val = inspected.get("train"), inspected.get("val")
    for split, one in inspected.items():
        repeated = [name for name, count in Counter(one.names).items() if count > 1]
        if repeated:
            notes.append(f"{split}.txt names {counted(len(repeated), 'picture')} more than once: {first_of(repeated)}")
        if one.turned:
            notes.append(
                f"{counted(one.turned, f'picture of {split} is', f'pictures of {split} are')} turned by EXIF data: masks are "
                "taken as a viewer shows them"
            )
    if train and val:
        if both := sorted(set(train.names) & set(val.names)):
            count = counted(len(both), "picture is", "pictures are")
            notes.append(f"{count} in both lists, so that scores flatter: {first_of(both)}")
        seen, scored = ({i for shown in one.shown.values() for i in shown} for one in (train, val))
        for text, indices in (
            ("without a picture", set(range(1, len(data.classes))) - seen - scored),
            ("in val alone, which training never shows", scored - seen),
            ("in train alone, which no score tells of", seen - scored),
        ):
            if indices:
                count = counted(len(indices), "class", "classes")
                notes.append(f"{count} {text}: {first_of([data.classes[i] for i in sorted(indices)])}")
        unlisted = sorted(set(data.pictures) - set(train.names) - set(val.names))
        if unlisted:
            notes.append(f"{counted(len(unlisted), 'picture is', 'pictures are')} in no list: {first_of(unlisted)}")
    if train:
        few = [i for i in range(1, len(data.classes)) if 0 < _pictures(train, i) < FEW]
        if few:
            names = first_of([f"{data.classes[i]} {_pictures(train, i)}" for i in few])
            notes.append(f"{counted(len(few), 'class', 'classes')} with fewer than {FEW} training pictures: {names}")
    return notes


def _drawable(file: Path) -> None:
    """Raises DataError, OutputUnwritable."""
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise DataError(f"--sheet is {file}; expected a picture's name", "let it end in .png or .jpg")
    writable_place(file)


def _write_sheet(data: MaskFolder, inspected: dict[str, Inspected], file: Path) -> None:
    names = [name for one in inspected.values() for name in one.shown]
    chosen = choose(data, names, list(range(1, len(data.classes))), ON_SHEET)
    sheet = draw_masks(data, chosen or names[:ON_SHEET], f"{data.root.resolve().name}: pictures and their masks")
    form = {".png": "PNG", ".webp": "WEBP"}.get(file.suffix.lower(), "JPEG")
    write_result(file, lambda stream: sheet.save(stream, form, quality=88))
