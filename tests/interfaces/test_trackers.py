"""Objects that keep an id over frames, by the real package trackers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import blocks_of, run_there
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import WORDS, result_of, results
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.errors import UsageError
from fusioner_rt.interfaces.trackers import Tracker
from fusioner_rt.results.steadiness import Steadier

ROOT = Path(__file__).parents[2]

Box = tuple[str, int, int]
"""A word, and where a box of 12x10 pixels lies: x, y."""


def frame(*boxes: Box, words: Sequence[str] = WORDS, size: tuple[int, int] = (60, 120)) -> Segmentation:
    labels = np.zeros(size, int)
    for word, x, y in boxes:
        labels[y : y + 10, x : x + 12] = words.index(word) + 1
    return result_of(labels, tuple(words))


def ids(tracker: Tracker, *frames: Segmentation) -> list[dict[Box, int | None]]:
    """The id of each box, frame by frame."""
    return [{(one.word, *one.box[:2]): one.id for one in tracker(result)} for result in frames]


def test_two_objects_that_pass_each_other_keep_their_ids() -> None:
    way = [frame(("cat", 4 + 4 * at, 8), ("cat", 100 - 4 * at, 30)) for at in range(24)]
    first, *others = ids(Tracker(), *way)
    assert set(first.values()) == {None}  # a speck of one frame is nobody
    for at, found in enumerate(others, start=1):
        assert found == {("cat", 4 + 4 * at, 8): 1, ("cat", 100 - 4 * at, 30): 2}


def test_an_object_that_comes_back_in_time_keeps_its_id_and_later_it_is_another() -> None:
    tracker, here, gone = Tracker(patience=5), frame(("cat", 40, 20)), frame()
    assert ids(tracker, here, here)[-1] == {("cat", 40, 20): 1}
    assert ids(tracker, *[gone] * 4, here)[-1] == {("cat", 40, 20): 1}
    found = ids(tracker, *[gone] * 9, here, here)
    assert [list(one.values()) for one in found[-2:]] == [[None], [2]]


def test_an_object_that_leaves_on_one_side_and_comes_in_on_the_other_is_another() -> None:
    leaving = [frame(("cat", 80 + 4 * at, 20)) for at in range(7)]
    coming = [frame(("cat", 4 * at, 20)) for at in range(4)]
    found = ids(Tracker(), *leaving, *coming)
    assert {one for seen in found for one in seen.values()} == {None, 1, 2}
    assert list(found[-1].values()) == [2]


def test_a_cat_never_becomes_a_sofa() -> None:
    cat, sofa = frame(("cat", 40, 20)), frame(("sofa", 40, 20))
    found = ids(Tracker(), cat, cat, sofa, sofa, cat, sofa)
    assert [list(one.values()) for one in found] == [[None], [1], [None], [2], [1], [2]]


def test_empty_frames_have_no_objects() -> None:
    tracker = Tracker()
    assert ids(tracker, frame(), frame()) == [{}, {}]
    assert [list(one.values()) for one in ids(tracker, *[frame(("dog", 3, 3))] * 2, frame())] == [[None], [1], []]


def test_words_may_change_and_those_that_stay_keep_their_objects() -> None:
    two, one = frame(("cat", 10, 10), ("dog", 60, 20)), frame(("dog", 60, 20), words=("dog", "bird"))
    assert [sorted(map(str, found.values())) for found in ids(Tracker(), two, two, one)] == [
        ["None"] * 2,
        ["1", "2"],
        ["2"],
    ]


@pytest.mark.parametrize("what", ["cut", "size"])
def test_after_a_cut_or_a_change_of_size_all_objects_are_new(what: str) -> None:
    here = frame(("cat", 40, 20))
    bright = replace(here, picture=np.full_like(here.picture, 200))
    other = {"cut": bright, "size": frame(("cat", 40, 20), size=(60, 130))}[what]
    found = ids(Tracker(), here, here, other, other)
    assert [list(one.values()) for one in found] == [[None], [1], [None], [2]]


@given(st.lists(results(), min_size=1, max_size=5), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_what_is_tracked_are_the_instances_and_no_two_share_an_id(clip: list[Segmentation], min_area: int) -> None:
    clip = [one for one in clip for _ in range(2)]
    tracker, again = Tracker(min_area), Tracker(min_area)
    of_ids: dict[int, str] = {}
    for result in clip:
        found, expected = tracker(result), result.instances(min_area)
        assert [all_but_id(one) for one in found] == [all_but_id(one) for one in expected]
        assert [one.id for one in found] == [one.id for one in again(result)]
        given_ids = [one.id for one in found if one.id is not None]
        assert len(given_ids) == len(set(given_ids))
        assert all(of_ids.setdefault(one.id, one.word) == one.word for one in found if one.id is not None)
    assert sorted(of_ids) == list(range(1, len(of_ids) + 1))


def all_but_id(one: Any) -> tuple[Any, ...]:
    return one.word, one.label, one.box, one.area, one.score, one.crop.tobytes(), one.size


def test_it_forgets_objects_that_are_gone() -> None:
    tracker = Tracker(patience=3)
    for at in range(60):
        tracker(frame((WORDS[at % 4], 4 + at, 8 + at % 40)))
    for _ in range(5):
        tracker(frame())
    assert (tracker._of_words, tracker._ids) == ({}, {})


@pytest.mark.parametrize(("name", "value"), [("min_area", 0), ("min_area", 1.5), ("patience", -1), ("patience", True)])
def test_wrong_arguments_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        Tracker(**{name: value})


def test_the_pages_blocks_run(tmp_path: Path) -> None:
    blocks = blocks_of((Path(__file__).parents[2] / "docs/steadiness.md").read_text(), "python")
    lines = run_there([sys.executable, "-c", "".join(blocks)], tmp_path).splitlines()
    assert [line.split()[:3] for line in lines[5:7]] == [["0", "cat", "None"], ["1", "cat", "1"]]


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(UsageError, match=r"session\.segment"):
        Tracker()(np.zeros((3, 4)))  # type: ignore[arg-type]


def test_a_stream_gives_the_ids_of_its_steadied_results() -> None:
    picture = np.asarray(Image.open(ROOT / "docs/pictures/cat.jpg").convert("RGB"))
    frames = [np.ascontiguousarray(picture[4 * at : 4 * at + 200, :300]) for at in range(6)]
    with Session(ROOT / "models/demo/bundle", "onnxruntime-cpu") as session:
        steadier, tracker = Steadier(0.5), Tracker()
        for seen, frame in zip(session.stream(frames, "cat, sofa", steady=0.5, track=True), frames, strict=True):
            expected = tracker(steadier(session.segment(frame, "cat, sofa")))
            assert seen.instances is not None
            assert [(one.word, one.id, one.box) for one in seen.instances] == [
                (one.word, one.id, one.box) for one in expected
            ]
            assert [one.id for one in seen.instances if one.area > 5000] == ([None] if seen.index == 0 else [1])
