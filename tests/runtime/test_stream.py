"""`Session.stream`: the frames of a source, in order, as `segment` gives them, and never more of them than was said."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt import EncodedPicture, Segmentation, Session
from fusioner_rt.errors import (
    FusionerError,
    PictureInvalid,
    PictureMissing,
    PictureTooLarge,
    PictureUnreadable,
    SessionClosed,
    UsageError,
    WordsInvalid,
)
from fusioner_rt.results.steadiness import Steadier
from fusioner_rt.stream import StreamedFrame, streamed

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
PHOTOGRAPHS = sorted((ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "cat, sofa, person"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(BUNDLE, "onnxruntime-cpu", threads=2) as opened:
        opened.set_vocabulary(WORDS)
        yield opened


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB").resize((90, 70))) for path in PHOTOGRAPHS]


def same(one: Any, other: Segmentation) -> bool:
    return bool(
        np.array_equal(one.labels, other.labels)
        and np.array_equal(one.confidence, other.confidence)
        and np.array_equal(one.picture, other.picture)
        and (one.words, one.threshold, one.mode, one.source, one.notes)
        == (other.words, other.threshold, other.mode, other.source, other.notes)
    )


def of_streams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fusioner-")]


def test_frames_of_every_kind_are_bit_for_bit_what_segment_gives(
    session: Session, photographs: list[np.ndarray]
) -> None:
    kinds = [
        *PHOTOGRAPHS, *photographs, PHOTOGRAPHS[0].read_bytes(), Image.open(PHOTOGRAPHS[1]), photographs[0][..., 0],
        session.encode(PHOTOGRAPHS[2]), *photographs[::-1],
    ]  # fmt: skip
    seen = list(session.stream(kinds))
    assert [one.index for one in seen] == list(range(len(kinds)))
    for one, kind in zip(seen, kinds, strict=True):
        expected = session.segment(kind)
        assert same(one.result, expected)
        assert np.array_equal(one.frame, expected.picture)
        assert (one.error, one.dropped) == (None, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (33, 47)},
        {"threshold": {"cat": 0.9}},
        {"mode": "independent"},
        {"words": "dog, grass|lawn", "background": "wall"},
        {"channels": "bgr"},
        {"probabilities": True},
    ],
)
def test_options_are_those_of_segment(session: Session, photographs: list[np.ndarray], options: dict[str, Any]) -> None:
    for one, picture in zip(session.stream(photographs, **options), photographs, strict=True):
        expected = session.segment(picture, **options)
        assert same(one.result, expected)
        if options.get("probabilities"):
            assert np.array_equal(one.result.probabilities, expected.probabilities)


def test_an_array_may_be_filled_with_the_next_frame(session: Session, photographs: list[np.ndarray]) -> None:
    def camera() -> Iterator[np.ndarray]:
        frame = np.empty_like(photographs[0])
        for picture in photographs * 2:
            frame[:] = picture
            yield frame

    for one, picture in zip(session.stream(camera(), ahead=6), photographs * 2, strict=True):
        assert same(one.result, session.segment(picture))


def test_bad_frames_are_told_and_passed(session: Session, photographs: list[np.ndarray], tmp_path: Path) -> None:
    huge = np.broadcast_to(np.uint8(0), (20_000, 20_000, 3))
    given: Any = PictureUnreadable("half of the packet is missing", subject="clip.mp4, frame 4")
    frames = [
        photographs[0],
        tmp_path / "none.jpg",
        b"no picture",
        photographs[1],
        given,
        np.zeros(3),
        huge,
        photographs[2],
    ]
    kinds = [None, PictureMissing, PictureUnreadable, None, PictureUnreadable, PictureInvalid, PictureTooLarge, None]
    seen = list(session.stream(frames))
    assert [type(one.error) if one.error else None for one in seen] == kinds
    assert [one.result is None for one in seen] == [kind is not None for kind in kinds]
    assert seen[4].error is given
    assert same(seen[-1].result, session.segment(photographs[2]))
    assert session.segment(photographs[0]).words


def test_what_fails_for_every_frame_is_raised(session: Session, photographs: list[np.ndarray]) -> None:
    for options, kind in (
        ({"words": ""}, WordsInvalid),
        ({"mode": "both"}, UsageError),
        ({"threshold": 2}, UsageError),
        ({"ahead": 0}, UsageError),
        ({"ahead": 1000}, UsageError),
        ({"live": "yes"}, UsageError),
        ({"window": "sliding"}, UsageError),
        ({"background": "wall"}, UsageError),
        ({"size": (80_000, 80_000)}, UsageError),
    ):
        with pytest.raises(kind):
            session.stream(photographs, **options)  # type: ignore[arg-type]
    for frames in ("clip.mp4", Path("clip.mp4"), b"RIFF", session.encode(photographs[0]), 7, None):
        with pytest.raises(UsageError, match="an iterable of pictures"):
            session.stream(frames)  # type: ignore[arg-type]
    assert not of_streams()
    with Session(BUNDLE, "onnxruntime-cpu", threads=1) as other:
        with pytest.raises(UsageError, match="no words"):
            other.stream(photographs)
        stream = other.stream(photographs * 9, WORDS)
        next(stream)
        other.close()
        with pytest.raises(SessionClosed):
            list(stream)
    with pytest.raises(SessionClosed):
        other.stream(photographs, WORDS)
    assert not of_streams()


def test_an_error_of_the_source_comes_after_the_frames_before_it(
    session: Session, photographs: list[np.ndarray]
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from photographs
        raise OSError("the cable is out")

    seen = []
    with pytest.raises(OSError, match="the cable is out"):
        seen.extend(one.index for one in session.stream(source()))
    assert seen == [] or seen == [0, 1, 2]
    collected: list[StreamedFrame] = []
    stream = session.stream(source())
    for _ in photographs:
        collected.append(next(stream))
    with pytest.raises(OSError, match="the cable is out"):
        next(stream)
    assert [one.index for one in collected] == [0, 1, 2]
    assert not of_streams()


def test_words_may_change_between_frames(session: Session, photographs: list[np.ndarray]) -> None:
    asked = ["cat", "sofa, person", "person"]

    def source() -> Iterator[np.ndarray]:
        for words in asked:
            session.set_vocabulary(words)
            yield photographs[0]
            time.sleep(0.01)  # the frame is taken before the source goes on

    try:
        seen = list(session.stream(source()))
        assert [one.result.words for one in seen] == [("cat",), ("sofa", "person"), ("person",)]
    finally:
        session.set_vocabulary(WORDS)


def test_steadied_frames_are_what_the_steadier_makes_of_them(session: Session, photographs: list[np.ndarray]) -> None:
    random = np.random.default_rng(0)
    frames: list[Any] = [
        np.clip(photographs[0] + random.normal(0, 12, photographs[0].shape), 0, 255).astype(np.uint8) for _ in range(9)
    ]
    frames.insert(4, b"no picture")
    steadier, changed = Steadier(0.8), 0
    for seen, frame in zip(session.stream(frames, steady=0.8), frames, strict=True):
        assert seen.instances is None
        if isinstance(frame, bytes):
            assert isinstance(seen.error, PictureUnreadable)
            continue
        plain = session.segment(frame)
        assert same(seen.result, steadier(plain))
        changed += not same(seen.result, plain)
    assert changed
    assert not of_streams()
    for steady in (-0.1, 1.1, True, "much", float("nan")):
        with pytest.raises(UsageError, match="0 to 1"):
            session.stream(photographs, steady=steady)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="track"):
        session.stream(photographs, track="yes")  # type: ignore[arg-type]


def test_a_stream_that_is_left_ends_its_threads_and_frees_its_frames(
    session: Session, photographs: list[np.ndarray]
) -> None:
    for options in ({}, {"steady": 0.5}):
        for one in session.stream(photographs * 100, **options):  # type: ignore[arg-type]
            if one.index == 2:
                break
        del one
        assert not of_streams()
    stream = session.stream(photographs * 100)
    kept = weakref.ref(next(stream).result)
    next(stream)
    gc.collect()
    assert kept() is None
    stream.close()
    assert not of_streams()
    session.stream(photographs)  # never begun
    assert not of_streams()


def test_a_process_ends_in_the_middle_of_a_stream() -> None:
    program = (
        "import sys\nfrom fusioner_rt import Session\n"
        f"session = Session({str(BUNDLE)!r}, 'onnxruntime-cpu', cache=False)\n"
        f"stream = session.stream([{str(PHOTOGRAPHS[0])!r}] * 1000, 'cat')\n"
        "print(next(stream).result.words)\nsys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "('cat',)\n", "")


class Worked:
    """Work of a frame that takes some time, or fails."""

    def __init__(self, frame: Any) -> None:
        self.pixels, (self._seconds, self._error) = frame, frame

    def __call__(self) -> Any:
        time.sleep(self._seconds)
        if self._error:
            raise self._error
        return self.pixels


def run(frames: Any, lanes: int, ahead: int, live: bool = False) -> Iterator[StreamedFrame]:
    return streamed(frames, lambda frame, check: Worked(frame), lanes, ahead, live)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.001, 0.003]), st.booleans()), max_size=20), st.integers(1, 4),
    st.integers(1, 6),
)  # fmt: skip
def test_frames_come_in_order_and_no_more_are_read_than_was_said(
    plan: list[tuple[float, bool]], lanes: int, ahead: int
) -> None:
    read, given_out = 0, 0

    def source() -> Iterator[Any]:
        nonlocal read
        for seconds, fails in plan:
            read += 1
            assert read - given_out <= ahead + 1  # one more is read, and waits for its place
            yield seconds, PictureUnreadable("bad") if fails else None

    for expected, one in enumerate(run(source(), lanes, ahead)):
        given_out += 1
        assert (one.index, one.dropped) == (expected, 0)
        assert (one.error is not None) == plan[expected][1]
        assert one.frame[0] == plan[expected][0]
    assert given_out == len(plan)
    assert not of_streams()


def test_lanes_run_at_once() -> None:
    start = time.perf_counter()
    assert len(list(run([(0.1, None)] * 8, 4, 8))) == 8
    assert 0.2 <= time.perf_counter() - start < 0.6


def test_of_a_live_source_the_newest_comes_and_every_other_is_counted() -> None:
    began: dict[int, float] = {}

    def camera() -> Iterator[Any]:
        for index in range(60):
            began[index] = time.perf_counter()
            yield (0.02, None)
            time.sleep(0.01)

    last, dropped, ages = -1, 0, []
    for one in run(camera(), 2, 4, live=True):
        ages.append(time.perf_counter() - began[one.index])
        assert one.index > last
        assert one.dropped == one.index - last - 1
        last, dropped = one.index, dropped + one.dropped
        time.sleep(0.1)
    assert last == 59  # the last frame is never the dropped one
    assert dropped + len(ages) == 60
    assert dropped > 30
    assert sorted(ages)[len(ages) // 2] < 0.1  # a queue of four would be a quarter of a second old


def test_a_source_that_gives_nothing_does_not_hold_who_leaves() -> None:
    silent = threading.Event()

    def camera() -> Iterator[Any]:
        yield (0, None)
        silent.wait(30)

    stream = run(camera(), 1, 4, live=True)
    next(stream)
    start = time.perf_counter()
    stream.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - start < 5
    silent.set()


def test_an_error_that_is_no_frames_own_ends_the_stream() -> None:
    for error in (ValueError("a bug"), UsageError("wrong"), FusionerError("any")):
        stream = run([(0, None), (0, error), (0, None)], 1, 4)
        assert next(stream).index == 0
        with pytest.raises(type(error)):
            next(stream)
        assert not of_streams()


def test_encoded_frames_keep_their_session(session: Session, photographs: list[np.ndarray]) -> None:
    encoded = session.encode(photographs)
    assert all(isinstance(one, EncodedPicture) for one in encoded)
    seen = list(session.stream(encoded, "sofa"))
    assert all(same(one.result, session.segment(kept, "sofa")) for one, kept in zip(seen, encoded, strict=True))
