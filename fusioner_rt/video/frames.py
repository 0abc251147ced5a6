"""`frames`: the pictures of a video, a camera or a stream, upright, with their times."""

import os
import threading
import time
from array import array
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..argument_checks import flag, whole
from ..decode_picture import PIXEL_LIMIT
from ..errors import FrameUnreadable, UsageError, VideoUnreadable
from ..memory_shortage import is_shortage
from . import sources
from .orientation import Orientation
from .times import fraction, seconds

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_KEPT = (
    1024  # frames before the one whose time was asked for, whose times are known still: more than are worked on at once
)
_KEPT_UNASKED = 1 << 22  # most times that are known where nobody asks: days of a camera, 32 MB
_RATE = Fraction(25)  # frames a second where nobody knows
_LONGEST_GROUP = 10  # seconds between two key frames
_JUMP = 1  # seconds back that are no damage
_PATIENCE = 0.5  # seconds that closing waits for a camera that gives nothing
_MOST = 1_000_000_000


def frames(
    source: str | os.PathLike[str],
    every: int = 1,
    start: float | str | None = None,
    end: float | str | None = None,
    live: bool | None = None,
) -> "Frames":
    """Open a video for `Session.stream`.

    source: a file; a camera, /dev/video0 on Linux; or a URL of rtsp, http, udp and their kin, which is then connected to.
    every: each n-th frame, the first included.
    start, end: seconds from the video's beginning, or "1:30", "0:01:30.5"; frames from `start` on and before `end`.
    live: whether the source does not wait for who reads it, for `Session.stream(live=...)`; by default cameras, and URLs but those of
        http. Its times count from its first frame.

    Raises PackageMissing without PyAV, PictureMissing, VideoUnreadable, VideoUnreachable, UsageError.
    """
    every = whole(every, "every", 1, _MOST, "give a whole number, 1 for all frames")
    if live is not None:
        live = flag(live, "live")
    first, last = (seconds(given, name) for given, name in ((start, "start"), (end, "end")))
    if last is not None and last <= (first or 0):
        raise UsageError("the end is not after the start", "give an end that is later")
    return Frames(sources.find_source(source, live), every, first, last)


