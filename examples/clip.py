"""The clip that the other examples watch: a camera goes along a wall of photographs, and looks closer at the middle.

python examples/clip.py                                # docs/gallery/clip.mp4, of docs/pictures
python examples/clip.py one.jpg two.jpg --out my.mp4
"""

import argparse
import math
from pathlib import Path

import av
from PIL import Image

FRAMES, RATE, WIDTH, HEIGHT = 40, 10, 480, 270
PICTURES = [f"docs/pictures/{name}.jpg" for name in ("cat", "astronaut", "cat", "coffee")]


def wall(pictures: list[str], height: int = 400, gap: int = 40, above: int = 90) -> Image.Image:
    """The pictures side by side at one height, with a light wall around them."""
    opened = [Image.open(path).convert("RGB") for path in pictures]
    hung = [picture.resize((round(picture.width * height / picture.height), height)) for picture in opened]
    board = Image.new("RGB", (gap + sum(picture.width + gap for picture in hung), height + 2 * above), "#d8d4cc")
    left = gap
    for picture in hung:
        board.paste(picture, (left, above))
        left += picture.width + gap
    return board


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", default=PICTURES)
    parser.add_argument("--out", type=Path, default=Path("docs/gallery/clip.mp4"))
    given = parser.parse_args()

    board = wall(given.pictures)
    with av.open(given.out, "w") as video:
        stream = video.add_stream("libx264", rate=RATE, options={"crf": "26"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            way = index / (FRAMES - 1)
            high = board.height * (1 - 0.2 * math.sin(math.pi * way))
            wide = high * WIDTH / HEIGHT
            left, top = way * (board.width - wide), (board.height - high) / 2
            seen = board.resize((WIDTH, HEIGHT), box=(left, top, left + wide, top + high))
            video.mux(stream.encode(av.VideoFrame.from_image(seen)))
        video.mux(stream.encode())


if __name__ == "__main__":
    main()
