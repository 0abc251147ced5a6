"""Turns an export of a labelling tool into the folder that training reads."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import FusionerError
from fusioner_rt.whole_folders import unfinished_folder
from training.data import (
    BACKGROUND,
    IGNORE,
    IGNORE_IN_FILE,
    DataError,
    counted,
    for_validation,
    same_class,
    write_index_mask,
)
from training.datasets.class_table import class_table
from training.datasets.exports import IGNORED, Export, Marked
from training.datasets.exports.upright import stored_size, upright, upright_size

UNMARKED = ("background", "ignored")


@dataclass
class Classes:
    """Class names by index, in the order in which they are met; spellings of one class share an index."""

    names: list[str] = field(default_factory=list)
    spellings: dict[str, Counter[str]] = field(default_factory=dict)

    def index(self, label: str, met: int = 1) -> int:
        """0 for the background, IGNORE for pixels that do not count, else n ≥ 1. Raises DataError beyond 254."""
        if label.lower() in BACKGROUND:
            return 0
        if label.lower() in IGNORED:
            return IGNORE
        key = same_class(label) or label
        if key not in self.spellings:
            if len(self.names) >= IGNORE_IN_FILE - 1:
                raise DataError(
                    f"the export has more than {IGNORE_IN_FILE - 1} classes", "8-bit masks hold no more: merge some"
                )
            self.names.append(key)
            self.spellings[key] = Counter()
        self.spellings[key][label] += met
        return self.names.index(key) + 1

    def called(self) -> list[str]:
        """Each class by its most frequent spelling."""
        return [self.spellings[key].most_common(1)[0][0] for key in self.names]

    def merged(self) -> list[str]:
        """A line for each class that had several spellings."""
        return [
            f"{', '.join(repr(other) for other in met if other != name)} and {name!r} are one class, called {name!r}"
            for name, met in zip(self.called(), (self.spellings[key] for key in self.names), strict=True)
            if len(met) > 1
        ]


@dataclass
class Written:
    """What `convert` wrote. pictures, pixels: by index; ignored pixels are under IGNORE."""

    classes: list[str]
    names: dict[str, list[str]]
    pictures: Counter[int]
    pixels: Counter[int]
    notes: list[str]


def convert(
    export: Export, out: Path, split: float | None = None, unmarked: str = "background", link: bool = False
) -> Written:
    """Writes images/, masks/, classes.txt, train.txt and val.txt, all of them or nothing. Raises DataError.

    split: the share kept for validation; by default the export's own split, or a tenth. unmarked: what pixels of no shape
    are. link: pictures are linked to, not copied.
    """
    if split is not None and not 0 < split < 1:
        raise DataError(f"--split is {split:g}; expected a share between 0 and 1", "give such as 0.1")
    if out.is_file():
        raise DataError(f"{out} is a file; expected a folder that is not there yet", "choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and holds something", "choose another --out, or remove it first")
    if not export.count:
        left_out = f" ({', '.join(export.notes)})" if export.notes else ""
        raise DataError(f"the export holds no picture{left_out}; expected two or more", "export again")
    with unfinished_folder(out.resolve()) as unfinished:
        new = unfinished / "new"
        written = _write(export, new, split, unmarked, link)
        if out.is_dir():
            out.rmdir()
        new.replace(out)
    return written


def _write(export: Export, new: Path, split: float | None, unmarked: str, link: bool) -> Written:
    for folder in ("images", "masks"):
        (new / folder).mkdir(parents=True)
    classes, own_split = Classes(), {}
    for name in export.classes:
        classes.index(name, met=0)
    pictures: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    places: dict[str, str] = {}
    owners: dict[Path | str, str] = {}
    thin: list[str] = []
    turned = 0
    for marked in tqdm(export.pictures(), total=export.count, desc="masks", unit="picture"):
        name = "-".join(part for part in Path(marked.name).parts if part not in ("", "..", "/"))
        if (first := places.setdefault(name.lower(), marked.place)) != marked.place:
            raise DataError(f"{marked.place} and {first} would both be called {name!r}", "rename one of them")
        if (first := owners.setdefault(_identity(marked.picture), marked.place)) != marked.place:
            raise DataError(
                f"{marked.place} and {first} mark one picture; expected each picture once",
                "remove one of the two, or join their shapes",
            )
        mask = draw(marked, classes, thin, unmarked)
        _refuse_broken(marked)
        _place(marked.picture, new / "images", name, link)
        write_index_mask(new / "masks" / f"{name}.png", mask)
        values, counts = np.unique(mask, return_counts=True)
        pictures.update(int(value) for value in values)
        pixels.update({int(value): int(count) for value, count in zip(values, counts, strict=True)})
        turned += stored_size(marked.picture)[1] > 1
        own_split[name] = marked.split
    lists = _lists(own_split, split)
    for name, pictures_of in lists.items():
        (new / f"{name}.txt").write_text("".join(f"{picture}\n" for picture in pictures_of), encoding="utf-8")
    if not classes.names:
        raise DataError("the export marks no class; expected shapes with labels", "label the pictures first")
    called = classes.called()
    (new / "classes.txt").write_text("\n".join(["background", *called]) + "\n", encoding="utf-8")
    notes = [*export.notes, *classes.merged()]
    if turned:
        count = counted(turned, "picture is", "pictures are")
        notes.append(f"{count} turned by EXIF data; the masks are as a viewer shows them")
    if thin:
        notes.append(f"{counted(len(thin), 'shape covers', 'shapes cover')} no pixel, such as {thin[0]}: left out")
    return Written(["background", *called], lists, pictures, pixels, notes)


def draw(marked: Marked, classes: Classes, thin: list[str], unmarked: str = "background") -> np.ndarray:
    """(H, W) int16 class indices and IGNORE, of the upright picture. Raises DataError.

    thin: gets the places of shapes that cover no pixel.
    """
    (stored, turn), shown = stored_size(marked.picture), upright_size(marked.picture)
    size = marked.size or shown
    if size not in (shown, stored):
        raise DataError(
            f"{marked.place} is of {size[1]}×{size[0]} pixels, its picture has {shown[1]}×{shown[0]}",
            "put the picture there that was labelled",
        )
    mask = np.full(size, 0 if unmarked == "background" else IGNORE, np.int16)
    drawn = [
        (IGNORE if shape.label is None else classes.index(shape.label), shape.draw(size), shape.label is None)
        for shape in marked.shapes
    ]
    for shape, (_, pixels, _) in zip(marked.shapes, drawn, strict=True):
        if pixels.any():
            continue
        if shape.outside(size):
            raise DataError(
                f"{shape.place} lies outside of its picture of {size[1]}×{size[0]} pixels",
                "delete it, or draw it again",
            )
        thin.append(shape.place)
    if marked.largest_first:  # what is ignored lies below all
        drawn.sort(key=lambda one: (not one[2], -np.count_nonzero(one[1])))
    for index, pixels, _ in drawn:
        mask[pixels] = index
    return upright(mask, turn) if size != shown else mask


def _identity(picture: Path | bytes) -> Path | str:
    return hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else picture.resolve()


def _refuse_broken(marked: Marked) -> None:
    """Opens the picture as training does. Raises DataError."""
    try:
        decode(marked.picture)
    except FusionerError as error:
        name = f"the embedded picture of {marked.place}" if isinstance(marked.picture, bytes) else marked.picture
        raise DataError(error.found, error.cure, name) from None


def _place(picture: Path | bytes, folder: Path, name: str, link: bool) -> None:
    if isinstance(picture, bytes):
        suffix = ".png" if picture.startswith(b"\x89PNG") else ".jpg"
        (folder / f"{name}{suffix}").write_bytes(picture)
    elif link:
        (folder / f"{name}{picture.suffix.lower()}").symlink_to(picture.resolve())
    else:
        shutil.copyfile(picture, folder / f"{name}{picture.suffix.lower()}")


def _lists(own: dict[str, str], share: float | None) -> dict[str, list[str]]:
    """train and val, by the export's own split where it has both and no share is asked for."""
    if share is None and {"train", "val"} <= set(own.values()):
        return {split: [name for name in own if (own[name] == "val") == (split == "val")] for split in ("train", "val")}
    if len(own) < 2:
        raise DataError(
            "the export holds 1 picture; expected two or more, to train on and to validate", "label another picture"
        )
    kept = for_validation(list(own), share or 0.1)
    if len(kept) == len(own):
        raise DataError(f"--split {share:g} leaves no picture to train on", "give a smaller share")
    return {split: sorted(name for name in own if (name in kept) == (split == "val")) for split in ("train", "val")}


def summary(written: Written) -> str:
    """A table of the classes: pictures that show each, and its share of the pixels in percent."""
    return class_table(written.classes, {"all": written.pictures}, written.pixels)
