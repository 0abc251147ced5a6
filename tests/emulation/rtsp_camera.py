"""A camera that speaks RTSP (RFC 2326) with RTP in the same connection, and sends H.264 (RFC 6184) of a pan, over and over."""

from __future__ import annotations

import re
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from made_videos import pan

RATE = 50

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=pan\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)


def units(count: int = 20) -> list[list[bytes]]:
    """The NAL units of each frame."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = 96, 64, "yuv420p"
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    context.options = {
        "tune": "zerolatency",
        "preset": "ultrafast",
        "g": "5",
        "x264-params": "sliced-threads=0:repeat-headers=1",
    }
    packets = []
    for index, picture in enumerate(pan(count)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = index
        packets += context.encode(frame)
    return [[unit for unit in re.split(b"\0{2,3}\x01", bytes(packet)) if unit] for packet in packets]


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with _suppressed():
            while line := self.rfile.readline().decode():
                if not line.strip():
                    continue
                method, headers = line.split()[0], {}
                while header := self.rfile.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                self._answer(method, headers.get("cseq", "0"))
                if method == "PLAY":
                    threading.Thread(target=self._play, daemon=True).start()
                if method == "TEARDOWN":
                    return

    def _answer(self, method: str, number: str) -> None:
        more, body = "", ""
        if method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            more, body = f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        else:
            more = "Session: 1\r\n"
        self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}\r\n{body}".encode())

    def _play(self) -> None:
        frames, sequence, began = units(), 0, time.monotonic()
        with _suppressed():
            for index in range(10**9):
                of_frame = frames[index % len(frames)]
                for place, unit in enumerate(of_frame):
                    last = 0x80 if place == len(of_frame) - 1 else 0
                    header = struct.pack(
                        ">BBHII", 0x80, last | 96, sequence & 0xFFFF, index * 90_000 // RATE & 0xFFFFFFFF, 1
                    )
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(header) + len(unit)) + header + unit)
                    sequence += 1
                time.sleep(max(0.0, began + (index + 1) / RATE - time.monotonic()))


@contextmanager
def _suppressed() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError):  # the client went away
        pass


@contextmanager
def camera() -> Iterator[str]:
    """Its URL."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    with Server(("127.0.0.1", 0), _Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/live/pan"
        server.shutdown()
