"""Mosaic-4 (paper 4.1, 4.4): four pictures of different classes in one, so that the words decide the masks.

Made from FSS-1000's test split: its 2,400 pictures, each used once, give 600 mosaics.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fusioner_rt.atomic_files import write_result
from fusioner_rt.decode_picture import decode
from fusioner_rt.whole_folders import unfinished_folder
from training.data import DataError, MaskFolder
from training.datasets.fss import Fss1000
from training.feature_cache import nearest

LAYOUT = """\
DIR/  (written by python -m training.datasets mosaic-4 --data FSS-1000 --out DIR)
  images/mosaic000.png …                     600 pictures of four tiles
  masks/mosaic000.png …                      index masks
  classes.txt                                the background and FSS-1000's 240 test classes
  val.txt, list.csv                          the names; which four pictures each is made of"""

SOURCE = "Made from FSS-1000, whose terms hold for it."

TILES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Mosaic(MaskFolder):
    """A Mosaic-4 folder; it has a val split only."""

    def names(self, split: str) -> list[str]:
        if split != "val":
            raise DataError(f"mosaic-4 is for scoring and has no split {split!r}", "train on fss-1000")
        return super().names(split)


def arrange(classes: list[str], random: np.random.Generator) -> np.ndarray:
    """Groups N pictures, given the class of each, into mosaics: (N // 4, 4) positions in `classes`.

    No position occurs twice, and the four classes of a row differ; N % 4 random pictures are left over. Raises
    DataError where a class has more pictures than there are mosaics: two of them would share one.
    """
    count = len(classes) // 4
    kept = np.sort(random.permutation(len(classes))[: 4 * count])
    names, labels = np.unique(np.asarray(classes)[kept], return_inverse=True)
    sizes = np.bincount(labels, minlength=1)
    if not count or sizes.max() > count:
        largest = f"{names[sizes.argmax()]} alone has {sizes.max()}" if count else "none can be made"
        raise DataError(
            f"{len(classes)} pictures make {count} mosaics of four classes, but {largest}; expected at least 4 classes of "
            "equal size, as FSS-1000's test split has",
            "fetch FSS-1000 again",
        )
    # Pictures sorted by class are dealt to the mosaics in turn: a class has at most `count` pictures, so no mosaic gets
    # two of it. Random exchanges that keep this true then remove the regularity.
    dealt = np.argsort(labels, kind="stable").reshape(4, count).T.tolist()
    label = labels.tolist()
    for a, b in random.integers(0, 4 * count, (100 * count, 2)).tolist():
        (i, p), (j, q) = divmod(a, 4), divmod(b, 4)
        first, second = dealt[i], dealt[j]
        mine, theirs = label[first[p]], label[second[q]]
        if i == j or not (
            any(label[x] == theirs for k, x in enumerate(first) if k != p)
            or any(label[x] == mine for k, x in enumerate(second) if k != q)
        ):
            first[p], second[q] = second[q], first[p]
    return kept[np.array(dealt)]


def write(data: Fss1000, out: Path, seed: int = 0, side: int = 224) -> int:
    """Writes the data set atomically; returns the number of mosaics. side: of a tile, in pixels.

    The same pictures and seed give the same mosaics. Raises DataError, also where `out` is not empty.
    """
    if side < 1:
        raise DataError(f"a tile's side is {side}; expected 1 or more pixels", "give another --side")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already", "choose another place, or remove it first")
    names = data.names("val")
    classes = [name.rpartition("-")[0] for name in names]
    rows = arrange(classes, np.random.default_rng(seed))
    found = sorted(set(classes))
    if len(found) > 254:
        raise DataError(f"{len(found)} classes do not fit an 8-bit mask; expected at most 254", "remove class folders")
    with unfinished_folder(out) as unfinished:
        new = unfinished / "new"
        (new / "images").mkdir(parents=True)
        (new / "masks").mkdir()
        table = io.StringIO()
        lines = csv.writer(table, lineterminator="\n")
        lines.writerow(["mosaic", *(f"{tile} {column}" for tile in TILES for column in ("class", "picture"))])
        digits = max(3, len(str(len(rows) - 1)))
        for number, row in enumerate(tqdm(rows, desc="mosaics", unit="mosaic")):
            rgb, mask = _compose(data, [names[i] for i in row], [1 + found.index(classes[i]) for i in row], side)
            name = f"mosaic{number:0{digits}}"
            for kind, pixels in (("images", rgb), ("masks", mask)):  # lossless: scores depend on no JPEG encoder
                _write(new / kind / f"{name}.png", Image.fromarray(pixels))
            lines.writerow([name, *(part for i in row for part in (classes[i], data.picture(names[i]).name))])
        (new / "classes.txt").write_text("\n".join(["background", *found]) + "\n")
        (new / "val.txt").write_text("".join(f"mosaic{n:0{digits}}\n" for n in range(len(rows))))
        (new / "list.csv").write_text(table.getvalue())
        new.replace(out)
    return len(rows)


def _write(file: Path, image: Image.Image) -> None:
    write_result(file, lambda stream: image.save(stream, "PNG"))


def _compose(data: Fss1000, names: list[str], indices: list[int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """(2·side, 2·side, 3) uint8 and (2·side, 2·side) uint8 of four pictures, row by row."""
    rgb = np.empty((2 * side, 2 * side, 3), np.uint8)
    mask = np.empty((2 * side, 2 * side), np.uint8)
    for tile, (name, index) in enumerate(zip(names, indices, strict=True)):
        place = tuple(slice(k * side, (k + 1) * side) for k in divmod(tile, 2))
        picture = Image.fromarray(decode(data.picture(name)))
        rgb[place] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
        mask[place] = np.where(nearest(data.mask(name), (side, side)) > 0, index, 0)
    return rgb, mask
