"""The simulation of fleets against the laws of queues: exact recursions, Erlang's and Khinchin's formulas, Little's law."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet_simulation import Measured, Outcome, Replica, Scaling, Work, poisson, simulate

UNBOUNDED = {"queue": math.inf, "deadline": math.inf}
rounds = settings(deadline=None, max_examples=40)
gaps = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 2)), min_size=1, max_size=60)
replicas = st.builds(
    Replica, st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0, 2, 10, math.inf]),
    st.sampled_from([0.8, 5.0, math.inf]),
)  # fmt: skip


def drawn(seconds: Sequence[float]) -> Work:
    """One after the other, at one speed."""
    left: Iterator[float] = iter(itertools.cycle(seconds))
    return Work(lambda pictures: next(left))


def exponential(mean: float, seed: int) -> Work:
    return drawn(np.random.default_rng(seed).exponential(mean, 1_000_000).tolist())


def waits(found: Outcome, seconds: np.ndarray | float) -> np.ndarray:
    """Seconds before the call began."""
    return found.waited - seconds


@given(gaps, st.lists(st.floats(0.001, 2), min_size=1, max_size=20), st.integers(1, 4))
@rounds
def test_waits_are_those_of_the_recursion_for_servers_in_order_of_arrival(
    between: list[float], seconds: list[float], servers: int
) -> None:
    """Kiefer and Wolfowitz's: of the servers' times to be free, the request takes the first. With one server it is Lindley's."""
    arrivals = np.cumsum(between)
    found = simulate(arrivals, Replica(calls=servers, **UNBOUNDED), drawn(seconds))
    free, expected = [0.0] * servers, []
    for at, takes in zip(arrivals, itertools.cycle(seconds)):
        begins = max(at, min(free))
        free[free.index(min(free))] = begins + takes
        expected.append(begins + takes - at)
    np.testing.assert_allclose(found.waited, expected, atol=1e-6)
    assert set(found.status) == {200}
    assert found.seconds == pytest.approx(max(free))


@given(gaps, st.lists(st.floats(0.01, 2), min_size=1, max_size=20), replicas, st.integers(1, 3), st.integers(0, 99))
@rounds
def test_littles_law_holds_on_every_path_and_every_request_is_answered(
    between: list[float], seconds: list[float], replica: Replica, count: int, seed: int
) -> None:
    """Requests at hand, over time, are what all requests waited together: both sum the same area."""
    arrivals = np.cumsum(between)
    found = simulate(arrivals, replica, drawn(seconds), Scaling(count, count), seed)
    assert found.at_hand * found.seconds == pytest.approx(found.waited.sum(), abs=1e-6)
    assert set(found.status) <= {200, 503, 504}
    assert (found.waited >= 0).all()
    assert (found.waited[found.status == 503] == 0).all()
    assert (found.waited[found.status == 504] > replica.deadline).all()
    assert (found.waited[found.status == 200] <= replica.deadline + 1e-6).all()
    assert sum(size * calls for size, calls in found.groups.items()) <= (found.status != 503).sum()
    assert max(found.groups, default=1) <= replica.max_batch
    assert found.busy <= count * replica.calls * found.seconds + 1e-6
    assert found.replica_seconds == pytest.approx(count * found.seconds)


@given(gaps, st.lists(st.floats(0.01, 2), min_size=1, max_size=20), st.integers(0, 5), st.integers(1, 3))
@rounds
def test_no_server_idles_while_a_request_waits(
    between: list[float], seconds: list[float], queue: int, servers: int
) -> None:
    """From every path: while somebody waits to begin, as many calls as there are servers run."""
    arrivals = np.cumsum(between)
    begun: list[float] = []
    left = itertools.cycle(seconds)
    taken: list[float] = []

    def draw(pictures: int) -> float:
        taken.append(next(left))
        return taken[-1]

    found = simulate(arrivals, Replica(calls=servers, queue=queue, deadline=math.inf), Work(draw))
    done = found.status == 200
    ends = (found.arrived + found.waited)[done]
    begun = (ends - np.array(taken)).tolist()  # calls begin in the order of arrival
    for at, begins in zip(found.arrived[done], begun, strict=True):
        assert begins >= at - 1e-6
        if begins > at + 1e-6:
            middle = (at + begins) / 2
            assert sum(start <= middle < end for start, end in zip(begun, ends, strict=True)) == servers
    for at in found.arrived[~done]:
        there = (found.arrived[done] <= at) & (ends > at - 1e-9)  # who comes as a call ends may come before it
        assert there.sum() >= servers + queue, "refused though there was room"


def mean_wait(servers: int, load: float, takes: float) -> float:
    """Of M/M/c by Erlang's C; with one server load · takes / (1 − load)."""
    offered = servers * load
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    return last / (sum(terms) + last) * takes / (servers * (1 - load))


