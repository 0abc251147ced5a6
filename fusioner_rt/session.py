"""`Session`: pictures and words to masks."""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload
from weakref import WeakSet

import numpy as np

from . import sliding_windows
from .argument_checks import as_path, choice, flag, shown, whole
from .atomic_files import writable_place
from .bundle import Bundle, find_bundle
from .decode_picture import (
    MAX_PIXELS,
    PIXEL_LIMIT,
    Picture,
    decode,
    describe,
    is_pillow,
    millions,
    or_more,
    pictures_of,
)
from .encoder_output import EncodedPicture, source_of
from .errors import FusionerError, MemoryShort, SessionClosed, Spelled, UsageError, session_closed
from .executor_interface import Clock, Executor, Mode, Request, Waiting
from .kept_for_ever import keep_for_ever
from .ladder import Backend, check_requested, open_executor
from .memory_shortage import OF_A_PICTURE, OF_A_SESSION, tells_shortage
from .pixel_arrays import Channels, check_channels, is_array, is_on_device
from .results.segmentation import STAGES, Segmentation
from .results.steadiness import Steadier
from .stream import StreamedFrame, streamed
from .words.cache import TextCache, default_folder
from .words.encoder import TextEncoder, Vocabulary
from .words.owners import Thresholds, labels_of_names, probabilities_of_names
from .words.parse import Asked, Words, check_count, in_one_word, parse_words
from .words.templates import check_templates
from .words.vectors_file import write_vectors
from .workers import Workers

if TYPE_CHECKING:
    from .gpu.device_segmentation import DeviceSegmentation
    from .interfaces.trackers import Tracker

Pictures: TypeAlias = (
    list[Picture | EncodedPicture] | list[Picture] | list[EncodedPicture] | tuple[Picture | EncodedPicture, ...]
)
MODES = ("joint", "independent")
Default = Literal["default"]
Window = Literal["whole", "sliding"]
WINDOWS = ("whole", "sliding")
KEPT_LIMIT = 4_000_000_000
"""Maximum bytes of probabilities of one `segment` call."""

_LISTED = 16  # pictures of lists after which loading graphs for lanes is worth it
_MOST_AHEAD = 256
_MOST_THREADS = 1024
_WITH_WINDOWS = "bundles of training-free CLIP have windows, where their sizes let inputs be as small as one"
_log = logging.getLogger("fusioner_rt")
_NOTED = 256  # lists of words whose notes are kept
_TOLD = 1000  # notes that are known to be logged
_WAITING = 32  # maximum of pictures that wait for others of their input size


def _picture(_: "Session", picture: Any, *__: object, **___: object) -> str | None:
    """What a call's error names: its picture, where it has one."""
    return None if isinstance(picture, (list, tuple)) else describe(picture)


