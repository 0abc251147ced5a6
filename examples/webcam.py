"""A webcam, frame after frame: what is seen, how fast, and a loop of it as a picture that moves.

python examples/webcam.py                                                 # a recorded clip
python examples/webcam.py /dev/video0 --words "person, cup"               # a webcam on Linux
"""

import argparse
import itertools
import time
from pathlib import Path

import fusioner_rt
from fusioner_rt import video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="docs/gallery/clip.mp4")
    parser.add_argument("--words", default="cat, person, cup")
    parser.add_argument("--frames", type=int, default=100, help="after which it ends")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    loop, done = [], 0
    with fusioner_rt.Session() as session, video.frames(given.source) as camera:
        session.set_vocabulary(given.words)
        start = time.perf_counter()
        for seen in session.stream(itertools.islice(camera, given.frames), live=camera.live):
            if seen.result is None:
                print(f"{seen.index}: {seen.error}")
                continue
            found = [word for word, share in zip(seen.result.words, seen.result.shares, strict=True) if share > 0.02]
            if done % 2 == 0:
                loop.append(seen.result.overlay().reduce(2))
            done += 1  # of a camera, fewer than seen.index tells: it also counts frames that were dropped
            rate = done / (time.perf_counter() - start)
            print(f"{seen.index}: {', '.join(found) or 'nothing'} ({rate:.1f} frames a second)")

    if not loop:
        raise SystemExit("no frame was seen")
    given.out.mkdir(parents=True, exist_ok=True)
    loop[0].save(given.out / "webcam.webp", save_all=True, append_images=loop[1:], duration=200, loop=0, quality=40)


if __name__ == "__main__":
    try:
        main()
    except fusioner_rt.FusionerError as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
