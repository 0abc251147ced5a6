"""Pictures and words to masks: the object an application embeds."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .backends import Backend, open_executor
from .bundle import Bundle, find_bundle, input_size_of
from .encoded import EncodedPicture
from .errors import UsageError
from .executor import Clock, Executor, Mode, Request, Waiting
from .pictures import PIXEL_LIMIT, Picture, decode, describe
from .results.segmentation import STAGES, Segmentation
from .words.cache import TextCache, default_folder
from .words.encoder import TextEncoder, Vocabulary
from .words.parse import check_count, parse_words
from .words.templates import check_templates

if TYPE_CHECKING:
    from .gpu.on_device import DeviceSegmentation

MODES = ("joint", "independent")
KEPT_LIMIT = 4_000_000_000
"""Most bytes of probabilities that one `segment` call keeps."""

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
        backend: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or onnxruntime for the better of the
            last two; `backend` tells what became of it.
        cache: folder for word vectors, by default $FUSIONER_CACHE or the user's cache folder; False for memory alone.
        threads: CPU threads per graph, by default one per core.
        Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileMissing, BundleFileAltered,
        BackendUnavailable, GraphUnusable, UsageError, and for TensorRT PlanMissing, PlanForAnotherGpu,
        PlanForAnotherVersion, PlanUnusable, AnswerWrong, GpuMemoryShort, KernelsUnusable, CudaFailed.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}", "give 1 or more, or leave it out for one per core")
        self.bundle = Bundle.open(find_bundle(bundle))
        folder = None if cache is False else Path(cache) if cache is not None else default_folder()
        self._executor, self._backend = open_executor(self.bundle, backend, threads, folder)
        self._closing = threading.Lock()
        self._closed = False
        self._vocabulary: Vocabulary | None = None
        self._text = TextEncoder(self.bundle, self._executor.text, TextCache(folder))

    @property
    def backend(self) -> Backend:
        """Requested and effective backend, why, and what kept better ones from being taken."""
        return self._backend

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
        return [note for note in (self._backend.unproved, self._text.cache.note, *self._executor.notes) if note]

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
    def encode(self, picture: Picture | EncodedPicture) -> EncodedPicture: ...

    @overload
    def encode(
        self,
        picture: list[Picture | EncodedPicture]
        | list[Picture]
        | list[EncodedPicture]
        | tuple[Picture | EncodedPicture, ...],
    ) -> list[EncodedPicture]: ...

    def encode(self, picture: Any) -> EncodedPicture | list[EncodedPicture]:
        """What `segment` does with a picture before words take part, kept: other words then cost only what follows.

        picture: as for `segment`. Returns what `segment` takes in the picture's place, in a list beside others too, with
        the same results. It is this bundle's and this backend's, and outlives the session.

        onnxruntime-cpu keeps the image encoder's tokens. Backends that run encoder and fusion as one, those of GPUs, and
        bundles without the `image` graph keep the prepared picture: there other words cost a whole pass.
        Raises the errors of pictures, SizeOutsideProfile, GraphUnusable, UsageError.
        """
        self._check_open()
        many = isinstance(picture, (list, tuple))
        pictures: Sequence[Picture | EncodedPicture] = picture if many else [picture]
        results: dict[int, EncodedPicture] = {}
        decoded: dict[int, np.ndarray] = {}

        def run(group: dict[int, Waiting]) -> None:
            waiting = list(group.values())
            for index, one, kept in zip(group, waiting, self._executor.encode(waiting), strict=True):
                results[index] = EncodedPicture(
                    decoded.pop(index), one.input_size, kept, self._backend.effective, self.bundle.picture_sha256
                )

        groups = _Groups(self._executor, self._executor.most, run)
        for index, one in enumerate(pictures):
            if isinstance(one, EncodedPicture):
                self._check_encoded(one)
                results[index] = one
                continue
            decoded[index] = rgb = _decoded(one)
            groups.add(index, self._prepared(rgb, _edges(rgb), describe(one)))
        groups.finish()
        ordered = [results[index] for index in range(len(pictures))]
        return ordered if many else ordered[0]

    @overload
    def segment(
        self,
        picture: Picture | EncodedPicture,
        words: str | Iterable[str] | None = None,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        mode: Mode = "joint",
        probabilities: bool = False,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        picture: list[Picture | EncodedPicture]
        | list[Picture]
        | list[EncodedPicture]
        | tuple[Picture | EncodedPicture, ...],
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

        picture: path, bytes, Pillow image, (H, W, 3) uint8 RGB array or what `encode` made of one, or a list of them;
            pictures of a list that share an input size are run together.
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
        pictures: Sequence[Picture | EncodedPicture] = picture if many else [picture]

        watch = _Stopwatch(len(pictures))
        with watch("text"):
            vocabulary = self._vocabulary if words is None else self._encode(words, None)
            if vocabulary is None:
                raise UsageError("no words were given", 'pass words="cat, sofa" or call set_vocabulary first')

        request = Request(vocabulary.vectors, float(threshold), mode, probabilities)
        results: dict[int, Segmentation] = {}
        decoded: dict[int, np.ndarray] = {}

        def run(group: dict[int, Waiting]) -> None:
            members = list(group)
            answers = self._executor.run(list(group.values()), request, watch.of(members))
            for index, answer in zip(members, answers, strict=True):
                results[index] = Segmentation(
                    words=vocabulary.words,
                    labels=answer.labels,
                    confidence=answer.confidence,
                    picture=decoded.pop(index),
                    timing=watch.milliseconds(index),
                    threshold=float(threshold),
                    mode=mode,
                    probabilities=answer.probabilities,
                )

        groups = _Groups(self._executor, self._executor.most if mode == "joint" else 1, run)
        kept = 0
        for index, one in enumerate(pictures):
            if isinstance(one, EncodedPicture):
                self._check_encoded(one)
                rgb = one.picture
            else:
                with watch("decode", index):
                    rgb = _decoded(one)
            height, width = size or _edges(rgb)
            if probabilities:
                kept += len(vocabulary.words) * height * width * 4
                _check_kept(kept, len(vocabulary.words), height, width)
            if isinstance(one, EncodedPicture):
                waiting = Waiting(one.encoded, one.input_size, (height, width), encoded=True)
            else:
                with watch("preprocess", index):
                    waiting = self._prepared(rgb, (height, width), describe(one))
            decoded[index] = rgb
            groups.add(index, waiting)
        groups.finish()
        ordered = [results[index] for index in range(len(pictures))]
        return ordered if many else ordered[0]

    def segment_on_device(
        self,
        picture: Any,
        words: str | Iterable[str] | None = None,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        stream: int = 0,
        out: tuple[Any, Any] | None = None,
    ) -> "DeviceSegmentation":
        """Masks for pictures that lie in GPU memory, without a copy to the host: for the backends of GPUs.

        picture: (H, W, 3) or (B, H, W, 3) uint8 RGB, contiguous, with `__cuda_array_interface__` or `__dlpack__`.
        words, size, threshold: as in `segment`; words are fused jointly.
        stream: a CUDA stream's handle. Its work is waited for, and it is given this work; the call returns at once.
        out: labels (H, W) or (B, H, W) uint16 and confidence of that shape, float32 or float16, to be filled: then a
            call allocates nothing. By default new arrays.

        `picture` and `out` must live until the stream is done. NaN features give NaN confidence. Raises
        DeviceArrayInvalid, BackendUnavailable, CudaFailed and as `segment`.
        """
        from .gpu.on_device import segment_on_device

        self._check_open()
        size = _check_options(size, threshold, "joint")
        vocabulary = self._vocabulary if words is None else self._encode(words, None)
        if vocabulary is None:
            raise UsageError("no words were given", 'pass words="cat, sofa" or call set_vocabulary first')
        request = Request(vocabulary.vectors, float(threshold), "joint", False)
        return segment_on_device(self._executor, self.bundle, picture, vocabulary.words, request, size, stream, out)

    def close(self) -> None:
        """Give the engines' memory back, and end the threads. Closing twice is fine; using a closed session raises UsageError."""
        with self._closing:
            self._closed = True
        self._executor.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this session is closed", "open another")

    def _prepared(self, rgb: np.ndarray, size: tuple[int, int], name: str) -> Waiting:
        """A decoded picture made ready to run. size: of its label map. name: for messages."""
        input_size = input_size_of(self.bundle, *_edges(rgb), name)
        return Waiting(self._executor.prepare(rgb, input_size), input_size, size)

    def _check_encoded(self, picture: EncodedPicture) -> None:
        picture.check(self._backend.effective, self.bundle.picture_sha256)

    def _encode(self, words: str | Iterable[str], templates: Iterable[str] | None) -> Vocabulary:
        self._check_open()
        parsed = parse_words(words)
        check_count(parsed, self.bundle.words.max, self.bundle.folder)
        chosen = self.bundle.templates if templates is None else check_templates(templates)
        return self._text.encode(parsed, chosen)


