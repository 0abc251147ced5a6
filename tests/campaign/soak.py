"""Soak: eight threads on one session, with new and cached words, handles, batches, forks; each result as one thread gives it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from fusioner_rt import Session
from fusioner_rt.errors import FusionerError

from .cases import Bench, Case
from .reference import WORDS, fingerprint, pictures, quick

THREADS, CALLS = 8, 3
Call = Callable[[Session], str]


def case(number: int, random: Random, bench: Bench) -> Case:
    session = bench.once("shared", lambda: _opened(bench))
    alone = bench.once("alone", lambda: _opened(bench))
    called = [[_call(random, bench, number) for _ in range(CALLS)] for _ in range(THREADS)]
    expected = [[call(alone) for _, call in calls] for calls in called]
    kinds = ", ".join(sorted({what for calls in called for what, _ in calls}))
    return Case(lambda: _soaked(session, called, expected), f"{THREADS} threads: {kinds}", seconds=120, hangs=180)


def _opened(bench: Bench) -> Session:
    return Session(quick(bench), cache=False, threads=2, backend="onnxruntime-cpu")


def _soaked(session: Session, called: list[list[tuple[str, Call]]], expected: list[list[str]]) -> str | None:
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def work(calls: list[tuple[str, Call]], results: list[str]) -> None:
        start.wait()
        for (what, call), right in zip(calls, results, strict=True):
            try:
                if call(session) != right:
                    wrong.append(f"{what}: not what one thread gives")
            except BaseException as error:
                wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")

    threads = [threading.Thread(target=work, args=pair) for pair in zip(called, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "; ".join(sorted(set(wrong))) or None


def _call(random: Random, bench: Bench, number: int) -> tuple[str, Call]:
    """One call: what it is, and a function of a session that gives a digest of its results."""
    random = Random(random.random())
    picture = random.choice(pictures())
    words: Any = random.sample(WORDS, random.randint(1, 3))
    if new := random.random() < 0.15:
        words.append(f"{random.choice(WORDS)} {number} {random.randrange(1000)}")
    kind = random.choices(
        ("segment", "batch", "encoded", "size", "independent", "wrong", "fork", "session"), (6, 2, 3, 2, 2, 1, 0.3, 0.3)
    )[0]
    size = (random.randint(1, 200), random.randint(1, 200))
    calls: dict[str, Call] = {
        "segment": lambda session: fingerprint(session.segment(picture, words, probabilities=True)),
        "batch": lambda session: fingerprint(session.segment([picture, picture[:, ::-1], pictures()[0]], words)),
        "encoded": lambda session: fingerprint(session.segment(session.encode(picture), words, threshold=0.3)),
        "size": lambda session: fingerprint(session.segment(picture, words, size=size, background="wall")),
        "independent": lambda session: fingerprint(session.segment(picture, words, mode="independent")),
        "wrong": lambda session: _refused(session, np.zeros((0, 3, 3), np.uint8), words),
        "fork": lambda session: _forked(session, picture, words[:1]),
        "session": lambda session: _another(bench, picture, words[:1]),
    }
    return f"{kind}{' with a new word' if new else ''}", calls[kind]


def _refused(session: Session, picture: np.ndarray, words: Any) -> str:
    try:
        session.segment(picture, words)
    except FusionerError as error:
        return type(error).__name__
    return "taken"


def _another(bench: Bench, picture: np.ndarray, words: Any) -> str:
    with _opened(bench) as session:
        return fingerprint(session.segment(picture, words))


def _forked(session: Session, picture: np.ndarray, words: Any) -> str:
    """What a child says, that is forked while other threads work and ends by `close`."""
    read, write = os.pipe()
    if not (child := os.fork()):
        said = "an exception"
        try:
            said = fingerprint(session.segment(picture, words))
            session.close()
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    end = time.monotonic() + 60
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGABRT)  # it tells where it hangs
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "the child hangs"
        time.sleep(0.01)
    with os.fdopen(read) as stream:
        return stream.read()