class Frames:
    """The frames of an open source, to be iterated over once: (H, W, 3) uint8 RGB, upright.

    In place of a frame that cannot be decoded comes its FrameUnreadable, which `Session.stream` passes on. Rotation and mirroring that
    the file asks for are applied, and its time stamps are kept. `with` or `close()` closes the source.
    """

    def __init__(
        self, source: sources.Source, every: int, start: Fraction | None, end: Fraction | None, skip: int = 0
    ) -> None:
        """skip: so many of what would come first are passed over. Raises as `frames`."""
        self.source, self.live = source, source.live
        self._every, self.start, self.end, self._skip = every, start or Fraction(0), end, skip
        self._container: InputContainer = sources.open_input(source)
        self._using = threading.Lock()  # the container, which may not be closed while FFmpeg reads
        self._closed = self._begun = False
        self._times = array("d")  # of the frames from index _known on
        self._known = 0
        self._timing = threading.Lock()
        try:
            self._stream = self._chosen()
        except BaseException:
            self._container.close()
            raise
        self.tick = fraction(self._stream.time_base) or Fraction(1, 90_000)
        self.rate = fraction(self._stream.average_rate) or fraction(self._stream.guessed_rate) or _RATE
        """Frames a second on average, as the file has it."""
        self.offset = Fraction(0) if self.live else Fraction(max(self._container.start_time or 0, 0), 1_000_000)
        """Seconds that FFmpeg counts before the beginning."""
        self.pixel_aspect = fraction(self._stream.sample_aspect_ratio) or Fraction(1)
        """Width of a pixel by its height; of frames that are turned upright, once the first was read."""

    def time(self, index: int) -> float:
        """Seconds from the video's beginning of the frame of this index, `seen.index`: of any that was read since the one whose time
        was asked for last, and of the 1,024 before that.

        Raises UsageError.
        """
        with self._timing:
            place = index - self._known
            if not 0 <= place < len(self._times):
                raise UsageError(f"the time of frame {index} is not known", "ask for one that was read a while ago")
            found = self._times[place]
            if place > 2 * _KEPT:  # not each time: what follows is moved
                self._forget(place - _KEPT)
            return found

    def _forget(self, count: int) -> None:
        del self._times[:count]
        self._known += count

    @property
    def expected(self) -> int | None:
        """About how many will come; None of a live source, and where nobody knows."""
        duration = self._duration()
        if self.live or duration is None:
            return None
        total = self._stream.frames or round(duration * self.rate)
        share = (min(self.end or duration, duration) - self.start) / duration
        return max(0, -(-round(total * share) // self._every) - self._skip)

    def __iter__(self) -> Iterator[np.ndarray | FrameUnreadable]:
        if self._begun:
            raise UsageError("these frames were read already", "open the video again", subject=self.source.name)
        self._begun = True
        return self._items()

    def close(self) -> None:
        """Close the source. A frame that is being waited for is the last."""
        self._closed = True
        if self._using.acquire(timeout=_PATIENCE):
            try:
                self._container.close()
            finally:
                self._using.release()

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(self) -> Iterator[np.ndarray | FrameUnreadable]:
        reformatter = sources.package().video.reformatter.VideoReformatter()  # one for all: each keeps megabytes
        orientation, aspect = Orientation(), self.pixel_aspect
        number, index = -1, -self._skip - 1
        for at, frame in self._decoded():
            if at < self.start:
                continue
            if self.end is not None and at >= self.end:
                if isinstance(frame, FrameUnreadable):
                    continue
                return
            number += 1
            if number % self._every:
                continue
            index += 1
            if index < 0:
                continue
            with self._timing:
                self._times.append(float(at))  # its index is `index`
                if len(self._times) > _KEPT_UNASKED:
                    self._forget(_KEPT_UNASKED // 2)
            if isinstance(frame, FrameUnreadable):
                yield frame
            else:
                orientation.look(frame)
                self.pixel_aspect = 1 / aspect if orientation.on_its_side else aspect
                yield orientation.upright(reformatter.reformat(frame, format="rgb24").to_ndarray())

    def _decoded(self) -> "Iterator[tuple[Fraction, VideoFrame | FrameUnreadable]]":
        """Every frame and its time, seconds from the beginning. Times of frames grow, those in place of one are about right."""
        last: Fraction | None = None
        end = Fraction(0)  # of the last frame, which may be shown for long
        for stamp, frame in self._stamped():
            if self.live and last is None and stamp is not None:
                self.offset = stamp
            following = Fraction(0) if last is None else last + 1 / self.rate
            at = following if stamp is None else max(Fraction(0), stamp - self.offset)
            bad = frame if isinstance(frame, str) else "is damaged" if frame.is_corrupt else ""
            if not bad and last is not None:
                if at == last:
                    at += self.tick
                elif at < last - _JUMP:  # the clock was set back, as between two recordings in one file
                    self.offset -= following - at
                    at = following
                elif at < last:
                    bad = "comes out of its order, as after damage"
            if bad or isinstance(frame, str):
                yield at, self._unreadable(bad, at)
                continue
            last, end = at, at + (frame.duration or 0) * self.tick
            yield at, frame
        duration, last = self._stated_duration(), last or Fraction(0)
        if duration is not None and not self._closed and end + max(Fraction(1, 2), 3 / self.rate) < duration:
            why = f"is the last of a video that is cut short; {float(duration):.2f} s were promised"
            yield last + self.tick, self._unreadable(why, last)

    def _stamped(self) -> "Iterator[tuple[Fraction | None, VideoFrame | str]]":
        """Every frame, or why it cannot be decoded, and its time as FFmpeg counts; from some time before the start."""
        if self._seek():
            found = self._read()
            first = next(found, (None, ""))
            if first[0] is not None and first[0] - self.offset <= self.start:
                yield first
                yield from found
                return
            found.close()
            self._open_again()
        yield from self._read()

    def _read(self) -> "Generator[tuple[Fraction | None, VideoFrame | str], None, None]":
        packets = self._container.demux(self._stream)
        found: list[tuple[Fraction | None, VideoFrame | str]] = []
        more = True
        asked = time.monotonic()  # when the frame that is waited for was asked for
        while more:
            with self._using:
                if self._closed:
                    self._container.close()  # `close` may have given up
                    return
                try:
                    packet = next(packets, None)
                    more = packet is not None
                    if packet is not None:
                        found = self._of(packet)
                except BlockingIOError:  # a camera that has none yet
                    packets = self._container.demux(self._stream)
                    time.sleep(0.005)
                except Exception as error:  # FFmpeg's kinds have bases of many kinds
                    why = sources.why_unopened(self.source, error)
                    if self.source.kind != "file":
                        raise why from None
                    found, more = [(None, f"and what follows cannot be read ({sources.one_line_of(error)})")], False
            if found:
                yield from found
                found, asked = [], time.monotonic()
            elif more and self.source.kind != "file" and time.monotonic() > asked + sources.SILENCE:
                raise sources.unreachable(self.source, f"no frame for {sources.SILENCE:g} s")

    def _of(self, packet: Any) -> "list[tuple[Fraction | None, VideoFrame | str]]":
        try:
            return [(None if frame.pts is None else frame.pts * self.tick, frame) for frame in packet.decode()]
        except Exception as error:
            if is_shortage(error):
                raise
            stamp = None if packet.pts is None else packet.pts * self.tick
            return [(stamp, f"cannot be decoded ({sources.one_line_of(error)})")]

    def _seek(self) -> bool:
        """Go to the key frame before the start, where the source can be sought. Containers without an index of key frames go to
        anywhere: some seconds earlier one has passed.
        """
        indexed = any(name in self._container.format.name for name in ("mov", "matroska", "webm"))
        target = self.start + self.offset - (0 if indexed else _LONGEST_GROUP)
        if self.live or target <= self.offset:
            return False
        try:
            self._container.seek(int(target / self.tick), stream=self._stream)
            return True
        except Exception as error:  # it is read from its beginning
            if is_shortage(error):
                raise
            return False

    def _open_again(self) -> None:
        with self._using:
            if not self._closed:
                self._container.close()
                self._container = sources.open_input(self.source)
                self._stream = self._chosen()

    def _chosen(self) -> "VideoStream":
        """The stream of frames, ready to be decoded."""
        stream = video_stream(self._container, self.source)
        stream.codec_context.options = {"max_pixels": str(PIXEL_LIMIT)}
        return stream

    def _unreadable(self, why: str, at: Fraction) -> FrameUnreadable:
        return FrameUnreadable(
            f"the frame {why}", "fetch or export the video again", subject=f"{self.source.name} at {float(at):.2f} s"
        )

    def _duration(self) -> Fraction | None:
        if self._stream.duration:
            return Fraction(self._stream.duration) * self.tick
        return Fraction(self._container.duration, 1_000_000) if self._container.duration else None

    def _stated_duration(self) -> Fraction | None:
        """Where the header tells it, and all frames are asked for: in MP4 and its kin."""
        if self.live or self.end is not None or "mov" not in self._container.format.name or not self._stream.duration:
            return None
        return Fraction(self._stream.duration) * self.tick


def video_stream(container: "InputContainer", source: sources.Source) -> "VideoStream":
    """The stream of frames. A cover of music is none. Raises VideoUnreadable."""
    streams = [stream for stream in container.streams.video if "attached_pic" not in str(stream.disposition)]
    if not streams:
        found = "sound alone" if container.streams.audio else "no video"
        raise VideoUnreadable(f"holds {found}", "name a video", subject=source.name)
    best = container.streams.best("video")
    chosen = best if best in streams else streams[0]
    if chosen.codec_context is None:
        raise VideoUnreadable("its codec is none that this FFmpeg decodes", "convert it to H.264", subject=source.name)
    return chosen
