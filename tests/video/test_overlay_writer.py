"""`video.OverlayWriter`: pictures and their times to a file that plays at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import full_disk
from made_videos import clip, pan, shown, sound_of
from PIL import Image

from fusioner_rt import video
from fusioner_rt.errors import OutputUnwritable, UsageError
from fusioner_rt.video.overlay_writer import CODECS
from fusioner_rt.video.written_video import whole_frames


def written(path: Path, source: Path | None = None, **options: Any) -> Path:
    """The frames of a source, or of a pan, written again."""
    if source is None:
        with video.OverlayWriter(path) as output:
            for index, picture in enumerate(pan(6)):
                output.write(picture, index / 5)
        return path
    with video.frames(source, **options) as opened, video.OverlayWriter(path, opened) as output:
        for index, picture in enumerate(opened):
            output.write(picture, opened.time(index))
    return path


def alike(found: np.ndarray, wanted: np.ndarray) -> bool:
    return float(np.abs(found.astype(int) - wanted).mean()) < 8


def good(path: Path) -> int:
    """Frames that can be shown."""
    with video.frames(path) as opened:
        return sum(isinstance(frame, np.ndarray) for frame in opened)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_each_container_shows_the_pictures_at_their_times(tmp_path: Path, ending: str) -> None:
    found = shown(written(tmp_path / f"seen.{ending}"))
    assert [float(time) for time, _ in found] == pytest.approx([index / 5 for index in range(6)], abs=6e-4)
    for (_, pixels), wanted in zip(found, pan(6), strict=True):
        assert alike(pixels, wanted)


def test_an_ffmpeg_without_x264_writes_mpeg_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, ".mp4", ("libxyz", "mpeg4"))
    found = shown(written(tmp_path / "seen.mp4"))
    assert [float(time) for time, _ in found] == pytest.approx([index / 5 for index in range(6)], abs=1e-4)
    for (_, pixels), wanted in zip(found, pan(6), strict=True):
        assert alike(pixels, wanted)


def test_time_stamps_of_a_variable_rate_are_kept_to_the_tick(tmp_path: Path) -> None:
    times = [Fraction(at, 1000) for at in (0, 40, 45, 500, 501, 900)]
    source = clip(tmp_path / "vary.mp4", 6, times=times)
    assert [time for time, _ in shown(written(tmp_path / "seen.mp4", source))] == times


@pytest.mark.parametrize(
    ("codec", "ending"), [("aac", "mp4"), ("libopus", "mp4"), ("pcm_s16le", "mkv"), ("libopus", "webm")]
)
def test_sound_is_copied_packet_by_packet(tmp_path: Path, codec: str, ending: str) -> None:
    rate = {"libopus": "mkv", "pcm_s16le": "mkv"}.get(codec, "mp4")
    source = clip(tmp_path / f"film.{rate}", 8, sound=1.2, sound_codec=codec)
    found, wanted = sound_of(written(tmp_path / f"seen.{ending}", source)), sound_of(source)
    assert [packet for _, packet in found] == [packet for _, packet in wanted]
    np.testing.assert_allclose([float(at) for at, _ in found], [float(at) for at, _ in wanted], atol=2e-3)


def test_of_a_part_the_sound_is_of_that_part(film: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "seen.mp4", film, start=0.2, end=0.6)
    whole = {packet: at for at, packet in sound_of(film)}
    found = sound_of(path)
    assert found
    for at, packet in found:
        assert 0 <= at < Fraction(4, 10)
        assert float(whole[packet] - at) == pytest.approx(0.2, abs=1e-3)
    assert [float(time) for time, _ in shown(path)] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_sound_that_a_container_does_not_take_is_said_before_any_work(tmp_path: Path) -> None:
    source = clip(tmp_path / "film.mkv", 2, sound=0.3, sound_codec="pcm_s16le")
    with video.frames(source) as opened:
        with pytest.raises(UsageError, match="its sound, pcm_s16le, does not go into webm as it is; take mkv"):
            video.OverlayWriter(tmp_path / "seen.webm", opened)
        with video.OverlayWriter(tmp_path / "seen.webm", opened, sound=False) as output:
            output.write(pan(1)[0], 0)
    assert len(shown(tmp_path / "seen.webm")) == 1


@pytest.mark.parametrize("size", [(63, 95), (64, 95), (1, 1), (33, 2)])
def test_odd_edges_are_made_even_by_the_last_row_and_column(tmp_path: Path, size: tuple[int, int]) -> None:
    wanted = pan(2, size)
    with video.OverlayWriter(tmp_path / "odd.mp4") as output:
        for index, picture in enumerate(wanted):
            output.write(picture, index)
    for (_, pixels), picture in zip(shown(tmp_path / "odd.mp4"), wanted, strict=True):
        height, width = size
        assert pixels.shape == (height + height % 2, width + width % 2, 3)
        assert alike(pixels[:height, :width], picture)


def test_pictures_of_another_size_are_resized_to_the_first(tmp_path: Path) -> None:
    with video.OverlayWriter(tmp_path / "sizes.mp4") as output:
        output.write(Image.fromarray(pan(1, (64, 96))[0]), 0)
        output.write(pan(1, (32, 48))[0], 1)
    first, second = (pixels for _, pixels in shown(tmp_path / "sizes.mp4"))
    assert first.shape == second.shape == (64, 96, 3)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 10, 10), (200, 120, 40)]
)
def test_a_player_shows_the_colours_that_were_written(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    import av

    with video.OverlayWriter(tmp_path / "red.mp4") as output:
        output.write(np.full((48, 64, 3), colour, np.uint8), 0)
    with av.open(str(tmp_path / "red.mp4")) as container:
        (frame,) = container.decode(video=0)
        assert (frame.colorspace, frame.color_range) == (1, 1)  # said to be BT.709, limited: players need not guess
        pixels = frame.to_ndarray(format="rgb24", src_colorspace="ITU709")
    np.testing.assert_allclose(pixels.mean((0, 1)), colour, atol=6)


def test_the_shape_of_pixels_is_kept_and_turned_with_them(tmp_path: Path) -> None:
    import av

    for matrix, wanted in ((None, Fraction(4, 3)), ((0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30), Fraction(3, 4))):
        plain = clip(tmp_path / "plain.mp4", 2)
        wide = tmp_path / "wide.mp4"
        with av.open(str(plain)) as source, av.open(str(wide), "w") as output:
            stream = output.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
            if matrix:
                stream.set_display_matrix(list(matrix))
            for frame in source.decode(video=0):
                output.mux(stream.encode(frame.reformat(format="yuv420p")))
            output.mux(stream.encode(None))
        seen = written(tmp_path / "seen.mp4", wide)
        with av.open(str(seen)) as container:
            found = container.streams.video[0].sample_aspect_ratio
            assert Fraction(found.numerator, found.denominator) == wanted


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"end it with \.mp4, .*\.webm"):
        video.OverlayWriter(tmp_path / "seen.gif")
    with video.OverlayWriter(tmp_path / "seen.mp4") as output:
        for picture, time, found in (
            (np.zeros((2, 2), np.uint8), 0, "picture is"), (np.zeros((2, 2, 3)), 0, "picture is"), (pan(1)[0], "0", "time is"),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=found):
                output.write(picture, time)  # type: ignore[arg-type]
    assert not (tmp_path / "seen.mp4").exists()
    with pytest.raises(UsageError, match="is closed"):
        output.write(pan(1)[0], 0)
    with (
        video.OverlayWriter(tmp_path / "no" / "folder.mp4") as output,
        pytest.raises(OutputUnwritable, match="No such file"),
    ):
        output.write(pan(1)[0], 0)


def test_times_are_any_real_number_that_is_not_before_the_start(film: Path, tmp_path: Path) -> None:
    times = [0, np.float32(0.125), np.int64(1), Fraction(3, 2), np.float64(2)]
    with video.OverlayWriter(tmp_path / "times.mp4") as output:
        for time in times:
            output.write(pan(1)[0], time)  # type: ignore[arg-type]
        for wrong in (-3.0, float("-inf"), float("inf"), float("nan"), np.float32(-1), True, 1j):
            with pytest.raises(UsageError, match=r"time is .*; give seconds, 0 or more"):
                output.write(pan(1)[0], wrong)  # type: ignore[arg-type]
    assert [float(time) for time, _ in shown(tmp_path / "times.mp4")] == [0, 0.125, 1, 1.5, 2]
    with video.frames(film, start=np.float32(0.25)) as part, video.OverlayWriter(tmp_path / "part.mp4", part) as output:  # type: ignore[arg-type]
        output.write(pan(1)[0], 0.3)
        with pytest.raises(UsageError, match=r"time is 0\.1; give seconds, 0\.25 or more"):
            output.write(pan(1)[0], 0.1)


def test_a_video_does_not_replace_the_one_that_it_is_made_from(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = film.read_bytes()
    (tmp_path / "link.mp4").symlink_to(film)
    monkeypatch.chdir(film.parent)
    with video.frames("film.mp4") as opened:
        for path in (film, tmp_path / "link.mp4"):
            with pytest.raises(UsageError, match="would replace the one that it is made from; choose another name"):
                video.OverlayWriter(path, opened)
    assert film.read_bytes() == content


def test_an_existing_file_stays_until_a_picture_is_written(tmp_path: Path) -> None:
    path = tmp_path / "seen.mp4"
    path.write_bytes(b"old")
    with video.OverlayWriter(path):
        pass
    assert path.read_bytes() == b"old"
    assert len(shown(written(path))) == 6


def noise(count: int) -> list[np.ndarray]:
    """Pictures that take many bytes."""
    return list(np.random.default_rng(0).integers(0, 255, (count, 128, 128, 3), np.uint8))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_on_a_full_disk_what_was_written_plays(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"full.{ending}"
    frames = noise(90)

    def write() -> None:
        with full_disk(600_000), video.OverlayWriter(path) as output:
            for index, picture in enumerate(frames):
                output.write(picture, index / 25)

    with pytest.raises(OutputUnwritable, match="make room on its disk") as error:
        write()
    assert error.value.subject == path
    assert 10 < good(path) == whole_frames(path) < 90


KILLED = """
import os, signal, sys
import numpy as np
from fusioner_rt import video
output = video.OverlayWriter(sys.argv[1])
for index, picture in enumerate(np.random.default_rng(0).integers(0, 255, (120, 96, 96, 3), np.uint8)):
    output.write(picture, index / 25)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_after_kill_9_all_but_the_last_seconds_plays(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"killed.{ending}"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    frames = shown(path)
    assert 50 <= len(frames) <= 120
    assert whole_frames(path) == len(frames)


def test_a_video_begins_with_the_frames_of_another_as_they_are(film: Path, tmp_path: Path) -> None:
    first, second, whole = (tmp_path / f"{name}.mp4" for name in ("first", "second", "whole"))
    pictures = pan(9)
    with video.OverlayWriter(first) as output:
        for index, picture in enumerate(pictures[:6]):
            output.write(picture, index / 5)
    assert whole_frames(first) == 6
    with video.OverlayWriter(second, after=(first, 4)) as output:
        for index, picture in enumerate(pictures[4:], 4):
            output.write(picture, index / 5)
        assert output.frames == 9
    with video.OverlayWriter(whole) as output:
        for index, picture in enumerate(pictures):
            output.write(picture, index / 5)
    found = shown(second)
    assert [time for time, _ in found] == [time for time, _ in shown(whole)]
    for (_, pixels), (_, other) in zip(found[:4], shown(first), strict=False):
        np.testing.assert_array_equal(pixels, other)
    for (_, pixels), picture in zip(found, pictures, strict=True):
        assert alike(pixels, picture)
