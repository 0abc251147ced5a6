"""Segmentations as COCO annotations."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..argument_checks import flag
from ..errors import UsageError
from . import rle
from .instances import Instance
from .key_holes import without_holes
from .polygons import Polygon, check_tolerance


def check_masks(polygons: bool, tolerance: float) -> None:
    """Raises UsageError."""
    flag(polygons, "polygons")
    if check_tolerance(tolerance) and not polygons:
        raise UsageError(f"the tolerance is {tolerance} and masks are run lengths", "pass polygons=True beside it")


def annotations(
    found: Iterable[Instance], image_id: int, first_id: int, polygons: bool, tolerance: float, compressed: bool
) -> Iterator[dict[str, Any]]:
    """One annotation per instance. bbox is x, y, width, height and area counts pixels. Options as `Segmentation.to_coco`."""
    for number, instance in enumerate(found, start=first_id):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": instance.label,
            "category": instance.word,
            "segmentation": _polygons(instance.polygons(tolerance)) if polygons else _runs(instance, compressed),
            "bbox": list(instance.box),
            "area": instance.area,
            "score": round(instance.score, 6),
            "iscrowd": 0,
        }


def _polygons(polygons: Sequence[Polygon]) -> list[list[float]]:
    return [without_holes(polygon).ravel().tolist() for polygon in polygons]


def _runs(instance: Instance, compressed: bool) -> dict[str, Any]:
    counts = rle.run_lengths(instance.crop, instance.box[:2], instance.size)
    return {"size": list(instance.size), "counts": rle.compress(counts) if compressed else counts}


def document(
    images: Sequence[dict[str, Any]], words: Sequence[str], entries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of a COCO file: images, categories (one per word) and annotations."""
    categories = [{"id": number, "name": word} for number, word in enumerate(words, start=1)]
    return {"images": list(images), "categories": categories, "annotations": list(entries)}


def image_entry(number: int, size: Sequence[int], source: str | None) -> dict[str, Any]:
    """One of a COCO file's `images`. size: (H, W) of the label map. source: its picture's file."""
    name = f"picture {number}" if source is None else source
    return {"id": number, "width": size[1], "height": size[0], "file_name": name}
