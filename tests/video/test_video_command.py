"""`fusioner-rt segment clip.mp4`: its files, its ends, and going on to the same bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import clip, pan, shown, sound_of
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.atomic_files import unwritable
from fusioner_rt.cli import main
from fusioner_rt.video.overlay_writer import OverlayWriter
from fusioner_rt.video.written_video import whole_frames

Command = Callable[..., list[str]]


@pytest.fixture
def command(film: Path, tiny_bundle: Path, tmp_path: Path) -> Command:
    """Arguments of a run into tmp_path/NAME."""

    def arguments(name: str, *more: str, videos: Any = None) -> list[str]:
        named = [str(path) for path in ([film] if videos is None else videos)]
        asked = [
            "--words",
            "cat, sofa",
            "--engine",
            str(tiny_bundle),
            "--threshold",
            "0",
            "--backend",
            "onnxruntime-cpu",
        ]
        return ["segment", *named, *asked, "--threads", "2", "--out", str(tmp_path / name), *more]

    return arguments


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_becomes_an_overlay_with_sound_and_a_line_a_frame(
    command: Command, film: Path, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("out", "--labels")) == 0
    said = capsys.readouterr()
    assert said.err == ""
    (line,) = said.out.splitlines()
    out = tmp_path / "out"
    assert line.startswith(f"{film}: 8 frames, ")
    assert line.endswith(f" -> {out / 'film.overlay.mp4'}, {out / 'film.jsonl'}, {out / 'film.labels'}")
    assert sorted(path.name for path in out.iterdir()) == ["film.jsonl", "film.labels", "film.overlay.mp4"]
    seen = shown(out / "film.overlay.mp4")
    assert [time for time, _ in seen] == [time for time, _ in shown(film)]
    assert sound_of(out / "film.overlay.mp4") == sound_of(film)
    for index, (entry, (_, pixels)) in enumerate(zip(lines(out / "film.jsonl"), shown(film), strict=True)):
        wanted = session.segment(pixels, threshold=0)
        assert (entry["index"], entry["time"], entry["size"]) == (index, index / 10, [64, 96])
        assert entry["words"] == ["cat", "sofa"]
        assert entry["shares"] == pytest.approx(wanted.shares.tolist(), abs=1e-6)
        assert entry["scores"] == pytest.approx(wanted.scores.tolist(), abs=1e-6)
        assert entry["annotations"] == wanted.to_coco(index, 1, compressed=True)
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"film.labels/{index:06}.png")), wanted.labels)


def test_options_that_pictures_have_mean_the_same(
    command: Command, film: Path, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--every", "3", "--from", "0.1", "--to", "0:00:00.75", "--size", "33x47", "--legend", "none", "--instances"]
    assert main(command("part", *more, "--container", "webm", videos=[clip(tmp_path / "mute.mp4")])) == 0
    found = lines(tmp_path / "part" / "mute.jsonl")
    assert [entry["time"] for entry in found] == [0.1, 0.4, 0.7]
    for entry, index in zip(found, (1, 4, 7), strict=True):
        wanted = session.segment(shown(tmp_path / "mute.mp4")[index][1], threshold=0, size=(33, 47))
        assert entry["annotations"] == wanted.to_coco(entry["index"], 1, compressed=True, instances=True)
    seen = shown(tmp_path / "part" / "mute.overlay.webm")
    assert [round(float(time), 2) for time, _ in seen] == [0, 0.3, 0.6]
    assert seen[0][1].shape == (34, 48, 3)


def test_steady_masks_are_those_of_the_stream_and_depend_on_all_frames_before(
    command: Command, film: Path, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("out", "--steady", "1")) == 0
    found = lines(tmp_path / "out" / "film.jsonl")
    frames = [pixels for _, pixels in shown(film)]
    for entry, seen in zip(found, session.stream(frames, threshold=0, steady=1), strict=True):
        assert isinstance(seen.result, Segmentation)
        assert entry["annotations"] == seen.result.to_coco(entry["index"], 1, compressed=True)
    (tmp_path / "out" / "film.overlay.mp4").unlink()
    assert main(command("out", "--steady", "1", "--resume")) == 0
    assert lines(tmp_path / "out" / "film.jsonl") == found
    assert main(command("out", "--steady", "1.5")) == 2
    assert "steady is 1.5; give 0 to 1" in capsys.readouterr().err


def test_several_videos_and_patterns_are_done_one_by_one(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "b.mkv"):
        clip(tmp_path / name, 2)
    (tmp_path / "deeper").mkdir()
    clip(tmp_path / "deeper" / "a.mp4", 3)
    (tmp_path / "broken.mp4").write_text("text")
    videos = [tmp_path / "**" / "*.mp4", tmp_path / "b.mkv"]
    for _ in range(2):  # the overlays of the first time lie there, and are no videos of the second
        assert main(command("deeper/out", videos=videos)) == 15
        said = capsys.readouterr()
        assert [line.split(":")[0] for line in said.out.splitlines()] == [
            str(tmp_path / name) for name in ("a.mp4", "deeper/a.mp4", "b.mkv")
        ]
        (line,) = said.err.splitlines()
        assert "broken.mp4: is no video that is understood" in line
    names = sorted(path.name for path in (tmp_path / "deeper" / "out").iterdir())
    assert [name for name in names if "jsonl" in name] == ["a-2.jsonl", "a.jsonl", "b.jsonl"]
    assert [len(lines(tmp_path / "deeper/out" / name)) for name in ("a.jsonl", "a-2.jsonl")] == [2, 3]


def test_label_maps_of_a_longer_run_before_go_and_other_files_stay(command: Command, tmp_path: Path) -> None:
    assert main(command("again", "--labels")) == 0
    labels = tmp_path / "again" / "film.labels"
    (labels / "notes.txt").write_text("mine")
    assert main(command("again", "--labels", "--to", "0.3")) == 0
    assert sorted(path.name for path in labels.iterdir()) == ["000000.png", "000001.png", "000002.png", "notes.txt"]
    assert len(lines(tmp_path / "again" / "film.jsonl")) == len(shown(tmp_path / "again" / "film.overlay.mp4")) == 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--json", "m.json"], "--json was given with a video"), (["--yolo"], "--yolo was given with a video"),
        (["--polygons"], "--polygons was given"), (["--labelme"], "--labelme was given"),
        (["--ray"], "this is a video, and runs on Ray are of pictures"),
        (["--from", "1", "--to", "0.5"], "--to is not after --from"), (["--from", "soon"], "--from is 'soon'"),
        (["--live"], "--live is of cameras and URLs, and this is a file"), (["--from", "9"], "holds no frame, or none of the time"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_errors(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main(command("out", *more)) in (2, 15)
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.glob("out/*"))


def test_videos_and_pictures_are_commands_of_their_own(
    command: Command, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photos" / "photo.png"
    photo.parent.mkdir()
    Image.fromarray(pan(1)[0]).save(photo)
    assert main(command("out", videos=[film, photo])) == 2
    assert "give videos and pictures a command each" in capsys.readouterr().err
    for option in (["--every", "2"], ["--from", "1"], ["--to", "1"], ["--live"], ["--container", "mkv"]):
        assert main(command("out", *option, videos=[photo])) == 2
        assert f"{option[0]} is of videos, and pictures were named" in capsys.readouterr().err
    clip(photo.parent / "a.mp4", 1)
    assert main(command("out", videos=[photo.parent])) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{photo}: ")
    assert "1 video is left out" in said.err
    assert f"'{photo.parent}/**/*.mp4'" in said.err
    photo.unlink()
    assert main(command("out", videos=[photo.parent])) == 2
    assert f"'{photo.parent}/**/*.mp4'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "more"),
    [
        *(("http://user:geheim@127.0.0.1:9/a.mp4?token=geheim", more) for more in (["--yolo"], ["--json", "m"], ["--live", "--resume"], [])),
        ("s3://user:geheim@bucket/film.mp4", ["--ray"]), ("s3://user:geheim@bucket/*.mp4", []), ("s3://user:geheim@bucket/film.mp4", []),
        ("http://user:geheim@host/a.jpg", []), ("rtsp://user:ge#heim@127.0.0.1:9/x", ["--yolo"]), ("rtsp://user:geheim/2@127.0.0.1:9/x", []),
    ],
)  # fmt: skip
def test_passwords_are_not_told(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, more: list[str]
) -> None:
    assert main(command("out", *more, videos=[url])) > 0
    assert main(command("out", videos=[url, "photo.png"])) > 0
    said = capsys.readouterr()
    assert "heim" not in said.err + said.out
    assert "user" not in said.err
    assert f"{url.partition('://')[0]}://" in said.err


def test_without_the_package_it_says_what_to_install(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(command("out")) == 48
    (line,) = capsys.readouterr().err.splitlines()
    assert "videos need the package av" in line
    assert line.endswith("pip install 'fusioner-rt[video]'")
    assert not (tmp_path / "out").exists()


def test_bad_frames_are_told_and_passed(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = clip(tmp_path / "damaged.mp4", 20, (128, 192), g="5", crf="5")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 1500] = bytes(1500)
    path.write_bytes(content)
    assert main(command("out", videos=[path])) == 14
    said = capsys.readouterr()
    found = lines(tmp_path / "out" / "damaged.jsonl")
    bad = [entry for entry in found if "error" in entry]
    assert bad
    assert {entry["code"] for entry in bad} == {14}
    *told, summary = said.err.splitlines()
    assert len(told) == min(5, len(bad))
    assert summary.startswith(f"fusioner-rt: {len(bad)} of {len(found)} frames of {path} failed")
    good = [entry["time"] for entry in found if "error" not in entry]
    assert [round(float(time), 6) for time, _ in shown(tmp_path / "out" / "damaged.overlay.mp4")] == good


def test_where_every_frame_fails_nothing_of_an_earlier_run_is_named_or_left(
    command: Command, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command("out", "--labels")) == 0
    capsys.readouterr()
    assert main(command("out", "--labels", "--max-pixels", "100")) == 12
    said = capsys.readouterr()
    assert "overlay" not in said.out
    assert sorted(path.name for path in out.iterdir()) == ["film.jsonl", "film.labels"]
    assert not list((out / "film.labels").iterdir())
    *told, _ = said.err.splitlines()
    assert [line.partition(": 96x64 is ")[0] for line in told] == [
        f"fusioner-rt: {film} at 0.{index}0 s" for index in range(5)
    ]


# What ends a run in the middle.

SLOW = 40


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of forty frames, of which ends come in the middle."""
    return clip(tmp_path_factory.mktemp("long") / "long.mp4", SLOW, (48, 64), rate=25, sound=1.6, g="10")


