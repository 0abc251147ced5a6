"""The queue of a service: pictures that one call can segment wait for each other, a moment, and run together."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .errors import DeadlinePassed, ServiceFull

Item = TypeVar("Item")
Result = TypeVar("Result")
_Taken = TypeVar("_Taken", contravariant=True)
_Given = TypeVar("_Given", covariant=True)


class Batcher(Protocol[_Taken, _Given]):
    """What a service needs of its queue."""

    @property
    def waiting(self) -> int:
        """Items that wait. Threads may ask."""

    @property
    def running(self) -> int:
        """Items that run."""

    async def submit(self, item: _Taken, key: str, most: int, until: float, alone: bool) -> _Given:
        """The item's result. key: of items that may share a group, of at most `most`. until: as of time.monotonic.

        alone: no other request is on its way, so that none is waited for. Raises DeadlinePassed, and what running raises.
        """

    async def close(self) -> None:
        """Wait for what runs."""


@dataclass(eq=False)
class Job(Generic[Item, Result]):
    """An item in the queue. group: its key, and the most items of its group."""

    item: Item
    group: tuple[str, int]
    since: float
    done: "asyncio.Future[Result]" = field(repr=False)


class Batches(Generic[Item, Result]):
    """The `Batcher` that runs items in threads. Of one event loop; nothing in it waits but its callers."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], list[Result]],
        concurrency: int,
        max_wait: float,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """run: of a group, in a thread: a result each, in order. concurrency: groups that run at once.

        max_wait: seconds that an item waits for others while a thread is free. observe: is told each group's size.
        """
        self._run, self._concurrency, self._max_wait, self._observe = run, concurrency, max_wait, observe
        self._threads = ThreadPoolExecutor(concurrency, "segment")
        self._waiting: dict[tuple[str, int], list[Job[Item, Result]]] = {}
        self._running = self._items = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        return sum(map(len, list(self._waiting.values())))  # a list, as other threads ask

    @property
    def running(self) -> int:
        return self._items

    async def submit(self, item: Item, key: str, most: int, until: float, alone: bool) -> Result:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if now >= until:
            raise deadline_passed()
        job = Job[Item, Result](item, (key, most), now if not alone else now - self._max_wait, loop.create_future())
        try:
            async with asyncio.timeout(until - now):
                await self._enter(job, alone)
                return await job.done
        except TimeoutError:
            raise deadline_passed() from None
        finally:
            self._drop(job)

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._threads.shutdown)

    async def _enter(self, job: Job[Item, Result], alone: bool) -> None:
        self._put([job])

    def _put(self, jobs: Sequence[Job[Item, Result]]) -> None:
        """Let them wait, and run what can be run."""
        for job in jobs:
            self._waiting.setdefault(job.group, []).append(job)
        self._start()

    def _drop(self, job: Job[Item, Result]) -> None:
        """What nobody waits for any more is not run."""
        group = self._waiting.get(job.group)
        if group and job in group:
            group.remove(job)
            if not group:
                del self._waiting[job.group]

    def _start(self) -> None:
        """Run groups while threads are free: full ones, and those whose first has waited long enough, the oldest first."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._running < self._concurrency:
            now = time.monotonic()
            ready = [
                key
                for key, jobs in self._waiting.items()
                if len(jobs) >= key[1] or now >= jobs[0].since + self._max_wait
            ]
            if not ready:
                first = min(jobs[0].since for jobs in self._waiting.values())
                self._timer = asyncio.get_running_loop().call_later(first + self._max_wait - now, self._start)
                return
            key = min(ready, key=lambda key: self._waiting[key][0].since)
            group, most = self._waiting[key], key[1]
            taken, rest = group[:most], group[most:]
            if rest:
                self._waiting[key] = rest
            else:
                del self._waiting[key]
            self._running += 1
            self._items += len(taken)
            self._observe(len(taken))
            task = asyncio.get_running_loop().create_task(self._finish(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, jobs: list[Job[Item, Result]]) -> None:
        try:
            for job, answer in await self._answers(jobs):
                if job.done.done():
                    continue
                if isinstance(answer, Exception):
                    job.done.set_exception(answer)
                else:
                    job.done.set_result(answer)
        finally:
            self._running -= 1
            self._items -= len(jobs)
            self._start()

    async def _answers(self, jobs: list[Job[Item, Result]]) -> list[tuple[Job[Item, Result], Result | Exception]]:
        try:
            items = [job.item for job in jobs]
            results = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, items)
            return list(zip(jobs, results, strict=True))
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0], error)]
        # One item's error is not the others'.
        return [pair for job in jobs if not job.done.done() for pair in await self._answers([job])]


class Places:
    """How many pictures may be at hand at once: those that run and those that wait."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def check(self, count: int = 1) -> None:
        """Raises ServiceFull."""
        if self.taken + count > self.most:
            raise ServiceFull(
                f"{self.taken} pictures are at hand, this service takes {self.most}", "send it again later"
            )

    @contextmanager
    def several(self, count: int = 1) -> Iterator[None]:
        """Take places. Raises ServiceFull."""
        self.check(count)
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


def deadline_passed() -> DeadlinePassed:
    return DeadlinePassed("the answer was not ready in time", "send it again later, or ask for less in one request")


def words_late() -> DeadlinePassed:
    return DeadlinePassed(
        "were not all encoded in time",
        "send the request again, those that were encoded are kept; or give fewer new words at once",
        "words",
    )
