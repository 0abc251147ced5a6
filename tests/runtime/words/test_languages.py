"""Words of another language are noted where their letters, or a list of everyday things, tell them."""

from pathlib import Path

import pytest

from fusioner_rt import Session
from fusioner_rt.words.languages import english_of, script_of
from training.datasets.coco import CLASSES as COCO
from training.datasets.voc import CLASSES as VOC

DEMO = Path(__file__).parents[3] / "models" / "demo" / "bundle"


def noted(session: Session, words: str) -> list[str]:
    session.set_vocabulary(words)
    return [note for note in session.notes if "of another language" in note]


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(DEMO, backend="onnxruntime-cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Katze", "'Katze' (cat) seems"),
        ("katze, sofa", "'katze' (cat)"),
        ("chien", "(dog)"),
        ("Straße", "'Straße' (street)"),
        ("árbol", "(tree)"),
        ("arbol", "(tree)"),
        ("кошка", "'кошка' (Cyrillic letters)"),
        ("γάτα", "(Greek letters)"),
        ("ねこ", "(Japanese letters)"),
        ("Katze, Hund", "'Katze' (cat), 'Hund' (dog) seem"),
    ],
)
def test_a_word_of_another_language_gets_a_note_with_the_english_one(session: Session, words: str, told: str) -> None:
    (note,) = noted(session, words)
    assert told in note
    assert "ask in English" in note


@pytest.mark.parametrize(
    "words",
    [
        "cat",
        "café",
        "crêpe",
        "piñata",
        "teddy bear",
        "a chat",
        "boot",
        "persona",
        "naïve art",
        "α ray",
        "Hawaiʻi",
        "brood",
    ],
)
def test_english_words_get_none(session: Session, words: str) -> None:
    assert not noted(session, words)


@pytest.mark.parametrize("word", [*COCO[1:], *VOC[1:]])
def test_no_class_of_coco_or_voc_is_taken_for_a_foreign_word(word: str) -> None:
    assert english_of(word) is None
    assert script_of(word) is None


def test_a_single_letter_of_a_script_that_writes_words_with_one_is_a_word() -> None:
    assert script_of("猫") == "Chinese or Japanese"
    assert script_of("α ray") is None


def test_background_words_and_groups_are_looked_at_too(session: Session) -> None:
    session.set_vocabulary([["cat", "Katze"]], background="Himmel")
    (note,) = [note for note in session.notes if "another language" in note]
    assert "'Katze' (cat), 'Himmel' (sky)" in note
