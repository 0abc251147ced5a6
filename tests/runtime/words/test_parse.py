import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner_rt.errors import TemplatesInvalid, TooManyWords, WordsInvalid
from fusioner_rt.words.parse import check_count, parse_words
from fusioner_rt.words.templates import PAPER_TEMPLATES, check_templates, fill

plain = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=8)
vocabularies = st.lists(plain, min_size=1, max_size=12, unique_by=lambda word: word.casefold()).filter(
    lambda words: _accepted(words)
)


def _accepted(words: list[str]) -> bool:
    try:
        parse_words(words)
    except WordsInvalid:  # compatibility forms of one word, such as a superscript digit
        return False
    return True


@given(vocabularies, st.sampled_from([",", ", ", " ,\t", ",\n "]))
def test_joining_and_parsing_gives_the_words_back(words: list[str], comma: str) -> None:
    assert list(parse_words(comma.join(words)).names) == words
    assert list(parse_words(words).names) == words
    assert list(parse_words(parse_words(words).names).names) == words


@given(vocabularies, st.data())
def test_a_repeated_word_is_found_wherever_it_stands(words: list[str], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(words))
    place = data.draw(st.integers(0, len(words)))
    with pytest.raises(WordsInvalid, match="give each word once"):
        parse_words([*words[:place], f" {again.upper()} " if again.upper().lower() == again else again, *words[place:]])


def test_phrases_keep_their_words_and_lists_their_commas() -> None:
    assert list(parse_words("person on a  bike , cat,").names) == ["person on a bike", "cat"]
    assert list(parse_words(["salt, pepper"]).names) == ["salt, pepper"]


def test_signs_joined_by_invisible_ones_and_long_phrases_are_words() -> None:
    words = ["👩\u200d🚀", "❤\ufe0f", "می\u200cخواهم", "a" * 200]
    assert list(parse_words(words).names) == words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "no words"), ("   ", "no words"), ([], "no words"), (",", "empty"), ("cat,,dog", "word 2 of 3 is empty"),
        (["cat", " "], "empty"), ("cat, dog, Cat", "word 3.*repeats word 1"), (["cat", 3], "a string was expected"),
        ("c\x00t", "unprintable"), ("cat, \u200b", "word 2.*can be seen"), (["\ufeff\u200d"], "can be seen"),
        ("cat, \u0301", "can be seen"), (["cat", "a" * 201], "word 2.*201 characters, at most 200.*shorten it"),
    ],
)  # fmt: skip
def test_words_that_are_none(words: str | list[str], says: str) -> None:
    with pytest.raises(WordsInvalid, match=says):
        parse_words(words)


def test_too_many_words_names_the_command_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no bundle is, and no checkout
    check_count(parse_words("a, b"), 2, Path("engines/demo"))
    command = f"in a checkout of fusioner-rt, python export/build_engine.py --fp16 --max-words 3 --out {tmp_path}/engines/demo"
    with pytest.raises(TooManyWords, match=re.escape(command)):
        check_count(parse_words("x, y, z"), 2, Path("engines/demo"))


def test_the_papers_templates() -> None:
    assert len(PAPER_TEMPLATES) == len(set(PAPER_TEMPLATES)) == 32
    assert check_templates(PAPER_TEMPLATES) == PAPER_TEMPLATES
    assert fill(PAPER_TEMPLATES, "cat")[0] == "a bad photo of the cat."
    assert fill(PAPER_TEMPLATES, "cat")[-1] == "This is one masked cat in the scene"


def test_braces_in_a_word_are_only_braces() -> None:
    assert fill(["a {category}"], "{category} {0}") == ["a {category} {0}"]


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{category} and {category}"], ["a {word}"], [3]])
def test_templates_without_a_place_for_the_word(templates: list[str]) -> None:
    with pytest.raises(TemplatesInvalid, match=re.escape("such as 'a photo of a {category}.'")):
        check_templates(templates)
