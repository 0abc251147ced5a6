"""Masks that the runtime writes as LabelMe, COCO and YOLO come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner_rt import Segmentation, to_coco
from fusioner_rt.atomic_files import write_json
from fusioner_rt.results.yolo import data_file
from training.data import MaskFolder
from training.datasets.__main__ import main

WORDS = ("cat", "sofa", "potted plant")


def regions(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint16: blobs of three words with holes, islands and parts that touch at corners."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(4, *(-(-edge // 8) for edge in size)))
    maps = [np.asarray(Image.fromarray(m).resize(size[::-1], Image.Resampling.BICUBIC)) for m in noise]
    labels = np.argmax(maps, axis=0).astype(np.uint16)
    labels[5:9, 5:30] = 1
    labels[6, 7:20] = 0  # a hole of a pixel's height
    return labels


@pytest.mark.parametrize("form", ["labelme", "coco", "coco with polygons", "yolo"])
def test_masks_that_the_runtime_wrote_come_back(form: str, tmp_path: Path) -> None:
    photos, export, out = tmp_path / "images", tmp_path, tmp_path / "out"
    photos.mkdir()
    results = []
    for number, size in enumerate([(61, 93), (88, 47)]):
        labels, rgb = regions(number, size), np.full((*size, 3), 90 + number, np.uint8)
        file = photos / f"photo{number}.png"
        Image.fromarray(rgb).save(file)
        ones = np.ones(size, np.float32)
        results.append(Segmentation(WORDS, labels, ones, rgb, {}, 0.5, "joint", source=str(file)))
    if form == "yolo":
        (tmp_path / "labels").mkdir()
        (tmp_path / "data.yaml").write_text(data_file(WORDS))
    for number, result in enumerate(results):
        if form == "labelme":
            result.save(photos / f"photo{number}.labelme.json")
        elif form == "yolo":
            result.save(tmp_path / "labels" / f"photo{number}.txt")
    if form.startswith("coco"):
        write_json(tmp_path / "masks.json", to_coco(results, polygons=form != "coco"))
        export = tmp_path / "masks.json"
    assert main(["convert", str(export), "--out", str(out)]) == 0
    data = MaskFolder(out)
    for number, result in enumerate(results):
        (name,) = (name for name in data.pictures if name.endswith(f"photo{number}"))
        mask = data.mask(name)
        for index, word in enumerate(WORDS, start=1):
            found, truth = mask == data.index(word), result.labels == index
            assert (found & truth).sum() / (found | truth).sum() >= 0.99, (form, word)
