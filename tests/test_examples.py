"""The examples run as they stand, and what they make is right. Those with frames in GPU memory compile, and call the session by
names and arguments that it has: they run where their library and a GPU are, tests/runtime/gpu/test_on_gpu.py. The function for
CVAT runs where cvat-cli is: tests/interfaces/test_cvat.py.
"""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from fusioner_rt import Session

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ON_GPUS = [path for path in EXAMPLES if path.stem.endswith("_frames")]
GALLERY = ROOT / "docs" / "gallery"
PAGE = (ROOT / "docs" / "gallery.md").read_text()
CLIP = GALLERY / "clip.mp4"


def test_there_is_one_for_each_library() -> None:
    assert [path.stem for path in ON_GPUS] == ["cupy_frames", "pycuda_frames", "torch_frames"]


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_sessions_are_called_as_they_can_be(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "session"
    ]
    assert {call.func.attr for call in calls} == {"set_vocabulary", "segment_on_device"}
    for call in calls:
        signature = inspect.signature(getattr(Session, call.func.attr))
        signature.bind(None, *call.args, **{keyword.arg: None for keyword in call.keywords})


def test_the_page_shows_each_with_its_picture() -> None:
    shown = re.findall(r"^\[examples/(\w+)\.py\]\(\.\./examples/\1\.py\)", PAGE, flags=re.MULTILINE)
    assert set(shown) == {path.stem for path in EXAMPLES} - {path.stem for path in ON_GPUS} - {"clip"}
    assert re.findall(r"^python examples/(\w+)\.py", PAGE, flags=re.MULTILINE) == shown
    pictures = re.findall(r"\]\(gallery/(\w+)\.(?:jpg|webp)\)", PAGE)
    assert pictures == shown
    (install,) = (shlex.split(line) for line in PAGE.splitlines() if line.startswith("pip install"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needs = " ".join(" ".join(extras[extra]) for extra in install[4].strip(".[]").split(","))
    assert all(package in needs for package in ("onnxruntime", "av", "scipy", "starlette", "uvicorn"))
    assert {file.stem for file in GALLERY.iterdir()} == {*pictures, "clip"}
    assert all(file.stat().st_size < (300_000 if file == CLIP else 150_000) for file in GALLERY.iterdir())


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's folder, to which nothing is written that stays."""
    for name in ("docs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUSIONER_ENGINE", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(ROOT / "models" / "demo" / "bundle") as opened:
        yield opened


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    """Its frames, (270, 480, 3) uint8."""
    with av.open(CLIP) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """As `python examples/NAME.py` does, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


def test_a_folder_becomes_a_coco_file(there: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    run("folder_to_coco", monkeypatch)
    coco = COCO(there / "output" / "masks.json")
    assert len(coco.imgs) == 3
    for picture in coco.imgs.values():
        seen = session.segment(picture["file_name"], "cat, person, cup")
        for category in coco.cats.values():
            parts = coco.loadAnns(coco.getAnnIds(imgIds=picture["id"], catIds=category["id"]))
            whole = np.sum([np.zeros(seen.labels.shape), *map(coco.annToMask, parts)], axis=0)
            np.testing.assert_array_equal(whole, seen[category["name"]])
    assert Image.open(there / "output" / "folder_to_coco.jpg").height == 320


def test_a_webcams_frames_are_told_in_their_order(
    there: Path,
    session: Session,
    clip: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("webcam", monkeypatch, "--frames", "9")
    told = re.findall(r"^(\d+): (.*) \([\d.]+ frames a second\)$", capsys.readouterr().out, flags=re.MULTILINE)
    seen = [session.segment(frame, "cat, person, cup") for frame in clip[:9]]
    wanted = [", ".join(word for word in one.words if one[word].mean() > 0.02) for one in seen]
    assert told == [(str(index), words) for index, words in enumerate(wanted)]
    assert "cat, person" in wanted
    with Image.open(there / "output" / "webcam.webp") as loop:
        assert loop.n_frames == 5


def test_a_robot_sees_the_newest_frame_and_turns_towards_its_target(
    there: Path,
    session: Session,
    clip: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("robot", monkeypatch)
    told = re.findall(
        r"^frame (\d+), (\d+) dropped: (?:turn (.*)|no target)$", capsys.readouterr().out, flags=re.MULTILINE
    )
    last = -1
    for index, dropped, turn in ((int(index), int(dropped), turn) for index, dropped, turn in told):
        assert index == last + 1 + dropped
        parts = session.segment(clip[index], "person").instances(min_area=0.05 * 270 * 480)
        x, _, width, _ = parts[0].box if parts else (0, 0, 0, 0)
        assert turn == (f"{(2 * x + width) / 480 - 1:+.2f}" if parts else "")
        last = index
    assert last == len(clip) - 1
    assert any(int(dropped) for _, dropped, _ in told)
    assert Image.open(there / "output" / "robot.jpg").size == (968, 548)


def test_objects_are_counted(
    there: Path,
    session: Session,
    clip: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("count_objects", monkeypatch)
    with open(there / "output" / "counts.csv", newline="") as table:
        header, *rows = csv.reader(table)
    assert header == ["frame", "cat", "person"]
    assert [int(row[0]) for row in rows] == list(range(len(clip)))
    for index in range(0, len(clip), 8):
        objects = session.segment(clip[index], "cat, person").instances(min_area=0.05 * 270 * 480)
        assert rows[index][1:] == [str(sum(one.word == word for one in objects)) for word in header[1:]]
    cats = "".join(row[1] for row in rows)
    assert re.fullmatch("1+2+1+", cats)  # one goes while the other comes
    assert f"cat: 2 at once at most, in {len(clip)} of {len(clip)} frames" in capsys.readouterr().out
    chart = np.asarray(Image.open(there / "output" / "count_objects.jpg"))
    assert chart.shape == (270 + 2 * 30, 480, 3)
    cells = [chart[270 + 15, round(60 + (column + 0.5) * 420 / len(clip))] for column in range(len(clip))]
    assert "".join("01234"[round((255 - int(cell[0])) / 110)] for cell in cells) == cats


@pytest.fixture
def damaged(there: Path) -> Path:
    """The clip with zeros in place of what its frames are made of."""
    data = bytearray(CLIP.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    (there / "damaged.mp4").write_bytes(data)
    return there / "damaged.mp4"


@pytest.mark.parametrize("name", ["webcam", "robot", "count_objects"])
def test_of_a_video_without_a_frame_that_can_be_read_that_is_said(
    name: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"^no frame was seen$"):
        run(name, monkeypatch, str(damaged))


@pytest.mark.parametrize("name", ["webcam", "robot", "count_objects", "folder_to_coco"])
def test_what_is_missing_is_one_line(name: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^nowhere: .*\bno "):
        run(name, monkeypatch, "nowhere")


def test_a_folder_with_a_broken_picture_is_done_but_for_that(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (there / "mixed").mkdir()
    (there / "mixed" / "a.jpg").write_bytes(b"none")
    (there / "mixed" / "b.jpg").symlink_to(ROOT / "docs" / "pictures" / "cat.jpg")
    run("folder_to_coco", monkeypatch, "mixed")
    bad, done = capsys.readouterr().out.splitlines()
    assert bad.startswith("mixed/a.jpg: ")
    assert done.startswith("1 pictures, ")


def test_the_small_service_answers(there: Path, session: Session) -> None:
    command = [sys.executable, str(ROOT / "examples" / "small_service.py"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stderr
            (address,) = next(found for line in service.stderr if (found := re.findall(r"running on (\S+)", line)))
            picture = (ROOT / "docs" / "pictures" / "astronaut.jpg").read_bytes()

            def ask(body: bytes, words: str, accept: str = "*/*") -> bytes:
                asked = urllib.request.Request(f"{address}/?words={words}", data=body, headers={"Accept": accept})
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    return answer.read()

            seen = session.segment(picture, "face,hair")
            assert json.loads(ask(picture, "face,hair", "application/json")) == json.loads(json.dumps(seen.to_coco()))
            with Image.open(io.BytesIO(ask(picture, "face,hair"))) as shown:
                assert (shown.format, shown.size) == ("JPEG", seen.overlay().size)
            for body, words in ((b"no picture", "face"), (picture, "face,,face")):
                with pytest.raises(urllib.error.HTTPError) as failed:
                    ask(body, words)
                assert failed.value.code == 400
                assert json.load(failed.value)["error"]
        finally:
            service.terminate()


def test_the_clip_is_what_its_script_makes(
    there: Path, clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders of other versions choose other bits."""
    run("clip", monkeypatch, "--out", "again.mp4")
    with av.open("again.mp4") as video:
        again = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(again) == len(clip) == 40
    assert max(np.abs(one.astype(float) - other).mean() for one, other in zip(again, clip, strict=True)) < 3
