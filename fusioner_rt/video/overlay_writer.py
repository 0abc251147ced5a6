"""`OverlayWriter`: pictures and their times to a video that plays at any moment, whatever ends the process.

MP4 and MOV are written in fragments, and made an ordinary file at the end; Matroska and WebM are whole up to their last cluster anyway.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..argument_checks import as_path, flag, named
from ..atomic_files import unwritable
from ..errors import FusionerError, OutputUnwritable, UsageError
from ..memory_shortage import is_shortage
from . import sources
from .frames import Frames
from .sound import Sound
from .times import exact, fraction
from .written_video import copied, edges

if TYPE_CHECKING:
    from av.container import OutputContainer

_H264 = ("libx264", "libopenh264", "mpeg4")
CODECS = {".mp4": _H264, ".m4v": _H264, ".mov": _H264, ".mkv": _H264, ".webm": ("libvpx-vp9", "libvpx")}
"""Encoders by the file's suffix, best first: FFmpeg may be built without the best."""

_OPTIONS: dict[str, dict[str, str]] = {
    # without B-frames, so that frames are written in the order in which they come
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "7", "crf": "30", "b": "0", "row-mt": "1"},
}
_IN_FRAGMENTS = {"movflags": "+hybrid_fragmented+frag_keyframe+delay_moov+default_base_moof"}
_SECONDS = 2  # between two key frames: what a kill costs
_TICK = Fraction(1, 90_000)


