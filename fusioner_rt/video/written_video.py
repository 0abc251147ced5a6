"""A video that `OverlayWriter` has written, whole or up to where its process was killed: its frames, to begin another with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FusionerError
from ..memory_shortage import is_shortage
from . import sources


def whole_frames(path: Path) -> int:
    """How many frames the file holds whole; 0 where it cannot be read."""
    try:
        return sum(1 for _ in _packets(path))
    except FusionerError:
        return 0


def edges(path: Path) -> tuple[int, int]:
    """(H, W) of its frames."""
    with sources.open_input(sources.find_source(path, live=False)) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


def copied(path: Path, count: int) -> Iterator[Any]:
    """Its first packets, as an encoder would give them."""
    for _, packet in zip(range(count), _packets(path, as_encoded=True), strict=False):
        yield packet


def _packets(path: Path, as_encoded: bool = False) -> Iterator[Any]:
    av = sources.package()
    with sources.open_input(sources.find_source(path, live=False)) as container:
        stream = container.streams.best("video")
        if stream is None:
            return
        is_h264 = stream.codec_context is not None and stream.codec_context.codec.canonical_name == "h264"
        to_encoded = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", stream) if as_encoded and is_h264 else None
        try:
            for packet in container.demux(stream):
                if packet.pts is None:  # the end
                    return
                if packet.is_corrupt:
                    return
                yield from to_encoded.filter(packet) if to_encoded else (packet,)
        except Exception as error:
            if is_shortage(error):
                raise
