"""Every wrong command line is one line on stderr that speaks of the command line's options, and nothing is written."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from made_pictures import scene
from PIL import Image

from fusioner_rt import Session
from fusioner_rt.cli import main

ROOT = Path(__file__).parents[2]
ENGINE = ["--engine", str(ROOT / "models/demo/bundle")]
ARGUMENTS = {name for call in (Session.__init__, Session.segment) for name in inspect.signature(call).parameters}
SEGMENT = ["segment", "a.png", *ENGINE, "--words"]
CASES = [
    ([], 2, "required"), (["segmnt"], 2, "invalid choice"), (["segment"], 2, "--words"), (["segment", "a.png"], 2, "--words"),
    (["segment", "a.png", "--words"], 2, "expected at least one"), (["segment", "--words", "cat"], 2, "no pictures"),
    (["segment", "a.png", "--words", "cat", "--words-file", "words.txt"], 2, "not allowed with"),
    ([*SEGMENT, "cat", "--nonsense", "x\ny"], 2, "unrecognized arguments: --nonsense x y; fusioner-rt segment --help explains$"),
    (["info", "engine"], 2, "^fusioner-rt info: unrecognized arguments: engine; fusioner-rt info --help explains$"),
    (["info", "empty"], 2, "unrecognized arguments: empty; name a bundle as --engine empty; fusioner-rt info --help"),
    (["--nonsense", "info"], 2, "^fusioner-rt: unrecognized arguments: --nonsense; fusioner-rt --help explains$"), (["words", "e" * 5000], 2, "unrecognized"),
    ([*SEGMENT, ""], 20, "no words were given"), ([*SEGMENT, ", ,"], 20, "is empty"), ([*SEGMENT, "cat, cat"], 20, "repeats word 1"),
    ([*SEGMENT, "cat|sofa"], 20, "or as a line of --words-file"), ([*SEGMENT, "words.txt"], 20, "--words-file FILE reads them"),
    ([*SEGMENT, "b.png"], 20, "pictures stand before --words"), ([*SEGMENT, "a", "red", "car"], 20, 'quotes around .*--words "a red car"'),
    ([*SEGMENT, "['cat', 5]"], 20, "word 2 is 5"), ([*SEGMENT, "['cat' 'sofa']"], 20, "put commas"), ([*SEGMENT, "c" * 300], 20, "300 characters"),
    ([*SEGMENT, ", ".join(map(str, range(300)))], 21, "300 words were given, .* at most 256"),
    (["segment", "a.png", *ENGINE, "--words-file", "nowhere.txt"], 2, "cannot be read"),
    (["segment", "a.png", *ENGINE, "--words-file", "."], 2, "cannot be read"),
    (["segment", "a.png", *ENGINE, "--words-file", ""], 2, "--words-file: '' is no path"),
    (["segment", "a.png", *ENGINE, "--words-file", "comments.txt"], 20, "holds no words"),
    (["segment", "a.png", *ENGINE, "--words-file", "a.png"], 2, "no text in UTF-8"),
    ([*SEGMENT, "cat", "--background", "wall.txt"], 20, "background: 'wall.txt'"), ([*SEGMENT, "cat", "--background"], 2, "expected at least one"),
    ([*SEGMENT, "cat", "--background", "wall", "--threshold", "wall=0.5"], 2, "a background word"),
    ([*SEGMENT, "cat", "--threshold", "50%"], 2, "--threshold '50%': expected a probability.*; give 0.5$"),
    ([*SEGMENT, "cat", "--threshold", "1.5"], 2, "the threshold is 1.5; give a probability within 0..1"),
    ([*SEGMENT, "cat", "--threshold", "nan"], 2, "the threshold is nan"), ([*SEGMENT, "cat", "--threshold", "dog=0.5"], 2, "none of the words"),
    ([*SEGMENT, "cat", "--threshold", "cat=0.5,cat=0.6"], 2, "each once"), ([*SEGMENT, "cat", "--threshold", ""], 2, "expected a probability"),
    ([*SEGMENT, "cat", "--size", "0x5"], 2, "--size '0x5': expected height x width"), ([*SEGMENT, "cat", "--size", "5"], 2, "480x640"),
    ([*SEGMENT, "cat", "--size", "99999x99999"], 2, "million pixels; give a smaller one"), ([*SEGMENT, "cat", "--size", "9" * 5000 + "x5"], 2, "480x640"),
    ([*SEGMENT, "cat", "--mode", "both"], 2, "invalid choice: 'both'"), ([*SEGMENT, "cat", "--window", "sliding"], 2, "leave --window out"),
    ([*SEGMENT, "cat", "--threads", "two"], 2, "'two' is no whole number of 1 or more"), ([*SEGMENT, "cat", "--threads", "0"], 2, "'0' is no whole"),
    ([*SEGMENT, "cat", "--threads", "99999"], 2, "--threads is 99999; give 1 to"), ([*SEGMENT, "cat", "--threads", "9" * 5000], 2, "no whole number"),
    ([*SEGMENT, "cat", "--input-size", "5"], 2, "--input-size is 5; the bundle in .* takes whole numbers of"),
    ([*SEGMENT, "cat", "--input-size", "1.5"], 2, "'1.5' is no whole number"), ([*SEGMENT, "cat", "--backend", "gpu"], 47, "backend 'gpu' is unknown"),
    ([*SEGMENT, "cat", "--backend", ""], 47, "backend '' is unknown"), ([*SEGMENT, "cat", "--cache", ""], 2, "--cache: '' is no path"),
    ([*SEGMENT, "cat", "--out", ""], 2, "--out: '' is no path"), ([*SEGMENT, "cat", "--out", "a\0b"], 2, "is no path"),
    ([*SEGMENT, "cat", "--out", "a.png"], 50, "it is a file"), ([*SEGMENT, "cat", "--out", "o" * 5000], 50, "File name too long"),
    ([*SEGMENT, "cat", "--json", "."], 2, "is a folder; name a file in it"), ([*SEGMENT, "cat", "--json", "j" * 5000], 2, "File name too long; check"),
    ([*SEGMENT, "cat", "--json", "a.png/x.json"], 50, "choose a folder"),
    (["segment", "a.png", "--words", "cat", "--engine", ""], 2, "--engine: '' is no path"),
    (["segment", "a.png", "--words", "cat", "--engine", "nowhere"], 30, "name another with --engine DIR"),
    (["segment", "a.png", "--words", "cat", "--engine", "a.png"], 30, "is not a folder"), (["segment", "a.png", "--words", "cat"], 30, "--engine DIR or FUSIONER_ENGINE"),
    (["segment", "", *ENGINE, "--words", "cat"], 2, "'' is no path"), (["segment", "empty", *ENGINE, "--words", "cat"], 2, "no pictures in this folder"),
    (["segment", "nowhere.png", *ENGINE, "--words", "cat"], 10, "no such file"), (["segment", "p" * 5000, *ENGINE, "--words", "cat"], 10, "File name too long"),
    (["segment", "words.txt", *ENGINE, "--words", "cat"], 11, "not a picture"), (["info", "--engine", "nowhere"], 30, "no such folder"),
    (["info", *ENGINE, "--backend", "tensorrt"], 37, "no TensorRT plan"), (["doctor", "--engine", ""], 2, "is no path"), (["words", "--cache", ""], 2, "is no path"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "says"), CASES, ids=[" ".join(case[0])[:60] for case in CASES])
def test_a_wrong_command_line_is_one_line_with_a_cure(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene(20, 30)).save("a.png")
    Path("words.txt").write_text("cat\n")
    Path("comments.txt").write_text("# only\n  # comments\n")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    try:
        found = main(arguments)
    except SystemExit as stop:
        found = stop.code  # type: ignore[assignment]
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert found == code, line
    assert re.search(says, line), line
    assert "; " in line or "--help explains" in line
    assert not re.search(rf"\b({'|'.join(ARGUMENTS)})=", line), line
    assert said.out == ""
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert left in ([], [tmp_path / "output"])  # the folder of results, where the words or pictures were at fault
