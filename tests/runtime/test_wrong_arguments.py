"""Every wrong argument of the API is an error of one line that says what was found and what to do, before any work."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections import UserString
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import scene

from fusioner_rt import EncodedPicture, FusionerError, Preprocessing, Segmentation, Session
from fusioner_rt.cli import _parser

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
PICTURE = scene(40, 60)


class Odd:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(BUNDLE, cache=False) as opened:
        opened.set_vocabulary("cat, sofa")
        yield opened


@functools.cache
def command_options() -> set[str]:
    """Every long option of the command `fusioner-rt`."""
    (commands,) = (action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    return {option for parser in commands.values() for action in parser._actions for option in action.option_strings
            if option.startswith("--")} - {"--help"}  # fmt: skip


@functools.cache
def arguments_of_the_api() -> set[str]:
    calls = (Session.__init__, Session.segment, Session.segment_on_device, Session.encode, Session.set_vocabulary)
    return {name for call in calls for name in inspect.signature(call).parameters} - {"self"}


def speaks_api(text: str) -> bool:
    """Whether a text names no option of the command line; whole commands may follow."""
    said = re.sub(r"(python export|pip install|fusioner-rt ).*", "", text)
    return not set(re.findall(r"--[a-z-]+", said)) & command_options()


def speaks_command_line(text: str) -> bool:
    return not re.search(rf"\b({'|'.join(arguments_of_the_api())})=", text)


API_ALONE = (
    "was encoded with window=",
    "pass window=",
    "give a smaller size=",
    "pass words=",
)  # of calls it does not make


def check(call: Callable[[], Any]) -> FusionerError:
    with pytest.raises(FusionerError) as refused:
        call()
    error = refused.value
    assert error.cure, error
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 500
    assert speaks_api(str(error)), error
    assert speaks_command_line(str(error.as_command())) or any(said in str(error) for said in API_ALONE), error
    return error


@functools.cache
def result(session: Session) -> Segmentation:
    return session.segment(PICTURE, "cat, sofa")


NUMBERS = (1.5, float("nan"), float("inf"), True, "2", b"2", [1], {}, 1j, np.float32(3), Odd(), 10**5000)
NO_TEXTS = (5, None, True, b"auto", [], ["auto"], np.array([1, 2]), Odd(), "nothing of that name", "a" * 9999)
NO_PATHS = (5, True, b"models/demo/bundle", "", "a\0b", ["a"], {}, np.zeros(3), Odd(), object())
NO_WORDS = (
    3, 0, True, 1.5, float("nan"), b"cat", bytearray(b"cat"), memoryview(b"cat"), "", " ", [], {}, (), {"cat", "sofa"},
    frozenset({"cat"}), ["cat", None], ["cat", 5], [b"cat"], ["cat", ""], [["cat", ["dog"]]], [[]], {"cat": 5}, {5: ["cat"]},
    ["cat", {"dog"}], ["cat", "cat"], "cat\0", ["a\udc80"], "a" * 500, Odd(), int, Path("words.txt"), np.array(5),
    np.array([1, 2]), np.array([b"cat"]), (word for word in ()), itertools.repeat("cat"), itertools.count(), "words.txt",
)  # fmt: skip
NO_PICTURES = (5, None, 1.5, object, {}, {"a.jpg"}, "", "a\0b", "nowhere.png", b"", b"no picture", PICTURE.astype(float), PICTURE.transpose(2, 0, 1), "https://example.org/a.jpg", PICTURE[:0],
               PICTURE.tolist(), (picture for picture in [PICTURE]), [[PICTURE]], np.array("x"))  # fmt: skip
NO_PROBABILITY = (3, -0.1, float("nan"), "50%", "0.5", None, True, [0.5], np.array([0.5, 0.6]), 1j, {"cat": 2}, {"cat": "high"},
                  {"dog": 0.5}, {5: 0.5}, 10**5000, Odd())  # fmt: skip
NO_SIZES = (0, 5, "5x5", (0, 5), (5,), (5, 5, 5), (5.0, 5.0), (True, 5), [None, 5], {5, 6}, np.array("x"), np.zeros((2, 2)),
            (10**5, 10**5), (10**5000, 1), (-1, 5), b"55")  # fmt: skip
CASES: dict[str, tuple[Callable[[Session, Any], Any], tuple[Any, ...]]] = {
    "Session(bundle)": (lambda _, given: Session(given), (*NO_PATHS, "nowhere", ROOT, BUNDLE / "text.onnx", "https://example.org/demo.tar.gz")),
    "Session(backend)": (lambda _, given: Session(BUNDLE, backend=given), NO_TEXTS),
    "Session(cache)": (lambda _, given: Session(BUNDLE, cache=given), NO_PATHS),
    "Session(threads)": (lambda _, given: Session(BUNDLE, threads=given), (*NUMBERS, 0, -1, 10**6)),
    "Session(input_size)": (lambda _, given: Session(BUNDLE, input_size=given), (*NUMBERS, 0, -1, 10**6)),
    "Session(max_pixels)": (lambda _, given: Session(BUNDLE, max_pixels=given), (*NUMBERS, 0, -1, 10**9)),
    "set_vocabulary(words)": (lambda session, given: session.set_vocabulary(given), NO_WORDS),
    "set_vocabulary(templates)": (
        lambda session, given: session.set_vocabulary("cat", given),
        (5, [], "", "no place", b"a {category}", [5], ["{category} {category}"], {"{category}"}, {"{category}": 1}, Odd(),
         ["a {category}\0"], itertools.repeat("{category}"), np.array(5), True),
    ),
    "set_vocabulary(background)": (
        lambda session, given: session.set_vocabulary("cat", background=given),
        (5, True, b"wall", {"wall"}, [5], ["wall", None], {"wall": 5}, "wall.txt", Odd(), itertools.repeat("wall")),
    ),
    "encode(picture)": (lambda session, given: session.encode(given), NO_PICTURES),
    "encode(window)": (lambda session, given: session.encode(PICTURE, given), (*NO_TEXTS, "sliding")),
    "segment(picture)": (lambda session, given: session.segment(given), NO_PICTURES),
    "segment(words)": (lambda session, given: session.segment(PICTURE, given), NO_WORDS),
    "segment(size)": (lambda session, given: session.segment(PICTURE, size=given), NO_SIZES),
    "segment(threshold)": (lambda session, given: session.segment(PICTURE, threshold=given), NO_PROBABILITY),
    "segment(mode)": (lambda session, given: session.segment(PICTURE, mode=given), NO_TEXTS),
    "segment(probabilities)": (lambda session, given: session.segment(PICTURE, probabilities=given), (5, 0, None, "yes", [])),
    "segment(background)": (lambda session, given: session.segment(PICTURE, "cat", background=given), (5, {"wall"}, [5], b"wall")),
    "segment(background) alone": (lambda session, given: session.segment(PICTURE, background=given), ("wall", ["wall"])),
    "segment(threshold) of a background word": (
        lambda session, given: session.segment(PICTURE, "cat", background="wall", threshold=given), ({"wall": 0.5},),
    ),
    "segment(window)": (lambda session, given: session.segment(PICTURE, window=given), (*NO_TEXTS, "sliding")),
    "segment(encoded picture)": (
        lambda session, given: session.segment(replace(session.encode(PICTURE), **given)),
        ({"picture": None}, {"picture": PICTURE[0]}, {"encoded": 5}, {"input_size": 5}, {"backend": "tensorrt"},
         {"picture_sha256": "0"}, {"picture_sha256": None}, {"window": "sliding"}),
    ),
    "segment_on_device(size)": (lambda session, given: session.segment_on_device(PICTURE, size=given), NO_SIZES),
    "segment_on_device(words)": (lambda session, given: session.segment_on_device(PICTURE, given), (5, b"cat", {"cat"}, [])),
    "segment_on_device(stream)": (lambda session, given: session.segment_on_device(PICTURE, stream=given), (*NUMBERS, -1)),
    "segment_on_device(out)": (lambda session, given: session.segment_on_device(PICTURE, out=given), (5, [], PICTURE, "x", (1,))),
    "segment_on_device(picture)": (lambda session, given: session.segment_on_device(given), (PICTURE, None, "a.jpg")),
    "EncodedPicture": (lambda _, given: EncodedPicture(*given), ((5, 5, 5, 5, 5), (PICTURE, (1, 1), [], "", ""))),
    "Preprocessing": (
        lambda session, given: Preprocessing(**{**vars(session.bundle.preprocessing), **given}),
        ({"side": "x"}, {"side": True}, {"side": None}, {"multiple": 1.5}, {"longest": [5]}, {"resample": 5}, {"fit": None},
         {"mean": 5}, {"mean": (1, 2)}, {"std": (1, 2, "x")}, {"std": (1, 2, float("nan"))}, {"side": 10**99}),
    ),
    "Preprocessing()(rgb)": (
        lambda session, given: session.bundle.preprocessing(given), (5, None, "a.jpg", PICTURE[0], PICTURE[:0], PICTURE / 255, []),
    ),
    "Preprocessing()(size)": (
        lambda session, given: session.bundle.preprocessing(PICTURE, given), (5, (0, 5), (5,), "55", (1.5, 2), (10**9, 5), [True, 5]),
    ),
    "Preprocessing().input_size": (
        lambda session, given: session.bundle.preprocessing.input_size(given, 5), ("x", None, 1.5, True, [], 10**99),
    ),
    "Segmentation.save": (
        lambda session, given: result(session).save(given),
        (*NO_PATHS, None, "seen", "seen.bmp", "nowhere/seen.png", "a" * 300 + ".png"),
    ),
    "Segmentation.to_coco(image_id)": (lambda session, given: result(session).to_coco(image_id=given), (*NUMBERS, -1, None)),
    "Segmentation.to_coco(first_id)": (lambda session, given: result(session).to_coco(1, given), (*NUMBERS, -1, None)),
    "Segmentation.to_coco(compressed)": (lambda session, given: result(session).to_coco(compressed=given), (5, None, "no")),
}  # fmt: skip
OF_THE_INSTALLATION = {"BundleMissing", "ManifestInvalid", "BackendUnavailable", "OutputUnwritable"}


@pytest.mark.parametrize("called", CASES)
def test_a_wrong_argument_is_one_line_with_a_cure_and_leaves_nothing(
    called: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, values = CASES[called]
    words = session.words
    for value in values:
        error = check(lambda given=value: call(session, given))  # type: ignore[misc]
        assert error.is_input or type(error).__name__ in OF_THE_INSTALLATION, error
    assert list(tmp_path.iterdir()) == []
    assert session.words == words
    assert session.segment(PICTURE).words == words


def test_numbers_and_words_of_numpy_and_iterators_are_taken(session: Session) -> None:
    with Session(BUNDLE, cache=False, threads=np.int64(2), input_size=np.int32(224)) as opened:  # type: ignore[arg-type]
        assert opened.bundle.preprocessing.side == 224
    for words in (np.array(["cat", "sofa"]), (word for word in ("cat", "sofa")), ("cat", "sofa"), UserString("cat, sofa"), {"cat": [], "sofa": None}):  # fmt: skip
        found = session.segment(
            PICTURE, words, size=np.array([5, 7]), threshold=np.float32(0.5), probabilities=np.True_
        )  # type: ignore[call-overload]
        assert found.words == ("cat", "sofa")
        assert found.labels.shape == (5, 7)
    assert found.to_coco(np.int64(3), np.uint8(4)) == found.to_coco(3, 4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (3, "words were given as int, a text or a list of texts was expected"),
        ("cat|lamp, sofa, lamp", "word 3, 'lamp', repeats word 2 of group 1, 'lamp'"),
        ([["a", *map(str, range(300))]], r"301 words were given \(301 for 1 names, 0 for the background\)"),
    ],
)
def test_the_line_names_what_is_wrong(session: Session, words: Any, says: str) -> None:
    with pytest.raises(FusionerError, match=says):
        session.segment(PICTURE, words)


def test_a_closed_session_is_the_applications_fault() -> None:
    session = Session(BUNDLE, cache=False)
    session.close()
    with pytest.raises(FusionerError, match="this session is closed; open another") as refused:
        session.segment(PICTURE, "cat")
    assert not refused.value.is_input


def texts(tree: ast.AST, spelled: int | None = None) -> Iterator[tuple[int | None, ast.Constant]]:
    """Every text of a file, but for docstrings, and which argument of `Spelled` it stands in."""
    for field in ast.iter_child_nodes(tree):
        if isinstance(field, ast.Expr) and isinstance(field.value, ast.Constant):
            continue
        if isinstance(field, ast.Constant) and isinstance(field.value, str):
            yield spelled, field
        elif isinstance(field, ast.Call) and getattr(field.func, "id", "") == "Spelled":
            for index, argument in enumerate(field.args):
                yield from ((index, text) for _, text in texts(ast.Module([ast.Return(argument)], []), index))  # type: ignore[list-item]
        else:
            yield from texts(field, spelled)


MAY_NAME_OPTIONS = {
    "cli.py",
    "command_parser.py",
    "commands/fleet.py",
    "commands/run_record.py",
    "commands/segment.py",
    "commands/serve.py",
    "commands/session_options.py",
    "commands/video.py",
    "commands/video_files.py",
    "commands/words.py",
    "doctor.py",
    "fetch_bundle.py",
    "interfaces/label_studio.py",
    "words/arguments.py",
    "cures.py",
}  # cures: commands of a build


def test_no_text_of_the_runtime_speaks_the_other_language() -> None:
    """What may be said in both is a `Spelled`."""
    found, spelled = [], 0
    for file in sorted((ROOT / "fusioner_rt").rglob("*.py")):
        name = file.relative_to(ROOT / "fusioner_rt").as_posix()
        for argument, text in texts(ast.parse(file.read_text())):
            spelled += argument is not None
            if argument != 1 and name not in MAY_NAME_OPTIONS and not speaks_api(text.value):
                found.append(f"{name}:{text.lineno}: {text.value}")
            if argument != 0 and not speaks_command_line(text.value) and not text.value.startswith(API_ALONE):
                found.append(f"{name}:{text.lineno}: {text.value}")
    assert not found, "\n".join(found)
    assert spelled > 9
