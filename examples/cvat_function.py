"""A function for CVAT of your own: a mask per object, small and doubtful ones left out.

  pip install cvat-cli
  cvat-cli --server-host https://cvat.example task auto-annotate 7 --function-file examples/cvat_function.py -p words=str:face,hair
  python examples/cvat_function.py docs/pictures/astronaut.jpg               # what CVAT would get, as a picture

The library's own, `--function-module fusioner_rt.interfaces.cvat`, also makes polygons (docs/interfaces.md).
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cvat_sdk import auto_annotation, masks
from PIL import Image

import fusioner_rt
from fusioner_rt.results.colours import word_colours


class Objects:
    """What CVAT asks: `spec` for the labels, `detect` for the shapes of a picture."""

    def __init__(self, words: str, least: float) -> None:
        self.least, self.session = least, fusioner_rt.Session()
        self.session.set_vocabulary(words)
        labels = [auto_annotation.label_spec(word, n, type="mask") for n, word in enumerate(self.session.words, 1)]
        self.spec = auto_annotation.DetectionFunctionSpec(labels=labels)

    def detect(self, context: auto_annotation.DetectionFunctionContext, image: Image.Image) -> list:
        objects = self.session.segment(image).instances(min_area=self.least * image.width * image.height)
        least = 0.6 if context.conf_threshold is None else context.conf_threshold
        wanted = [one for one in objects if one.score >= least]
        return [auto_annotation.mask(one.label, masks.encode_mask(one.mask)) for one in wanted]


def create(words: str = "face, hair", least: float = 0.005) -> Objects:
    """cvat-cli calls this with the parameters of -p."""
    return Objects(words, least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", default="docs/pictures/astronaut.jpg")
    parser.add_argument("--words", default="face, hair")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    picture = Image.open(given.picture).convert("RGB")
    function = create(given.words)
    context = SimpleNamespace(frame_name=given.picture, conf_threshold=None, conv_mask_to_poly=False)
    colours = dict(zip(range(1, 1 + len(function.session.words)), word_colours(function.session.words), strict=True))
    painted = np.asarray(picture).copy()
    for shape in function.detect(context, picture):
        mask = masks.decode_mask(shape.points, image_width=picture.width, image_height=picture.height)
        painted[mask] = painted[mask] // 2 + colours[shape.label_id] // 2
        print(f"{function.session.words[shape.label_id - 1]}: {mask.sum()} pixels")
    given.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted).save(given.out / "cvat_function.jpg")


if __name__ == "__main__":
    try:
        main()
    except (fusioner_rt.FusionerError, OSError) as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
