"""Results as `supervision.Detections`."""

from typing import TYPE_CHECKING

import numpy as np

from ..optional_packages import optional
from ..results.segmentation import Segmentation
from .objects import objects

if TYPE_CHECKING:
    from supervision import Detections


def to_detections(result: Segmentation, instances: bool = False) -> "Detections":
    """One detection per word that has pixels, or with `instances` one per connected part.

    mask (N, H, W) bool; xyxy (N, 4) float32 in pixels, 0..W and 0..H; confidence (N,) float32; class_id (N,) int64, k of
    result.words[k]; data["class_name"] (N,) str. Raises PackageMissing, UsageError.
    """
    supervision = optional("supervision", "supervision", "detections")
    found = objects(result, instances)
    boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4)
    return supervision.Detections(
        xyxy=np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1),
        mask=np.array([one.mask for one in found], bool).reshape(-1, *result.labels.shape),
        confidence=np.array([one.score for one in found], np.float32),
        class_id=np.array([one.label - 1 for one in found], np.int64),
        data={"class_name": np.array([one.word for one in found], str)},
    )
