"""Pictures and words to masks: the object an application embeds."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from .bundle import Bundle, build_command, find_bundle
from .errors import GraphUnusable, SizeOutsideProfile, UsageError
from .mask_head import MaskHead, cores
from .onnxruntime_backend import Backend, Graph, OnnxRuntime
from .pictures import PIXEL_LIMIT, Picture, decode, describe
from .segmentation import STAGES, Segmentation
from .templates import check_templates
from .text_cache import TextCache, default_folder
from .vocabulary import TextEncoder, Vocabulary
from .words import check_count, parse_words

Mode = Literal["joint", "independent"]
MODES = ("joint", "independent")
KEPT_LIMIT = 4_000_000_000
"""Most bytes of probabilities that one `segment` call keeps."""

# Many small calls, which the mask head makes from threads of its own, and whose float32 must be float32 (not TF32).
_LOADED: dict[str, dict[str, Any]] = {"mask_tiles": {"threads": 1, "on_cpu": True}}
_WAITING = 32  # pictures of a list that may wait for others of their input size


class Session:
    """A loaded bundle. Threads may share one; `with` or `close()` gives its memory back.

    with Session("models/demo/bundle") as session:
        session.set_vocabulary("cat, sofa")
        result = session.segment("photo.jpg")
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        cache: str | os.PathLike[str] | Literal[False] | None = None,
        threads: int | None = None,
    ) -> None:
        """bundle: its folder; by default $FUSIONER_ENGINE, ./engines/demo or ./models/demo/bundle, the first there is.
        backend: auto, onnxruntime, onnxruntime-cpu or onnxruntime-cuda; `backend` tells what became of it.
        cache: folder for word vectors, by default $FUSIONER_CACHE or the user's cache folder; False for memory alone.
        threads: CPU threads per graph, by default one per core.
        Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileMissing, BundleFileAltered,
        BackendUnavailable, GraphUnusable, UsageError.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; give 1 or more, or leave it out for one per core")
        self.bundle = Bundle.open(find_bundle(bundle))
        self._runtime = OnnxRuntime(backend, threads)
        self._graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()
        self._closed = False
        self._vocabulary: Vocabulary | None = None
        folder = None if cache is False else Path(cache) if cache is not None else default_folder()
        self._text = TextEncoder(self.bundle, lambda: self._graph("text"), TextCache(folder))
        self._labels = "mask_tiles" if "mask_tiles" in self.bundle.manifest["graphs"] else "mask_labels"
        self._mask_head = MaskHead(
            lambda inputs: self._graph("mask_scores")(inputs),
            lambda inputs: self._graph("mask_labels")(inputs),
            lambda inputs: self._graph("mask_probabilities")(inputs),
            (lambda inputs: self._graph("mask_tiles")(inputs)) if self._labels == "mask_tiles" else None,
            threads or cores(),
        )
        for name in ("image_fusion", "mask_scores", self._labels):  # the others wait until they are needed
            self._graphs[name] = self._runtime.load(self.bundle.graph(name), **_LOADED.get(name, {}))

    @property
    def backend(self) -> Backend:
        """Requested and effective backend, and why."""
        return self._runtime.backend

    @property
    def text_encoder_calls(self) -> int:
        """How often the text graph was run: not at all where every word was in the cache."""
        return self._text.calls

    @property
    def cache_folder(self) -> Path | None:
        """Where word vectors are kept between processes, or None."""
        return self._text.cache.folder

    @property
    def notes(self) -> list[str]:
        """What did not go as it should and was worked around, one sentence each."""
        return [note for note in (self._text.cache.note,) if note]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `set_vocabulary`, or none."""
        return self._vocabulary.words if self._vocabulary else ()

    def set_vocabulary(self, words: str | Iterable[str], templates: Iterable[str] | None = None) -> None:
        """Choose the words of later `segment` calls that name none, and encode those not yet in the cache.

        words: "cat, sofa" or a list. templates: prompts holding `{category}`, by default the bundle's.
        Raises WordsInvalid, TooManyWords, TemplatesInvalid.
        """
        self._vocabulary = self._encode(words, templates)

    @overload
    def segment(
        self,
        picture: Picture,
        words: str | Iterable[str] | None = None,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        mode: Mode = "joint",
        probabilities: bool = False,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        picture: list[Picture] | tuple[Picture, ...],
        words: str | Iterable[str] | None = None,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        mode: Mode = "joint",
        probabilities: bool = False,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        picture: Any,
        words: str | Iterable[str] | None = None,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        mode: Mode = "joint",
        probabilities: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Masks for one picture, or for each of a list, in its order.

        picture: path, bytes, Pillow image or (H, W, 3) uint8 RGB array, or a list of them; pictures of a list that
            share an input size are run together.
        words: for this call alone, "cat, sofa" or a list; by default those of `set_vocabulary`.
        size: (H, W) of the label map, by default the picture's own.
        threshold: a pixel belongs to its best word where that word's probability exceeds this (paper 3.1.3).
        mode: "joint" fuses all words at once, so that they may influence each other; "independent" fuses every word
            alone, at the price of a pass per word.
        probabilities: also keep the (K, H, W) probabilities, refused where those of one call exceed 4 GB.

        Every result of a list keeps its picture and maps; beside them 32 network inputs, or a batch, are held at most.
        Raises the errors of pictures and words, SizeOutsideProfile, GraphUnusable, UsageError.
        """
        self._check_open()
        size = _check_options(size, threshold, mode)
        many = isinstance(picture, (list, tuple))
        pictures: Sequence[Picture] = picture if many else [picture]

        watch = _Stopwatch(len(pictures))
        with watch("text"):
            vocabulary = self._vocabulary if words is None else self._encode(words, None)
            if vocabulary is None:
                raise UsageError('no words were given; pass words="cat, sofa" or call set_vocabulary first')

        results: dict[int, Segmentation] = {}
        decoded: dict[int, np.ndarray] = {}
        waiting: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)  # inputs by shape, then by picture
        fuse = self._fuse_jointly if mode == "joint" else self._fuse_independently
        most = self.bundle.batch.max if mode == "joint" else 1

        def run(inputs: dict[int, np.ndarray]) -> None:
            members = list(inputs)
            pixels = np.stack(list(inputs.values()))
            for index, maps in zip(members, fuse(pixels, vocabulary, watch, members), strict=True):
                rgb = decoded.pop(index)
                with watch("mask_head", index):
                    labels, confidence, every = self._resolve(
                        maps, size or _edges(rgb), float(threshold), mode, probabilities
                    )
                results[index] = Segmentation(
                    words=vocabulary.words,
                    labels=labels,
                    confidence=confidence,
                    picture=rgb,
                    timing=watch.milliseconds(index),
                    threshold=float(threshold),
                    mode=mode,
                    probabilities=every,
                )

        kept = 0
        for index, one in enumerate(pictures):
            with watch("decode", index):
                rgb = decode(one)
                if isinstance(one, np.ndarray) and np.may_share_memory(rgb, one):
                    rgb = rgb.copy()  # the caller may fill the array with the next frame
            if probabilities:
                height, width = size or _edges(rgb)
                kept += len(vocabulary.words) * height * width * 4
                _check_kept(kept, len(vocabulary.words), height, width)
            with watch("preprocess", index):
                prepared = self._prepare(rgb, one)
            decoded[index] = rgb
            waiting[prepared.shape][index] = prepared
            if len(waiting[prepared.shape]) == most:
                run(waiting.pop(prepared.shape))
            elif sum(map(len, waiting.values())) >= max(_WAITING, most):
                run(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
        while waiting:
            run(waiting.pop(next(iter(waiting))))
        ordered = [results[index] for index in range(len(pictures))]
        return ordered if many else ordered[0]

    def close(self) -> None:
        """Give the graphs' memory back, and end the threads. A closed session raises UsageError when used; closing twice is fine."""
        with self._loading:
            self._closed = True
            self._graphs.clear()
        self._mask_head.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _graph(self, name: str) -> Graph:
        with self._loading:
            self._check_open()
            if name not in self._graphs:
                path = self.bundle.graph(name)
                content = self.bundle.read_again(path)
                self._graphs[name] = self._runtime.load(path, content, **_LOADED.get(name, {}))
            return self._graphs[name]

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this session is closed; open another")

    def _encode(self, words: str | Iterable[str], templates: Iterable[str] | None) -> Vocabulary:
        self._check_open()
        parsed = parse_words(words)
        check_count(parsed, self.bundle.words.max, self.bundle.folder)
        chosen = self.bundle.templates if templates is None else check_templates(templates)
        return self._text.encode(parsed, chosen)

    def _prepare(self, rgb: np.ndarray, source: Picture) -> np.ndarray:
        height, width = self.bundle.preprocessing.input_size(*rgb.shape[:2])
        allowed = self.bundle.size
        if not (allowed.min <= min(height, width) and max(height, width) <= allowed.max):
            least, most = min(allowed.min, height, width), max(allowed.max, height, width)
            raise SizeOutsideProfile(
                f"{describe(source)}: needs a network input of {width}x{height}, the bundle in {self.bundle.folder} "
                f"was built for edges of {allowed.min} to {allowed.max}; rebuild it: "
                + build_command(self.bundle.folder, sizes=f"{least},{allowed.opt},{most}")
            )
        return self.bundle.preprocessing(rgb, (height, width))

    def _fuse_jointly(
        self, pixels: np.ndarray, vocabulary: Vocabulary, watch: "_Stopwatch", members: list[int]
    ) -> list["_Maps"]:
        """pixels: (B, 3, h, w). Returns B pairs of scores (1, K, h', w') and gram (1, 5, h', w')."""
        words = np.repeat(vocabulary.vectors[None], len(pixels), axis=0)
        with watch("image_fusion", *members):
            fused = self._graph("image_fusion")({"pixels": pixels, "words": words})
        with watch("mask_head", *members):
            scores, gram = self._maps(fused)
        return [(scores[index : index + 1], gram[index : index + 1]) for index in range(len(pixels))]

    def _fuse_independently(
        self, pixels: np.ndarray, vocabulary: Vocabulary, watch: "_Stopwatch", members: list[int]
    ) -> list["_Maps"]:
        """pixels: (1, 3, h, w). Returns one pair of scores (K, 1, h', w') and gram (K, 5, h', w')."""
        parts = []
        for start in range(0, len(vocabulary.words), self.bundle.batch.max):
            words = vocabulary.vectors[start : start + self.bundle.batch.max, None]
            with watch("image_fusion", *members):
                fused = self._graph("image_fusion")({"pixels": pixels, "words": words})
            with watch("mask_head", *members):
                parts.append(self._maps(fused))
        return [(np.concatenate([scores for scores, _ in parts]), np.concatenate([gram for _, gram in parts]))]

    def _maps(self, fused: dict[str, np.ndarray]) -> "_Maps":
        scores, gram = self._mask_head.maps(fused["features"], fused["refined"])
        if not (np.isfinite(scores).all() and np.isfinite(gram).all()):
            raise GraphUnusable(
                f"{self.bundle.graph('image_fusion')}: computed values that are not finite, as {self.bundle.precision} "
                "may on some machines; rebuild it without --fp16: "
                + build_command(self.bundle.folder, precision="fp32")
            )
        return scores, gram

    def _resolve(
        self, maps: "_Maps", size: tuple[int, int], threshold: float, mode: str, probabilities: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Labels (H, W), confidence (H, W) and, where asked for, probabilities (K, H, W)."""
        head = self._mask_head
        resolve = head.labels if mode == "joint" else head.independent_labels
        labels, confidence = resolve(*maps, size, threshold)
        if not probabilities:
            return labels, confidence, None
        return labels, confidence, head.probabilities(*maps, size).reshape(-1, *size)


_Maps: TypeAlias = tuple[np.ndarray, np.ndarray]


class _Stopwatch:
    """Seconds per picture and stage; what several pictures share is divided evenly among them."""

    def __init__(self, pictures: int) -> None:
        self._seconds = [dict.fromkeys(STAGES, 0.0) for _ in range(pictures)]

    @contextmanager
    def __call__(self, stage: str, *members: int) -> Iterator[None]:
        """Time a block for the pictures given, by default for all."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        for index in members or range(len(self._seconds)):
            part = seconds / (len(members) or len(self._seconds))
            self._seconds[index][stage] += part
            self._seconds[index]["total"] += part

    def milliseconds(self, index: int) -> dict[str, float]:
        return {stage: round(seconds * 1000, 3) for stage, seconds in self._seconds[index].items()}


def _edges(rgb: np.ndarray) -> tuple[int, int]:
    return rgb.shape[0], rgb.shape[1]


def _check_kept(kept: int, words: int, height: int, width: int) -> None:
    if kept > KEPT_LIMIT:
        raise UsageError(
            f"the probabilities of {words} words at {height}x{width} pixels bring this call to {kept / 1e9:.1f} GB, "
            f"at most {KEPT_LIMIT / 1e9:.0f} GB are kept; give a smaller size=(H, W), fewer words or fewer pictures"
        )


def _check_options(size: Any, threshold: Any, mode: str) -> tuple[int, int] | None:
    """The size as two ints. Raises UsageError."""
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; choose {' or '.join(MODES)}")
    if not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):  # not-a-number fails this too
        raise UsageError(f"the threshold is {threshold!r}; give a probability within 0..1, 0.5 by default")
    if size is None:
        return None
    if not (
        isinstance(size, (tuple, list, np.ndarray))
        and len(size) == 2
        and all(isinstance(edge, (int, np.integer)) and edge >= 1 for edge in size)
    ):
        raise UsageError(f"the size is {size!r}; give height and width in whole pixels, at least 1 each")
    height, width = (int(edge) for edge in size)
    if height * width > PIXEL_LIMIT:
        raise UsageError(f"the size {height}x{width} is over {PIXEL_LIMIT / 1e6:.0f} million pixels; give a smaller")
    return height, width
