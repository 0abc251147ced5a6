"""One COCO document of many segmentations."""

from collections.abc import Iterable
from typing import Any

from ..errors import UsageError
from ..words.parse import word_key
from . import coco
from .segmentation import Segmentation


def to_coco(
    results: Iterable[Segmentation],
    polygons: bool = False,
    tolerance: float = 0.0,
    instances: bool = False,
    compressed: bool = True,
) -> dict[str, Any]:
    """One COCO document of many results: images, categories and annotations, for `json.dump`.

    results: a list, or a generator, so that one result at a time is in memory:
        to_coco(session.segment(path) for path in paths)
    polygons, tolerance, instances, compressed: as for `Segmentation.to_coco`.

    Images are numbered from 1 and called by their results' `source`, those without by their number. Categories are all words
    of all results, from 1 in the order in which they came.
    Raises UsageError, and PackageMissing without shapely or scipy where polygons or instances are wanted.
    """
    document = Document(polygons, tolerance, instances, compressed)
    for result in [results] if isinstance(results, Segmentation) else results:
        if not isinstance(result, Segmentation):
            raise UsageError(
                f"a result was given as {type(result).__name__}",
                "give what session.segment returned, in a list or from a generator",
            )
        document.add(result)
    return document.content()


class Document:
    """A COCO document that grows result by result."""

    def __init__(
        self, polygons: bool = False, tolerance: float = 0.0, instances: bool = False, compressed: bool = True
    ) -> None:
        """As `to_coco`."""
        coco.check_masks(polygons, tolerance)
        self._polygons, self._tolerance, self._instances, self._compressed = polygons, tolerance, instances, compressed
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, str] = {}  # names by their key: "Cat" and "cat" are one

    def add(self, result: Segmentation) -> None:
        number = len(self._images) + 1
        entries = result.to_coco(
            number, len(self._annotations) + 1, self._compressed, self._polygons, self._tolerance, self._instances
        )
        self._images.append(coco.image_entry(number, result.labels.shape, result.source))
        for word in result.words:
            self._categories.setdefault(word_key(word), word)
        numbers = {key: number for number, key in enumerate(self._categories, start=1)}
        for entry in entries:
            key = word_key(entry["category"])
            self._annotations.append({**entry, "category_id": numbers[key], "category": self._categories[key]})

    def content(self) -> dict[str, Any]:
        return coco.document(self._images, list(self._categories.values()), self._annotations)
