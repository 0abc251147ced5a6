"""A robot's loop: each step looks at the newest frame, however long the step before took, and turns towards a target.

python examples/robot.py                                                  # a recorded clip, at its own pace
python examples/robot.py rtsp://192.168.0.7/stream --target cat           # a camera
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import fusioner_rt
from fusioner_rt import video


def when_due(camera: video.Frames) -> Iterator[Any]:
    """A file's frames at the pace at which a camera would give them."""
    start = time.monotonic()
    for index, frame in enumerate(camera):
        time.sleep(max(0.0, start + camera.time(index) - time.monotonic()))
        yield frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="docs/gallery/clip.mp4")
    parser.add_argument("--target", default="person")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    looks = []
    with fusioner_rt.Session() as session, video.frames(given.source) as camera:
        session.set_vocabulary(given.target)
        session.segment(Image.new("RGB", (64, 64))).instances()  # the first call loads what later ones use
        for seen in session.stream(when_due(camera), live=True):  # stale frames are dropped
            if seen.result is None:
                continue
            look, told = seen.result.overlay(legend=False), "no target"
            if parts := seen.result.instances(min_area=0.05 * seen.result.labels.size):  # the largest first
                x, _, width, _ = parts[0].box
                middle = x + width / 2
                told = f"turn {2 * middle / look.width - 1:+.2f}"  # -1 is the left edge, +1 the right one
                line = [(look.width / 2, look.height), (middle, look.height / 2)]
                ImageDraw.Draw(look).line(line, fill="yellow", width=6)
            print(f"frame {seen.index}, {seen.dropped} dropped: {told}")
            looks.append(look)
            time.sleep(0.3)  # in place of a motor

    if not looks:
        raise SystemExit("no frame was seen")
    sheet = Image.new("RGB", (look.width * 2 + 8, look.height * 2 + 8), "white")
    for number, look in enumerate(looks[:4]):
        sheet.paste(look, (number % 2 * (look.width + 8), number // 2 * (look.height + 8)))
    given.out.mkdir(parents=True, exist_ok=True)
    sheet.save(given.out / "robot.jpg")


if __name__ == "__main__":
    try:
        main()
    except fusioner_rt.FusionerError as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