class _Groups:
    """Pictures of a call that wait for others which may run together with them. most: of a group."""

    def __init__(self, executor: Executor, most: int, run: Callable[[dict[int, Waiting]], None]) -> None:
        self._executor, self._most, self._run = executor, most, run
        self._groups: dict[Hashable, dict[int, Waiting]] = defaultdict(dict)

    def add(self, index: int, waiting: Waiting) -> None:
        """Runs a group that is full, or the largest where too many wait. index: the picture's place in the call."""
        groups, key = self._groups, self._executor.group(waiting)
        groups[key][index] = waiting
        if len(groups[key]) == self._most:
            self._run(groups.pop(key))
        elif sum(map(len, groups.values())) >= max(_WAITING, self._most):
            self._run(groups.pop(max(groups, key=lambda one: len(groups[one]))))

    def finish(self) -> None:
        """Runs what still waits."""
        while self._groups:
            self._run(self._groups.pop(next(iter(self._groups))))


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

    def of(self, members: list[int]) -> Clock:
        """A clock for a group of the call's pictures, which it knows by their places in the group."""
        return lambda stage, *places: self(stage, *(members[place] for place in places or range(len(members))))

    def milliseconds(self, index: int) -> dict[str, float]:
        return {stage: round(seconds * 1000, 3) for stage, seconds in self._seconds[index].items()}


