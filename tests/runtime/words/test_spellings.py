"""Words as people write them: split, cleaned, or refused with what to write instead."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner_rt.errors import UsageError, WordsInvalid
from fusioner_rt.words.arguments import join_words, parse_threshold, read_words
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
        ("men's shoe, dog's tail", ("men's shoe", "dog's tail")), ("7. Cat", ("7. Cat",)), ("10. avenue, cat", ("10. avenue", "cat")), ("t-shirt", ("t-shirt",)),
        ("and, or", ("and", "or")), ("A", ("A",)), (["salt, pepper"], ("salt, pepper",)), ("cat.", ("cat",)),
        ("U.S. flag, cat", ("U.S. flag", "cat")), ("3 apples; 4k monitor", ("3 apples", "4k monitor")),
        ("Dr. Pepper can.", ("Dr. Pepper can",)), ("No. 5 bus, cat", ("No. 5 bus", "cat")), ("cat. sofa, dog", ("cat", "sofa", "dog")),
        ("#1 fan, -5 degrees", ("#1 fan", "-5 degrees")), ("*nix, C++, C#, node.js", ("*nix", "C++", "C#", "node.js")),
        ("The Who, A Coruna, a la carte", ("The Who", "A Coruna", "a la carte")), ("cat, dog, and sofa", ("cat", "dog", "sofa")),
        ("cat, floor lamp", ("cat", "floor lamp")), ("cat, sand castle", ("cat", "sand castle")),
        ("lamp, cat and dog", ("lamp", "cat and dog")), ("cat\nbrand new car", ("cat", "brand new car")),
        ("lamp, and cat and dog", ("lamp", "cat and dog")), ("cat; hand rail; or door handle", ("cat", "hand rail", "door handle")),
        ("USA, TV, person", ("USA", "TV", "person")), ("WHO, CAT", ("who", "cat")),
        ("(red) car, dog", ("(red) car", "dog")), ("12\" pizza, '90s car", ("12\" pizza", "'90s car")), ("rock'n'roll", ("rock'n'roll",)),
        ("قط، كلب", ("قط", "كلب")), ("猫。狗", ("猫", "狗")), ("cat\u2028dog", ("cat", "dog")), ('"cat, dog"', ("cat", "dog")), ("(cat)", ("cat",)), ("('cat')", ("cat",)),
    ],
)  # fmt: skip
def test_what_belongs_to_a_word_stays(words: Any, names: tuple[str, ...]) -> None:
    assert parse_words(words).names == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cat|sofa", r"one group.*put commas between words.*\[\['cat', 'kitten'\], 'sofa'\]"),
        ("words.txt", "'words.txt' is the name of a file.*give the words themselves"), ("cat, photo.jpg", "name of a file.*pictures as pictures"),
        ("cat;; sofa", "word 2 of 3 is empty"), ("cat, 'cat'", "repeats word 1, 'cat'"), ("cat_, the CAT", "repeats word 1"),
        ("['cat', 'sofa'", "bracket without its other one; close the list"), ("[['cat'], [dog]]", "bracket without its other one"),
        ("['cat' 'dog', 'sofa']", "without a comma between them; put commas"), ("['cat''dog']", "without a comma"),
        ('["cat", null]', "word 2 is None, a string"), ('"cat, dog", sofa', "begins with a quote that is not closed"),
        ("cat]", "bracket without its other"), (["cat; dog"], "holds ';', which separates words; give its words one by one"),
        (["cat\ndog"], r"holds '\\n', which"), ([["cat|dog", "sofa"]], r"holds '\|', which"),         (["x" * 100_000 + ".jpg"], "100004 characters"), (["x" * 100_000 + "\0"], "unprintable"), ([b"cat"], "give strings; a group"),
        ([10**5000], "word 1 is a int, a string"), (np.array("cat"), "given as ndarray"), ([np.zeros((30, 30))], "a string"),
        ("[]", "no words"), ("['']", "word 1 of 1 is empty"), ('""', "word 1 of 1 is empty"), ("[1, 2]", "word 1 is 1, a string"),
        ("-, cat", "word 1, '-', is punctuation alone"), ("cat, ...", "punctuation alone"), (None, "given as NoneType"), (5, "given as int"), (b"cat", "given as bytes"),
        (["cat", None], "word 2 is None, a string"), ([["cat", 5]], "word 2 of group 1 is 5, a string"), ([[]], "word 1 of 1 is empty"),
        ("cat|kitten, kitten", "word 2, 'kitten', repeats word 2 of group 1, 'kitten'"), ("cat|, dog", "word 2 of group 1 of 2 is empty"), ({}, "no words"),
        ({"cat", "dog"}, "a set, which has no order; give a list"), ([{"cat", "dog"}], "word 1 is {.*a string was expected"),
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
        {"cat|kitten": [], "sofa": []}, '{"cat": "kitten", "sofa": null}', {"cat": ["kitten"], "sofa": []}, {"cat": "kitten", "sofa": None}, "{'cat': ['kitten'], 'sofa': []}", [("a cat", "kitten"), "sofa"],
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
    for spelled in (" Common ", ["common"], "common, mud"):
        assert len(parse_words("tree", spelled).words) >= len(COMMON)
    for nothing in ("", [], None):
        assert parse_words("cat", nothing).words == ("cat",)
    for wrong in (5, "wall,, sky", ["wall", 3]):
        with pytest.raises(WordsInvalid, match=r"^background: "):
            parse_words("cat", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["cat", "sofa"], ("cat", "sofa")), (["cat,", "sofa"], ("cat", "sofa")), (["red", "car,", "sofa"], ("red car", "sofa")),
        (["red car", "sofa"], ("red car", "sofa")), (["red car, sofa"], ("red car", "sofa")), (["cat", ",sofa"], ("cat", "sofa")),
        (["red", "car", ".", "sofa"], ("red car", "sofa")), (["red car", "dog, cat"], ("red car", "dog", "cat")),
        (["traffic light", "stop sign,"], ("traffic light", "stop sign")), (["red car"], ("red car",)), (["[cat,", "sofa]"], ("cat", "sofa")),
    ],
)  # fmt: skip
def test_arguments_without_quotes(arguments: list[str], names: tuple[str, ...]) -> None:
    assert parse_words(join_words(arguments)).names == names


@pytest.mark.parametrize("arguments", [["a", "red", "car"], ["cat", "and", "dog"], ["cat", "&", "dog"], ["1.", "cat"]])
def test_arguments_that_need_quotes_say_so(arguments: list[str]) -> None:
    with pytest.raises(WordsInvalid, match="put quotes around"):
        join_words(arguments)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("cat\nred sofa\n", ("cat", "red sofa")), ('["cat"]', ("cat",)), ('{"cat": ["kitten"]}', ("cat",)), ("cat|kitten\n", ("cat",)),
        ("- cat\n\n- sofa, lamp\n", ("cat", "sofa", "lamp")),
    ],
)  # fmt: skip
def test_files_of_words(tmp_path: Path, content: str, names: tuple[str, ...]) -> None:
    (tmp_path / "words").write_text(content)
    assert parse_words(read_words(tmp_path / "words")).names == names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.6", 0.6), ("cat=0.7, the sofa=0.4", {"cat": 0.7, "sofa": 0.4}), ("cat=0.7; red  sofa=.4", {"cat": 0.7, "red sofa": 0.4}),
        ("cat=0,7", None), ("cat=", None), ("0.6, cat=0.7", None), ("=0.7", None), ("cat=0.7, cat=0.8", None), ("high", None), ("cat=a=0.5", None),
    ],
)  # fmt: skip
def test_thresholds_of_a_command_line(text: str, found: Any) -> None:
    if found is None:
        with pytest.raises(UsageError, match=r"each once; give 0\.6"):
            parse_threshold(text)
    else:
        assert parse_threshold(text) == found


@pytest.mark.parametrize(
    "text", ["a" + " " * 100_000 + "b", "a" + "\t" * 100_000 + ".b", "a\n" + "\n " * 50_000 + "b", "((" * 50_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    with contextlib.suppress(WordsInvalid):
        parse_words(text)
    assert time.process_time() - start < 1


@given(st.lists(st.sampled_from(["floor lamp", "sand castle", "cat and dog", "motor cycle", "brand new car", "orange", "android"]),
                min_size=2, max_size=7, unique=True), st.sampled_from([", ", "; ", "\n", " . ", ", and ", ", or "]))  # fmt: skip
def test_and_and_or_are_taken_from_before_the_last_word_and_from_within_none(words: list[str], last: str) -> None:
    text = ", ".join(words[:-1]) + last + words[-1]
    assert parse_words(text).names == tuple(words)


def test_background_words_have_no_groups_to_be_in() -> None:
    assert parse_words("cat", "wall|sky").words == ("cat", "wall", "sky")
