"""A fleet of services, simulated by SimPy: requests arrive, wait in bounded queues, run in groups, and replicas come and go.

A replica is a process of `fusioner-rt serve`: `calls` at once, groups of at most `max_batch` pictures whose first waits for others
at most `max_wait` where other requests are at hand, and `queue` pictures that may wait; beyond that it answers 503, and after
`deadline` 504. What a call takes is drawn from what was measured, and is worked off the slower the more is at hand. Times are
seconds.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import simpy


@dataclass(frozen=True)
class Work:
    """draw: seconds that a call of so many pictures takes where nothing else is at hand.

    speed: how fast a call is worked off, of that, by how many requests are at hand in its replica.
    """

    draw: Callable[[int], float]
    speed: Callable[[int], float] = lambda at_hand: 1.0


_SAME = 1e-9  # seconds: a clock that adds floats may fall this short


@dataclass(frozen=True)
class Replica:
    """One process, by the options of `fusioner-rt serve`."""

    calls: int = 2
    max_batch: int = 1
    max_wait: float = 0.003
    queue: float = 64
    deadline: float = 30.0

    @property
    def places(self) -> float:
        """Pictures that may be at hand: those that run and those that wait."""
        return self.queue + self.calls * self.max_batch


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are: `least` at first, and up to `most`.

    target: requests at hand that each shall have, by the mean of the last `every` seconds. delay: seconds that more were wanted
    before more are started. start: seconds until one that is started takes requests. cool_down: seconds that fewer were
    wanted before some leave; one that leaves finishes what it has.
    """

    least: int = 1
    most: int = 1
    target: float = 2.0
    every: float = 1.0
    delay: float = 5.0
    start: float = 10.0
    cool_down: float = 60.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of n requests.

    arrived: (n,) seconds. waited: (n,) seconds from arrival to answer. status: (n,) 200, 503 or 504.
    seconds: until the last was answered. at_hand: requests at hand, the mean over time. busy: seconds of calls.
    replica_seconds: of replicas, from their start on. groups: calls by their pictures. replicas: of every change, when, and
    how many take requests.
    """

    arrived: np.ndarray
    waited: np.ndarray
    status: np.ndarray
    seconds: float
    at_hand: float
    busy: float
    replica_seconds: float
    groups: Mapping[int, int]
    replicas: Sequence[tuple[float, int]]

    def told(self, after: float = 0.0) -> dict[str, Any]:
        """Answers a second, percentiles in ms and shares of refusals, of requests that arrived `after` seconds or later."""
        counted = self.arrived >= after
        return summary(self.arrived[counted] - after, self.waited[counted], self.status[counted])


def summary(arrived: np.ndarray, waited: np.ndarray, status: np.ndarray) -> dict[str, Any]:
    """Of requests simulated or measured, as `Outcome` has them. Answers a second: until the last was answered."""
    done, count = status == 200, max(1, len(status))
    last = float((arrived + waited)[done].max(initial=0.0))
    waits = {
        f"p{q}_ms": round(float(np.percentile(waited[done], q)) * 1000, 1) if done.any() else None for q in (50, 99)
    }
    return {
        "requests": len(status), "answers_a_second": round(int(done.sum()) / last, 2) if last else 0.0, **waits,
        **{f"share_{code}": round(int((status == code).sum()) / count, 4) for code in (503, 504)},
    }  # fmt: skip


def poisson(rates: Sequence[float], seconds: float, seed: int) -> np.ndarray:
    """Times of arrivals, sorted: at each rate, requests a second, in its turn for `seconds`."""
    made, drawn = np.random.default_rng(seed), []
    for turn, rate in enumerate(rates):
        count = made.poisson(rate * seconds)  # given their number, the times are uniform
        drawn.append(np.sort(made.uniform(0, seconds, count)) + turn * seconds)
    return np.concatenate(drawn)


@dataclass(frozen=True)
class Measured:
    """A replica of `calls` calls at once, as it was measured.

    seconds: of each answer to one client, who asked again once it was answered. rates: answers a second by how many such clients
    asked, of one at least.
    """

    calls: int
    seconds: Sequence[float]
    rates: Mapping[int, float]

    @property
    def capacity(self) -> float:
        """Answers a second where there is always something to do."""
        return self.rates[max(self.rates)]

    def work(self, further: float = 1.0, seed: int = 0) -> Work:
        """further: what each further picture of a group costs of what it costs alone, 1 where a batch saves nothing.

        Between two numbers of clients the larger tells the speed, beyond the most that.
        """
        made, clients = random.Random(seed), sorted(self.rates)
        speeds = [self.rates[count] / self.rates[1] / min(count, self.calls) for count in clients]

        def draw(pictures: int) -> float:
            return made.choice(self.seconds) + further * sum(made.choice(self.seconds) for _ in range(pictures - 1))

        return Work(draw, lambda at_hand: speeds[min(bisect_left(clients, at_hand), len(speeds) - 1)])


def simulate(
    arrivals: Iterable[float], replica: Replica, work: Work, scaling: Scaling | None = None, seed: int = 0
) -> Outcome:
    """Run until every request is answered. seed: of the choice among replicas: of two by chance the one with less at hand."""
    fleet = _Fleet(simpy.Environment(), replica, work, scaling or Scaling(), random.Random(seed))
    return fleet.outcome([float(at) for at in arrivals])


@dataclass(eq=False)
class _Request:
    number: int
    arrived: float
    ready: float = 0.0  # when it no longer waits for others to share its call


class _Station:
    """A replica. Its calls share a clock that runs at their speed: each ends when that has gone on by what it takes."""

    def __init__(
        self, env: simpy.Environment, replica: Replica, work: Work, answer: Callable[[_Request, int], None]
    ) -> None:
        self._env, self._replica, self._work, self._answer = env, replica, work, answer
        self._waiting: deque[_Request] = deque()
        self._running: list[tuple[float, int, list[_Request]]] = []  # a heap: when by the clock, a number, of whom
        self._clock = self._since = 0.0
        self._speed, self._begun = 1.0, 0
        self.taken = 0
        self.busy = 0.0
        self.groups: Counter[int] = Counter()
        self._changed = env.event()
        env.process(self._serve())

    def offer(self, request: _Request) -> None:
        """Take a request, or refuse it."""
        self._drop_late()
        if self.taken + 1 > self._replica.places:
            self._answer(request, 503)
            return
        alone = self.taken == len(self._waiting)  # as the service: who has no company waits for none
        request.ready = self._env.now + (0 if alone else self._replica.max_wait)
        self.taken += 1
        self._waiting.append(request)
        if not self._changed.triggered:
            self._changed.succeed()

    def _serve(self) -> Iterator[simpy.Event]:
        while True:
            passed, self._since = self._env.now - self._since, self._env.now
            self._clock += passed * self._speed
            self.busy += passed * len(self._running)
            self._end_calls()
            self._drop_late()
            wait = self._start_calls()
            self._speed = self._work.speed(self.taken)
            if self._running:
                wait = min(wait, (self._running[0][0] - self._clock) / self._speed)
            yield self._changed if wait == math.inf else self._changed | self._env.timeout(max(wait, 0.0))
            if self._changed.triggered:
                self._changed = self._env.event()

    def _end_calls(self) -> None:
        while self._running and self._running[0][0] <= self._clock + _SAME:
            _, _, group = heappop(self._running)
            self.taken -= len(group)
            for request in group:
                self._answer(request, 200 if self._env.now - request.arrived <= self._replica.deadline else 504)

    def _start_calls(self) -> float:
        """Start what can start. Returns how long the next group may wait for others, where it waits for nothing else."""
        most = self._replica.max_batch
        while self._waiting and len(self._running) < self._replica.calls:
            wait = self._waiting[0].ready - self._env.now
            if wait > _SAME and len(self._waiting) < most:
                return wait
            group = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._begun += 1
            self.groups[len(group)] += 1
            heappush(self._running, (self._clock + self._work.draw(len(group)), self._begun, group))
        return math.inf

    def _drop_late(self) -> None:
        while self._waiting and self._env.now - self._waiting[0].arrived > self._replica.deadline:
            self.taken -= 1
            self._answer(self._waiting.popleft(), 504)


class _Fleet:
    """All replicas, what arrives, and what becomes of it."""

    def __init__(
        self, env: simpy.Environment, replica: Replica, work: Work, scaling: Scaling, made: random.Random
    ) -> None:
        self._env, self._replica, self._work, self._scaling, self._random = env, replica, work, scaling, made
        self._stations: list[_Station] = []
        self._left: list[_Station] = []
        self._starting = 0
        self._at_hand, self._area, self._since = 0, 0.0, 0.0
        self._bought, self._replica_seconds = 0, 0.0
        self._history: list[tuple[float, int]] = []
        for _ in range(scaling.least):
            self._bought += 1
            self._open()

    def outcome(self, arrivals: list[float]) -> Outcome:
        count = len(arrivals)
        self._waited, self._status = np.zeros(count), np.zeros(count, np.int64)
        self._open_requests, self._ended = count, self._env.event()
        if self._scaling.most > self._scaling.least:
            self._env.process(self._scale())
        self._env.process(self._arrive(arrivals))
        if count:
            self._env.run(until=self._ended)
        self._count(0)
        seconds, every = self._env.now, [*self._stations, *self._left]
        groups: Counter[int] = sum((station.groups for station in every), Counter())
        return Outcome(
            np.array(arrivals), self._waited, self._status, seconds, self._area / seconds if seconds else 0.0,
            sum(station.busy for station in every), self._replica_seconds, dict(groups), self._history,
        )  # fmt: skip

    def _arrive(self, arrivals: list[float]) -> Iterator[simpy.Event]:
        for number, at in enumerate(arrivals):
            yield self._env.timeout(max(0.0, at - self._env.now))
            self._count(1)
            two = self._random.sample(self._stations, min(2, len(self._stations)))
            min(two, key=lambda station: station.taken).offer(_Request(number, at))

    def _answer(self, request: _Request, status: int) -> None:
        self._count(-1)
        self._waited[request.number], self._status[request.number] = self._env.now - request.arrived, status
        self._open_requests -= 1
        if not self._open_requests:
            self._ended.succeed()

    def _count(self, more: int) -> None:
        """Requests at hand change by `more`; the integrals over time go on to now."""
        passed, self._since = self._env.now - self._since, self._env.now
        self._area += self._at_hand * passed
        self._replica_seconds += self._bought * passed
        self._at_hand += more

    def _open(self) -> None:
        self._stations.append(_Station(self._env, self._replica, self._work, self._answer))
        self._history.append((self._env.now, len(self._stations)))

    def _scale(self) -> Iterator[simpy.Event]:
        rule, more, fewer, before = self._scaling, 0.0, 0.0, 0.0
        while True:
            yield self._env.timeout(rule.every)
            self._count(0)
            wanted = math.ceil((self._area - before) / rule.every / rule.target)
            wanted, before = min(max(wanted, rule.least), rule.most), self._area
            there = len(self._stations) + self._starting
            more = more + rule.every if wanted > there else 0.0
            fewer = fewer + rule.every if wanted < there else 0.0
            if more >= rule.delay and wanted > there:
                more = 0.0
                for _ in range(wanted - there):
                    self._env.process(self._begin())
            elif fewer >= rule.cool_down and wanted < there and not self._starting:
                fewer = 0.0
                for _ in range(there - wanted):
                    self._env.process(self._leave())

    def _begin(self) -> Iterator[simpy.Event]:
        self._count(0)
        self._bought += 1
        self._starting += 1
        yield self._env.timeout(self._scaling.start)
        self._starting -= 1
        self._open()

    def _leave(self) -> Iterator[simpy.Event]:
        """The youngest takes no more requests, and ends with its last."""
        station = self._stations.pop()
        self._left.append(station)
        self._history.append((self._env.now, len(self._stations)))
        while station.taken:
            yield self._env.timeout(self._scaling.every)
        self._count(0)
        self._bought -= 1
