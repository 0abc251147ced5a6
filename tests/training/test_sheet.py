from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner_rt.results.colours import word_colours
from training import sheet
from training.data import IGNORE, DataError, MaskFolder


@pytest.fixture
def data(shapes: Path) -> MaskFolder:
    return MaskFolder(shapes)


def perfect(data: MaskFolder) -> sheet.Predictor:
    def predict(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        truth = data.mask(name)
        return sum(((truth == index) * n for n, index in enumerate(asked, 1)), np.zeros(size, np.uint16))

    return predict


def test_the_same_pictures_are_chosen_every_time_and_none_twice(data: MaskFolder) -> None:
    names = data.names("train")
    for count in range(1, len(names) + 1):
        chosen = sheet.choose(data, names, [1, 2, 3], count)
        assert chosen == sheet.choose(data, names, [1, 2, 3], count)
        assert len(set(chosen)) == len(chosen) == min(count, len(names))
    assert len(sheet.choose(data, names, [1, 2, 3], 99)) == len(names)


def test_every_class_has_its_turn_before_any_has_a_second(data: MaskFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    shows = {"a": [1], "b": [1], "c": [1], "d": [1], "e": [2], "f": [3, 1]}
    monkeypatch.setattr(MaskFolder, "present", lambda self, name: shows[name])
    chosen = sheet.choose(data, list(shows), [1, 2, 3], 3)
    assert {index for name in chosen for index in shows[name]} == {1, 2, 3}
    assert sheet.choose(data, list(shows), [2], 5) == ["e"]
    assert sheet.choose(data, list(shows), [], 5) == []


def test_a_word_has_one_colour_in_truth_and_prediction_and_legend(data: MaskFolder) -> None:
    names = data.names("val")
    rows = sheet.rows(perfect(data), data, names[:1], names, [1, 2, 3], "known")
    truth, prediction = rows[0].truth, rows[0].prediction
    assert np.array_equal(np.where(truth == IGNORE, 0, truth), prediction)
    drawn = np.asarray(sheet.draw(rows, data.words, "a title"))
    for colour in word_colours([data.words[index] for index in rows[0].asked]):
        assert (drawn == colour).all(axis=2).sum() > 100, "the legend's swatch, in full colour"
    # The panels of truth and prediction differ only where the truth is void, in its first two rows.
    width, gap, margin = sheet.PANEL[0], sheet.GAP, sheet.MARGIN
    left = [margin + part * (width + gap) for part in (1, 2)]
    top = drawn.shape[0] - sheet.CAPTION - sheet.MARGIN - sheet.PANEL[1]
    truth, prediction = (drawn[top + 30 : top + 160, x : x + width] for x in left)
    assert np.array_equal(truth, prediction)
    assert truth.std() > 0


def test_all_words_show_what_was_found_and_is_not_there(data: MaskFolder) -> None:
    name = data.names("val")[0]
    shown = data.present(name)
    absent = next(index for index in (1, 2, 3) if index not in shown)

    def wrong(name: str, asked: list[int], size: tuple[int, int]) -> np.ndarray:
        return np.full(size, asked.index(absent) + 1, np.uint16)

    (row,) = sheet.rows(wrong, data, [name], [name], [1, 2, 3], "all")
    assert (row.prediction == absent).all()
    assert sorted(int(i) for i in np.unique(row.truth) if i > 0) == shown
    assert sheet.draw([row], data.words, "").size[0] > 3 * sheet.PANEL[0]


def test_classes_that_are_not_scored_are_background_on_the_sheet(data: MaskFolder) -> None:
    names = data.names("val")
    for row in sheet.rows(perfect(data), data, names, names, [2], "all"):
        assert set(np.unique(row.truth)) <= {IGNORE, 0, 2}


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (7, 5), (1200, 900)])
def test_pictures_of_any_shape_fit_their_panels(size: tuple[int, int]) -> None:
    truth = np.ones(size, np.int16)
    row = sheet.Row("x", np.zeros((*size, 3), np.uint8), truth, truth * 0, [1])
    drawn = [sheet.draw([row] * count, ["background", "a word"], "title " * 99) for count in (1, 3, 4, 5)]
    assert drawn[0].size[0] == drawn[1].size[0] < drawn[2].size[0]
    assert drawn[2].size[1] < drawn[3].size[1]
    assert all(isinstance(image, Image.Image) for image in drawn)


def test_a_picture_that_is_not_there_is_named(data: MaskFolder) -> None:
    names = data.names("val")
    with pytest.raises(DataError, match="is called 'nothing' in this split"):
        sheet.rows(perfect(data), data, ["nothing"], names, [1], "known")
