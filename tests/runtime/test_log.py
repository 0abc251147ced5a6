"""The log: notes and fall-backs as warnings, once each; what was opened; how long a call took."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.cli import main

BUNDLE = Path(__file__).parents[2] / "models/demo/bundle"


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno == level and record.name == "fusioner_rt"
    ]


def test_notes_are_warnings_once_each_and_calls_are_timed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    caplog.set_level(logging.DEBUG, logger="fusioner_rt")
    with Session(BUNDLE, cache=tmp_path / "file" / "cache") as session:
        (opened,) = lines(caplog, logging.INFO)
        assert opened.startswith(f"opened {BUNDLE} with onnxruntime-cpu")
        assert opened.endswith(" s")
        for words in ("cat, cats", "cat, cats", "cat, Katze"):
            session.set_vocabulary(words)
            assert set(session.notes) <= set(lines(caplog, logging.WARNING))
        session.segment([scene(20, 30)] * 2)
        warned = lines(caplog, logging.WARNING)
        assert len(warned) == len(set(warned))
        assert any("cannot be written" in note and "cache=" in note for note in warned)
        assert any("cat|cats" in note for note in warned)
        timed = [line for line in lines(caplog, logging.DEBUG) if line.startswith("segment ")]
        assert len(timed) == 2
        assert all("2 words, ms: " in line and "total " in line for line in timed)
        caplog.clear()
        caplog.set_level(logging.CRITICAL, logger="fusioner_rt")
        session.segment(scene(20, 30))
        assert not caplog.records


def test_the_command_line_says_more_where_it_is_asked_to(
    tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "segment",
        str(picture_folder / "0.png"),
        "--words",
        "cat, cats",
        "--engine",
        str(BUNDLE),
        "--out",
        str(tmp_path),
    ]
    said = {}
    for verbose in ("", "-v", "-vv"):
        assert main([*command, *filter(None, [verbose])]) == 0
        said[verbose] = capsys.readouterr().err.splitlines()
    (note,) = said[""]
    assert note.startswith("fusioner-rt: note: ")
    assert said["-v"][0].startswith(f"fusioner-rt: opened {BUNDLE} with onnxruntime-cpu")
    assert said["-v"].count(note) == 1
    assert any("segment" in line and "ms: " in line for line in said["-vv"])
    assert not any("ms: " in line for line in said["-v"])
    assert logging.getLogger("fusioner_rt").level == logging.NOTSET
