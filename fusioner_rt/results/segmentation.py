"""`Segmentation`, the result of `Session.segment`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..argument_checks import as_path, flag, whole
from ..atomic_files import write_result
from ..errors import OverlayTooLarge, UsageError
from . import coco

if TYPE_CHECKING:
    from PIL.Image import Image

STAGES = (
    "decode", "preprocess", "text", "image", "fusion", "decoder", "image_fusion", "mask_head", "total",
)  # fmt: skip
_LARGEST_ID = (1 << 63) - 1
_CHUNK = 1 << 20  # pixels summed at a time, to bound memory


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One picture and K words.

    words: the K words, in the order given; of a group its first.
    labels: (H, W) uint16; 0 = background, n = words[n - 1].
    confidence: (H, W) float32; the probability of the best word at each pixel, background pixels included. Where a
        background word won, it is that word's.
    probabilities: (K, H, W) float32 with `segment(..., probabilities=True)`, else None.
    picture: (H', W', 3) uint8 RGB, as decoded, at its own size.
    threshold: as given to `segment`; the bundle's where none was.
    timing: milliseconds per stage: decode, preprocess, text, image, fusion, decoder, image_fusion, mask_head, and total,
        their sum. A backend runs either image, fusion and decoder, or image_fusion; the other times are 0. Of sliding
        windows, all that is before the mask head counts as image. Work on
        several pictures at once is divided evenly among them. TensorRT backends prepare the picture, fuse and resolve the
        masks in one launch, which counts as image_fusion. An encoded picture's decode, preprocess and image are 0.
    """

    words: tuple[str, ...]
    labels: np.ndarray
    confidence: np.ndarray
    picture: np.ndarray
    timing: dict[str, float]
    threshold: float | Mapping[str, float]
    mode: str
    probabilities: np.ndarray | None = None

    @cached_property
    def masks(self) -> np.ndarray:
        """(K, H, W) bool; masks[k] is labels == k + 1. Computed on first use."""
        return self.labels == np.arange(1, len(self.words) + 1, dtype=np.uint16)[:, None, None]

    @cached_property
    def scores(self) -> np.ndarray:
        """(K,) float32: mean probability over the word's pixels, 0 for a word without pixels."""
        pixels, sums = self._per_word
        return np.divide(sums, pixels, out=np.zeros_like(sums), where=pixels > 0).astype(np.float32)

    @cached_property
    def shares(self) -> np.ndarray:
        """(K,) float64: each word's share of the pixels, 0..1."""
        return self._per_word[0] / self.labels.size

    @cached_property
    def _per_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and summed confidence per word, both (K,) float64."""
        bins = len(self.words) + 1
        totals = np.zeros((2, bins))
        labels, confidence = self.labels.ravel(), self.confidence.ravel()
        for start in range(0, labels.size, _CHUNK):
            part = labels[start : start + _CHUNK]
            totals[0] += np.bincount(part, minlength=bins)
            totals[1] += np.bincount(part, weights=confidence[start : start + _CHUNK], minlength=bins)
        return totals[0, 1:], totals[1, 1:]

    def overlay(self) -> "Image":
        """A Pillow RGB image: the picture at the label map's size with coloured masks and a legend below."""
        from .overlay import draw_overlay

        return draw_overlay(self.picture, self.labels, self.words, self.shares)

    def label_image(self) -> "Image":
        """A Pillow image whose pixel values are the labels: indexed colour up to 255 words, 16-bit grey beyond."""
        from PIL import Image

        from .colours import colours

        if len(self.words) > 255:
            return Image.fromarray(self.labels)
        image = Image.fromarray(self.labels.astype(np.uint8))
        image.putpalette(bytes(3) + colours(len(self.words)).tobytes())
        return image

    def to_coco(self, image_id: int = 1, first_id: int = 1, compressed: bool = False) -> list[dict[str, Any]]:
        """COCO annotations, one per word that has pixels, with category_id n for words[n - 1].

        Masks are run lengths down the columns: a list of numbers, or COCO's text form where `compressed`.
        Raises UsageError.
        """
        image_id, first_id = (
            whole(number, name, 0, _LARGEST_ID, "give a whole number, 0 or more")
            for number, name in ((image_id, "image_id"), (first_id, "first_id"))
        )
        return coco.annotations(
            self.labels, self.words, self.scores, image_id, first_id, flag(compressed, "compressed")
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file atomically. Its suffix chooses the content.

        .png           the label map; pixel value n is words[n - 1]
        .jpg .webp     the overlay; also .overlay.png
        .json          COCO, masks compressed
        .npz           labels, confidence, words, scores, and probabilities if any
        Returns the path. Raises OutputUnwritable, its kind OverlayTooLarge, and UsageError for any other name.
        """
        path = as_path(path, "the file")
        suffix = path.suffix.lower()
        if path.name.lower().endswith(".overlay.png"):
            _save_image(path, self.overlay(), "PNG", compress_level=4)
        elif suffix == ".png":
            _save_image(path, self.label_image(), "PNG")
        elif suffix in (".jpg", ".jpeg"):
            _save_image(path, self.overlay(), "JPEG", quality=92)
        elif suffix == ".webp":
            _save_image(path, self.overlay(), "WEBP", quality=90)
        elif suffix == ".json":
            height, width = self.labels.shape
            image = coco.image_entry(1, height, width, path.stem)
            document = coco.document([image], self.words, self.to_coco(compressed=True))
            write_result(path, lambda stream: stream.write(json.dumps(document).encode()))
        elif suffix == ".npz":
            write_result(path, self._write_npz)
        else:
            raise UsageError(
                "the name's ending does not say what to write",
                "end it with .png for the label map, .jpg, .webp or .overlay.png for the overlay, .json "
                "for COCO, or .npz for the arrays",
                subject=path,
            )
        return path

    def _write_npz(self, stream: IO[bytes]) -> None:
        probabilities = {} if self.probabilities is None else {"probabilities": self.probabilities}
        np.savez_compressed(
            stream, labels=self.labels, confidence=self.confidence, words=np.array(self.words), scores=self.scores,
            **probabilities,  # type: ignore[arg-type]
        )  # fmt: skip

    def __repr__(self) -> str:
        from .overlay import percent

        height, width = self.labels.shape
        found = ", ".join(
            f"{word} {percent(share)}" for word, share in zip(self.words, self.shares, strict=True) if share
        )
        return f"<Segmentation {width}x{height}: {found or 'no word found'}>"


def _save_image(path: Path, image: "Image", form: str, **options: Any) -> None:
    largest = {"JPEG": 65500, "WEBP": 16383}.get(form)
    if largest and max(image.size) > largest:
        raise OverlayTooLarge(
            f"{form} holds at most {largest} pixels an edge, the overlay has {image.width}x{image.height}",
            "save it as .overlay.png",
            subject=path,
        )
    write_result(path, lambda stream: image.save(stream, form, **options))
