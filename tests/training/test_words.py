from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data import IGNORE
from training.feature_cache import CHUNK, word_vectors
from training.model import tiny
from training.recipe import Plan
from training.words import Vocabulary, WordSampler


def vocabulary() -> Vocabulary:
    """Three classes and two further names; picture a shows classes 1 and 2, the latter also called word 5; b shows 3."""
    return Vocabulary(
        words=["background", "dog", "cat", "cow", "terrier", "tabby"],
        vectors=torch.eye(6),
        classes=[1, 2, 3],
        present={"a": [1, 2], "b": [3], "c": []},
        names={("a", 2): [5]},
        frequency=np.array([0.0, 1, 1, 1, 1, 1]),
        first_name=4,
    )


LABELS = torch.tensor([[[0, 1], [2, IGNORE]], [[3, 3], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.int16)


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1))
def test_every_target_is_its_words_region_and_no_word_is_drawn_twice(
    seed: int, max_: int, absent: float, names: float
) -> None:
    plan = Plan(words=max_, absent=absent, names=names)
    words, targets, valid, _ = WordSampler(vocabulary(), plan).draw(
        ["a", "b", "c"], LABELS, np.random.default_rng(seed)
    )
    assert torch.equal(valid[:, 0].bool(), LABELS != IGNORE)
    for row, picture in enumerate(("a", "b", "c")):
        drawn = words[row].argmax(-1).tolist()
        real = [word for word in drawn if word]  # 0, the background's word, is drawn where no other is left
        assert len(set(real)) == len(real)
        meaning = {"a": {1: 1, 2: 2, 5: 2}, "b": {3: 3}, "c": {}}[picture]
        for word, target in zip(drawn, targets[row], strict=True):
            expected = LABELS[row] == meaning[word] if word in meaning else torch.zeros(2, 2)
            assert torch.equal(target.bool(), expected.bool())
        if picture != "c":
            assert drawn[0] in meaning


@given(st.integers(0, 10_000))
def test_a_stranger_stands_for_a_region_of_its_picture(seed: int) -> None:
    plan = Plan(words=1, names=0.0, strangers=1.0)
    words, targets, _, _ = WordSampler(vocabulary(), plan).draw(["a", "b"], LABELS[:2], np.random.default_rng(seed))
    first, second = words[:, 0].argmax(-1).tolist()
    # Picture a is asked for 4, or for its own class where the stranger drawn was 5, a name of it; b for 4 or 5.
    assert first in (4, 1, 2)
    assert second in (4, 5)
    assert torch.equal(targets[1, 0].bool(), LABELS[1] == 3)


def test_exactly_as_many_words_are_drawn_as_are_asked_for() -> None:
    plan = Plan(words=3, exact_words=True)
    for seed in range(20):
        words, _, _, _ = WordSampler(vocabulary(), plan).draw(["a", "b"], LABELS[:2], np.random.default_rng(seed))
        assert words.shape[1] == 3


@given(st.integers(0, 10_000))
def test_a_stranger_beside_a_regions_own_name_stands_for_nothing(seed: int) -> None:
    plan = Plan(words=2, exact_words=True, names=0.0, absent=1.0, strangers=0.5)
    words, targets, _, _ = WordSampler(vocabulary(), plan).draw(["b"], LABELS[1:2], np.random.default_rng(seed))
    first, second = words[0].argmax(-1).tolist()
    assert targets[0, 0].any(), "the first word is present, by whatever name"
    assert not targets[0, 1].any()
    if first != 3:
        assert second not in (4, 5), "a region that goes by a stranger is asked for no second one"


def test_word_vectors_are_kept_by_the_chunk_and_a_lost_chunk_alone_is_computed_again(tmp_path: Path) -> None:
    model = tiny()
    words = [f"thing {chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(CHUNK + 3)]
    vectors = word_vectors(tmp_path, model, words)
    torch.testing.assert_close(vectors, model.word_vectors(words))
    files = sorted(tmp_path.glob("words-*"), key=lambda file: file.stat().st_size)
    assert len(files) == 2
    files[0].unlink()
    kept = files[1].stat().st_mtime_ns
    assert torch.equal(word_vectors(tmp_path, model, words), vectors)
    assert files[1].stat().st_mtime_ns == kept
