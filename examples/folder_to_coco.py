"""A folder of pictures to one COCO file, and a sheet of the masks to look at.

python examples/folder_to_coco.py                                         # docs/pictures
python examples/folder_to_coco.py holiday --words "dog, tree" --out found
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

import fusioner_rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/pictures"))
    parser.add_argument("--words", default="cat, person, cup")
    parser.add_argument("--out", type=Path, default=Path("output"))
    given = parser.parse_args()

    shown: list[Image.Image] = []

    def results() -> Iterator[fusioner_rt.Segmentation]:
        """One at a time: a folder may be larger than the memory."""
        for path in sorted(given.folder.glob("*.jpg")):
            try:
                result = session.segment(path)
            except fusioner_rt.FusionerError as error:
                print(error)  # a broken one, say; the others are done
                continue
            shown.append(ImageOps.contain(result.overlay(), (480, 320)))
            yield result

    with fusioner_rt.Session() as session:
        session.set_vocabulary(given.words)
        document = fusioner_rt.to_coco(results(), instances=True)  # an annotation per connected part

    if not shown:
        raise SystemExit(f"{given.folder}: no .jpg that can be read")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "masks.json").write_text(json.dumps(document))
    sheet = Image.new("RGB", (sum(picture.width for picture in shown), 320), "white")
    for index, picture in enumerate(shown):
        sheet.paste(picture, (sum(before.width for before in shown[:index]), 0))
    sheet.save(given.out / "folder_to_coco.jpg")
    print(f"{len(document['images'])} pictures, {len(document['annotations'])} masks: {given.out / 'masks.json'}")


if __name__ == "__main__":
    try:
        main()
    except fusioner_rt.FusionerError as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
