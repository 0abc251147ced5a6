"""Groups, background words and thresholds of words in results: laws against the same words asked one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.cli import main
from fusioner_rt.errors import TooManyWords, UsageError

WORDS = ["cat", "red sofa", "tree", "grass", "lamp"]
LOW = 0.02  # a threshold under which the tiny model paints pixels of every word


BUNDLE = Path(__file__).parents[2] / "models/demo/bundle"


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session(tiny_bundle, cache=False) as opened:
        yield opened


@given(owners=st.lists(st.integers(0, 2), min_size=5, max_size=5), threshold=st.sampled_from([0.0, LOW, 0.5]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_group_has_its_words_pixels_and_the_background_takes_its_own_away(
    session: Session, picture: np.ndarray, owners: list[int], threshold: float
) -> None:
    groups = [[word for word, owner in zip(WORDS, owners, strict=True) if owner == number] for number in (1, 2)]
    groups, background = [group for group in groups if group], [w for w, o in zip(WORDS, owners, strict=True) if not o]
    if not groups:
        return
    flat = [word for group in groups for word in group] + background
    alone = session.segment(picture, flat, threshold=threshold, probabilities=True)
    found = session.segment(picture, groups, threshold=threshold, probabilities=True, background=background or None)
    number_of = np.array([0, *(n for n, group in enumerate(groups, 1) for _ in group), *(0 for _ in background)])
    assert found.words == tuple(group[0] for group in groups)
    assert found.labels.dtype == np.uint16
    np.testing.assert_array_equal(found.labels, number_of[alone.labels])
    np.testing.assert_array_equal(found.confidence, alone.confidence)
    assert found.probabilities is not None
    assert alone.probabilities is not None
    for index, group in enumerate(groups):
        of_words = [alone.probabilities[flat.index(word)] for word in group]
        np.testing.assert_array_equal(found.probabilities[index], np.max(of_words, axis=0))


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_thresholds_of_words_take_away_the_pixels_below_them(session: Session, picture: np.ndarray, mode: str) -> None:
    words = [["cat", "lamp"], "red sofa", "tree"]
    everything = session.segment(picture, words, threshold=0, mode=mode)  # type: ignore[call-overload]
    middle = float(np.median(everything.confidence))
    chosen = {"cat": 0.0, "red sofa": middle, "tree": 1.0}
    found = session.segment(picture, words, threshold=chosen, mode=mode)  # type: ignore[call-overload]
    least = np.array([0, *chosen.values()])[everything.labels]
    np.testing.assert_array_equal(found.labels, np.where(everything.confidence > least, everything.labels, 0))
    assert found.threshold == chosen
    same = session.segment(picture, words, threshold=dict.fromkeys(chosen, middle), mode=mode)  # type: ignore[call-overload]
    one = session.segment(picture, words, threshold=middle, mode=mode)  # type: ignore[call-overload]
    assert (same.labels != one.labels).mean() < 0.01  # thresholds are rounded to float32


def test_thresholds_are_found_by_any_spelling_of_a_word(session: Session, picture: np.ndarray) -> None:
    found = [
        session.segment(picture, "the cat|lamp, tree", threshold={name: LOW, "tree": 1}).labels
        for name in ("cat", "Cat", "the cat", "lamp")
    ]
    for labels in found[1:]:
        np.testing.assert_array_equal(labels, found[0])


def test_words_without_a_threshold_have_half(session: Session, picture: np.ndarray) -> None:
    usual = session.segment(picture, WORDS)
    np.testing.assert_array_equal(session.segment(picture, WORDS, threshold={}).labels, usual.labels)


def test_set_words_keep_their_groups_and_background(session: Session, picture: np.ndarray) -> None:
    session.set_vocabulary({"cat": ["lamp"], "tree": []}, background="grass")
    assert session.words == ("cat", "tree")
    set_once = session.segment(picture, threshold=0)
    np.testing.assert_array_equal(
        set_once.labels, session.segment(picture, "cat|lamp, tree", threshold=0, background="grass").labels
    )
    assert [entry["category_id"] for entry in set_once.to_coco()] == sorted(set(np.unique(set_once.labels)) - {0})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"words": "cat, tree", "threshold": {"dog": 0.5}}, r"threshold holds 'dog', which is none of the words \(cat, tree\)"),
        ({"words": "cat|lamp, tree", "threshold": {"lamp": 0.5, "Cat": 0.5}}, "threshold holds 'lamp' and 'Cat', which are one"),
        ({"words": "cat", "threshold": {"cat": 1.5}}, r"the threshold is 1.5; give a probability within 0\.\.1"),
        ({"words": "cat", "threshold": {"cat": "high"}}, "the threshold is 'high'"),
        ({"background": "tree"}, "background words were given without words; pass words="),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(session: Session, picture: np.ndarray, arguments: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=says):
        session.segment(picture, **arguments)


def test_background_words_count_among_the_bundles_words(session: Session, picture: np.ndarray) -> None:
    most = session.bundle.words.max
    many = [f"word {number}" for number in range(most)]
    with pytest.raises(TooManyWords, match=f"{most + 1} words were given"):
        session.segment(picture, "cat", background=many)


def test_names_that_the_encoder_hardly_tells_apart_are_noted() -> None:
    """On the demonstration model, whose text encoder was trained."""
    with Session(Path(__file__).parents[2] / "models/demo/bundle", cache=False) as session:
        for words, noted in (
            ("cat, cats, sofa", "'cat|cats, ...'"), ("sofa, tree, trees", "'tree|trees, ...'"), ("sofa, couch", "'sofa|couch, ...'"),
            ("cat|cats, sofa", ""), ("cat, dog", ""), ("dog, wolf, horse, sheep", ""), ("cat", ""),
        ):  # fmt: skip
            session.set_vocabulary(words)
            notes = " ".join(session.notes)
            assert (noted in notes) if noted else not notes, words


def test_the_command_line_takes_groups_background_thresholds_and_a_file(
    tiny_bundle: Path, tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(next(iter(sorted(picture_folder.glob("*.*")))))
    (tmp_path / "words.txt").write_text("cat|lamp\n\nred sofa\n", encoding="utf-8-sig")
    coco = tmp_path / "masks.json"
    places = ["--engine", str(tiny_bundle), "--out", str(tmp_path), "--json", str(coco)]

    def run(*arguments: str, code: int = 0) -> str:
        assert main(["segment", *arguments, *places]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    def names() -> list[str]:
        return [category["name"] for category in json.loads(coco.read_text())["categories"]]

    first = run(photo, "--words", "cat|lamp", "red sofa", "--threshold", "0")
    assert names() == ["cat", "red sofa"]
    assert run(photo, "--words-file", str(tmp_path / "words.txt"), "--threshold", "0") == first
    assert run("--threshold", "0", "--words", "cat|lamp, red sofa", photo) == first  # pictures last
    assert run(photo, "--words", "cat|lamp, red sofa", "--threshold", "cat=0, red  sofa=0") == first
    assert "none of the words" in run(photo, "--words", "cat", "--threshold", "cat=1")
    run(photo, "--words", "cat", "--background", "common", "--threshold", "0")
    assert names() == ["cat"]
    assert "no pictures were given; name files" in run("--words", "cat", code=2)
    assert "expected a probability, or words with theirs" in run(photo, "--words", "cat", "--threshold", "high", code=2)
    assert "none of the words (cat)" in run(photo, "--words", "cat", "--threshold", "dog=0.5", code=2)
    assert "No such file" in run(photo, "--words-file", str(tmp_path / "absent.txt"), code=2)
    for content, says, code in (
        (b"\xff\xfe", "no text in UTF-8", 2),
        (b" \n", "holds no words", 20),
        (b"x" * 2_000_000, "more than", 2),
    ):
        (tmp_path / "bad.txt").write_bytes(content)
        assert says in run(photo, "--words-file", str(tmp_path / "bad.txt"), code=code)


def test_notes_of_words_given_per_call_stand_on_the_result_and_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Session(BUNDLE, cache=False) as session:
        for _ in range(2):
            found = session.segment(scene(20, 30), ["cat", "cats", "red, sofa"])
            assert any("mean nearly the same" in note for note in found.notes)
            assert any("'red, sofa' is one word" in note for note in found.notes)
        assert len([record for record in caplog.records if "mean nearly the same" in record.getMessage()]) == 1
        assert session.segment(scene(20, 30), "cat, sofa").notes == ()
