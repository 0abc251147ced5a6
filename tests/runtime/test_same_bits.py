"""What of a result is the same bit for bit on the CPU, and how far it may be off where it is not (docs/cpu.md)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner_rt import Segmentation, Session

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
PHOTOGRAPHS = sorted((ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "cat, sofa, person, wall, cup, spoon, table, rocket, helmet, window"
ALIKE, OTHER = (1, 2, 4), 3
ROUNDINGS = 2**-18
"""Of confidence: 64 roundings of a float32 below 1; 8e-7 is what was seen."""


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[int, Session]]:
    opened = {threads: Session(BUNDLE, "onnxruntime-cpu", threads=threads) for threads in (*ALIKE, OTHER)}
    for session in opened.values():
        session.set_vocabulary(WORDS)
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture(scope="module")
def squares() -> list[np.ndarray]:
    """The photographs at one size, so that a list of them runs as a batch."""
    return [np.asarray(Image.open(path).convert("RGB").resize((320, 320))) for path in PHOTOGRAPHS]


def bits(*results: Segmentation) -> list[str]:
    return [
        hashlib.sha256(b"".join(array.tobytes() for array in (one.labels, one.confidence, one.probabilities) if array is not None)).hexdigest()
        for one in results
    ]  # fmt: skip


IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_same_bits import BUNDLE, PHOTOGRAPHS, WORDS, Session, bits
with Session(BUNDLE, "onnxruntime-cpu", threads=int(sys.argv[2])) as session:
    print(*bits(*(session.segment(path, WORDS) for path in PHOTOGRAPHS)))
"""


@pytest.mark.parametrize("threads", [2, OTHER])
def test_the_same_call_with_as_many_threads_gives_the_same_bits(
    sessions: dict[int, Session], squares: list[np.ndarray], threads: int
) -> None:
    session = sessions[threads]
    alone = bits(*(session.segment(path) for path in PHOTOGRAPHS))
    assert len(set(alone)) == len(PHOTOGRAPHS) == 3
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(Path(__file__).parent), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.stdout.split() == alone, done.stderr
    assert bits(*(session.segment(encoded) for encoded in session.encode(list(PHOTOGRAPHS)))) == alone
    with ThreadPoolExecutor(4) as callers:
        assert bits(*callers.map(session.segment, PHOTOGRAPHS * 2)) == alone * 2
    assert bits(*session.segment(squares[::-1])[::-1]) == bits(*session.segment(squares))


def test_a_list_side_by_side_has_the_bits_of_its_pictures_alone(
    sessions: dict[int, Session], squares: list[np.ndarray]
) -> None:
    """Lists of some pictures and of many, which run a thread each, of one size and of several."""
    pictures = [*squares, *PHOTOGRAPHS] * 2
    for session in (sessions[2], sessions[OTHER]):
        alone = bits(*map(session.segment, pictures[:6])) * 2
        for _ in range(2):  # graphs for lanes are loaded by then
            assert bits(*session.segment(pictures)) == alone
        assert bits(*session.segment(np.stack(squares))) == alone[:3]
        assert bits(*(seen.result for seen in session.stream(pictures))) == alone


def test_one_two_and_four_threads_give_the_same_bits(sessions: dict[int, Session], squares: list[np.ndarray]) -> None:
    asked = [{}, {"mode": "independent"}, {"probabilities": True}, {"words": "cat"}, {"size": (1001, 77)}]
    expected, *others = (
        [
            bits(*(sessions[threads].segment(picture, **options) for picture in (*PHOTOGRAPHS, squares[0])))
            for options in asked
        ]
        for threads in ALIKE
    )
    assert others == [expected] * 2


def test_other_threads_differ_by_roundings(sessions: dict[int, Session], squares: list[np.ndarray]) -> None:
    others, pixels = 0, 0
    for picture in (*PHOTOGRAPHS, *squares):
        one, other = sessions[1].segment(picture), sessions[OTHER].segment(picture)
        assert np.abs(one.confidence - other.confidence).max() <= ROUNDINGS
        others, pixels = others + np.count_nonzero(one.labels != other.labels), pixels + one.labels.size
    assert others <= 1e-5 * pixels
