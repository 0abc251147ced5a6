"""docs/video.md: its commands and Python blocks run, and its tables have every option and field."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented import blocks_of
from made_videos import clip, shown

from fusioner_rt.commands import segment, video

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "video.md").read_text()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip, and what the page's commands made of it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "clips").mkdir()
    for path in (folder / "clip.mp4", folder / "clips" / "other.mp4"):
        clip(path, 6, (64, 96), sound=0.6)
    (folder / "models").symlink_to(ROOT / "models")
    (script,) = blocks_of(PAGE, "bash")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_commands_make_what_the_page_says(there: Path) -> None:
    assert len(shown(there / "output/clip.overlay.mp4")) == 6
    times = [json.loads(line)["time"] for line in (there / "part/clip.jsonl").read_text().splitlines()]
    assert times == [0.2, 0.4]
    assert len(list((there / "part/clip.labels").iterdir())) == 2
    assert (there / "all/other.overlay.mp4").exists()
    assert shown(there / "plain/clip.overlay.mkv")[0][1].shape == (64, 96, 3)


def test_the_python_blocks_run(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(there)
    lines, own, robot, _ = blocks_of(PAGE, "python")
    exec(lines, {})
    assert "False" not in capsys.readouterr().out
    exec(own, {})
    assert len(capsys.readouterr().out.splitlines()) == len(shown(there / "seen.mp4")) == 6
    exec(robot, {})
    assert capsys.readouterr().out


def test_the_tables_have_every_option_and_field(there: Path) -> None:
    parser = argparse.ArgumentParser()
    video.add_to(parser)  # type: ignore[arg-type]
    options = {text for action in parser._actions for text in action.option_strings if text.startswith("--")}
    told = set(re.findall(r"`(--[a-z]+)", PAGE.partition("### Lines")[0]))
    assert options - {"--help"} <= told

    parser = argparse.ArgumentParser()
    segment.add_to(parser.add_subparsers())  # type: ignore[arg-type]
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    known = {text for action in commands["segment"]._actions for text in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known | {"--frames", "--json"}

    (first, *_) = (there / "output/clip.jsonl").read_text().splitlines()
    rows = PAGE.partition("### Lines")[2].partition("```")[0]
    assert set(json.loads(first)) | {"error", "code", "dropped"} == set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", rows, re.MULTILINE)))
    )


def test_the_page_says_what_the_wheel_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """By the wheel that constraints.txt names."""
    from importlib.metadata import files

    held = [path for path in files("av") or [] if ".so" in path.name]
    for name in ("x264", "x265", "vpx", "dav1d", "SvtAv1Enc", "opus", "mp3lame", "gnutls"):
        assert any(path.name.startswith(f"lib{name}-") for path in held), name
    megabytes = sum(path.locate().stat().st_size for path in files("av") or [] if path.locate().exists()) / 1e6
    (told,) = re.findall(r"(\d+) MB once installed", PAGE)
    assert megabytes == pytest.approx(float(told), rel=0.1)
    exec(blocks_of(PAGE, "python")[-1], {})
    assert capsys.readouterr().out.startswith("['libx264'")