class Session:
    """A loaded bundle. Threads may share one. `with` or `close()` frees its memory.

    with Session("models/demo/bundle") as session:
        session.set_vocabulary("cat, sofa")
        result = session.segment("photo.jpg")
    """

    @tells_shortage(OF_A_SESSION)
    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        cache: str | os.PathLike[str] | Literal[False] | None = None,
        threads: int | None = None,
        input_size: int | None = None,
        channels: Channels = "rgb",
        max_pixels: int | None = None,
        lanes: int | None = None,
    ) -> None:
        """bundle: its folder, a folder that holds it alone, or the name of an installed or fetched one; by default the first
            of $FUSIONER_ENGINE, ./engines/demo, ./models/demo/bundle and those that are installed or fetched.
        backend: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or onnxruntime for the better of the
            last two. The property `backend` tells which one runs.
        cache: folder for word vectors, by default $FUSIONER_CACHE or the user's cache folder; or a file of them, as
            `export_words` writes, which is read once and never written; new words are then kept in memory, as with False.
        threads: CPU threads per graph, by default one per core. Other numbers of them may give other roundings, confidence within
            some 1e-6 (docs/cpu.md).
        lanes: pictures of a list or a stream that run at once on a CPU, a thread each, by default as many as there are threads and
            at most 8; 1 for one after the other. For the first stream, or once lists had 16 pictures, graphs of one thread
            are loaded beside the others: they take the weights' memory once more (docs/cpu.md).
        input_size: side in pixels of what the network sees of a picture, by default what the bundle was built for: the
            square root of its area, or its short edge (`Preprocessing.fit`). A smaller one is faster and loses small
            things.
        channels: order of the colours of arrays and tensors, "rgb", or "bgr" as OpenCV reads them. Files, bytes and Pillow
            images know their own.
        max_pixels: pixels of the largest picture and `size`, by default 67,108,864 (MAX_PIXELS), at most 134,217,728. Files
            that take as long to decode as larger ones count as those (docs/pictures.md).
        Raises BundleMissing, ManifestInvalid, BundleVersionUnknown, BundleFileMissing, BundleFileAltered,
        BackendUnavailable, GraphUnusable, WordVectorsInvalid, MemoryShort, UsageError, and for TensorRT PlanMissing, PlanForAnotherGpu,
        PlanForAnotherVersion, PlanUnusable, AnswerWrong, GpuMemoryShort, KernelsUnusable, CudaFailed.
        """
        start = time.perf_counter()
        check_requested(backend)
        self._channels = check_channels(channels)
        if threads is not None:
            cure = f"give 1 to {_MOST_THREADS}, or leave it out for one per core"
            threads = whole(threads, "threads", 1, _MOST_THREADS, cure)
        if lanes is not None:
            lanes = whole(lanes, "lanes", 1, _MOST_THREADS, f"give 1 to {_MOST_THREADS}, or leave it out")
        cure = f"give 1 to {PIXEL_LIMIT}, or leave it out for {MAX_PIXELS}"
        self._max_pixels = MAX_PIXELS if max_pixels is None else whole(max_pixels, "max_pixels", 1, PIXEL_LIMIT, cure)
        place = None if cache is False else as_path(cache, "the cache") if cache is not None else default_folder()
        self.bundle = Bundle.open(find_bundle(bundle)).with_input_side(input_size)
        cached = TextCache(place)
        self._executor, self._backend = open_executor(self.bundle, backend, threads, cached.folder)
        self._threads = threads
        self._lanes = lanes or self._executor.lanes
        self._side_by_side = Workers(self._lanes, "fusioner-list")
        self._listed = 0  # pictures of lists so far
        self._closing = threading.Lock()
        self._closed = self._forked = False
        self._vocabulary: Vocabulary | None = None
        self._noted: dict[tuple[Asked, tuple[str, ...]], tuple[str, ...]] = {}
        self._text = TextEncoder(self.bundle, self._executor.text, cached)
        self._told: set[str] = set()
        seconds, opened = time.perf_counter() - start, self._backend
        _log.info("opened %s with %s, %s, in %.2f s", self.bundle.folder, opened.effective, opened.why, seconds)
        for name, reason in opened.passed_over:
            _log.debug("passed over %s: %s", name, reason)
        _sessions.add(self)
        self._tell(opened.note, self.bundle.note, opened.unproved)
        self._tell_what_ran()

    @property
    def backend(self) -> Backend:
        """Requested and effective backend, the reason, and why better ones do not work."""
        return self._backend

    @property
    def text_encoder_calls(self) -> int:
        """Number of runs of the text graph. Cached words need none."""
        return self._text.calls

    @property
    def cache_folder(self) -> Path | None:
        """The folder of cached word vectors, or None."""
        return self._text.cache.folder

    @property
    def cache_file(self) -> Path | None:
        """The file of word vectors that is read in place of a folder, or None."""
        return self._text.cache.file

    @property
    def notes(self) -> list[str]:
        """Problems that were worked around, and what makes masks meaningless, one sentence each."""
        return [
            note
            for note in (
                self.bundle.note,
                self._backend.unproved,
                *(self._notes_of(self._vocabulary) if self._vocabulary else ()),
                self._text.cache.note,
                *self._executor.notes,
            )
            if note
        ]

    @property
    def _together(self) -> int:
        """The most pictures of a batch. One costs a CPU more than its pictures one by one."""
        return 1 if self._backend.effective == "onnxruntime-cpu" else self._executor.max_group

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `set_vocabulary`; empty before its first call."""
        return self._vocabulary.asked.names if self._vocabulary else ()

    @tells_shortage(OF_A_SESSION)
    def set_vocabulary(
        self, words: Words, templates: Iterable[str] | None = None, background: Words | None = None
    ) -> None:
        """Set the default words of `segment`, and encode those that are not in the cache.

        words: "cat, sofa" or a list; a list within it is a group, which is called by its first word. background: words
            whose pixels belong to nothing, or "common". Both as docs/words.md tells.
        templates: prompts holding `{category}`, by default the bundle's.
        Raises WordsInvalid, TooManyWords, TemplatesInvalid, MemoryShort.
        """
        self._vocabulary = self._encode_words(words, templates, background)
        _log.info("words: %d, %d for the background", len(self.words), self._vocabulary.asked.owners.count(0))
        if _log.isEnabledFor(logging.WARNING):
            self._tell(*self.notes)

    @overload
    def encode(
        self, picture: Picture | EncodedPicture, window: Window = "whole", channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> EncodedPicture: ...  # fmt: skip

    @overload
    def encode(
        self, picture: Pictures, window: Window = "whole", channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> list[EncodedPicture]: ...  # fmt: skip

    @tells_shortage(OF_A_PICTURE, of=_picture)
    def encode(
        self, picture: Any, window: Window = "whole", channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> EncodedPicture | list[EncodedPicture]:  # fmt: skip
        """Run the part of `segment` that needs no words, and keep the result for calls with different words.

        picture, window, channels, before_each: as for `segment`. Returns an EncodedPicture, or a list for a list. `segment` takes it like a
        picture, with the same results. It is valid for this bundle and backend, also after the session is closed.

        onnxruntime-cpu keeps the image encoder's tokens. GPU backends run encoder and fusion as one and keep the prepared
        picture, so that each call costs a whole pass. Of sliding windows all keep the joined features.
        Raises the errors of pictures, SizeOutsideProfile, GraphUnusable, MemoryShort, UsageError.
        """
        self._check_open()
        self._check_window(window)
        channels = self._channels if channels is None else check_channels(channels)
        pictures, many = _listed(picture)
        results: dict[int, EncodedPicture] = {}
        decoded: dict[int, np.ndarray] = {}

        def run(ready: Iterator[dict[int, Waiting]]) -> None:
            for group in ready:
                waiting = list(group.values())
                before_each()
                for index, given, encoded in zip(group, waiting, self._executor.encode_pictures(waiting), strict=True):
                    results[index] = EncodedPicture(
                        decoded.pop(index),
                        given.input_size,
                        encoded,
                        self._backend.effective,
                        self.bundle.picture_sha256,
                        source=source_of(pictures[index]),
                    )

        groups = _Groups(self._executor, self._together)
        for index, given in enumerate(pictures):
            if isinstance(given, EncodedPicture):
                self._check_encoded(given, window)
                results[index] = given
                continue
            rgb = decode(given, channels, copy=True, max_pixels=self._max_pixels)
            if window == "sliding":
                features, input_size = self._joined_windows(rgb, describe(given), before_each)
                results[index] = EncodedPicture(
                    rgb, input_size, features, self._backend.effective, self.bundle.picture_sha256, window,
                    source_of(given),
                )  # fmt: skip
                continue
            decoded[index] = rgb
            run(groups.add(index, self._prepare(rgb, _edges(rgb), describe(given))))
        run(groups.rest())
        ordered = [results[index] for index in range(len(pictures))]
        return ordered if many else ordered[0]

    @overload
    def segment(
        self,
        picture: Picture | EncodedPicture,
        words: Words | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | Mapping[str, float] | Default = "default",
        mode: Mode = "joint",
        probabilities: bool = False,
        background: Words | None = None,
        window: Window = "whole",
        channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        picture: Pictures,
        words: Words | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | Mapping[str, float] | Default = "default",
        mode: Mode = "joint",
        probabilities: bool = False,
        background: Words | None = None,
        window: Window = "whole",
        channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> list[Segmentation]: ...

    @tells_shortage(OF_A_PICTURE, of=_picture)
    def segment(
        self,
        picture: Any,
        words: Words | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | Mapping[str, float] | Default = "default",
        mode: Mode = "joint",
        probabilities: bool = False,
        background: Words | None = None,
        window: Window = "whole",
        channels: Channels | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> Segmentation | list[Segmentation]:
        """Masks of one picture, or of each picture of a list, in its order.

        picture: path, bytes, binary file object, Pillow image, EncodedPicture, or uint8 array or tensor of the CPU's memory,
            (H, W, 3), (H, W) or (H, W, 1) grey, (H, W, 4) with alpha; or a list of them, or a (B, H, W, C) batch, which
            gives a list too. On a GPU pictures of a list that share an input size run as one batch; on a CPU they run side by
            side. All kinds of pictures: docs/pictures.md.
        words: of this call, "cat, sofa" or a list, groups as in `set_vocabulary`; by default those of `set_vocabulary`.
        size: (H, W) of the label map, by default the picture's own.
        threshold: a pixel belongs to its best word where that word's probability exceeds this (paper 3.1.3). A mapping
            gives some words their own: {"cat": 0.7}. By default, and for the others, the bundle's: 0.5 in the paper.
        mode: "joint" fuses all words at once, so that they may influence each other. "independent" fuses each word
            alone and costs a pass per word; in a bundle that scores by softmax words do not meet before it, and both
            modes are one.
        probabilities: also return the (K, H, W) probabilities, at most 4 GB per call. A group's is its best word's.
        background: beside `words`, words whose pixels belong to nothing, or "common".
        window: "whole" shows the network the picture; "sliding" shows it overlapping windows and joins their features,
            which finds smaller things and costs a pass per window. Of bundles with `windows`.
        channels: order of the colours of arrays and tensors, by default the session's.
        before_each: is called before each stage of a picture, and each pass of single words or windows, and may raise to stop;
            of a list by several threads at once.

        Every result of a list holds its picture and maps; besides, at most 32 network inputs, or a batch, are in memory.
        Raises the errors of pictures and words, SizeOutsideProfile, GraphUnusable, MemoryShort, UsageError. After an error
        the session goes on.
        """
        self._check_open()
        options = self._options(size, threshold, mode, probabilities, window, channels)
        pictures, many = _listed(picture)
        watch = _Stopwatch(len(pictures), before_each)
        with watch("text"):
            vocabulary = self._vocabulary_of(words, background)
        results = self._segment(pictures, vocabulary, options, watch)
        return results if many else results[0]

    @tells_shortage(OF_A_SESSION)
    def stream(
        self,
        frames: Iterable[Picture | EncodedPicture | FusionerError],
        words: Words | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | Mapping[str, float] | Default = "default",
        mode: Mode = "joint",
        probabilities: bool = False,
        background: Words | None = None,
        window: Window = "whole",
        channels: Channels | None = None,
        ahead: int | None = None,
        live: bool = False,
        steady: float = 0.0,
        track: bool = False,
    ) -> Generator[StreamedFrame, None, None]:
        """Masks of frames as they come, in their order: while the caller uses one, the next are read, decoded and run.

        for seen in session.stream(fusioner_rt.video.frames("clip.mp4"), "cat, sofa"):
            seen.result.overlay()

        frames: an iterable of pictures as `segment` takes one, of any sizes, read by a thread of the stream; what its owner may
            fill with the next one is decoded at once. A FusionerError in place of a frame is passed on as that frame's. Arrays in
            GPU memory stay there, must stay as they are until their result is there, and give what `segment_on_device` returns on
            the default stream.
        words: by default those of `set_vocabulary` at the time a frame is read, so that other words begin at most `ahead` + 1
            frames later.
        ahead: most frames that are read before the caller has taken them, 1 to 256, each with its pixels and maps in memory; by
            default two more than run at once, the session's lanes on a CPU, and two on a GPU.
        live: of a camera or a robot. Work goes on with the newest frame while the caller is busy; older ones are dropped and counted,
            frames as well as results, so that what comes is no older than a frame takes.
        steady: keeps labels from flickering, 0 to 1; 0 changes nothing, 0.5 is a good start (docs/steadiness.md).
        track: gives the connected parts of words ids that they keep from frame to frame, as `seen.instances` (extra `track`).
        size, threshold, mode, probabilities, background, window, channels: as in `segment`, whose results it gives bit for bit.

        Yields StreamedFrame. A frame that cannot be decoded or run is one with its error, and the stream goes on; what would fail for
        each frame is raised, and so is what `frames` raises, after the frames before it. `close()` of the generator, or leaving its
        loop, ends its threads. Raises the errors of words, SessionClosed, UsageError at once.
        """
        self._check_open()
        options = self._options(size, threshold, mode, probabilities, window, channels)
        if ahead is not None:
            ahead = whole(ahead, "ahead", 1, _MOST_AHEAD, f"give 1 to {_MOST_AHEAD}, or leave it out")
        live = flag(live, "live")
        frames = _frames_of(frames)
        steadier, tracker = Steadier(steady), None
        if flag(track, "track"):
            from .interfaces.trackers import Tracker

            tracker = Tracker()
        vocabulary = self._vocabulary_of(words, background)
        lanes = self._lanes
        executor = self._executor.in_lanes() if lanes > 1 else self._executor

        def prepare(frame: Any, check: Callable[[], None]) -> _Frame:
            of_the_frame = self._vocabulary_of(None) if words is None else vocabulary
            return _Frame(self, executor, frame, of_the_frame, options, check)

        found = streamed(frames, prepare, lanes, ahead or lanes + 2, live)
        return _followed(found, steadier, tracker) if steady or track else found

    @tells_shortage(OF_A_PICTURE, of=_picture)
    def segment_on_device(
        self,
        picture: Any,
        words: Words | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | Mapping[str, float] | Default = "default",
        stream: int = 0,
        out: tuple[Any, Any] | None = None,
        background: Words | None = None,
        channels: Channels | None = None,
    ) -> "DeviceSegmentation":
        """Masks of pictures in GPU memory, without a copy to the host. GPU backends only.

        picture: (H, W, 3) or (B, H, W, 3) uint8 RGB, contiguous, with `__cuda_array_interface__` or `__dlpack__`.
        words, size, threshold, background: as in `segment`; words are fused jointly. Beside confidence in half precision, a
            word's own threshold is compared with the rounded value.
        stream: a CUDA stream's handle. The work is enqueued on it, and the call returns at once.
        out: arrays for the results, labels (H, W) or (B, H, W) uint16 and confidence of that shape, float32 or float16.
            With them a call allocates nothing. By default new arrays.
        channels: "rgb" alone, by default the session's.

        `picture` and `out` must live until the stream is done. NaN features give NaN confidence. Raises
        DeviceArrayInvalid, BackendUnavailable, CudaFailed, KernelsUnusable and as `segment`.
        """
        self._check_open()
        options = self._options(size, threshold, "joint", False, "whole", channels)
        stream = whole(stream, "stream", 0, (1 << 64) - 1, "give a CUDA stream's handle, or 0 for the default stream")
        if out is not None and not (isinstance(out, (tuple, list)) and len(out) == 2):
            raise UsageError(f"out is {shown(out)}", "give two arrays in GPU memory: labels and confidence")
        return self._on_device(picture, self._vocabulary_of(words, background), options, stream, out)

    def load_text(self) -> None:
        """Load the text encoder now, not for the first word that is not cached, and what else waits for its first use.

        No later call reads a file of the bundle, which then may be replaced. Raises BundleFileMissing, BundleFileAltered,
        GraphUnusable, UsageError.
        """
        self._check_open()
        self._text.load()
        self._executor.load_rest()
        if self._lanes > 1:
            self._executor.in_lanes().load_rest()

    @tells_shortage(OF_A_SESSION)
    def load_words(
        self, words: Words, background: Words | None = None, before_each: Callable[[], None] = lambda: None
    ) -> None:
        """Encode the words that are not in the cache now, for a later `segment` with the same ones.

        before_each: is called before each word that is encoded, and may raise to stop; what was encoded stays in the cache.
        Raises as `set_vocabulary`.
        """
        self._encode_words(words, None, background, before_each)

    @tells_shortage(OF_A_SESSION)
    def export_words(self, path: str | os.PathLike[str], words: Words, background: Words | None = None) -> int:
        """Write the vectors of words into one file, which other sessions take as their `cache`; words that are not cached are
        encoded. Equal words make equal files. words, background: as in `set_vocabulary`, and as many as one likes.

        Returns the number of vectors. Raises as `set_vocabulary`, and OutputUnwritable.
        """
        self._check_open()
        place = writable_place(as_path(path, "the file"))
        entries = self._text.entries(parse_words(words, background), self.bundle.templates)
        write_vectors(place, entries)
        return len(entries)

    def close(self) -> None:
        """Free the engines' memory and end the threads. Closing twice is fine; using a closed session raises UsageError."""
        with self._closing:
            self._closed = True
            forked = self._forked
        if not forked:
            self._side_by_side.close()
            self._executor.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _options(
        self, size: Any, threshold: Any, mode: Mode, probabilities: bool, window: Window, channels: Channels | None
    ) -> "_Options":
        """The options of a call, checked. Raises UsageError."""
        size = _check_options(size, threshold, mode, self._max_pixels)
        self._check_window(window)
        channels = self._channels if channels is None else check_channels(channels)
        return _Options(size, threshold, mode, flag(probabilities, "probabilities"), window, channels)

    def _segment(
        self,
        pictures: Sequence[Picture | EncodedPicture],
        vocabulary: Vocabulary,
        options: "_Options",
        watch: "_Stopwatch",
        decoded: np.ndarray | None = None,
        executor: Executor | None = None,
    ) -> list[Segmentation]:
        """decoded: the pixels of the one picture, where it is decoded already. executor: by default what suits the list."""
        window, notes = options.window, self._notes_of(vocabulary)
        thresholds = Thresholds(options.threshold, vocabulary.asked, self.bundle.threshold)
        alone = options.mode == "independent" and self.bundle.scoring != "softmax"
        mode: Mode = "independent" if alone else "joint"
        request = Request(vocabulary.vectors, thresholds.least, mode, options.probabilities)
        kept = _Kept(len(vocabulary.asked.words) if options.probabilities else 0)
        side_by_side = False
        if executor is None:
            executor, side_by_side = self._executor_of(len(pictures))
        together = self._together if mode == "joint" else 1
        call = _Call(executor, together, vocabulary.asked, thresholds, request, options.mode, notes, watch)

        reading = threading.Lock()

        def add(index: int) -> None:
            given = pictures[index]
            if decoded is not None:
                rgb = decoded
            else:
                with nullcontext() if _is_constant(given) else reading:  # a list may have a file twice
                    rgb = self._pixels(given, index, watch, window, options.channels)
            edges = options.size or _edges(rgb)
            kept.add(edges)
            call.add(index, rgb, source_of(given), self._waiting(given, rgb, edges, index, watch, window))

        if side_by_side:
            self._side_by_side.run_all(add, range(len(pictures)))
        else:
            for index in range(len(pictures)):
                add(index)
        results = call.finish()
        if _log.isEnabledFor(logging.WARNING):
            self._tell(*notes)
        self._tell_what_ran()
        if _log.isEnabledFor(logging.DEBUG):
            for given, result in zip(pictures, results, strict=True):
                stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in result.timing.items() if taken)
                _log.debug("segment %s, %d words, ms: %s", describe(given), len(result.words), stages)
        return results

    def _on_device(
        self, picture: Any, vocabulary: Vocabulary, options: "_Options", stream: int, out: tuple[Any, Any] | None
    ) -> "DeviceSegmentation":
        from .gpu.device_segmentation import segment_on_device

        if options.channels != "rgb":
            raise UsageError(
                "segment_on_device takes RGB alone, channels is 'bgr'",
                "turn them round on the device, frame.flip(-1).contiguous() in PyTorch, and say that they are rgb",
            )
        if options.probabilities or (options.mode, options.window) != ("joint", "whole"):
            raise UsageError(
                "the frame lies in GPU memory, where words are fused jointly, pictures seen whole and probabilities not kept",
                "leave these options out, or copy frames to the host: tensor.cpu()",
            )
        thresholds = Thresholds(options.threshold, vocabulary.asked, self.bundle.threshold)
        request = Request(vocabulary.vectors, thresholds.least, "joint", False)
        names, tables = vocabulary.asked.names, thresholds.tables(vocabulary.asked)
        return segment_on_device(
            self._executor, self.bundle, picture, names, request, options.size, stream, out, tables
        )

    def _executor_of(self, pictures: int) -> tuple[Executor, bool]:
        """The executor for a list of as many pictures, and whether these run side by side, where that is worth loading graphs."""
        if pictures < 2 or self._lanes == 1 or self._together > 1:
            return self._executor, False
        self._listed += pictures
        if self._listed < _LISTED:
            return self._executor, False
        try:
            return self._executor.in_lanes(), True
        except (MemoryError, MemoryShort):
            return self._executor, False

    def _tell(self, *notes: str | None) -> None:
        """Log notes, each once in a session's life."""
        for note in notes:
            if note and note not in self._told:
                if len(self._told) >= _TOLD:
                    self._told.clear()
                self._told.add(note)
                _log.warning("%s", note)

    def _tell_what_ran(self) -> None:
        """Log the notes that running adds."""
        if _log.isEnabledFor(logging.WARNING):
            self._tell(self._text.cache.note, *self._executor.notes)

    def _check_open(self) -> None:
        if self._closed:
            raise session_closed()
        if self._forked:
            with self._closing:
                self._open_again()

    def _leave_to_parent(self) -> None:
        """In a forked child: what the parent's threads work for stays as it is, and is never freed."""
        if not self._closed:
            keep_for_ever(self._executor)
            keep_for_ever(self._text)
            self._closing = threading.Lock()  # a thread of the parent may have held it
            self._forked = True

    def _open_again(self) -> None:
        """Open the engines in a forked child. Raises SessionClosed where they are a GPU's, which no child can share."""
        if not self._forked:  # another thread did it
            return
        if self._backend.effective != "onnxruntime-cpu":
            raise SessionClosed(
                f"this session was opened before a fork, and {self._backend.effective} works in the parent alone",
                "open a session in each process, or start processes by spawn",
            )
        cached = self._text.cache.of_the_same_place()
        self._executor, _ = open_executor(self.bundle, "onnxruntime-cpu", self._threads, cached.folder)
        self._text = TextEncoder(self.bundle, self._executor.text, cached)
        self._forked = False

    def _pixels(self, given: Any, index: int, watch: "_Stopwatch", window: Window, channels: Channels) -> np.ndarray:
        """The pixels of a call's picture, (H, W, 3) uint8. index: of the picture in the call."""
        if isinstance(given, EncodedPicture):
            self._check_encoded(given, window)
            return given.picture
        with watch("decode", index):
            return decode(
                given, channels, copy=True, max_pixels=self._max_pixels
            )  # the caller may fill an array with the next frame

    def _waiting(
        self, given: Any, rgb: np.ndarray, size: tuple[int, int], index: int, watch: "_Stopwatch", window: Window
    ) -> Waiting:
        """A picture of a call, ready to run. size: of its label map."""
        if isinstance(given, EncodedPicture):
            return Waiting(given.encoded, given.input_size, size, encoded=True, joined=window == "sliding")
        if window == "sliding":
            with watch("image", index):
                features, input_size = self._joined_windows(rgb, describe(given), watch.before_each)
            return Waiting(features, input_size, size, encoded=True, joined=True)
        with watch("preprocess", index):
            return self._prepare(rgb, size, describe(given))

    def _joined_windows(
        self, rgb: np.ndarray, name: str, before_each: Callable[[], None]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """The features of a picture's sliding windows (h', w', d) float32, and its input size."""
        bundle = self.bundle
        assert bundle.windows is not None
        input_size = bundle.input_size(*_edges(rgb), name)
        resized = bundle.preprocessing.resized(rgb, input_size)
        crops, features, step = sliding_windows.crops(resized, bundle.windows), [], self._executor.max_group
        for start in range(0, len(crops), step):
            before_each()
            features += self._executor.encode_windows(crops[start : start + step])
        return sliding_windows.joined(features, input_size, bundle.windows, bundle.preprocessing.multiple), input_size

    def _check_window(self, window: str) -> None:
        choice(window, "window", WINDOWS)
        if window == "sliding" and self.bundle.windows is None:
            raise UsageError(
                f"the bundle in {self.bundle.folder} has no sliding windows",
                Spelled(f"leave window= out; {_WITH_WINDOWS}", f"leave --window out; {_WITH_WINDOWS}"),
            )

    def _prepare(self, rgb: np.ndarray, size: tuple[int, int], name: str) -> Waiting:
        """A decoded picture, ready to run. size: of its label map. name: for messages."""
        input_size = self.bundle.input_size(*_edges(rgb), name)
        return Waiting(self._executor.prepare(rgb, input_size), input_size, size)

    def _notes_of(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        """What makes masks of these words doubtful."""
        key = vocabulary.asked, vocabulary.templates
        if (known := self._noted.get(key)) is not None:
            return known
        notes = (
            self._alike(vocabulary), self._unshared(vocabulary), self._text.foreign(vocabulary.asked),
            in_one_word(vocabulary.asked),
        )  # fmt: skip
        if len(self._noted) >= _NOTED:
            self._noted = {}
        found = self._noted[key] = tuple(note for note in notes if note)
        return found

    def _alike(self, vocabulary: Vocabulary) -> str | None:
        from . import known_answer

        if self.bundle.known_answer is None or len(vocabulary.asked.words) < 2:
            return None
        try:
            return vocabulary.alike(known_answer.read(self.bundle).vectors)
        except FusionerError:  # a bundle that was changed under the session; a note raises nothing
            return None

    def _unshared(self, vocabulary: Vocabulary) -> str | None:
        if self.bundle.scoring != "softmax" or 0 in vocabulary.asked.owners:
            return None
        found = (
            "this bundle compares words with each other alone, and what is none of them goes to the nearest: name what else "
            "may be in the picture as background words, or take"
        )
        return Spelled(f"{found} background='common'", f"{found} --background common")

    def _check_encoded(self, picture: EncodedPicture, window: Window) -> None:
        picture.check(self._backend.effective, self.bundle.picture_sha256, window)

    def _vocabulary_of(self, words: Words | None, background: Words | None = None) -> Vocabulary:
        """The words of a call, or else those of `set_vocabulary`. Raises UsageError where there are none."""
        if words is not None:
            return self._encode_words(words, None, background)
        if background is not None:
            raise UsageError("background words were given without words", "pass words= beside background=")
        if self._vocabulary is None:
            raise UsageError("no words were given", 'pass words="cat, sofa" or call set_vocabulary first')
        return self._vocabulary

    def _encode_words(
        self,
        words: Words,
        templates: Iterable[str] | None,
        background: Words | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> Vocabulary:
        self._check_open()
        asked = parse_words(words, background)
        check_count(asked, self.bundle.words.max, self.bundle.folder)
        chosen = self.bundle.templates if templates is None else check_templates(templates)
        return self._text.encode_words(asked, chosen, before_each)


def _leave_all_to_parent() -> None:
    for session in list(_sessions):
        session._leave_to_parent()


_sessions: "WeakSet[Session]" = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)


@dataclass(frozen=True, eq=False)
class _Options:
    """Of a call of `segment`, checked."""

    size: tuple[int, int] | None
    threshold: float | Mapping[str, float] | Default
    mode: Mode
    probabilities: bool
    window: Window
    channels: Channels


class _Frame:
    """A frame of a stream. The reader makes it, a lane calls it."""

    def __init__(
        self,
        session: Session,
        executor: Executor,
        given: Any,
        vocabulary: Vocabulary,
        options: _Options,
        check: Callable[[], None],
    ) -> None:
        """check: raises once the stream is closed. Raises the errors of pictures."""
        self._session, self._executor, self._given = session, executor, given
        self._vocabulary, self._options = vocabulary, options
        self._watch = _Stopwatch(1, check)
        self._on_device = is_on_device(given)
        self.pixels: Any = given if self._on_device else None
        if not (self._on_device or _is_constant(given)):  # its owner may fill it with the next frame
            self._decode()

    @tells_shortage(OF_A_PICTURE)
    def __call__(self) -> "Segmentation | DeviceSegmentation":
        session, options = self._session, self._options
        session._check_open()
        if self._on_device:
            return session._on_device(self._given, self._vocabulary, options, 0, None)
        if self.pixels is None:
            self._decode()
        given = [self._given]
        return session._segment(given, self._vocabulary, options, self._watch, self.pixels, self._executor)[0]

    def _decode(self) -> None:
        window, channels = self._options.window, self._options.channels
        self.pixels = self._session._pixels(self._given, 0, self._watch, window, channels)


class _Call:
    """One call of `segment`: runs its pictures in groups, and orders the results."""

    def __init__(
        self,
        executor: Executor,
        together: int,
        asked: Asked,
        thresholds: Thresholds,
        request: Request,
        mode: Mode,
        notes: tuple[str, ...],
        watch: "_Stopwatch",
    ) -> None:
        """together: pictures of a batch at most. mode: as asked for. notes: of the words."""
        self._executor, self._asked, self._thresholds = executor, asked, thresholds
        self._request, self._mode, self._notes, self._watch = request, mode, notes, watch
        self._groups = _Groups(executor, together)
        self._pictures: dict[int, np.ndarray] = {}
        self._sources: dict[int, str | None] = {}
        self._results: dict[int, Segmentation] = {}

    def add(self, index: int, picture: np.ndarray, source: str | None, waiting: Waiting) -> None:
        """Add a picture; may run a group. index: of the picture in the call. source: its path, if any."""
        self._pictures[index], self._sources[index] = picture, source
        self._run(self._groups.add(index, waiting))

    def finish(self) -> list[Segmentation]:
        """The results, in the order of the pictures."""
        self._run(self._groups.rest())
        return [self._results[index] for index in sorted(self._results)]

    def _run(self, ready: Iterator[dict[int, Waiting]]) -> None:
        asked, thresholds = self._asked, self._thresholds
        for group in ready:
            members = list(group)
            answers = self._executor.run(list(group.values()), self._request, self._watch.of(members))
            for index, answer in zip(members, answers, strict=True):
                self._results[index] = Segmentation(
                    words=asked.names,
                    labels=thresholds.apply(labels_of_names(answer.labels, asked), answer.confidence),
                    confidence=answer.confidence,
                    picture=self._pictures.pop(index),
                    timing=self._watch.milliseconds(index),
                    threshold=thresholds.given,
                    mode=self._mode,
                    probabilities=probabilities_of_names(answer.probabilities, asked),
                    source=self._sources.pop(index),
                    notes=self._notes,
                )


def _followed(
    frames: Generator[StreamedFrame, None, None], steadier: Steadier, tracker: "Tracker | None"
) -> Generator[StreamedFrame, None, None]:
    """Frames in their order, steadied, and with ids where there is a tracker."""
    with closing(frames):
        for seen in frames:
            if seen.result is not None:
                if not isinstance(seen.result, Segmentation):
                    raise UsageError(
                        "steady and track work on label maps in the host's memory, and this frame's is on the GPU",
                        "leave them out, or copy frames to the host: tensor.cpu()",
                    )
                result = steadier(seen.result)
                seen = replace(seen, result=result, instances=tracker(result) if tracker else None)
                del result
            yield seen
            del seen


class _Kept:
    """Counts the probabilities of a call. Threads may share one."""

    def __init__(self, words: int) -> None:
        """words: with probabilities, or 0."""
        self._words, self._bytes, self._lock = words, 0, threading.Lock()

    def add(self, size: tuple[int, int]) -> None:
        """Count those of a label map of this size. Raises UsageError where the call exceeds KEPT_LIMIT."""
        height, width = size
        with self._lock:
            self._bytes += self._words * height * width * 4
            _check_kept(self._bytes, self._words, height, width)


class _Groups:
    """Collects pictures of a call that may run together."""

    def __init__(self, executor: Executor, max_group: int) -> None:
        self._executor, self._max_group = executor, max_group
        self._groups: dict[Hashable, dict[int, Waiting]] = defaultdict(dict)

    def add(self, index: int, waiting: Waiting) -> Iterator[dict[int, Waiting]]:
        """Yields a full group, or the largest where too many wait. index: of the picture in the call."""
        if self._max_group == 1:  # pictures side by side have one of these
            yield {index: waiting}
            return
        groups, key = self._groups, self._executor.group(waiting)
        groups[key][index] = waiting
        if len(groups[key]) == self._max_group:
            yield groups.pop(key)
        elif sum(map(len, groups.values())) >= max(_WAITING, self._max_group):
            yield groups.pop(max(groups, key=lambda key: len(groups[key])))

    def rest(self) -> Iterator[dict[int, Waiting]]:
        """Yields the remaining groups."""
        while self._groups:
            yield self._groups.pop(next(iter(self._groups)))


class _Stopwatch:
    """Seconds per picture and stage. Shared work is divided evenly among its pictures."""

    def __init__(self, pictures: int, before_each: Callable[[], None]) -> None:
        """before_each: is called before each stage that is timed."""
        self.before_each = before_each
        self._seconds = [dict.fromkeys(STAGES, 0.0) for _ in range(pictures)]

    @contextmanager
    def __call__(self, stage: str, *members: int) -> Iterator[None]:
        """Time a block of work on `members`, by default all pictures."""
        self.before_each()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        indices = members or range(len(self._seconds))
        for index in indices:
            self._seconds[index][stage] += seconds / len(indices)
            self._seconds[index]["total"] += seconds / len(indices)

    def of(self, members: list[int]) -> Clock:
        """A clock for a group of the call's pictures. members: their indices in the call, by index in the group."""
        return lambda stage, *group: self(stage, *(members[index] for index in group or range(len(members))))

    def milliseconds(self, index: int) -> dict[str, float]:
        return {stage: round(seconds * 1000, 3) for stage, seconds in self._seconds[index].items()}


def _listed(picture: Any) -> tuple[Sequence[Picture | EncodedPicture], bool]:
    """The pictures of a call, and whether it gave several: a list, or a (B, H, W, C) batch."""
    if isinstance(picture, (list, tuple)):
        return picture, True
    batch = pictures_of(picture)
    return ([picture], False) if batch is None else (batch, True)


def _is_constant(given: Any) -> bool:
    """Whether a picture is what it is in any thread, and stays so: arrays, tensors, buffers, files and Pillow's images are not."""
    return isinstance(given, (str, os.PathLike, bytes, EncodedPicture))


def _frames_of(frames: Any) -> Iterable[Any]:
    """What a stream reads. Raises UsageError for what is one picture, PictureInvalid for a batch that is none."""
    if is_array(frames) and not is_pillow(frames):
        batch: Any = frames if is_on_device(frames) and len(frames.shape) == 4 else None
        batch = pictures_of(frames) if batch is None and not is_on_device(frames) else batch
        if batch is not None:
            return batch
    elif not (
        isinstance(frames, (str, bytes, bytearray, memoryview, os.PathLike, EncodedPicture))
        or is_pillow(frames)
        or hasattr(frames, "read")
        or not hasattr(frames, "__iter__")
    ):
        return frames
    raise UsageError(
        f"frames is {shown(frames)}",
        "give an iterable of pictures, fusioner_rt.video.frames(path) for a video, or [picture] for one",
    )


def _edges(rgb: np.ndarray) -> tuple[int, int]:
    return rgb.shape[0], rgb.shape[1]


def _check_kept(size: int, words: int, height: int, width: int) -> None:
    if size > KEPT_LIMIT:
        raise UsageError(
            f"the probabilities of {words} words at {height}x{width} pixels bring this call to "
            f"{size / 1e9:.1f} GB, at most {KEPT_LIMIT / 1e9:.0f} GB are kept",
            "give a smaller size=(H, W), fewer words or fewer pictures",
        )


def _check_options(size: Any, threshold: Any, mode: str, max_pixels: int) -> tuple[int, int] | None:
    """Check the options of a call. Returns the size as two ints. Raises UsageError."""
    choice(mode, "mode", MODES)
    default = isinstance(threshold, str) and threshold == "default"
    for given in threshold.values() if isinstance(threshold, Mapping) else [] if default else [threshold]:
        if isinstance(given, bool) or not (isinstance(given, Real) and 0 <= given <= 1):  # type: ignore[operator]  # NaN fails too
            raise UsageError(
                f"the threshold is {shown(given)}", "give a probability within 0..1, or 'default' for the bundle's"
            )
    if size is None:
        return None
    if not (
        (isinstance(size, (tuple, list)) or (isinstance(size, np.ndarray) and size.ndim == 1))
        and len(size) == 2
        and all(isinstance(edge, (int, np.integer)) and not isinstance(edge, bool) and edge >= 1 for edge in size)
    ):
        raise UsageError(f"the size is {shown(size)}", "give height and width in whole pixels, at least 1 each")
    height, width = (int(edge) for edge in size)
    if (pixels := height * width) > max_pixels:
        found = f"the size {shown(height)}x{shown(width)} is over {millions(max_pixels)} million pixels"
        raise UsageError(found, or_more("give a smaller one", pixels))
    return height, width
