"""`Segmentation`, the result of `Session.segment`."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from ..argument_checks import as_path, flag, whole
from ..atomic_files import write_json, write_result
from ..errors import OverlayTooLarge, UsageError, WordsInvalid
from ..memory_shortage import OF_A_RESULT, tells_shortage
from ..words.parse import word_key
from ..words.spellings import clean, shown
from . import coco, label_me, yolo
from .instances import Instance, connected, per_word
from .polygons import Polygon, check_tolerance, trace

if TYPE_CHECKING:
    from PIL.Image import Image

    from .colours import Colour

STAGES = (
    "decode", "preprocess", "text", "image", "fusion", "decoder", "image_fusion", "mask_head", "total",
)  # fmt: skip
_OVERLAYS = (".overlay.png", ".jpg", ".jpeg", ".webp")
_SHOWN = 10  # words in a message
_LARGEST_ID = (1 << 63) - 1
_CHUNK = 1 << 20  # pixels summed at a time, to bound memory


def _source(result: "Segmentation", *_: object, **__: object) -> str | None:
    return result.source


_tells_shortage = tells_shortage(OF_A_RESULT, of=_source)


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
    source: the picture's path as it was given, or None where it came without one.
    notes: what makes masks of these words doubtful, one sentence each.
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
    source: str | None = None
    notes: tuple[str, ...] = ()

    @_tells_shortage
    def __getitem__(self, word: str) -> np.ndarray:
        """The (H, W) bool mask of a word, written as it was asked for; of a group, its first. Raises UsageError."""
        return self.labels == self._number(word)

    def __contains__(self, word: object) -> bool:
        """Whether the word was asked for."""
        return isinstance(word, str) and _key(word) in map(_key, self.words)

    @cached_property
    @_tells_shortage
    def masks(self) -> np.ndarray:
        """(K, H, W) bool; masks[k] is labels == k + 1. Computed on first use."""
        return self.labels == np.arange(1, len(self.words) + 1, dtype=np.uint16)[:, None, None]

    @cached_property
    @_tells_shortage
    def masks_uint8(self) -> np.ndarray:
        """(K, H, W) uint8 of 0 and 255, as OpenCV takes masks. Computed on first use."""
        return self.masks.view(np.uint8) * np.uint8(255)

    @_tells_shortage
    def labels_as(self, dtype: Any) -> np.ndarray:
        """A copy of the labels in another integer type: "uint8", "int32" or "int64" for OpenCV and torch.

        dtype: numpy's, its name, or torch's. Raises UsageError where it is no integer type, or too small for the words.
        """
        try:
            chosen = np.dtype(str(dtype).removeprefix("torch.") if "torch" in str(dtype) else dtype)
        except TypeError:
            chosen = np.dtype(object)
        if chosen.kind not in "iu":
            raise UsageError(
                f"labels were asked for as {dtype!r}, which is no type of whole numbers",
                'take "uint8", "int32" or "int64"',
            )
        if len(self.words) > np.iinfo(chosen).max:
            raise UsageError(
                f"{chosen} counts to {np.iinfo(chosen).max}, and there are {len(self.words)} words",
                'take "int32" or "int64"',
            )
        return self.labels.astype(chosen)

    @_tells_shortage
    def instances(self, min_area: int = 1) -> list[Instance]:
        """The connected parts of each word, with box, area, score and mask.

        Pixels join by edges or corners. Sorted by word, then from large to small. min_area: pixels; smaller parts are left
        out. Raises PackageMissing without scipy, UsageError.
        """
        return list(connected(self.labels, self.confidence, self.words, min_area))

    @_tells_shortage
    def polygons(self, tolerance: float = 0.0) -> dict[str, list[Polygon]]:
        """The outlines of each word, holes kept, from large to small; none for a word without pixels.

        They run along the edges of the pixels, x and y in pixels of the label map. tolerance: pixels by which they may be
        off, to have fewer points. Raises PackageMissing without shapely, UsageError.
        """
        found: dict[str, list[Polygon]] = {word: [] for word in self.words}
        for label, polygon in trace(self.labels, tolerance):
            found[self.words[label - 1]].append(polygon)
        return found

    @cached_property
    @_tells_shortage
    def scores(self) -> np.ndarray:
        """(K,) float32: mean probability over the word's pixels, 0 for a word without pixels."""
        pixels, sums = self._per_word
        return np.divide(sums, pixels, out=np.zeros_like(sums), where=pixels > 0).astype(np.float32)

    @cached_property
    @_tells_shortage
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
            part = labels[start : start + _CHUNK].astype(np.intp)  # as bincount counts
            totals[0] += np.bincount(part, minlength=bins)
            totals[1] += np.bincount(part, weights=confidence[start : start + _CHUNK], minlength=bins)
        return totals[0, 1:], totals[1, 1:]

    @_tells_shortage
    def overlay(
        self,
        *,
        legend: Literal["below", "right", False] = "below",
        alpha: float = 0.5,
        outlines: bool = False,
        words: str | Sequence[str] | None = None,
        colours: "Mapping[str, Colour] | None" = None,
        resize: bool = True,
    ) -> "Image":
        """A Pillow RGB image: the picture at the label map's size with coloured masks, and a legend beside it.

        legend: where it stands; of at most a third of the picture, and left out where that has no room for a word. Without
            one the image has the label map's size. With one, its size depends on the label map's, on words and options,
            never on what was found, and the edge that it lengthens is even.
        alpha: of the masks' colour, 0..1. outlines: their outlines alone.
        words: those to draw, one or some; all where None.
        colours: {"cat": "red", "sofa": (0, 90, 255)} in place of the words' own.
        resize: enlarge pictures under 320 pixels by a whole factor where there is a legend.
        Raises UsageError.
        """
        from .overlay import draw_overlay

        return draw_overlay(
            self.picture, self.labels, self.words, legend=legend, alpha=alpha, outlines=outlines, only=words,
            colours=colours, resize=resize,
        )  # fmt: skip

    @_tells_shortage
    def label_image(self, palette: bool = False) -> "Image":
        """A Pillow image whose pixel values are the labels: grey of 8 bits up to 255 words, of 16 bits beyond.

        palette: with the words' colours, as indexed colour. What reads such an image as grey gets the colours' brightness and
        not the labels. Raises UsageError beyond 255 words.
        """
        from PIL import Image

        from .colours import word_colours

        if len(self.words) <= 255:
            image = Image.fromarray(self.labels.astype(np.uint8))
            if palette:
                image.putpalette(bytes(3) + word_colours(self.words).tobytes())
            return image
        if palette:
            raise UsageError(f"{len(self.words)} words are more than a palette's 255", "save the label map as .png")
        return Image.fromarray(self.labels)

    @_tells_shortage
    def to_coco(
        self,
        image_id: int = 1,
        first_id: int = 1,
        compressed: bool = False,
        polygons: bool = False,
        tolerance: float = 0.0,
        instances: bool = False,
    ) -> list[dict[str, Any]]:
        """COCO annotations, one per word that has pixels, with category_id n for words[n - 1].

        Masks are run lengths down the columns: a list of numbers, or COCO's text form where `compressed`. With `polygons`
        they are polygons along the pixels' edges; a hole is joined to the ring around it by two edges that lie on each other,
        as COCO has no holes. tolerance: pixels by which these may be off. instances: one annotation per connected part.
        `fusioner_rt.to_coco` makes one document of many results.
        Raises UsageError, and PackageMissing without shapely or scipy where polygons or instances are wanted.
        """
        image_id, first_id = (
            whole(number, name, 0, _LARGEST_ID, "give a whole number, 0 or more")
            for number, name in ((image_id, "image_id"), (first_id, "first_id"))
        )
        compressed, instances = flag(compressed, "compressed"), flag(instances, "instances")
        coco.check_masks(polygons, tolerance)
        found = self.instances() if instances else per_word(self.labels, self.words, self.scores)
        return list(coco.annotations(found, image_id, first_id, polygons, tolerance, compressed))

    @_tells_shortage
    def save(
        self,
        path: str | os.PathLike[str],
        polygons: bool = False,
        tolerance: float = 0.0,
        instances: bool = False,
        **overlay: Any,
    ) -> Path:
        """Write one file atomically. Its name's ending chooses the content.

        .png                the label map in grey; pixel value n is words[n - 1]
        .palette.png        the same in the words' colours
        .jpg .webp          the overlay; also .overlay.png
        .json .coco.json    COCO, masks compressed, or as `polygons`, `tolerance` and `instances` say (`to_coco`)
        .labelme.json       LabelMe: a polygon per part, in pixels of the picture, with `tolerance`
        .txt .yolo.txt      YOLO-seg: a line per connected part, with `tolerance`
        .npz                labels, confidence, words, scores, and probabilities if any
        overlay: arguments of `overlay`, for names that write one.
        Returns the path. Raises OutputUnwritable, its kind OverlayTooLarge, PackageMissing, and UsageError for any other name.
        """
        path = as_path(path, "the file")
        name, suffix = path.name.lower(), path.suffix.lower()
        if self.source is not None and _same_file(path, self.source):
            raise UsageError("this is the picture itself, which would be lost", "choose another name", subject=path)
        outlined, is_coco = suffix in (".json", ".txt"), suffix == ".json" and not name.endswith(".labelme.json")
        for option, given, meant in (
            ("polygons", flag(polygons, "polygons"), outlined),
            ("tolerance", check_tolerance(tolerance), outlined),
            ("instances", flag(instances, "instances"), is_coco),
        ):
            if given and not meant:
                raise UsageError(f"{option} says nothing of this file", "leave it out", subject=path)
        if overlay and not name.endswith(_OVERLAYS):
            raise UsageError(
                f"no overlay is written there, which {', '.join(overlay)} is for",
                f"end the name with {', '.join(_OVERLAYS)}, or leave it out",
                subject=path,
            )
        if name.endswith(".overlay.png"):
            _save_image(path, self.overlay(**overlay), "PNG", compress_level=4)
        elif suffix == ".png":
            _save_image(path, self.label_image(palette=name.endswith(".palette.png")), "PNG")
        elif suffix in (".jpg", ".jpeg"):
            _save_image(path, self.overlay(**overlay), "JPEG", quality=92)
        elif suffix == ".webp":
            _save_image(path, self.overlay(**overlay), "WEBP", quality=90)
        elif name.endswith(".labelme.json"):
            edges = self.picture.shape
            write_json(path, label_me.content(self.instances(), edges, self.source, path.parent, tolerance))
        elif suffix == ".json":
            entries = self.to_coco(1, 1, True, polygons, tolerance, instances)
            image = coco.image_entry(1, self.labels.shape, self.source)
            write_json(path, coco.document([image], self.words, entries))
        elif suffix == ".txt":
            text = yolo.lines(self.instances(), tolerance).encode()
            write_result(path, lambda stream: stream.write(text))
        elif suffix == ".npz":
            write_result(path, self._write_npz)
        else:
            raise UsageError(
                "the name's ending does not say what to write",
                "end it with .png for the label map, .jpg, .webp or .overlay.png for the overlay, .json for COCO, "
                ".labelme.json for LabelMe, .txt for YOLO, or .npz for the arrays",
                subject=path,
            )
        return path

    def _write_npz(self, stream: IO[bytes]) -> None:
        probabilities = {} if self.probabilities is None else {"probabilities": self.probabilities}
        np.savez_compressed(
            stream, labels=self.labels, confidence=self.confidence, words=np.array(self.words), scores=self.scores,
            **probabilities,  # type: ignore[arg-type]
        )  # fmt: skip

    def _number(self, word: Any) -> int:
        """The label of a word. Raises UsageError."""
        keys = [_key(own) for own in self.words]
        if isinstance(word, str) and _key(word) in keys:
            return keys.index(_key(word)) + 1
        asked = ", ".join(self.words[:_SHOWN]) + (", …" if len(self.words) > _SHOWN else "")
        near = difflib.get_close_matches(_key(word), keys, 1) if isinstance(word, str) else []
        meant = f"did you mean {self.words[keys.index(near[0])]!r}? " if near else ""
        raise UsageError(
            f"{shown(word)} is none of the words that were asked for ({asked})",
            f"{meant}take one of them, of a group its first word",
        )

    def __repr__(self) -> str:
        from .legend import percent

        height, width = self.labels.shape
        found = ", ".join(
            f"{word} {percent(share)}" for word, share in zip(self.words, self.shares, strict=True) if share
        )
        return f"<Segmentation {width}x{height}: {found or 'no word found'}>"


def _same_file(path: Path, source: str) -> bool:
    try:
        return os.path.samefile(path, source)
    except (OSError, ValueError):  # one does not exist
        return False


def _key(word: str) -> str:
    """The same for spellings of a word that `segment` takes for one."""
    try:
        return word_key(clean(word))
    except WordsInvalid:
        return word


def check_edges(image: "Image", form: str, cure: str, subject: str | Path) -> None:
    """Whether a file format holds an overlay. form: "JPEG", "WEBP" or "PNG". Raises OverlayTooLarge."""
    largest = {"JPEG": 65500, "WEBP": 16383}.get(form)
    if largest and max(image.size) > largest:
        raise OverlayTooLarge(
            f"{form} holds at most {largest} pixels an edge, the overlay has {image.width}x{image.height}",
            cure,
            subject=subject,
        )


def _save_image(path: Path, image: "Image", form: str, **options: Any) -> None:
    check_edges(image, form, "save it as .overlay.png", path)
    write_result(path, lambda stream: image.save(stream, form, **options))
