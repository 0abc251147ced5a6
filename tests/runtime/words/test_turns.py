"""Threads with words: those that are cached wait for nobody, new ones take turns, and each is encoded once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusioner_rt import Session
from fusioner_rt.words.turns import Turns


class SlowGraph:
    """The text graph, which runs when it is let. ran: the words' runs, by their first token ids."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.let, self.running = threading.Semaphore(0), threading.Event()
        self.ran: list[bytes] = []

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.running.set()
        assert self.let.acquire(timeout=30)
        self.ran.append(inputs["input_ids"].tobytes())
        return dict(self._graph(inputs))


@pytest.fixture
def slow(tiny_bundle: Path) -> Iterator[tuple[Session, SlowGraph]]:
    with Session(tiny_bundle, cache=False) as session:
        session.set_vocabulary("cat")
        graph = SlowGraph(session._text._load())
        session._text._load = lambda: graph
        yield session, graph


def threads(*works: Any) -> list[threading.Thread]:
    started = []
    for work in works:
        started.append(threading.Thread(target=work))
        started[-1].start()
    return started


def test_cached_words_wait_for_no_new_one(slow: tuple[Session, SlowGraph]) -> None:
    session, graph = slow
    (busy,) = threads(lambda: session._encode_words([f"thing {n}" for n in range(5)], None))
    assert graph.running.wait(30)
    assert session._encode_words("cat", None).vectors.shape[0] == 1  # hangs where it waits for the five
    for _ in range(5):
        graph.let.release()
    busy.join(30)
    assert not busy.is_alive()


def test_cached_words_wait_for_no_long_list_that_is_tokenized(
    slow: tuple[Session, SlowGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, graph = slow
    graph.let.release()
    tokenizing, go_on = threading.Event(), threading.Event()
    ids = session._text._tokenizer.ids

    def slowly(prompts: list[str]) -> list[list[int]]:
        tokenizing.set()
        assert go_on.wait(30)
        return ids(prompts)

    monkeypatch.setattr(session._text._tokenizer, "ids", slowly)
    (busy,) = threads(lambda: session._encode_words("thing", None))
    assert tokenizing.wait(30)
    answered = threads(lambda: session._encode_words("cat", None))
    answered[0].join(10)
    waited = answered[0].is_alive()
    go_on.set()
    for thread in (busy, *answered):
        thread.join(30)
    assert not waited


def test_a_new_word_waits_for_one_other_and_not_for_the_list_it_stands_in(slow: tuple[Session, SlowGraph]) -> None:
    session, graph = slow
    (many,) = threads(lambda: session._encode_words([f"thing {n}" for n in range(9)], None))
    assert graph.running.wait(30)
    (one,) = threads(lambda: session._encode_words("dog", None))
    while len(session._text._encoding._waiting) < 2:
        time.sleep(0.001)
    graph.let.release()
    graph.let.release()
    one.join(30)
    assert not one.is_alive()
    assert many.is_alive()
    for _ in range(8):
        graph.let.release()
    many.join(30)


def test_the_same_new_words_of_many_threads_are_encoded_once(slow: tuple[Session, SlowGraph]) -> None:
    session, graph = slow
    for _ in range(100):
        graph.let.release()
    found: list[np.ndarray] = []
    for thread in threads(*[lambda: found.append(session._encode_words("dog, sofa, red car", None).vectors)] * 8):
        thread.join(30)
    assert len(graph.ran) == 3
    assert all((vectors == found[0]).all() for vectors in found)


def test_an_error_or_an_interrupt_gives_the_turn_back() -> None:
    turns = Turns()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), turns:
            raise error
    with turns:
        waiting = Turns.__enter__
        blocked = threading.Thread(target=lambda: waiting(turns))
        blocked.start()
        while len(turns._waiting) < 2:
            time.sleep(0.001)
        interrupted = turns._change.wait_for

        def interrupt(_: Any) -> bool:
            raise KeyboardInterrupt

        turns._change.wait_for = interrupt  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            turns.__enter__()
        turns._change.wait_for = interrupted  # type: ignore[method-assign]
        assert len(turns._waiting) == 2
    blocked.join(30)
    assert not blocked.is_alive()
