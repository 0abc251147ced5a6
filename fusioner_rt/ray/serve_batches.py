"""The queue of a replica, whose pictures wait for each other in Ray Serve's own, `@serve.batch`."""

from collections.abc import Callable, Sequence

from ray import serve

from ..serve.batching import Batches, Item, Job, Result


class ServeBatches(Batches[Item, Result]):
    """`Batches` that Ray Serve gathers: its batch is what came within `max_wait`, or as many as one call takes.

    It knows no keys, and closes a batch before a thread is free for it. So what it hands over goes to the groups of
    `Batches`, which grow until one is: no picture is run with others' words, waits for others' groups, or fails with them.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], list[Result]], concurrency: int, max_wait: float, observe: Callable[[int], None]
    ) -> None:  # fmt: skip
        super().__init__(run, concurrency, 0.0, observe)

        async def picture_batch(jobs: list[Job[Item, Result]]) -> list[None]:
            self._put(jobs)
            return [None] * len(jobs)

        self._gathered = serve.batch(max_batch_size=1, batch_wait_timeout_s=max_wait)(picture_batch)
        self._most = 1

    async def _enter(self, job: Job[Item, Result], alone: bool) -> None:
        most = job.group[1]
        if most == 1 or alone:
            self._put([job])
            return
        if most != self._most:  # of another model, or of larger label maps
            self._most = most
            self._gathered.set_max_batch_size(most)
        await self._gathered(job)