class OverlayWriter:
    """Writes pictures of one size, with the time of each, as a video: H.264, in WebM VP9. `with` or `close()` ends the file.

    Until then, and after whatever ends the process, the file plays up to about its last two seconds.
    """

    def __init__(
        self, path: str | os.PathLike[str], source: Frames | None = None, sound: bool = True,
        after: tuple[Path, int] | None = None,
    ) -> None:  # fmt: skip
        """path: of the video, ending in .mp4, .mov, .mkv or .webm. The first picture that is written replaces an existing file.
        source: the frames that pictures come from: their unit of time and pixels' shape are taken, and their sound is copied.
        sound: False leaves it out. A live source has none.
        after: a video that this class has written, and how many of its frames this one begins with.
        Raises PackageMissing, UsageError; and where the container does not take the sound as it is, UsageError.
        """
        self.path = as_path(path, "the video")
        suffix = self.path.suffix.lower()
        if suffix not in CODECS:
            raise UsageError(
                "the name's ending does not say which video to write", f"end it with {', '.join(CODECS)}", self.path
            )
        if source is not None and _is_one_file(self.path, source.source):
            raise UsageError("the video would replace the one that it is made from", "choose another name", self.path)
        self.frames = 0
        """How many were written."""
        self._codec = _encoder(CODECS[suffix])
        self._source, self._after = source, after
        self._tick = source.tick if source else _TICK
        if self._codec == "mpeg4":  # which counts no finer
            self._tick = max(self._tick, Fraction(1, 60_000))
        self._start = source.start if source else Fraction(0)
        self._last: int | None = None
        self._container: OutputContainer | None = None
        self._stream: Any = None
        self._size = (0, 0)
        self._sound: Sound | None = None
        self._closed = False
        if flag(sound, "sound") and source is not None and not source.live:
            self._sound = Sound.of(source, suffix)

    def write(self, picture: Any, time: float) -> None:
        """picture: (H, W, 3) uint8 RGB, or a Pillow image. Odd edges are made even by repeating the last row or column. Pictures of
        another size than the first are resized. time: in seconds, as `Frames.time`, any real number; not before the start of the
        source's part, 0 without one, and later than the one before.

        Raises OutputUnwritable, UsageError.
        """
        if self._closed:
            raise UsageError("this video is closed", "open another", subject=self.path)
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(named("picture", picture), "give a (H, W, 3) uint8 array, RGB, or a Pillow image of it")
        at = exact(time)
        ticks = -1 if at is None else round((at - self._start) / self._tick)
        if ticks < 0:
            raise UsageError(named("time", time), f"give seconds, {float(self._start):g} or more")
        with self._writing():
            if self._container is None:
                self._open(*pixels.shape[:2])
            if self._last is not None and ticks <= self._last:
                ticks = self._last + 1
            self._put(pixels, ticks)

    def close(self) -> None:
        """End the file. Sound goes on to the end of its source. Raises OutputUnwritable."""
        self._end(whole=True)

    def end_early(self) -> None:
        """End the file where its frames end, the sound too. Raises OutputUnwritable."""
        self._end(whole=False)

    def __enter__(self) -> "OverlayWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        try:
            self.end_early()
        except FusionerError:  # what ended the block is told
            pass

    def _open(self, height: int, width: int) -> None:
        suffix = self.path.suffix.lower()
        flags = _IN_FRAGMENTS if suffix in (".mp4", ".m4v", ".mov") else {}
        container = sources.open_output(self.path, flush_packets="1", **flags)
        self._container = container
        rate = self._source.rate if self._source else Fraction(25)
        stream: Any = container.add_stream(
            self._codec, rate=_for_header(rate), options=dict(_OPTIONS.get(self._codec, {}))
        )
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._tick
        context.gop_size = max(1, min(250, round(_SECONDS * rate)))
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235
        if self._codec not in _OPTIONS:
            stream.bit_rate = int(stream.width * stream.height * rate * Fraction(1, 5))
        if self._source:
            context.sample_aspect_ratio = self._source.pixel_aspect
        self._stream, self._size = stream, (height, width)
        self._reformatter = sources.package().video.reformatter.VideoReformatter()
        if self._sound:
            self._sound.add_to(container)
        container.start_encoding()  # what cannot be written is told now
        if self._after:
            for packet in copied(*self._after):
                ticks = round(_begins(packet) / self._tick)
                self._last = ticks
                self._mux([packet])
                self.frames += 1

    def _put(self, pixels: np.ndarray, ticks: int) -> None:
        av = sources.package()
        frame = av.VideoFrame.from_ndarray(_even(self._sized(pixels)), format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = ticks, self._tick
        self._mux(self._stream.encode(frame))
        self._last = ticks
        self.frames += 1

    def _mux(self, packets: list[Any]) -> None:
        assert self._container is not None
        for packet in packets:
            packet.stream = self._stream
            if self._sound:
                self._sound.write_before(_begins(packet))
            self._container.mux_one(packet)

    def _end(self, whole: bool) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._container is None and not (whole and self._after):
                return
            with self._writing():
                if self._container is None and self._after:
                    self._open(*edges(self._after[0]))
                assert self._container is not None
                try:
                    self._mux(self._stream.encode(None))
                    if self._sound and whole:
                        self._sound.write_before(None)
                finally:
                    self._container.close()
        finally:
            if self._sound:
                self._sound.close()

    def _sized(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == self._size:
            return np.ascontiguousarray(pixels)
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize(self._size[::-1]))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FusionerError:
            raise
        except Exception as error:  # FFmpeg's kinds have bases of many kinds
            if is_shortage(error):
                raise
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from None
            reason = sources.one_line_of(error)
            raise OutputUnwritable(f"cannot be written ({reason})", "choose another ending", self.path) from None


def _is_one_file(path: Path, source: sources.Source) -> bool:
    try:
        return source.kind == "file" and os.path.samefile(path, source.location.removeprefix("file:"))
    except OSError:  # there is no such file yet
        return False


def _begins(packet: Any) -> Fraction:
    """In seconds."""
    return packet.pts * (fraction(packet.time_base) or Fraction(1))


def _even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else pixels


def _encoder(names: tuple[str, ...]) -> str:
    """The first that FFmpeg has. Raises PackageMissing."""
    available = sources.package().codecs_available
    return next((name for name in names if name in available), names[-1])


def _for_header(rate: Fraction) -> Fraction:
    """A rate that FFmpeg's numbers hold."""
    return rate.limit_denominator(100_000) or Fraction(25)
