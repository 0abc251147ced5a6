"""Objects of a video, counted: a table by frame, and the fullest frame above a chart of the counts.

python examples/count_objects.py                                          # a recorded clip
python examples/count_objects.py traffic.mp4 --words "car, bus, person"
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import fusioner_rt
from fusioner_rt import video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", default="docs/gallery/clip.mp4")
    parser.add_argument("--words", default="cat, person")
    parser.add_argument("--least", type=float, default=0.05, help="share of the frame that an object covers at least")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    rows, most = [], -1
    with fusioner_rt.Session() as session, video.frames(given.video) as clip:
        for seen in session.stream(clip, given.words):
            if seen.result is None:
                continue
            words, objects = seen.result.words, seen.result.instances(min_area=given.least * seen.result.labels.size)
            rows.append([seen.index, *(sum(one.word == word for one in objects) for word in words)])
            if len(objects) > most:
                most, fullest = len(objects), seen.result.overlay(legend=False)
                for x, y, width, height in (one.box for one in objects):
                    ImageDraw.Draw(fullest).rectangle((x, y, x + width - 1, y + height - 1), outline="white", width=3)

    if not rows:
        raise SystemExit("no frame was seen")
    given.out.mkdir(parents=True, exist_ok=True)
    with open(given.out / "counts.csv", "w", newline="") as table:
        csv.writer(table).writerows([["frame", *words], *rows])
    chart = Image.new("RGB", (fullest.width, fullest.height + 30 * len(words)), "white")
    chart.paste(fullest)
    for number, word in enumerate(words, 1):  # a row per word, a cell per frame, darker for more
        top, step = chart.height - 30 * (len(words) + 1 - number), (chart.width - 60) / len(rows)
        ImageDraw.Draw(chart).text((5, top + 9), word, "black")
        for column, row in enumerate(rows):
            light, left = max(0, 255 - 110 * row[number]), 60 + column * step
            ImageDraw.Draw(chart).rectangle((left, top + 2, left + step, top + 28), (light, light, 255))
        counts = [row[number] for row in rows]
        print(f"{word}: {max(counts)} at once at most, in {np.count_nonzero(counts)} of {len(counts)} frames")
    chart.save(given.out / "count_objects.jpg")


if __name__ == "__main__":
    try:
        main()
    except fusioner_rt.FusionerError as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
