"""Labels that are kept from flickering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.errors import UsageError
from fusioner_rt.results.steadiness import MOST, Steadier

ROOT = Path(__file__).parents[3]
AMOUNTS = st.floats(0.01, 1)


def frame(
    labels: np.ndarray, confidence: np.ndarray | float = 0.9, picture: np.ndarray | None = None, **other: Any
) -> Segmentation:
    """A result of the words cat, sofa and dog, on a black picture."""
    sure = np.broadcast_to(np.float32(confidence), labels.shape).copy()
    seen = np.zeros((*labels.shape, 3), np.uint8) if picture is None else picture
    made = Segmentation(("cat", "sofa", "dog"), labels.astype(np.uint16), sure, seen, {}, 0.5, "joint")
    return replace(made, **other)


@st.composite
def clips(draw: st.DrawFn, still: bool = False) -> list[Segmentation]:
    """Up to nine frames of noise, of any shape; pictures of any size that stay, tremble or change."""
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    shape, picture_shape = ((draw(st.integers(1, 27)), draw(st.integers(1, 27))) for _ in range(2))
    threshold = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    change = 0 if still else draw(st.sampled_from([0, 3, 30]))
    picture = random.integers(60, 190, (*picture_shape, 3))
    return [
        frame(
            random.integers(0, 4, shape),
            random.random(shape, np.float32),
            (picture + random.integers(-change, change + 1, picture.shape)).astype(np.uint8),
            threshold=threshold,
        )
        for _ in range(draw(st.integers(1, 9)))
    ]


def flips(results: list[Segmentation]) -> np.ndarray:
    """(H, W): how often each pixel's label changed."""
    labels = np.array([result.labels for result in results])
    return (labels[1:] != labels[:-1]).sum(axis=0)


def steadied(results: list[Segmentation], amount: float) -> list[Segmentation]:
    steadier = Steadier(amount)
    return [steadier(result) for result in results]


@given(clips())
@settings(deadline=None, max_examples=30)
def test_an_amount_of_zero_is_the_identity(results: list[Segmentation]) -> None:
    assert all(out is given for out, given in zip(steadied(results, 0), results, strict=True))


