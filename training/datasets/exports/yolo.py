"""A YOLO segmentation export: data.yaml, images/ and labels/; a picture without a label file is all background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusioner_rt.decode_picture import SUFFIXES
from fusioner_rt.errors import one_line
from training.data import DataError, counted
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


def open_yolo(root: Path, file: Path, elsewhere: Path | None = None) -> Export:
    """file: as `description` gives it. elsewhere: where pictures lie that are not below root."""
    if file.name == "classes.txt":
        document: Any = {"names": file.read_text(encoding="utf-8-sig").splitlines(), "train": "images"}
        single = True
    else:
        document, single = _yaml(file), False
    classes = _names(document, file)
    base = Path(str(document.get("path") or "."))
    base = next((p for p in (root / base, root) if p.is_dir()), root)
    notes: list[str] = []
    listed: dict[Path, tuple[Path, Path, str]] = {}  # picture, label file, split
    for split in ("train", "val"):
        for place in _places(document.get(split), file, split):
            found = _pictures(base, root, place, elsewhere)
            if found is None and split == "val":  # exporters name one that they do not write
                notes.append(f"val of {file} is {place}, which is not there: left out")
            elif found is None:
                raise DataError(
                    f"train of {file} is {place}, which is not there; expected a folder of pictures",
                    f"correct it, add {place}, or give the folder of the pictures: --pictures DIR",
                )
            for picture, label in found or ():
                listed.setdefault(picture.resolve(), (picture, label, "" if single else split))
    if document.get("test"):
        notes.append(f"test of {file}: left out")
    if not listed:
        raise DataError(f"{file} names no picture; expected train: and val: with folders", "add them")
    if not any(label.is_file() for _, label, _ in listed.values()):
        label = next(iter(listed.values()))[1]
        raise DataError(
            f"no picture of {file} has a label file; expected such as {label}",
            "put labels/ beside images/",
        )
    _refuse_labels_without_picture([(picture, label) for picture, label, _ in listed.values()])
    if elsewhere and any(picture.is_relative_to(elsewhere) for picture, _, _ in listed.values()):
        unlisted = [picture for picture in _below(elsewhere) if picture.resolve() not in listed]
        if unlisted:
            count = counted(len(unlisted), "picture is", "pictures are")
            notes.append(f"{count} not listed or without a label file, such as {unlisted[0]}: left out")
    alone = len({split for _, _, split in listed.values()}) == 1  # no validation pictures: the share of --split
    folder = next((d for d in (root, elsewhere) if d and all(p.is_relative_to(d) for p, _, _ in listed.values())), root)
    names = _relative([picture for picture, _, _ in listed.values()], folder)

    def read() -> Iterator[Marked]:
        for name, (picture, label, split) in zip(names, listed.values(), strict=True):
            shapes = _shapes(label, upright_size(picture), classes)
            yield Marked(name, picture, shapes, str(picture), largest_first=True, split="" if alone else split)

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


def _refuse_labels_without_picture(listed: list[tuple[Path, Path]]) -> None:
    """Raises DataError. Pictures that are there and not listed are left out on purpose."""
    known = {label for _, label in listed}
    known |= {label_file(other) for folder in {picture.parent for picture, _ in listed} for other in _below(folder)}
    folders = {label.parent for picture, label in listed if label.parent != picture.parent}
    lost = sorted(file for folder in folders for file in folder.glob("*.txt") if file not in known)
    lost = [file for file in lost if file.name != "classes.txt"]
    if lost:
        raise DataError(
            f"{counted(len(lost), 'label file has', 'label files have')} no picture: {', '.join(map(str, lost[:3]))}"
            f"{', …' * (len(lost) > 3)}; expected a picture of the same name",
            "add the pictures, or remove the label files",
        )


def _below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _elsewhere(labels: Path, folder: Path) -> list[tuple[Path, Path]]:
    """The pictures below a folder that have a label file below `labels`, by their path or by their name alone."""
    owners: dict[Path, Path] = {}
    for picture in _below(folder):
        path = picture.relative_to(folder).with_suffix(".txt")
        label = next((file for file in (labels / path, labels / path.name) if file.is_file()), None)
        if label is None:
            continue
        if label in owners:
            raise DataError(f"{label} may be of {owners[label]} or {picture}", "give the folder of one: --pictures DIR")
        owners[label] = picture
    if not owners:
        raise DataError(
            f"no picture below {folder} has a label file; expected such as {labels / 'NAME.txt'}",
            "give another --pictures",
        )
    return [(picture, label) for label, picture in owners.items()]


def _pictures(base: Path, root: Path, place: str, elsewhere: Path | None) -> list[tuple[Path, Path]] | None:
    """A folder's pictures with their label files, or those that a text file lists; None where neither is there.

    Some exporters write ../ too often.
    """
    candidates = (base / place, root / place, root / place.replace("../", ""))
    for candidate in candidates:
        if candidate.is_dir():
            return [(file, label_file(file)) for file in _below(candidate)]
        if candidate.is_file() and candidate.suffix == ".txt":
            lines = (line.strip() for line in candidate.read_text(encoding="utf-8-sig").splitlines())
            found = []
            for line in filter(None, lines):
                places = [base / line, candidate.parent / line]
                own = next((p for p in places if label_file(p).is_file()), places[0])
                if elsewhere is not None:
                    places += [elsewhere / line, elsewhere / Path(line).name]
                picture = next((p for p in places if p.is_file()), None)
                if picture is None:
                    raise DataError(f"{candidate} lists {line}, which is not there", "add it, or take it off the list")
                found.append((picture, label_file(picture if picture in places[:2] else own)))
            return found
    labels = next((folder for p in candidates if (folder := label_file(p / "NAME.jpg").parent).is_dir()), None)
    if elsewhere is None or labels is None:
        return None
    below = elsewhere / place.replace("../", "")
    return _elsewhere(labels, below if below.is_dir() else elsewhere)


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