def _decoded(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8, of the session's own."""
    rgb = decode(picture)
    if isinstance(picture, np.ndarray) and np.may_share_memory(rgb, picture):
        rgb = rgb.copy()  # the caller may fill the array with the next frame
    return rgb


def _edges(rgb: np.ndarray) -> tuple[int, int]:
    return rgb.shape[0], rgb.shape[1]


def _check_kept(kept: int, words: int, height: int, width: int) -> None:
    if kept > KEPT_LIMIT:
        raise UsageError(
            f"the probabilities of {words} words at {height}x{width} pixels bring this call to "
            f"{kept / 1000000000.0:.1f} GB, at most {KEPT_LIMIT / 1000000000.0:.0f} GB are kept",
            "give a smaller size=(H, W), fewer words or fewer pictures",
        )


def _check_options(size: Any, threshold: Any, mode: str) -> tuple[int, int] | None:
    """The size as two ints. Raises UsageError."""
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}", f"choose {' or '.join(MODES)}")
    if not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):  # not-a-number fails this too
        raise UsageError(f"the threshold is {threshold!r}", "give a probability within 0..1, 0.5 by default")
    if size is None:
        return None
    if not (
        isinstance(size, (tuple, list, np.ndarray))
        and len(size) == 2
        and all(isinstance(edge, (int, np.integer)) and edge >= 1 for edge in size)
    ):
        raise UsageError(f"the size is {size!r}", "give height and width in whole pixels, at least 1 each")
    height, width = (int(edge) for edge in size)
    if height * width > PIXEL_LIMIT:
        raise UsageError(
            f"the size {height}x{width} is over {PIXEL_LIMIT / 1000000.0:.0f} million pixels", "give a smaller"
        )
    return height, width