def near(values: np.ndarray, expected: float) -> None:
    """The mean of a path's values, which depend on each other: within five standard errors, by means of 25 blocks."""
    means = np.array([block.mean() for block in np.array_split(values, 25)])
    assert abs(means.mean() - expected) <= 5 * means.std(ddof=1) / math.sqrt(len(means))
    assert means.std(ddof=1) < expected, "the bound says something"


@pytest.mark.parametrize(("servers", "load"), [(1, 0.3), (1, 0.7), (2, 0.6), (4, 0.8)])
def test_exponential_calls_wait_as_erlang_says(servers: int, load: float) -> None:
    takes = 0.04
    rate = servers * load / takes
    arrivals = poisson([rate], 25_000 / rate, seed=3)
    made = np.random.default_rng(4).exponential(takes, len(arrivals))
    found = simulate(arrivals, Replica(calls=servers, **UNBOUNDED), drawn(made.tolist()))
    near(waits(found, made), mean_wait(servers, load, takes))


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_calls_that_all_take_the_same_wait_half_as_long(load: float) -> None:
    """M/D/1, by Pollaczek and Khinchin."""
    takes = 0.04
    arrivals = poisson([load / takes], 25_000 * takes / load, seed=5)
    found = simulate(arrivals, Replica(calls=1, **UNBOUNDED), drawn([takes]))
    near(waits(found, takes), load * takes / (2 * (1 - load)))


@pytest.mark.parametrize(("servers", "offered"), [(1, 0.5), (2, 1.5), (4, 5.0)])
@pytest.mark.parametrize("law", ["exponential", "constant"])
def test_without_a_queue_the_share_of_503_is_erlangs_loss_whatever_law_calls_follow(
    servers: int, offered: float, law: str
) -> None:
    takes = 0.04
    rate = offered / takes
    arrivals = poisson([rate], 25_000 / rate, seed=6)
    work = exponential(takes, 7) if law == "exponential" else drawn([takes])
    found = simulate(arrivals, Replica(calls=servers, queue=0, deadline=math.inf), work)
    terms = [offered**k / math.factorial(k) for k in range(servers + 1)]
    near((found.status == 503).astype(float), terms[-1] / sum(terms))


def test_with_a_queue_the_share_of_503_is_that_of_a_birth_and_death_process() -> None:
    servers, queue, offered, takes = 2, 5, 2.4, 0.04
    arrivals = poisson([offered / takes], 25_000 * takes / offered, seed=8)
    found = simulate(arrivals, Replica(calls=servers, queue=queue, deadline=math.inf), exponential(takes, 9))
    weights = [1.0]
    for at_hand in range(1, servers + queue + 1):
        weights.append(weights[-1] * offered / min(at_hand, servers))
    near((found.status == 503).astype(float), weights[-1] / sum(weights))


@given(gaps, st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.integers(1, 3), st.integers(0, 4))
@rounds
def test_with_batches_of_one_the_longest_wait_for_others_changes_nothing(
    between: list[float], seconds: list[float], calls: int, queue: int
) -> None:
    arrivals = np.cumsum(between)
    found = [
        simulate(arrivals, Replica(calls, 1, wait, queue), drawn(seconds)) for wait in (0.0, 0.003, 100.0)
    ]  # fmt: skip
    for other in found[1:]:
        np.testing.assert_array_equal(other.waited, found[0].waited)
        np.testing.assert_array_equal(other.status, found[0].status)


def test_a_group_runs_when_it_is_full_or_its_first_has_waited_long_enough_and_who_is_alone_waits_for_none() -> None:
    replica = Replica(calls=2, max_batch=2, max_wait=0.5, **UNBOUNDED)
    found = simulate([0, 1, 1.1, 1.2, 5], replica, drawn([10]))
    # Who comes at 0 is alone. Who comes at 1 waits though a call is free, for company, which comes at 1.1. Then both calls are busy.
    np.testing.assert_allclose(found.arrived + found.waited, [10, 11.1, 11.1, 20, 20])
    assert found.groups == {1: 1, 2: 2}
    found = simulate([0, 1, 9], replica, drawn([10]))
    np.testing.assert_allclose(found.arrived + found.waited, [10, 11.5, 20])  # nobody came within half a second


def test_batches_whose_further_pictures_cost_little_bear_more_than_single_pictures() -> None:
    arrivals = poisson([60], 60, seed=1)
    known = Measured(2, [0.03, 0.04], {1: 1 / 0.035, 2: 2 / 0.055})
    one, many = (simulate(arrivals, Replica(2, most, 0.003, 16), known.work(0.3, 1)).told() for most in (1, 8))
    assert one["share_503"] > 0.3
    assert many["share_503"] == 0
    assert many["answers_a_second"] > 1.3 * one["answers_a_second"]


def test_work_is_as_fast_as_it_was_measured_beside_as_much() -> None:
    """Two calls: one client has 1 answer a second, two have 1.6, four have 2."""
    known = Measured(2, [1.0], {1: 1, 2: 1.6, 4: 2})
    assert known.capacity == 2
    work = known.work(0.5)
    assert [work.draw(1), work.draw(3)] == [1, 2]
    assert [work.speed(at_hand) for at_hand in (1, 2, 3, 4, 50)] == pytest.approx([1, 0.8, 1, 1, 1])


