"""What every door of the service leads to: a picture and a checked request to masks."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from ..encoder_output import EncodedPicture
from ..errors import UsageError
from ..results.segmentation import Segmentation
from ..session import Session, Window
from .batching import Batcher, Batches, Places, deadline_passed, words_late
from .body import Held, Room
from .errors import DeadlinePassed, RequestInvalid, ServiceError, ServiceFull
from .handles import Kept, gone, open_handles
from .metrics import Metrics
from .models import Models, own_cores
from .pictures import decoded
from .request import SegmentRequest
from .settings import Settings

Made = TypeVar("Made")
_ROOM_TO_WAIT = 2  # groups decoded ahead, for each that runs
_OF_A_PIXEL = 6  # bytes of its label and confidence


@dataclass(eq=False)
class Fate:
    """What the thread that runs a picture and the request that waits for it tell each other.

    given_up: nobody waits any more. at_words: its words are being encoded.
    """

    given_up: bool = False
    at_words: bool = False


@dataclass(frozen=True, eq=False)
class Work:
    """A picture to be run. request: None where it shall be encoded alone. since: as of time.perf_counter."""

    model: str
    picture: np.ndarray | EncodedPicture
    window: Window
    request: SegmentRequest | None
    keep: bool
    since: float
    fate: Fate = field(default_factory=Fate)


@dataclass(frozen=True, eq=False)
class Done:
    """timing: milliseconds by stage. batch: pictures that ran together. handle: of the kept picture."""

    model: str
    result: Segmentation | None
    encoded: EncodedPicture | None
    timing: Mapping[str, float]
    batch: int
    handle: str | None = None


@dataclass(eq=False)
class Asker:
    """What a request lets the service know. until: as of time.monotonic. told: for the log. is_over: nobody waits any more."""

    id: str
    until: float
    held: Held
    told: dict[str, Any] = field(default_factory=dict)
    is_over: bool = False

    def check(self) -> None:
        """For a thread between two steps. Raises DeadlinePassed, which nobody hears, where nobody waits."""
        if self.is_over:
            raise deadline_passed()


MakeBatcher = Callable[[Callable[[Sequence[Work]], list[Done]], int, float, Callable[[int], None]], Batcher[Work, Done]]
"""Its arguments are those of `Batches`."""


class Service:
    """Queue, threads, models and handles of one process. Of one event loop."""

    def __init__(self, settings: Settings, batcher: MakeBatcher = Batches[Work, Done]) -> None:
        """Opens the bundles. Raises the errors of `Session`."""
        self.settings = settings
        self.models = Models(settings)
        self.handles = open_handles(settings)
        self.room = Room(settings.memory)
        concurrency = self.models.concurrency
        most = max(self._most(name) for name in self.models.names)
        self.places = Places(settings.queue + concurrency * most)
        self._ahead = asyncio.Semaphore(_ROOM_TO_WAIT * concurrency * most)
        self.batches = batcher(self._run, concurrency, settings.max_wait / 1000, self._tell_size)
        self._threads = ThreadPoolExecutor(max(2, own_cores(settings)), "pictures")
        self._failed: Exception | None = None  # of the last call, where the input was not at fault
        self.metrics = Metrics(
            {
                "queue_length": (
                    "Pictures that wait.",
                    lambda: max(0, self.places.taken - self.batches.running),
                    False,
                ),
                "running": ("Pictures that run.", lambda: self.batches.running, False),
                "in_flight": ("Pictures at hand.", lambda: self.places.taken, False),
                "bytes_held": ("Bytes of bodies, pictures, masks and answers.", lambda: self.room.taken, False),
                "handles": ("Encoded pictures that are kept.", lambda: self.handles.held()[0], True),
                "handle_bytes": ("Bytes of encoded pictures.", lambda: self.handles.held()[1], True),
            }
        )

    async def segment(
        self, request: SegmentRequest, picture: bytes | np.ndarray | None, handle: str | None, asker: Asker
    ) -> Done:
        """Masks of a picture, or of an encoded one. Raises what `Session.segment` raises, and ServiceErrors."""
        model = self.models[request.model].name
        if handle is None:
            return await self._done(model, picture, request.window, request, request.keep, asker)
        kept = await self.in_thread(self.handles.get, handle)
        self._check(kept, model if request.model else kept.model, request)
        done = await self._submit(kept.model, kept.encoded, request.window, request, False, asker, {})
        return replace(done, handle=handle if request.keep else None)

    async def encode(self, picture: bytes, model: str | None, window: Window, asker: Asker) -> Done:
        """An encoded picture, and its handle."""
        return await self._done(self.models[model].name, picture, window, None, True, asker)

    async def in_thread(self, function: Callable[..., Made], *arguments: Any) -> Made:
        """What would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def check_health(self) -> None:
        """Where the last call failed, and no input was at fault, try each model. Raises what one of them raises."""
        if self._failed is None:
            return
        for name in self.models.names:
            await asyncio.to_thread(self._try, name)
        self._failed = None

    async def close(self) -> None:
        """Wait for what runs, and free the models."""
        await self.batches.close()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self.models.close)

    async def _done(
        self, model: str, picture: Any, window: Window, request: SegmentRequest | None, keep: bool, asker: Asker
    ) -> Done:
        try:
            async with asyncio.timeout(asker.until - time.monotonic()):
                await self._ahead.acquire()
        except TimeoutError:
            raise deadline_passed() from None
        try:
            start = time.perf_counter()
            rgb = await self.in_thread(decoded, picture, self.settings.max_pixels, "picture")
            timing = {"decode": (time.perf_counter() - start) * 1000}
            done = await self._submit(model, rgb, window, request, keep, asker, timing)
        finally:
            self._ahead.release()
        if not keep:
            return done
        assert done.encoded is not None
        try:
            return replace(done, handle=await self.in_thread(self.handles.put, Kept(model, done.encoded)))
        except ServiceFull:
            if request is None:
                raise
            return done  # masks are there, a handle is not

    async def _submit(
        self,
        model: str,
        picture: Any,
        window: Window,
        request: SegmentRequest | None,
        keep: bool,
        asker: Asker,
        timing: Any,
    ) -> Done:
        if window == "sliding" and self.models[model].session.bundle.windows is None:
            raise UsageError(f"the model {model} has no sliding windows", "leave it out", "window")
        key = f"{model} {window} {keep} {request.batch_key if request else ''}"
        pixels = picture if isinstance(picture, np.ndarray) else picture.picture
        height, width = (request and request.size) or pixels.shape[:2]
        asker.held.take(pixels.nbytes + (_OF_A_PIXEL * height * width if request else 0))
        most = self._most(model)
        while most > 1 and most * height * width > self.settings.max_pixels:  # a call holds all its label maps
            most //= 2
        alone = self.places.taken <= self.batches.waiting + 1
        work = Work(model, picture, window, request, keep, time.perf_counter())
        try:
            done = await self.batches.submit(work, key, most, asker.until, alone)
        except DeadlinePassed:
            raise words_late() if work.fate.at_words else deadline_passed() from None
        finally:
            work.fate.given_up = True
        whole = dict(done.timing)
        for stage, taken in timing.items():
            whole[stage] = whole.get(stage, 0.0) + taken
            whole["total"] = whole.get("total", 0.0) + taken
        for stage, taken in whole.items():
            if taken:
                self.metrics.stages.labels(stage).observe(taken / 1000)
        asker.told |= {"model": model, "batch": done.batch, "stages": {s: round(t, 1) for s, t in whole.items() if t}}
        return replace(done, timing=whole)

    def _tell_size(self, size: int) -> None:
        self.metrics.batches.observe(size)

    def _try(self, name: str) -> None:
        with self.models.used(name) as session:
            session.segment(np.zeros((32, 32, 3), np.uint8), "picture")

    def _run(self, works: Sequence[Work]) -> list[Done]:
        """In a thread: one call of the session."""
        try:
            done = self._call(works)
        except Exception as error:
            if not isinstance(error, ServiceError) and not getattr(error, "is_input", False):
                self._failed = error
            raise
        self._failed = None
        return done

    def _call(self, works: Sequence[Work]) -> list[Done]:
        first, started = works[0], time.perf_counter()
        request = first.request

        def go_on() -> None:
            if all(work.fate.given_up for work in works):
                raise deadline_passed()  # which nobody hears

        with self.models.used(first.model) as session:
            pictures: list[Any] = [work.picture for work in works]
            own = session.bundle.picture_sha256, session.backend.effective
            if any((one.picture_sha256, one.backend) != own for one in pictures if isinstance(one, EncodedPicture)):
                raise gone()  # the bundle was loaded anew, perhaps while this waited
            if request:  # before the pictures: new words may take longer than all else, and can be stopped between two
                self._load_words(session, works, request, go_on)
            worded_in = (time.perf_counter() - started) * 1000 / len(works)
            if first.keep:
                pictures = session.encode(pictures, first.window, before_each=go_on)
            encoded_in = (time.perf_counter() - started) * 1000 / len(works) - worded_in if first.keep else 0.0
            nothing = [None] * len(works)
            results = session.segment(pictures, **request.options, before_each=go_on) if request else nothing
        done = []
        for work, picture, result in zip(works, pictures, results, strict=True):
            timing = dict(result.timing) if result else {"total": 0.0}
            if first.keep:
                timing["image"] = timing.get("image", 0.0) + encoded_in
                timing["total"] += encoded_in
            if request:
                timing["text"] += worded_in
                timing["total"] += worded_in
            timing["queue"] = (started - work.since) * 1000
            done.append(Done(first.model, result, picture if first.keep else None, timing, len(works)))
        return done

    def _load_words(
        self, session: Session, works: Sequence[Work], request: SegmentRequest, go_on: Callable[[], None]
    ) -> None:
        for work in works:
            work.fate.at_words = True
        session.load_words(request.words, request.background, go_on)
        for work in works:
            work.fate.at_words = False

    def _check(self, kept: Kept, model: str, request: SegmentRequest) -> None:
        """Whether an encoded picture is one of this model's. Raises RequestInvalid."""
        if kept.model != model:
            raise RequestInvalid(f"was encoded by the model {kept.model}", "name that, or encode it again", "handle")
        if kept.encoded.window != request.window:
            raise RequestInvalid(
                f"was encoded with the window {kept.encoded.window}", f"ask with window {kept.encoded.window}", "handle"
            )

    def _most(self, model: str) -> int:
        """Pictures of a call. On CPUs one by default: a batch costs as much there as its pictures one by one, on one core."""
        session = self.models[model].session
        own = session.bundle.batch.max
        return min(own, self.settings.max_batch or (1 if session.backend.effective == "onnxruntime-cpu" else own))