@given(clips(), AMOUNTS, st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_a_result_that_comes_again_is_unchanged(results: list[Segmentation], amount: float, times: int) -> None:
    for out in steadied(results[:1] * times, amount):
        np.testing.assert_array_equal(out.labels, results[0].labels)
        np.testing.assert_array_equal(out.confidence, results[0].confidence)


@given(clips(), AMOUNTS)
@settings(deadline=None, max_examples=60)
def test_no_pixel_flips_more_often_than_in_what_comes_in(results: list[Segmentation], amount: float) -> None:
    assert (flips(steadied(results, amount)) <= flips(results)).all()


@given(clips(), AMOUNTS)
@settings(deadline=None, max_examples=40)
def test_labels_and_their_confidence_are_those_of_one_frame_until_now(
    results: list[Segmentation], amount: float
) -> None:
    for count, out in enumerate(steadied(results, amount), start=1):
        assert (out.labels.dtype, out.confidence.dtype) == (np.uint16, np.float32)
        assert any_of(out, results[:count]).all()


def any_of(out: Segmentation, results: list[Segmentation]) -> np.ndarray:
    return np.logical_or.reduce([(out.labels == one.labels) & (out.confidence == one.confidence) for one in results])


@given(clips(), AMOUNTS)
@settings(deadline=None, max_examples=25)
def test_the_same_frames_give_the_same_results_whatever_callers_write_into_them(
    results: list[Segmentation], amount: float
) -> None:
    expected = [(out.labels.copy(), out.confidence.copy()) for out in steadied(results, amount)]
    steadier = Steadier(amount)
    for result, (labels, confidence) in zip(results, expected, strict=True):
        mine = frame(result.labels.copy(), result.confidence, result.picture, threshold=result.threshold)
        out = steadier(mine)
        np.testing.assert_array_equal(mine.labels, result.labels)
        np.testing.assert_array_equal(out.labels, labels)
        np.testing.assert_array_equal(out.confidence, confidence)
        for written in (mine, out):
            written.labels[:] = 3
            written.confidence[:] = 0


@given(st.integers(3, 20), st.integers(3, 20), st.floats(0.2, 1))
@settings(deadline=None, max_examples=25)
def test_a_label_that_never_stays_is_never_taken_on_a_still_picture(height: int, width: int, amount: float) -> None:
    labels = np.zeros((25, 25))
    labels[2 : 2 + height, 2 : 2 + width] = 1
    first, weak = frame(labels), frame(np.full((25, 25), 2), 0.55)  # a margin of 0.1
    for out in steadied([first, *([weak, first] * 9)], amount):
        np.testing.assert_array_equal(out.labels, labels)


@pytest.mark.parametrize("at", [(0, 0), (5, 0), (12, 8), (12, 16), (0, 16)])
@pytest.mark.parametrize("thread", [1, 2])
def test_no_specks_and_threads_of_old_labels_are_left(at: tuple[int, int], thread: int) -> None:
    """A disagreement that leaves single pixels, or a thread of two, of the old label, at edges and in the middle."""
    old, new = np.ones((13, 17)), np.full((13, 17), 2)
    new[at] = 1
    new[6, 3 : 3 + thread] = 1
    held = frame(new, np.where(new == 1, 0.9, 1.0).astype(np.float32))
    last = frame(np.full((13, 17), 2), np.where(new == 1, 0.55, 1.0).astype(np.float32))
    out = steadied([frame(old), held, last], 1 / MOST)  # certain ones are taken at once
    np.testing.assert_array_equal(out[1].labels, new)
    np.testing.assert_array_equal(out[2].labels, last.labels)


@pytest.mark.parametrize("amount", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("confidence", "margin"), [(1.0, 1.0), (0.75, 0.5), (0.55, 0.1)])
def test_a_label_that_stays_is_taken_the_sooner_the_surer_it_is(
    amount: float, confidence: float, margin: float
) -> None:
    cat, sofa = (frame(np.full((9, 13), label), sure) for label, sure in ((1, 1.0), (2, confidence)))
    out = steadied([cat, *[sofa] * 30], amount)
    taken = next(index for index, one in enumerate(out) if (one.labels == 2).all())
    assert taken == int(np.ceil(amount * MOST / margin - 1e-4))
    assert (out[taken - 1].labels == 1).all()
    assert (out[taken - 1].confidence == 1).all()
    assert (out[taken].confidence == np.float32(confidence)).all()


@pytest.mark.parametrize(("threshold", "held"), [(0.5, 0.35), (0.1, 0.07), ({"cat": 0.1, "dog": 0.7}, 0.07)])
def test_the_margins_of_a_background_are_shares_of_the_threshold(threshold: Any, held: float) -> None:
    """Of 30% and of 90%; half is asked for."""
    cat, nothing = np.ones((4, 4)), np.zeros((4, 4))
    first = frame(cat, 1.0, threshold=threshold)
    for confidence, kept in ((held, True), (held / 7, False)):
        out = steadied([first, frame(nothing, confidence, threshold=threshold)], 0.5 / MOST)
        assert (out[1].labels == kept).all()


@pytest.mark.parametrize("speed", [1, 3, 11])
@pytest.mark.parametrize("scale", [1, 2])
def test_what_moves_does_not_lag(speed: int, scale: int) -> None:
    """A white square on a moving camera's noise: its labels are those of each frame. scale: pixels of the picture per label."""
    random = np.random.default_rng(speed)
    results = []
    for at in range(0, 60, speed):
        labels = np.zeros((40, 90), int)
        labels[10:30, at : at + 20] = 1
        picture = (labels * 200).repeat(scale, axis=0).repeat(scale, axis=1)[..., None] + random.integers(
            0, 9, (40 * scale, 90 * scale, 3)
        )
        results.append(frame(labels, 0.6, picture.astype(np.uint8)))
    for out, one in zip(steadied(results, 1.0), results, strict=True):
        np.testing.assert_array_equal(out.labels, one.labels)


@given(clips(still=True), AMOUNTS)
@settings(deadline=None, max_examples=40)
def test_a_cut_begins_anew(results: list[Segmentation], amount: float) -> None:
    after = [replace(one, picture=np.zeros_like(one.picture)) for one in results]
    out = steadied([*results, *after], amount)
    for one, alone in zip(out[len(results) :], steadied(after, amount), strict=True):
        np.testing.assert_array_equal(one.labels, alone.labels)
    np.testing.assert_array_equal(out[len(results)].labels, after[0].labels)


@pytest.mark.parametrize("other", ["words", "order", "size", "picture"])
def test_other_words_and_sizes_begin_anew(other: str) -> None:
    labels = np.ones((11, 17))
    labels[:, 9:] = 2
    changed = {
        "words": frame(3 - labels, words=("cat", "sofa", "cow")),
        "order": frame(3 - labels, words=("sofa", "cat", "dog")),
        "size": frame(np.zeros((17, 11))),
        "picture": frame(3 - labels, picture=np.zeros((50, 60, 3), np.uint8)),
    }[other]
    out = steadied([frame(labels), changed], 1.0)
    np.testing.assert_array_equal(out[1].labels, changed.labels)
    assert (steadied([frame(labels), frame(3 - labels)], 1.0)[1].labels == labels).all()  # which it would keep else


def test_all_else_is_the_frames_own() -> None:
    own = {
        "probabilities": np.ones((3, 4, 4), np.float32),
        "source": "b.jpg",
        "timing": {"total": 1.0},
        "notes": ("x",),
    }
    out = steadied([frame(np.ones((4, 4))), frame(np.zeros((4, 4)), 0.4, **own)], 1.0)[1]
    assert (out.labels == 1).all()
    assert all(getattr(out, name) is value for name, value in own.items())
    assert out.scores[0] == np.float32(0.9)  # of the labels that it holds


def test_it_keeps_one_frame() -> None:
    steadier = Steadier(1.0)
    random = np.random.default_rng(0)
    for _ in range(30):
        steadier(frame(random.integers(0, 4, (80, 160))))
    assert sum(value.nbytes for value in vars(steadier).values() if isinstance(value, np.ndarray)) < 11 * 80 * 160


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_amounts_are_within_0_and_1(amount: Any) -> None:
    with pytest.raises(UsageError, match="give 0 to 1"):
        Steadier(amount)


@pytest.mark.parametrize("amount", [0, 0.5])
def test_what_is_no_result_is_refused(amount: float) -> None:
    with pytest.raises(UsageError, match=r"session\.segment"):
        Steadier(amount)([frame(np.ones((3, 4)))])  # type: ignore[arg-type]


def test_noise_on_a_photograph_flips_less_than_half_as_often() -> None:
    random = np.random.default_rng(0)
    photograph = np.asarray(Image.open(ROOT / "docs/pictures/coffee.jpg").convert("RGB"))
    noisy = [np.clip(photograph + random.normal(0, 5, photograph.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    with Session(ROOT / "models/demo/bundle", "onnxruntime-cpu", cache=False) as session:
        results = [session.segment(picture, "cup, table, spoon") for picture in noisy]
    assert 0 < 2 * flips(steadied(results, 0.5)).sum() < flips(results).sum()
