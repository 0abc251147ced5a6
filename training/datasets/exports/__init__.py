"""Exports of labelling tools: LabelMe, COCO JSON, YOLO segmentation. Each gives pictures with shapes.

open_export(root)    finds the form by itself
Export, Marked       what an export holds; Shape.draw makes a mask of a shape
"""

from __future__ import annotations

from pathlib import Path

from training.data import BACKGROUND, DataError
from training.datasets.exports.coco import is_coco, open_coco
from training.datasets.exports.labelme import is_labelme, open_labelme
from training.datasets.exports.marked import IGNORED, Export, Marked, Pictures, Shape, read_json
from training.datasets.exports.yolo import DESCRIPTIONS, description, open_yolo

__all__ = ["BACKGROUND", "FORMS", "IGNORED", "Export", "Marked", "Shape", "find_form", "open_export"]

FORMS = ("labelme", "coco", "yolo")
_TRIED = 20  # JSON files that are looked into for the form


def open_export(root: Path, form: str = "", pictures: Path | None = None) -> Export:
    """An export, of the form that it has. Raises DataError.

    root: its folder, or the COCO JSON itself. form: one of FORMS, or "" to find it. pictures: where pictures lie that are
    not below root.
    """
    file = root if root.is_file() else None
    if not root.exists():
        raise DataError(
            f"there is no file or folder {root}; expected an export of LabelMe, COCO or YOLO", "check the path"
        )
    root = root.parent if file else root
    if not root.is_dir():
        raise DataError(f"{root} is no folder; expected an export of LabelMe, COCO or YOLO", "check the path")
    if pictures is not None and not pictures.is_dir():
        raise DataError(f"{pictures} is no folder; expected the pictures of {root}", "give another --pictures")
    form = form or (_form_of_file(file) if file else find_form(root))
    if not form:
        raise DataError(
            f"{root} holds no export that is understood; expected LabelMe's JSON files, a COCO JSON, or YOLO's data.yaml with "
            "images/ and labels/",
            "give the folder that holds them",
        )
    if form == "yolo":
        described = file or description(root)
        if described is None:
            raise DataError(
                f"{root} holds no {DESCRIPTIONS[0]}; expected a YOLO export", "give the folder that holds it"
            )
        return open_yolo(root, described, pictures)
    below = Pictures([root] if pictures is None else [pictures, root])
    files = [file] if file else sorted(root.rglob("*.json"))
    if not files:
        raise DataError(
            f"{root} holds no JSON file; expected an export in the form {form}", "give the folder of the files"
        )
    if form == "labelme":
        return open_labelme(root, files, below)
    return open_coco(root, [f for f in files if len(files) == 1 or is_coco(read_json(f))] or files, below)


def find_form(root: Path) -> str:
    """One of FORMS, or "" of a folder that holds none. Raises DataError where it holds several."""
    found = set()
    for file in sorted(root.rglob("*.json"))[:_TRIED]:
        found.add(_form_of_file(file))
    if ((described := description(root)) is not None and described.name != "classes.txt") or (
        described is not None and not found - {""} and not (root / "masks").is_dir()
    ):
        found.add("yolo")
    found -= {""}
    if len(found) > 1:
        raise DataError(
            f"{root} holds exports in the forms {' and '.join(sorted(found))}; expected one",
            f"choose it: --from {sorted(found)[0]}",
        )
    return found.pop() if found else ""


def _form_of_file(file: Path) -> str:
    if file.suffix in (".yaml", ".yml"):
        return "yolo"
    document = read_json(file)
    return "labelme" if is_labelme(document) else "coco" if is_coco(document) else ""
