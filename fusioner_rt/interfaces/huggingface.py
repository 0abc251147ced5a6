"""Results as the image-segmentation pipelines of Hugging Face's transformers give them. Needs no package."""

from typing import Any

from ..results.segmentation import Segmentation
from .objects import objects


def to_pipeline_output(result: Segmentation, instances: bool = False) -> list[dict[str, Any]]:
    """One entry per word that has pixels, or with `instances` one per connected part.

    Each has "score", a float within 0..1, "label", the word, and "mask", a Pillow image of mode L and the label map's size,
    0 outside and 255 inside. Raises UsageError, and PackageMissing without scipy where parts are wanted.
    """
    from PIL import Image

    return [
        {"score": one.score, "label": one.word, "mask": Image.fromarray(one.mask).convert("L")}
        for one in objects(result, instances)
    ]
