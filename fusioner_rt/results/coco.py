"""Segmentations as COCO annotations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import rle


def annotations(
    labels: np.ndarray, words: Sequence[str], scores: np.ndarray, image_id: int, first_id: int, compressed: bool
) -> list[dict[str, Any]]:
    """One annotation per word that has pixels.

    labels: (H, W) uint16, n = word n. scores: (K,). bbox is x, y, width, height and area counts pixels.
    """
    height, width = labels.shape
    entries: list[dict[str, Any]] = []
    for index in np.flatnonzero(np.bincount(labels.ravel(), minlength=len(words) + 1)[1:]).tolist():
        mask = labels == index + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        counts = rle.run_lengths(mask)
        entries.append(
            {
                "id": first_id + len(entries),
                "image_id": image_id,
                "category_id": index + 1,
                "category": words[index],
                "segmentation": {
                    "size": [height, width],
                    "counts": rle.compress(counts) if compressed else counts,
                },
                "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                "area": int(mask.sum()),
                "score": round(float(scores[index]), 6),
                "iscrowd": 0,
            }
        )
    return entries


def document(
    images: Sequence[dict[str, Any]], words: Sequence[str], entries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of a COCO file: images, categories (one per word) and annotations."""
    categories = [{"id": number, "name": word} for number, word in enumerate(words, start=1)]
    return {"images": list(images), "categories": categories, "annotations": list(entries)}


def image_entry(image_id: int, height: int, width: int, file_name: str) -> dict[str, Any]:
    """One of a COCO file's `images`."""
    return {"id": image_id, "width": width, "height": height, "file_name": file_name}
