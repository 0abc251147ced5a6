"""A webcam, frame after frame: what is seen, how fast, and a loop of it as a picture that moves.

python examples/webcam.py                                                  # a recorded clip
python examples/webcam.py /dev/video0 --format v4l2 --words "person, cup"  # a webcam on Linux
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

import fusioner_rt


def frames(source: str, kind: str | None) -> Iterator[np.ndarray]:
    with av.open(source, format=kind) as video:
        for frame in video.decode(video=0):
            yield frame.to_ndarray(format="rgb24")  # (H, W, 3) uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="docs/gallery/clip.mp4")
    parser.add_argument("--format", help="of a camera: v4l2 on Linux, avfoundation on macOS, dshow on Windows")
    parser.add_argument("--words", default="cat, person, cup")
    parser.add_argument("--frames", type=int, default=100, help="after which it ends")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    loop = []
    with fusioner_rt.Session() as session:
        session.set_vocabulary(given.words)
        start, source = time.perf_counter(), itertools.islice(frames(given.source, given.format), given.frames)
        for seen in session.stream(source):
            if seen.result is None:
                print(f"{seen.index}: {seen.error}")
                continue
            found = [word for word, share in zip(seen.result.words, seen.result.shares, strict=True) if share > 0.02]
            rate = (seen.index + 1) / (time.perf_counter() - start)
            print(f"{seen.index}: {', '.join(found) or 'nothing'} ({rate:.1f} frames a second)")
            if seen.index % 2 == 0:
                loop.append(seen.result.overlay().reduce(2))

    given.out.mkdir(parents=True, exist_ok=True)
    loop[0].save(given.out / "webcam.webp", save_all=True, append_images=loop[1:], duration=200, loop=0, quality=40)


if __name__ == "__main__":
    main()