@given(st.lists(st.floats(0.01, 0.2), min_size=1, max_size=5), st.floats(0.5, 3), st.integers(1, 3))
@rounds
def test_clients_who_ask_again_are_answered_as_fast_as_it_was_measured(
    seconds: list[float], slower: float, calls: int
) -> None:
    """A replica that has always as much at hand gives back the rate it was measured with, whatever its queue."""
    alone = 1 / float(np.mean(seconds))
    known = Measured(calls, seconds, {1: alone, calls + 1: slower * alone})
    found = simulate([0.0] * 400, Replica(calls, **UNBOUNDED), known.work())
    assert 400 / found.seconds == pytest.approx(known.capacity, rel=0.2)
    assert known.capacity == slower * alone


@given(gaps, st.integers(1, 4), st.sampled_from([0.5, 1.0]))
@rounds
def test_a_shared_processor_is_shared(between: list[float], calls: int, takes: float) -> None:
    """Calls at 1/n of the speed when n are at hand are served by one processor, which idles only where nothing is at hand."""
    arrivals = np.cumsum(between)
    one = simulate(arrivals, Replica(calls=1, **UNBOUNDED), drawn([takes]))
    shared = Work(lambda pictures: takes, lambda at_hand: 1 / max(1, min(at_hand, calls)))
    many = simulate(arrivals, Replica(calls=calls, **UNBOUNDED), shared)
    assert many.seconds == pytest.approx(one.seconds, abs=1e-6)


@given(st.integers(0, 2**32 - 1), replicas, st.integers(1, 3), st.integers(0, 3))
@rounds
def test_the_same_seed_gives_the_same_and_another_another(seed: int, replica: Replica, least: int, more: int) -> None:
    def run(of: int) -> Outcome:
        arrivals = poisson([20, 60], 2, of)
        scaling = Scaling(least, least + more, every=0.5, delay=0.5, start=0.5, cool_down=0.5)
        return simulate(arrivals, replica, Measured(2, [0.02, 0.05], {1: 28, 2: 31}).work(1, of), scaling, of)

    one, again, other = run(seed), run(seed), run(seed + 1)
    assert one.waited.tobytes() == again.waited.tobytes()
    assert (one.groups, one.replicas, one.replica_seconds) == (again.groups, again.replicas, again.replica_seconds)
    assert one.arrived.tobytes() != other.arrived.tobytes()


def test_arrivals_are_poissons_at_each_rate_in_its_turn() -> None:
    drawn_at = poisson([100, 0.001, 400], 50, seed=2)
    counts = np.histogram(drawn_at, bins=150, range=(0, 150))[0]
    assert (np.diff(drawn_at) >= 0).all()
    assert counts[50:100].sum() <= 2
    for one, rate in ((counts[:50], 100), (counts[100:], 400)):
        assert abs(one.mean() - rate) < 5 * math.sqrt(rate / 50)
        assert 0.5 < one.var() / rate < 2


def test_replicas_are_added_for_a_peak_after_their_delays_and_leave_after_it() -> None:
    rule = Scaling(1, 4, target=2, every=1, delay=3, start=10, cool_down=20)
    arrivals = poisson([10, 150, 10], 100, seed=3)
    found = simulate(arrivals, Replica(2, queue=64), drawn([0.05]), rule)
    times, counts = zip(*found.replicas, strict=True)
    assert max(counts) == 4
    grown = next(at for at, count in found.replicas if count > 1)
    assert 113 <= grown <= 116  # 100, a look, more wanted for 3 s, 10 s to start
    assert counts[-1] == 1
    assert 220 <= max(times) <= 240
    assert all(1 <= count <= 4 for count in counts)
    fixed = simulate(arrivals, Replica(2, queue=64), drawn([0.05]), Scaling(4, 4))
    assert fixed.told()["share_503"] == 0 < found.told()["share_503"]
    assert found.replica_seconds < 0.6 * fixed.replica_seconds
    at_peak = (found.arrived > 130) & (found.arrived < 200)
    assert (found.status[at_peak] == 200).all(), "four replicas bear it"


def test_a_replica_that_leaves_finishes_what_it_has() -> None:
    rule = Scaling(1, 3, target=1, every=1, delay=1, start=0, cool_down=1)
    arrivals = [*np.linspace(0, 3, 30), 30.0]
    found = simulate(arrivals, Replica(1, deadline=math.inf), drawn([5.0]), rule)
    assert (found.status == 200).all()
    assert found.replicas[-1][1] == 1


def test_nothing_arrives() -> None:
    found = simulate([], Replica(), drawn([1]))
    assert (found.seconds, found.at_hand, found.told()["requests"], found.told()["p50_ms"]) == (0, 0, 0, None)
