"""Small videos made for the tests, of a real photograph that is panned over."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


@functools.cache
def _photograph(name: str) -> np.ndarray:
    return np.asarray(Image.open(ROOT / "docs/pictures" / name).convert("RGB"))


def pan(count: int, size: tuple[int, int] = (64, 96), name: str = "cat.jpg") -> list[np.ndarray]:
    """(H, W, 3) uint8 each: a window that moves over a photograph, shrunk so that the window holds half of it."""
    height, width = size
    whole = np.asarray(Image.fromarray(_photograph(name)).resize((2 * width, 2 * height)))
    return [
        np.ascontiguousarray(whole[at * height // count :][:height, at * width // count :][:, :width])
        for at in range(count)
    ]


def clip(
    path: Path,
    count: int = 8,
    size: tuple[int, int] = (64, 96),
    rate: int = 10,
    times: Sequence[Fraction] | None = None,
    sound: float = 0.0,
    sound_codec: str = "aac",
    matrix: Sequence[int] | None = None,
    codec: str = "libx264",
    frames: Sequence[np.ndarray] | None = None,
    **options: str,
) -> Path:
    """times: of each frame, in seconds; by default `rate` a second. sound: its seconds. matrix: the display matrix.
    options: of the encoder.
    """
    pictures = pan(count, size) if frames is None else frames
    with av.open(f"file:{path}", "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2] if pictures else size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
        if matrix:
            stream.set_display_matrix(list(matrix))
        audio = output.add_stream(sound_codec, rate=8000, layout="mono") if sound else None
        if audio:
            _sing(output, audio, sound)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            frame.pts = round(times[index] * 1000) if times else index
            output.mux(stream.encode(frame))
        if pictures:
            output.mux(stream.encode(None))
        else:
            output.start_encoding()
    return path


def _sing(output: Any, audio: Any, seconds: float) -> None:
    wave = np.sin(np.arange(int(8000 * seconds)) * 0.3).astype(np.float32) / 2
    step = 1024
    for at in range(0, len(wave), step):
        part = wave[at : at + step]
        samples = (part * 32767).astype(np.int16) if audio.format.name.startswith("s16") else part
        frame = av.AudioFrame.from_ndarray(samples[None], format=audio.format.name, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, at, Fraction(1, 8000)
        output.mux(audio.encode(frame))
    output.mux(audio.encode(None))


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    """The packets of sound, each with its time in seconds."""
    with av.open(f"file:{path}") as container:
        (stream,) = container.streams.audio
        return [
            (packet.pts * Fraction(packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.pts is not None
        ]


def shown(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """The frames that a player shows, each with its time in seconds."""
    with av.open(f"file:{path}") as container:
        return [
            (frame.pts * Fraction(frame.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]
