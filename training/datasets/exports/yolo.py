"""A YOLO segmentation export: data.yaml, images/ and labels/; a picture without a label file is all background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt.decode_picture import SUFFIXES
from fusioner_rt.errors import one_line
from training.data import DataError
from training.datasets.exports.marked import Export, Marked, Shape
from training.datasets.exports.upright import upright_size

DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def description(root: Path) -> Path | None:
    """data.yaml, or the only other yaml file of the folder, or classes.txt beside labels/."""
    named = [root / name for name in DESCRIPTIONS if (root / name).is_file()]
    others = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if named or len(others) == 1:
        return (named or others)[0]
    listed = root / "classes.txt"
    return listed if listed.is_file() and (root / "labels").is_dir() else None


def open_yolo(root: Path, file: Path) -> Export:
    """file: as `description` gives it."""
    if file.name == "classes.txt":
        document: Any = {"names": file.read_text(encoding="utf-8-sig").splitlines(), "train": "images"}
        single = True
    else:
        document, single = _yaml(file), False
    classes = _names(document, file)
    base = Path(str(document.get("path") or "."))
    base = next((p for p in (root / base, root) if p.is_dir()), root)
    notes: list[str] = []
    listed: dict[Path, tuple[Path, str]] = {}
    for split in ("train", "val"):
        for place in _places(document.get(split), file, split):
            found = _pictures(base, root, place)
            if found is None and split == "val":  # exporters name one that they do not write
                notes.append(f"val of {file} is {place}, which is not there: left out")
            elif found is None:
                raise DataError(
                    f"train of {file} is {place}, which is not there; expected a folder of pictures",
                    f"correct it, or add {place}",
                )
            for picture in found or ():
                listed.setdefault(picture.resolve(), (picture, "" if single else split))
    if document.get("test"):
        notes.append(f"test of {file}: left out")
    if not listed:
        raise DataError(f"{file} names no picture; expected train: and val: with folders", "add them")
    if not any(label_file(picture).is_file() for picture, _ in listed.values()):
        picture = next(iter(listed.values()))[0]
        raise DataError(
            f"no picture of {file} has a label file; expected such as {label_file(picture)}",
            "put labels/ beside images/",
        )
    if len({split for _, split in listed.values()}) == 1:  # no validation pictures: the share of --split
        listed = {key: (picture, "") for key, (picture, _) in listed.items()}
    names = _relative([picture for picture, _ in listed.values()], root)

    def read() -> Iterator[Marked]:
        for name, (picture, split) in zip(names, listed.values(), strict=True):
            shapes = _shapes(label_file(picture), upright_size(picture), classes)
            yield Marked(name, picture, shapes, str(picture), largest_first=True, split=split)

    return Export("yolo", classes, read, len(listed), notes)


def label_file(picture: Path) -> Path:
    """images/…/NAME.jpg → labels/…/NAME.txt, at the last folder called images; else beside the picture."""
    parts = list(picture.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read as YAML ({one_line(error)})", "correct it, or export again") from None
    if not isinstance(document, dict):
        raise DataError(f"{file} holds no fields; expected names, train and val", "export it again")
    return document


def _names(document: dict[str, Any], file: Path) -> list[str]:
    names = document.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"names of {file} have keys {list(names)[:5]}; expected 0, 1, 2, …", "number them so")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, (str, int)) and str(n).strip() for n in names):
        raise DataError(f"{file} has no names; expected names: with a list of classes", "add it")
    return [str(name).strip() for name in names]


def _places(value: Any, file: Path, split: str) -> list[str]:
    places = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(place, str) for place in places):
        raise DataError(f"{split} of {file} is {value!r}; expected a folder or a list of folders", "correct it")
    return places


def _pictures(base: Path, root: Path, place: str) -> list[Path] | None:
    """A folder's pictures, or those that a text file lists; None where neither is there. Some exporters write ../ too often."""
    for candidate in (base / place, root / place, root / place.replace("../", "")):
        if candidate.is_dir():
            return sorted(file for file in candidate.rglob("*") if file.suffix.lower() in SUFFIXES)
        if candidate.is_file() and candidate.suffix == ".txt":
            lines = (line.strip() for line in candidate.read_text(encoding="utf-8-sig").splitlines())
            found = []
            for line in filter(None, lines):
                picture = next((p for p in (base / line, candidate.parent / line) if p.is_file()), None)
                if picture is None:
                    raise DataError(f"{candidate} lists {line}, which is not there", "add it, or take it off the list")
                found.append(picture)
            return found
    return None


def _relative(pictures: list[Path], root: Path) -> list[str]:
    places = [p.relative_to(root) if p.is_relative_to(root) else Path(*p.parts[-2:]) for p in pictures]
    return ["/".join(part for part in p.with_suffix("").parts if part != "images") for p in places]


def _shapes(file: Path, size: tuple[int, int], classes: list[str]) -> tuple[Shape, ...]:
    """size: (H, W) of the picture; coordinates are shares of it."""
    if not file.is_file():
        return ()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({one_line(error)})", "export it again") from None
    shapes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            values = np.array([float(value) for value in line.split()])
        except ValueError:
            raise DataError(f"{place} holds what is no number", "export it again") from None
        if len(values) == 5:
            raise DataError(
                f"{place} is a box (5 numbers); expected a polygon: a class and three points or more",
                "export segmentation, not detection",
            )
        if len(values) < 7 or len(values) % 2 == 0:
            raise DataError(
                f"{place} has {len(values)} numbers; expected a class and three points or more", "export it again"
            )
        index = values[0]
        if not (0 <= index < len(classes) and index == int(index)):
            raise DataError(
                f"{place} is of class {values[0]:g}; names end at {len(classes) - 1}", "correct one of them"
            )
        shares = values[1:].reshape(-1, 2)
        if not (np.isfinite(shares).all() and shares.min() >= -0.01 and shares.max() <= 1.01):
            raise DataError(
                f"{place} has the coordinate {shares.flat[np.abs(shares - 0.5).argmax()]:g}; expected shares of the "
                "picture, 0 to 1",
                "divide x by its width and y by its height",
            )
        label = classes[int(index)]
        shapes.append(Shape(label, (shares.clip(0, 1) * (size[1], size[0]),), f"{place} ({label})"))
    return tuple(shapes)
