"""A model for FiftyOne: `dataset.apply_model(FusionerModel("models/demo/bundle", "cat, sofa"), "masks")`.

Importing this imports FiftyOne. Raises PackageMissing.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..optional_packages import optional
from ..results.instances import Instance
from ..results.segmentation import Segmentation
from ..session import Session
from ..words.parse import Words
from .objects import objects

_fiftyone = optional("fiftyone", "fiftyone", "FiftyOne's models")
_Model: Any = optional("fiftyone.core.models", "fiftyone", "FiftyOne's models").Model


def to_segmentation(result: Segmentation) -> Any:
    """`fiftyone.Segmentation` with the label map as its mask: 0 is background, n is words[n - 1]."""
    return _fiftyone.Segmentation(mask=result.labels)


def to_detections(result: Segmentation, instances: bool = False) -> Any:
    """`fiftyone.Detections`, one per word that has pixels, or with `instances` one per connected part. Boxes are shares of the
    picture, masks are cropped to them.
    """
    return _fiftyone.Detections(
        detections=[
            _fiftyone.Detection(label=one.word, bounding_box=_shares(one), mask=one.crop, confidence=one.score)
            for one in objects(result, instances)
        ]
    )


def _shares(one: Instance) -> list[float]:
    """x, y, width and height, 0..1. FiftyOne cuts fractions of pixels off: rounded down, a share would lose a pixel."""
    height, width = one.size
    starts, extents = [], []
    for start, extent, edge in zip(one.box[:2], one.box[2:], (width, height), strict=True):
        near, long = start / edge, extent / edge
        while int(edge * near) < start:
            near = math.nextafter(near, 1)
        while int(edge * (near + long)) < start + extent:
            long += math.ulp(near + long)
        starts.append(near)
        extents.append(long)
    return starts + extents


class FusionerModel(_Model):
    """Words as a FiftyOne model. Gives `Segmentation`s, with `detections` `Detections` of words, with `instances` of their
    connected parts.

    mask_targets: {n: words[n - 1]}, for `dataset.mask_targets` or `dataset.default_mask_targets`.
    """

    media_type = "image"
    ragged_batches = False  # pictures of any sizes make a batch
    transforms = None
    preprocess = False
    config = None

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None,
        words: Words,
        instances: bool = False,
        detections: bool = False,
        **options: Any,
    ) -> None:
        """bundle: None for the default. options: of `Session`. Raises what `Session` and `set_vocabulary` raise."""
        self.session = Session(bundle, **options)
        self.session.set_vocabulary(words)
        self._instances, self._detections = instances, detections or instances

    @property
    def mask_targets(self) -> dict[int, str]:
        return dict(enumerate(self.session.words, start=1))

    def predict(self, arg: np.ndarray) -> Any:
        """arg: (H, W, 3) uint8 RGB."""
        return self._label(self.session.segment(arg))

    def predict_all(self, args: Iterable[Any]) -> list[Any]:
        """args: pictures, of any sizes, which on a GPU run as one batch where they share an input size."""
        return [self._label(result) for result in self.session.segment(list(args))]

    def _label(self, result: Segmentation) -> Any:
        return to_detections(result, self._instances) if self._detections else to_segmentation(result)
