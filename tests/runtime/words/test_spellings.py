"""Words as people write them: split, cleaned, or refused with what to write instead."""

from typing import Any

import pytest

from fusioner_rt.errors import WordsInvalid
from fusioner_rt.words.arguments import join_words
from fusioner_rt.words.parse import COMMON, parse_words

CAT_AND_SOFA = [
    "cat\nsofa", "cat\r\nsofa\r\n", "cat; sofa", "cat;sofa;", "cat . sofa .", "cat . sofa", "cat. sofa.", "['cat', 'sofa']",
    '["cat", "sofa"]', "('cat', 'sofa')", "[cat, sofa]", '"cat", "sofa"', "'cat, sofa'"[1:-1], "cat,  sofa", "CAT, SOFA",
    "a cat, the sofa", "A cat and a sofa".replace(" and ", ", and "), "- cat\n- sofa", "* cat\n* sofa", "1. cat\n2. sofa",
    "1) cat\n2) sofa", "cat,\nsofa", "cat\n\n\nsofa\n", "cat，sofa", "cat、sofa", "“cat”, ‘sofa’", "{'cat', 'sofa'}", "`cat`, `sofa`",
    "\tcat ,\tsofa  ", ["cat", "sofa"], ("cat", "sofa"), {"cat": [], "sofa": None}, ['"cat"', "sofa."],
    ["a cat", "The sofa"],
]  # fmt: skip


@pytest.mark.parametrize("words", CAT_AND_SOFA, ids=repr)
def test_spellings_of_cat_and_sofa(words: Any) -> None:
    asked = parse_words(words)
    assert asked.names == asked.words == ("cat", "sofa")
    assert asked.owners == (1, 2)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("traffic_light, stop  sign", ("traffic light", "stop sign")), ("TV, person", ("TV", "person")),
        ("St. Bernard, cat", ("St. Bernard", "cat")), ("person on a bike", ("person on a bike",)),
        ("men's shoe, dog's tail", ("men's shoe", "dog's tail")), ("7. Cat", ("Cat",)), ("t-shirt", ("t-shirt",)),
        ("and, or", ("and", "or")), ("A", ("A",)), (["salt, pepper"], ("salt, pepper",)), ("cat.", ("cat",)),
        ("U.S. flag, cat", ("U.S. flag", "cat")), ("3 apples; 4k monitor", ("3 apples", "4k monitor")),
    ],
)  # fmt: skip
def test_what_belongs_to_a_word_stays(words: Any, names: tuple[str, ...]) -> None:
    assert parse_words(words).names == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cat|sofa", r"one group.*put commas between words.*\[\['cat', 'kitten'\], 'sofa'\]"),
        ("words.txt", "'words.txt' is the name of a file.*--words-file FILE"), ("cat, photo.jpg", "name of a file.*before --words"),
        ("cat;; sofa", "word 2 of 3 is empty"), ("cat, 'cat'", "repeats word 1, 'cat'"), ("cat_, the CAT", "repeats word 1"),
        ("['cat', 'sofa'", r"begins like a list and is none; close its brackets.*'\]' ends it"), ("[['cat'], [dog]]", "begins like"),
        ("[]", "no words"), ("['']", "word 1 of 1 is empty"), ('""', "word 1 of 1 is empty"), ("[1, 2]", "word 1 is 1, a string"),
        ("-, cat", "word 1 of 2 is empty"), (None, "given as NoneType"), (5, "given as int"), (b"cat", "given as bytes"),
        (["cat", None], "word 2 is None, a string"), ([["cat", 5]], "word 1 is 5, a string"), ([[]], "word 1 of 1 is empty"),
        ("cat|kitten, kitten", "word 2, 'kitten', repeats word 1"), ("cat|, dog", "word 1 of 2 is empty"), ({}, "no words"),
        (["cat", {"dog": []}], r"word 2 is \{'dog': \[\]\}, a string was expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_words_is_refused_with_the_cure(words: Any, says: str) -> None:
    with pytest.raises(WordsInvalid, match=says) as refused:
        parse_words(words)
    assert refused.value.cure
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        [["cat", "kitten"], "sofa"], "cat|kitten, sofa", "cat | kitten ; sofa", '[["cat", "kitten"], "sofa"]', ["cat|kitten", "sofa"],
        {"cat": ["kitten"], "sofa": []}, {"cat": "kitten", "sofa": None}, "{'cat': ['kitten'], 'sofa': []}", [("a cat", "kitten"), "sofa"],
    ],
    ids=repr,
)  # fmt: skip
def test_spellings_of_a_group(words: Any) -> None:
    asked = parse_words(words)
    assert asked.names == ("cat", "sofa")
    assert asked.words == ("cat", "kitten", "sofa")
    assert asked.owners == (1, 1, 2)
    assert not asked.is_plain


def test_background_words_stand_last_and_those_asked_for_are_left_out() -> None:
    asked = parse_words("sofa, Wall", ["wall", "sky", "the sky", "sofa|couch"])
    assert asked.names == ("sofa", "Wall")
    assert asked.words == ("sofa", "Wall", "sky", "couch")
    assert asked.owners == (1, 2, 0, 0)
    common = parse_words("tree", "common")
    assert sorted(common.words) == sorted(COMMON)
    assert parse_words("tree", "common.").words == ("tree", "common")
    for nothing in ("", [], 5):
        with pytest.raises(WordsInvalid):
            parse_words("cat", nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["cat", "sofa"], ("cat", "sofa")), (["cat,", "sofa"], ("cat", "sofa")), (["red", "car,", "sofa"], ("red car", "sofa")),
        (["red car", "sofa"], ("red car", "sofa")), (["red car, sofa"], ("red car", "sofa")), (["cat", ",sofa"], ("cat", "sofa")),
        (["red", "car", ".", "sofa"], ("red car", "sofa")), (["red car"], ("red car",)), (["[cat,", "sofa]"], ("cat", "sofa")),
    ],
)  # fmt: skip
def test_arguments_without_quotes(arguments: list[str], names: tuple[str, ...]) -> None:
    assert parse_words(join_words(arguments)).names == names
