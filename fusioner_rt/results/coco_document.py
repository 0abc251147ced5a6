"""One COCO document of many segmentations."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError
from ..memory_shortage import OF_A_RESULT, tells_shortage
from ..words.parse import word_key
from . import coco
from .segmentation import Segmentation


@tells_shortage(OF_A_RESULT)
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

    def part(self, result: Segmentation) -> dict[str, Any]:
        """What a result adds to the document, for JSON: it may be kept, and added by another process."""
        entries = result.to_coco(1, 1, self._compressed, self._polygons, self._tolerance, self._instances)
        size = list(result.labels.shape)
        return {"size": size, "source": result.source, "words": list(result.words), "annotations": entries}

    def add(self, result: Segmentation) -> None:
        self.add_part(self.part(result))

    def add_part(self, part: Mapping[str, Any]) -> None:
        number = len(self._images) + 1
        self._images.append(coco.image_entry(number, part["size"], part["source"]))
        for word in part["words"]:
            self._categories.setdefault(word_key(word), word)
        numbers = {key: number for number, key in enumerate(self._categories, start=1)}
        for entry in part["annotations"]:
            key = word_key(entry["category"])
            placed = {"id": len(self._annotations) + 1, "image_id": number, "category_id": numbers[key]}
            self._annotations.append({**entry, **placed, "category": self._categories[key]})

    def content(self) -> dict[str, Any]:
        return coco.document(self._images, list(self._categories.values()), self._annotations)