def started(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    def hearing() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "fusioner_rt", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hearing, **options,
    )  # fmt: skip


def ended(arguments: list[str], partial: Path, sent: int, after: int) -> tuple[int, str]:
    """A run that gets a signal once so many lines are there. Returns its exit code and what it told."""
    with started(arguments) as process:
        while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= after):
            time.sleep(0.005)
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    return process.returncode, told


@pytest.fixture(scope="module")
def uninterrupted(long: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    asked = ["--words", "cat, sofa", "--engine", str(tiny_bundle), "--threshold", "0", "--backend", "onnxruntime-cpu"]
    assert main(["segment", str(long), *asked, "--threads", "2", "--labels", "--out", str(out)]) == 0
    assert len(lines(out / "long.jsonl")) == SLOW
    return out


def same(found: Path, wanted: Path) -> None:
    """Lines and label maps are the same bytes, overlays the same frames at the same times and the same sound; nothing else is left."""
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in wanted.iterdir())
    assert (found / "long.jsonl").read_bytes() == (wanted / "long.jsonl").read_bytes()
    for path in (wanted / "long.labels").iterdir():
        assert (found / "long.labels" / path.name).read_bytes() == path.read_bytes()
    overlays = [shown(folder / "long.overlay.mp4") for folder in (found, wanted)]
    assert [at for at, _ in overlays[0]] == [at for at, _ in overlays[1]]
    for (_, one), (_, other) in zip(*overlays, strict=True):
        assert float(np.abs(one.astype(int) - other).mean()) < 6
    assert sound_of(found / "long.overlay.mp4") == sound_of(wanted / "long.overlay.mp4")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_an_ended_run_leaves_a_video_that_plays_and_goes_on_to_the_same_bytes(
    command: Command,
    long: Path,
    uninterrupted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
) -> None:
    out = tmp_path / "ended"
    code, told = ended(command("ended", "--labels", videos=[long]), out / "long.partial.jsonl", sent, after=9)
    assert code == 128 + sent
    done = len(lines(out / "long.partial.jsonl"))
    assert 9 <= done < SLOW
    assert told == (
        f"fusioner-rt: interrupted; {done} frames of {long} are in {out / 'long.overlay.partial.mp4'} and "
        f"{out / 'long.partial.jsonl'}; the same command with --resume goes on\n"
    )
    assert len(shown(out / "long.overlay.partial.mp4")) == done
    heard = sound_of(out / "long.overlay.partial.mp4")
    assert done / 25 - 0.3 < heard[-1][0] < done / 25 + 0.2
    assert main(command("ended", "--labels", "--resume", videos=[long])) == 0
    said = capsys.readouterr()
    assert said.err == f"fusioner-rt: note: {done} frames of {long} are done already\n"
    same(out, uninterrupted)


