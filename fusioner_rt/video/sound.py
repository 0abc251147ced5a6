"""The sound of a video, copied as it is."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..memory_shortage import is_shortage
from . import sources
from .times import fraction

if TYPE_CHECKING:
    from av.container import OutputContainer

    from .frames import Frames


class Sound:
    """Packets of a source's best stream of sound, from the frames' start to their end, on the frames' clock."""

    @classmethod
    def of(cls, frames: "Frames", suffix: str) -> "Sound | None":
        """None where a source has no sound. suffix: of the container. Raises UsageError where that does not take it."""
        container = sources.open_input(frames.source)
        try:
            stream = container.streams.best("audio")
            if stream is None:
                container.close()
                return None
            check_fits(stream, suffix, frames.source.name)
        except BaseException:
            container.close()
            raise
        return cls(container, stream, frames)

    def __init__(self, container: Any, stream: Any, frames: "Frames") -> None:
        self._container, self._stream = container, stream
        self._tick = fraction(stream.time_base) or Fraction(1, 90_000)
        self._shift = frames.offset + frames.start
        self._end = None if frames.end is None else frames.end - frames.start
        self._written: Any = None
        self._output: OutputContainer | None = None
        if frames.start:
            try:
                container.seek(int(self._shift / self._tick), stream=stream)
            except Exception as error:  # it is read from its beginning
                if is_shortage(error):
                    raise
        self._packets = container.demux(stream)
        self._next = self._read()

    def add_to(self, output: "OutputContainer") -> None:
        """Before anything is written there."""
        self._output = output
        self._written = output.add_stream_from_template(self._stream)

    def write_before(self, time: Fraction | None) -> None:
        """Write what begins before a time of the written video; all that is left where None."""
        assert self._output is not None
        while self._next is not None and (time is None or self._begins(self._next) < time):
            packet = self._next
            shift = round(self._shift / self._tick)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._written
            self._output.mux_one(packet)
            self._next = self._read()

    def close(self) -> None:
        self._container.close()

    def _begins(self, packet: Any) -> Fraction:
        return Fraction(packet.pts * self._tick - self._shift)

    def _read(self) -> Any:
        """The next packet of the part that is asked for, or None. What cannot be read ends the sound."""
        try:
            for packet in self._packets:
                if packet.pts is None or packet.dts is None or packet.is_corrupt:
                    continue
                begins = self._begins(packet)
                if self._end is not None and begins >= self._end:
                    return None
                if begins >= 0 or self._shift == 0:  # what precedes the beginning is the codec's own start
                    return packet
        except Exception as error:
            if is_shortage(error):
                raise
        return None


def container_for(source: sources.Source, wanted: str | None = None) -> str:
    """The suffix of a container that takes the source's sound as it is: of the wanted one, or .mp4, or where that does not, .mkv.

    wanted: "mp4" or another. Raises UsageError where the wanted one does not, and as `sources.open_input`.
    """
    suffix = f".{wanted or 'mp4'}"
    if source.live:
        return suffix
    with sources.open_input(source) as container:
        stream = container.streams.best("audio")
        try:
            if stream is not None:
                check_fits(stream, suffix, source.name)
        except UsageError:
            if wanted:
                raise
            return ".mkv"
    return suffix


def check_fits(stream: Any, suffix: str, name: str) -> None:
    """Raises UsageError where a container does not take a stream of sound as it is. suffix: of the container."""
    av = sources.package()
    try:
        with av.open(_Nowhere(), "w", format=FORMATS[suffix]) as tried:
            tried.add_stream_from_template(stream)
    except Exception as error:
        if is_shortage(error):
            raise
        codec = getattr(stream.codec_context, "name", "of a kind that is not known")
        raise UsageError(
            f"its sound, {codec}, does not go into {suffix[1:]} as it is", "take mkv, which holds any", subject=name
        ) from None


FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


class _Nowhere:
    """A file to which nothing is written."""

    name = "nowhere"

    def write(self, data: bytes) -> int:
        return len(data)
