from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data import IGNORE
from training.metrics import ClassIoU
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
    )


LABELS = torch.tensor([[[0, 1], [2, IGNORE]], [[3, 3], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.uint8)


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1))
def test_every_target_is_its_words_region_and_no_word_is_drawn_twice(
    seed: int, most: int, absent: float, names: float
) -> None:
    table = vocabulary()
    words, targets, valid = WordSampler(table, most, absent, names).draw(
        ["a", "b", "c"], LABELS, np.random.default_rng(seed)
    )
    assert torch.equal(valid[:, 0].bool(), LABELS != IGNORE)
    for row, picture in enumerate(("a", "b", "c")):
        drawn = words[row].argmax(-1).tolist()
        real = [word for word in drawn if word]  # 0, the background's name, fills in where no other word is left
        assert len(set(real)) == len(real)
        meaning = {"a": {1: 1, 2: 2, 5: 2}, "b": {3: 3}, "c": {}}[picture]
        for word, target in zip(drawn, targets[row], strict=True):
            expected = LABELS[row] == meaning[word] if word in meaning else torch.zeros(2, 2)
            assert torch.equal(target.bool(), expected.bool())
        if picture != "c":
            assert drawn[0] in meaning


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_iou_is_the_plain_definition_summed_over_pictures(seed: int, pictures: int) -> None:
    random = np.random.default_rng(seed)
    result = ClassIoU(4)
    wanted, found = [], []
    for _ in range(pictures):
        truth = random.choice([0, 1, 2, 3, IGNORE], size=(5, 7)).astype(np.uint8)
        masks = random.random((2, 5, 7)) > 0.5
        result.add(truth, masks, [1, 3])
        wanted.append((truth == 3)[truth != IGNORE])
        found.append(masks[1][truth != IGNORE])
    w, f = np.concatenate(wanted), np.concatenate(found)
    np.testing.assert_allclose(result.iou(3), 100 * (w & f).sum() / (w | f).sum())
    assert np.isnan(result.iou(2))
    assert result.pictures.tolist() == [0, pictures, 0, pictures]