def test_after_any_ends_at_any_moments_it_goes_on_to_the_same_bytes(
    command: Command, long: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    chance = random.Random(21)
    out = tmp_path / "any"
    after = 0
    for _ in range(2):
        more = ["--resume"] if after else []
        after += chance.randrange(8, 15)
        sent = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        code, _ = ended(command("any", "--labels", *more, videos=[long]), out / "long.partial.jsonl", sent, after)
        assert code in (-9, 143)
    assert main(command("any", "--labels", "--resume", videos=[long])) == 0
    same(out, uninterrupted)


def test_lines_that_are_harmed_or_more_than_the_videos_frames_are_made_again(
    command: Command, long: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "harmed"
    partial = out / "long.partial.jsonl"
    ended(command("harmed", "--labels", videos=[long]), partial, signal.SIGINT, after=16)
    whole = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(whole[:12]) + b"{}\n" + whole[13][:20])
    (out / "long.overlay.partial.mp4").unlink()
    assert main(command("harmed", "--labels", "--resume", videos=[long])) == 0
    same(out, uninterrupted)


def test_another_video_or_other_options_begin_anew_or_are_refused(
    command: Command, long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "long.mp4"
    copy.write_bytes(long.read_bytes())
    out = tmp_path / "other"
    ended(command("other", videos=[copy]), out / "long.partial.jsonl", signal.SIGINT, after=5)
    assert main(command("other", "--resume", "--every", "2", videos=[copy])) == 2
    assert "had other --every" in capsys.readouterr().err
    os.utime(copy, (1, 1))
    assert main(command("other", "--resume", "--to", "1", videos=[copy])) == 2
    assert main(command("other", "--resume", videos=[copy])) == 0
    assert "done already" not in capsys.readouterr().err
    assert len(lines(out / "long.jsonl")) == SLOW


class _Lines(io.FileIO):
    """A file of lines."""


@pytest.mark.parametrize(
    ("writer", "method"),
    [(Segmentation, "save"), (_Lines, "write"), (OverlayWriter, "_put")],
    ids=["label", "line", "overlay"],
)
def test_after_one_failed_write_nothing_more_is_written_and_it_goes_on_to_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    writer: Any, method: str,
) -> None:  # fmt: skip
    """As of a disk that is full for a moment."""
    film = clip(tmp_path / "long.mp4", 9, (48, 64), sound=0.9)
    assert main(command("whole", "--labels", videos=[film])) == 0
    real, writes = getattr(writer, method), iter(range(99))

    def failing(*given: Any) -> Any:
        if next(writes) == 5:
            raise unwritable(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
        return real(*given)

    def opened(path: Path, kept: int) -> Any:
        stream = io.BufferedWriter(_Lines(path, "ab"))
        stream.truncate(kept)
        return stream

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("fusioner_rt.commands.video_files._opened", opened)
        patched.setattr(writer, method, failing)
        assert main(command("out", "--labels", videos=[film])) == 50
    out = tmp_path / "out"
    assert "5 frames of " in capsys.readouterr().err
    assert [line["time"] for line in lines(out / "long.partial.jsonl")] == [0, 0.1, 0.2, 0.3, 0.4]
    assert len(shown(out / "long.overlay.partial.mp4")) == 5
    assert main(command("out", "--labels", "--resume", videos=[film])) == 0
    same(out, tmp_path / "whole")


def test_a_full_disk_keeps_what_is_done_and_it_plays(
    command: Command, long: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    import resource

    room = (uninterrupted / "long.jsonl").stat().st_size * 2 // 3

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    full = command("full", "--labels", videos=[long])
    done = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", *full], preexec_fn=little_room, capture_output=True, text=True
    )
    assert done.returncode == 50, done.stderr
    error, told = done.stderr.splitlines()
    assert "cannot be written (File too large); make room on its disk" in error
    assert "the same command with --resume goes on" in told
    out = tmp_path / "full"
    count = len(lines(out / "long.partial.jsonl"))  # whole lines alone
    assert 2 < whole_frames(out / "long.overlay.partial.mp4") <= count < SLOW
    assert main([*full, "--resume"]) == 0
    same(out, uninterrupted)
