"""Every wrong command line of a build is one line with a cure, said before any graph is traced, and nothing is left."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from export import add_plans, build_engine

ROOT = Path(__file__).parents[2]
BUNDLE, CHECKPOINT = "models/demo/bundle", "models/demo/checkpoint"
LONG = "l" * 5000
BUILDS = [
    (["extra"], "unrecognized arguments"), (["--nonsense"], "unrecognized"), (["--out"], "expected one argument"),
    (["--checkpoint", ""], "'' is no path"), (["--checkpoint", "a\0b"], "is no path"), (["--checkpoint", LONG], "File name too long"),
    (["--checkpoint", "nowhere"], "config.json is missing"), (["--checkpoint", "file"], "is a text file"),
    (["--checkpoint", "empty"], "empty folder"), (["--checkpoint", BUNDLE], "is an engine bundle"),
    (["--out", ""], "'' is no path"), (["--out", "file"], "something other than"), (["--out", "full"], "something other than"),
    (["--out", "file/x"], "it is a file"), (["--out", LONG], "File name too long"), (["--image-weights", ""], "is no path"),
    (["--image-weights", "nowhere"], "takes no file; leave it out"), (["--text-weights", "nowhere"], "no such file or folder"),
    (["--text-weights", "file"], "has sha256"), (["--text-weights", "empty"], "found none; name the file"),
    (["--model", "clip"], "invalid choice"), (["--model", "clip-b16", "--checkpoint", "x"], "give --model or --checkpoint"),
    (["--weights", "random"], "give --weights with --model"), (["--model", "clip-b16", "--image-weights", "x"], "are of a checkpoint"),
    (["--model", "clip-b16", "--weights", "file"], "is a text file"), (["--model", "clip-b16", "--weights", "nowhere.pt"], "not a file"),
    (["--fp16", "--bf16"], "not allowed with"), (["--fp8"], "is not offered"), (["--bf16", "--backend", "onnxruntime"], "makes none"),
    *((["--max-words", text], "no whole number of 1 or more") for text in ("0", "-1", "x", "1.5", "", "9" * 5000, "٣")),
    (["--max-words", "70000"], "65535 at most"), (["--max-batch", "0"], "no whole number"), (["--max-batch", "99999"], "at most 1024"),
    *((["--sizes", text], "is not MIN,OPT,MAX") for text in ("", "5", "5,6", "a,b,c", "1.5,2,3", "9" * 5000 + ",1,1", "٣,٣,٣")),
    *((["--sizes", text], "three ascending multiples") for text in ("0,0,0", "512,256,128", "33,320,1024")),
    (["--backend", "cuda"], "invalid choice"), (["--backend", "tensorrt-rtx", "--for", "8.6"], "does not name GPUs"),
    (["--for", "sm_86", "--backend", "onnxruntime"], "leave --for out"), (["--profiles", "fast"], "does not name profiles"),
    (["--profiles", "latency", "--backend", "onnxruntime"], "leave --profiles out"), (["--timing-cache", ""], "is no path"),
    *((["--kernels", text], "expected all, none, or some of") for text in ("", "sm_10", "x", ",")),
    (["--pictures", "nowhere"], "is no folder"), (["--pictures", "empty"], "holds no picture"), (["--pictures", "a\0b"], "is no path"),
]  # fmt: skip
RTX = ["--backend", "tensorrt-rtx"]
PLANS = [
    ([], "required"), ([BUNDLE], "required: --backend"), ([BUNDLE, "--backend", "onnxruntime"], "invalid choice"), (["", *RTX], "is no path"),
    (["nowhere", *RTX], "is no folder"), (["empty", *RTX], "holds no engine bundle"), ([CHECKPOINT, *RTX], "holds no engine bundle"),
    ([LONG, *RTX], "File name too long"), ([BUNDLE, *RTX, "--for", "x"], "does not name GPUs"), ([BUNDLE, *RTX, "--profiles", ""], "does not name"),
    ([BUNDLE, *RTX, "--pictures", "nowhere"], "--pictures nowhere: is no folder; name one"), ([BUNDLE, *RTX, "--pictures", "a\0b"], "is no path"),
]  # fmt: skip


def one_line(main: object, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main(arguments)  # type: ignore[operator]
    except SystemExit as stop:
        code = stop.code
    *stages, line = capsys.readouterr().err.splitlines()
    assert not [said for said in stages if not re.match("  loading the libraries ", said)]
    assert 0 < code < 126
    assert "; " in line or "--help explains" in line or ": leave" in line, line
    assert len(line) < 6000
    return line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


@pytest.mark.parametrize(("arguments", "says"), BUILDS, ids=[" ".join(arguments)[:50] for arguments, _ in BUILDS])
def test_a_wrong_build_is_one_line_and_leaves_nothing(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    line = one_line(build_engine.main, arguments, capsys)
    assert re.search(says, line), line
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "says"), PLANS, ids=[" ".join(arguments)[:50] for arguments, _ in PLANS])
def test_wrong_plans_are_one_line_and_leave_the_bundle(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "models").unlink()  # what fails to fail must not change the project's own
    shutil.copytree(ROOT / BUNDLE, place / BUNDLE)
    (place / CHECKPOINT).mkdir()
    before = sorted(place.rglob("*"))
    assert re.search(says, one_line(add_plans.main, arguments, capsys))
    assert sorted(place.rglob("*")) == before
