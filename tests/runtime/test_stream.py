"""`Session.stream`: the frames of a source, in order, as `segment` gives them, and never more of them than was said."""

from __future__ import annotations

import gc
import io
import os
import signal
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
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt import EncodedPicture, Segmentation, Session
from fusioner_rt.errors import (
    FusionerError,
    MemoryShort,
    OutputUnwritable,
    PictureInvalid,
    PictureMissing,
    PictureTooLarge,
    PictureUnreadable,
    SessionClosed,
    UsageError,
    WordsInvalid,
)
from fusioner_rt.results.steadiness import Steadier
from fusioner_rt.stream import StreamedFrame, _close_all, _lines, streamed

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
def small() -> list[np.ndarray]:
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
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("fusioner-reader", "fusioner-lane"))
    ]


def test_frames_of_every_kind_are_bit_for_bit_what_segment_gives(session: Session, small: list[np.ndarray]) -> None:
    kinds = [
        *PHOTOGRAPHS, *small, PHOTOGRAPHS[0].read_bytes(), Image.open(PHOTOGRAPHS[1]), small[0][..., 0],
        session.encode(PHOTOGRAPHS[2]), *small[::-1],
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
def test_options_are_those_of_segment(session: Session, small: list[np.ndarray], options: dict[str, Any]) -> None:
    for one, picture in zip(session.stream(small, **options), small, strict=True):
        expected = session.segment(picture, **options)
        assert same(one.result, expected)
        if options.get("probabilities"):
            assert np.array_equal(one.result.probabilities, expected.probabilities)


def test_an_array_may_be_filled_with_the_next_frame(session: Session, small: list[np.ndarray]) -> None:
    def camera() -> Iterator[np.ndarray]:
        frame = np.empty_like(small[0])
        for picture in small * 2:
            frame[:] = picture
            yield frame

    for one, picture in zip(session.stream(camera(), ahead=6), small * 2, strict=True):
        assert same(one.result, session.segment(picture))


@pytest.mark.parametrize("kind", [bytearray, lambda data: memoryview(bytearray(data))])
def test_a_buffer_may_be_filled_with_the_next_frame(session: Session, kind: Any) -> None:
    files = [path.read_bytes() for path in PHOTOGRAPHS] * 2
    longest = max(map(len, files))
    buffer = kind(bytes(longest))

    def camera() -> Iterator[Any]:
        for data in files:
            buffer[:] = data + bytes(longest - len(data))
            yield buffer

    for one, data in zip(session.stream(camera(), ahead=6), files, strict=True):
        assert np.array_equal(one.result.labels, session.segment(data).labels)  # type: ignore[union-attr]


def test_a_file_that_comes_more_than_once_is_read_by_one_thread_at_a_time(session: Session) -> None:
    with PHOTOGRAPHS[0].open("rb") as file, Image.open(PHOTOGRAPHS[1]) as image:
        given = [file, image] * 12
        expected = [session.segment(path) for path in PHOTOGRAPHS[:2]]
        for found in (session.segment(given), [seen.result for seen in session.stream(given)]):
            for index, one in enumerate(found):
                assert np.array_equal(one.labels, expected[index % 2].labels)  # type: ignore[union-attr]


def test_bad_frames_are_told_and_passed(session: Session, small: list[np.ndarray], tmp_path: Path) -> None:
    huge = np.broadcast_to(np.uint8(0), (20_000, 20_000, 3))
    given: Any = PictureUnreadable("half of the packet is missing", subject="clip.mp4, frame 4")
    frames = [
        small[0],
        tmp_path / "none.jpg",
        b"no picture",
        small[1],
        given,
        np.zeros(3),
        huge,
        small[2],
    ]
    kinds = [None, PictureMissing, PictureUnreadable, None, PictureUnreadable, PictureInvalid, PictureTooLarge, None]
    seen = list(session.stream(frames))
    assert [type(one.error) if one.error else None for one in seen] == kinds
    assert [one.result is None for one in seen] == [kind is not None for kind in kinds]
    assert seen[4].error is given
    assert same(seen[-1].result, session.segment(small[2]))
    assert session.segment(small[0]).words


def test_what_fails_for_every_frame_is_raised(session: Session, small: list[np.ndarray]) -> None:
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
            session.stream(small, **options)  # type: ignore[arg-type]
    one = small[0]
    wrong = (
        "clip.mp4",
        Path("clip.mp4"),
        b"RIFF",
        bytearray(b"RIFF"),
        session.encode(one),
        7,
        None,
        one,
        Image.fromarray(one),
    )
    for frames in (*wrong, io.BytesIO(b"RIFF"), torch.from_numpy(one.copy())):
        with pytest.raises(UsageError, match="an iterable of pictures"):
            session.stream(frames)
    assert len(list(session.stream(np.stack([one] * 3)))) == 3
    assert not of_streams()
    with Session(BUNDLE, "onnxruntime-cpu", threads=1) as other:
        with pytest.raises(UsageError, match="no words"):
            other.stream(small)
        stream = other.stream(small * 9, WORDS)
        next(stream)
        other.close()
        with pytest.raises(SessionClosed):
            list(stream)
    with pytest.raises(SessionClosed):
        other.stream(small, WORDS)
    assert not of_streams()


def test_an_error_of_the_source_comes_after_the_frames_before_it(session: Session, small: list[np.ndarray]) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from small
        raise OSError("the cable is out")

    seen = []
    with pytest.raises(OSError, match="the cable is out"):
        seen.extend(one.index for one in session.stream(source()))
    assert seen == [] or seen == [0, 1, 2]
    collected: list[StreamedFrame] = []
    stream = session.stream(source())
    for _ in small:
        collected.append(next(stream))
    with pytest.raises(OSError, match="the cable is out"):
        next(stream)
    assert [one.index for one in collected] == [0, 1, 2]
    assert not of_streams()


def test_errors_in_the_place_of_frames_are_frames_of_any_kind(session: Session, small: list[np.ndarray]) -> None:
    kinds = [OutputUnwritable("the disk is full"), SessionClosed("closed"), FusionerError("any")]
    seen = list(session.stream([*kinds, small[0]]))
    assert [one.error for one in seen] == [*kinds, None]


def test_other_words_begin_ahead_and_one_frames_later_at_most(session: Session, small: list[np.ndarray]) -> None:
    session.set_vocabulary("cat")
    try:
        for ahead in (1, 3):
            session.set_vocabulary("cat")
            words = []
            for seen in session.stream(small * 4, ahead=ahead):
                assert seen.result is not None
                words.append(seen.result.words)
                if seen.index == 2:
                    time.sleep(0.1)  # what may be read is read by now
                    session.set_vocabulary("sofa")
            assert words == [("cat",)] * (3 + ahead) + [("sofa",)] * (9 - ahead)
    finally:
        session.set_vocabulary(WORDS)


def test_words_may_change_between_frames(session: Session, small: list[np.ndarray]) -> None:
    asked = ["cat", "sofa, person", "person"]

    def source() -> Iterator[np.ndarray]:
        for words in asked:
            session.set_vocabulary(words)
            yield small[0]
            time.sleep(0.01)  # the frame is taken before the source goes on

    try:
        seen = list(session.stream(source()))
        assert [one.result.words for one in seen] == [("cat",), ("sofa", "person"), ("person",)]
    finally:
        session.set_vocabulary(WORDS)


def test_steadied_frames_are_what_the_steadier_makes_of_them(session: Session, small: list[np.ndarray]) -> None:
    random = np.random.default_rng(0)
    frames: list[Any] = [
        np.clip(small[0] + random.normal(0, 12, small[0].shape), 0, 255).astype(np.uint8) for _ in range(9)
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
            session.stream(small, steady=steady)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="track"):
        session.stream(small, track="yes")  # type: ignore[arg-type]


def test_a_stream_that_is_left_ends_its_threads_and_frees_its_frames(session: Session, small: list[np.ndarray]) -> None:
    for options in ({}, {"steady": 0.5}):
        for one in session.stream(small * 100, **options):  # type: ignore[arg-type]
            if one.index == 2:
                break
        del one
        assert not of_streams()
    stream = session.stream(small * 100)
    kept = weakref.ref(next(stream).result)
    next(stream)
    gc.collect()
    assert kept() is None
    stream.close()
    assert not of_streams()
    session.stream(small)  # never begun
    assert not of_streams()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_ends_though_a_stream_was_in_the_middle_of_something(
    session: Session, small: list[np.ndarray]
) -> None:
    stream = session.stream(small * 100)
    next(stream)
    (line,) = _lines
    with line._changed:  # as a thread of the parent may have it
        child = os.fork()
        if not child:
            _close_all()
            stream.close()
            os._exit(7)
    end = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
    stream.close()


def test_a_stream_that_is_collected_in_a_thread_of_its_own_ends(session: Session, small: list[np.ndarray]) -> None:
    kept: list[Any] = []

    def source() -> Iterator[np.ndarray]:
        yield small[0]
        kept[0].wait()
        del kept[1]  # the last reference
        yield from small * 100

    kept.append(threading.Event())
    kept.append(session.stream(source()))
    next(kept[1])
    kept[0].set()
    end = time.monotonic() + 10
    while of_streams() and time.monotonic() < end:
        time.sleep(0.01)
    assert not of_streams()


def test_too_little_memory_for_threads_is_told_and_lists_go_on_without_lanes(
    tiny_bundle: Path, small: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> Any:
        raise MemoryError("512 MiB at once")

    with Session(tiny_bundle, "onnxruntime-cpu", cache=False, threads=2) as other:
        with monkeypatch.context() as patch:
            patch.setattr(other._executor, "in_lanes", short)
            with pytest.raises(MemoryShort, match="512 MiB"):
                other.stream(small, "cat")
            assert len(other.segment(small * 6, "cat")) == 18
        with monkeypatch.context() as patch:
            patch.setattr(
                threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
            )
            with pytest.raises(MemoryShort, match="no further thread"):
                next(other.stream(small, "cat"))


def test_of_a_list_that_fails_nothing_runs_on(session: Session, small: list[np.ndarray]) -> None:
    calls = 0

    def before_each() -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        session.segment(small * 10, before_each=before_each)
    after = calls
    time.sleep(0.2)
    assert calls == after


@pytest.mark.parametrize("threads", [1, 2])
def test_lanes_are_as_many_as_are_asked_for(tiny_bundle: Path, small: list[np.ndarray], threads: int) -> None:
    for lanes in (1, 3):
        with Session(tiny_bundle, "onnxruntime-cpu", cache=False, threads=threads, lanes=lanes) as other:
            other.load_text()
            assert (other._executor.in_lanes() is other._executor) == (threads == 1)
            used: set[int] = set()

            def before_each(used: set[int] = used) -> None:
                used.add(threading.get_ident())
                time.sleep(0.001)

            other.segment(small * 8, "cat", before_each=before_each)
            assert len(used - {threading.get_ident()}) == (lanes if lanes > 1 else 0)


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
    assert sorted(ages)[len(ages) // 2] < 0.2  # in a queue of four they would be 0.4 s old


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


def test_encoded_frames_keep_their_session(session: Session, small: list[np.ndarray]) -> None:
    encoded = session.encode(small)
    assert all(isinstance(one, EncodedPicture) for one in encoded)
    seen = list(session.stream(encoded, "sofa"))
    assert all(same(one.result, session.segment(kept, "sofa")) for one, kept in zip(seen, encoded, strict=True))
