"""What other tools read of results: each file is read by the tool itself, or by the letter of its format."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_labels import NAMES, covered, label_maps, noise, segmentation
from made_pictures import scene
from PIL import Image
from pycocotools.coco import COCO

import fusioner_rt
from fusioner_rt import Segmentation, Session, to_coco
from fusioner_rt.errors import UsageError
from fusioner_rt.results import label_me, rle, yolo

BUNDLE = Path(__file__).parents[3] / "models" / "demo" / "bundle"
quick = settings(deadline=None, max_examples=40)


def points(numbers: list[float]) -> np.ndarray:
    return np.array(numbers, float).reshape(-1, 2)


@pytest.mark.parametrize("words", [1, 255, 300])
def test_a_label_map_in_grey_is_the_labels_to_every_reader(tmp_path: Path, words: int) -> None:
    found = segmentation(noise(70, 90, 0, 0.7, words), [f"word {number}" for number in range(words)])
    path = found.save(tmp_path / "map.png")
    image = Image.open(path)
    assert image.mode == ("L" if words <= 255 else "I;16")
    np.testing.assert_array_equal(np.asarray(image), found.labels)
    for flags in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH):
        np.testing.assert_array_equal(cv2.imread(str(path), flags), found.labels)


def test_a_label_map_with_a_palette_has_the_labels_as_its_indices(tmp_path: Path) -> None:
    found = segmentation(noise(70, 90, 0, 0.7, 3))
    image = Image.open(found.save(tmp_path / "map.Palette.PNG"))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), found.labels)
    with pytest.raises(UsageError, match=r"save the label map as \.png"):
        segmentation(noise(5, 5, 0, 0.5, 1), [str(number) for number in range(256)]).save(tmp_path / "a.palette.png")
    assert [file.name for file in tmp_path.iterdir()] == ["map.Palette.PNG"]


@given(label_maps(1), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2), st.integers(0, 1))
@quick
def test_runs_of_a_crop_are_those_of_the_mask(crop: np.ndarray, x: int, y: int, right: int, below: int) -> None:
    mask = np.pad(crop > 0, ((y, below), (x, right)))
    counts = rle.run_lengths(crop > 0, (x, y), mask.shape)
    np.testing.assert_array_equal(np.repeat(np.arange(len(counts)) % 2, counts), mask.ravel(order="F"))
    assert all(counts[1:])


def read_by_coco(document: dict[str, Any], tmp_path: Path) -> COCO:
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return COCO(str(tmp_path / "coco.json"))


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("polygons", [False, True])
def test_results_with_different_words_make_one_coco_document(tmp_path: Path, polygons: bool, instances: bool) -> None:
    results = [
        segmentation(noise(31, 17, 1, 0.7, 2), ["cat", "dog"], "a/1.jpg"),
        segmentation(noise(20, 44, 2, 0.8, 3), ["tree", "dog", "cat"]),
        segmentation(np.zeros((9, 9), np.uint16), ["bird"], "a/3.jpg"),
        segmentation(noise(31, 17, 1, 0.9, 1), ["dog"], "b/1.jpg"),
    ]

    def one_by_one() -> Iterator[Segmentation]:
        yield from results

    read = read_by_coco(fusioner_rt.to_coco(one_by_one(), polygons=polygons, instances=instances), tmp_path)
    assert {number: entry["name"] for number, entry in read.cats.items()} == {1: "cat", 2: "dog", 3: "tree", 4: "bird"}
    assert [image["file_name"] for image in read.dataset["images"]] == ["a/1.jpg", "picture 2", "a/3.jpg", "b/1.jpg"]
    assert [entry["id"] for entry in read.dataset["annotations"]] == list(range(1, len(read.anns) + 1))
    for number, result in enumerate(results, start=1):
        entries = read.imgToAnns[number]
        assert len(entries) == (
            len(result.instances()) if instances else len(np.unique(result.labels[result.labels > 0]))
        )
        for word in result.words:
            (category,) = read.getCatIds(catNms=[word])
            own = [read.annToMask(entry) for entry in entries if entry["category_id"] == category]
            np.testing.assert_array_equal(np.any(own, axis=0) if own else np.zeros_like(result.labels), result[word])
        for entry in entries:
            x, y, width, height = entry["bbox"]
            mask = read.annToMask(entry)
            assert mask[y : y + height, x : x + width].sum() == mask.sum() == entry["area"]


def test_a_coco_document_takes_results_alone() -> None:
    found = segmentation(noise(5, 5, 0, 0.5, 1))
    assert fusioner_rt.to_coco(found) == fusioner_rt.to_coco([found])  # one is many
    assert fusioner_rt.to_coco([]) == {"images": [], "categories": [], "annotations": []}
    with pytest.raises(UsageError, match=r"given as dict; give what session\.segment returned"):
        fusioner_rt.to_coco([found.to_coco()[0]])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="pass polygons=True"):
        fusioner_rt.to_coco([found], tolerance=1)


def test_a_file_of_coco_is_the_document_of_one_result(tmp_path: Path) -> None:
    found = segmentation(noise(20, 30, 0, 0.5, 2), source="photos/a.jpg")
    for name in ("a.json", "a.coco.json"):
        assert json.loads(found.save(tmp_path / name).read_text()) == fusioner_rt.to_coco([found])
    options: dict[str, Any] = {"polygons": True, "tolerance": 1.5, "instances": True}
    path = found.save(tmp_path / "b.json", **options)
    assert json.loads(path.read_text()) == fusioner_rt.to_coco([found], **options)


@given(label_maps(2))
@quick
def test_a_line_of_yolo_is_an_instance_with_holes(labels: np.ndarray) -> None:
    found = segmentation(labels)
    lines = yolo.lines(found.instances(), 0).splitlines()
    height, width = labels.shape
    for line, instance in zip(lines, found.instances(), strict=True):
        number, *numbers = line.split()
        assert int(number) == instance.label - 1
        assert len(numbers) >= 8
        assert all(0 <= float(value) <= 1 for value in numbers)
        ring = (points([float(value) for value in numbers]) * (width, height)).round(3)
        np.testing.assert_array_equal(covered([ring], labels.shape), instance.mask)


def test_yolos_words_are_numbered_from_0_and_read_as_they_are() -> None:
    assert yolo.data_file(["cat", 'a "b": #c', "Straße"]) == (
        '# by fusioner-rt segment --yolo\ntrain: images\nval: images\nnames:\n  0: "cat"\n  1: "a \\"b\\": #c"\n  2: "Straße"\n'
    )


@pytest.mark.parametrize("size", [(21, 33), (42, 66)])  # as the picture, and twice
def test_labelme_opens_the_picture_with_the_polygons_on_it(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").mkdir()
    Image.fromarray(scene(21, 33)).save(tmp_path / "photos" / "a.png")
    labels = noise(21, 33, 4, 0.7, 2).repeat(size[0] // 21, axis=0).repeat(size[1] // 33, axis=1)
    found = Segmentation(
        NAMES, labels, np.ones(size, np.float32), scene(21, 33), {}, 0.5, "joint",
        source=os.path.relpath(tmp_path / "photos" / "a.png"),
    )  # fmt: skip
    file = json.loads(found.save(tmp_path / "out" / "a.labelme.json").read_text())
    assert set(file) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert file["imagePath"] == "../photos/a.png"
    assert Image.open(tmp_path / "out" / file["imagePath"]).size == (file["imageWidth"], file["imageHeight"])
    groups: dict[Any, int] = {}
    for number, word in enumerate(found.words, start=1):
        shapes = [shape for shape in file["shapes"] if shape["label"] == word]
        own = noise(21, 33, 4, 0.7, 2) == number
        np.testing.assert_array_equal(covered([np.array(shape["points"]) for shape in shapes], own.shape), own)
        for shape in shapes:
            assert shape["shape_type"] == "polygon"
            if shape["group_id"] is not None:
                groups[shape["group_id"]] = groups.get(shape["group_id"], 0) + 1
    assert groups
    assert min(groups.values()) > 1


def test_labelmes_path_of_a_picture_without_a_file(tmp_path: Path) -> None:
    for source, path in ((None, ""), ("https://a.b/c.jpg", "https://a.b/c.jpg")):
        assert label_me.content([], (3, 4, 3), source, tmp_path, 0)["imagePath"] == path


@pytest.mark.parametrize("name", ["a.labelme.json", "a.txt", "a.json"])
def test_a_tolerance_gives_files_fewer_points(tmp_path: Path, name: str) -> None:
    found = segmentation(np.kron(np.tri(9, dtype=np.uint16), np.ones((2, 2), np.uint16)))
    sizes = []
    for tolerance in (0, 2):
        found.save(tmp_path / name, polygons=True, tolerance=tolerance)
        sizes.append(len(re.findall(r"\d+\.?\d*", (tmp_path / name).read_text())))
    assert sizes[0] > 2 * sizes[1]


def test_a_result_knows_its_pictures_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene(40, 50)).save(path)
    pictures = [str(path), path, Image.open(path), path.read_bytes(), scene(40, 50), Image.fromarray(scene(40, 50))]
    expected = [str(path)] * 3 + [None] * 3
    with Session(BUNDLE, cache=False) as session:
        session.set_vocabulary("cat")
        encoded = session.encode(pictures)
        assert [one.source for one in encoded] == expected
        for given_ in (pictures, encoded):
            assert [result.source for result in session.segment(given_)] == expected
        assert session.segment(os.path.relpath(path)).source == os.path.relpath(path)
        assert session.encode(path).source == str(path)


def test_a_picture_is_never_replaced_by_its_result(tmp_path: Path) -> None:
    path = tmp_path / "own.jpg"
    Image.fromarray(scene(20, 30)).save(path)
    before = path.read_bytes()
    found = replace(segmentation(np.ones((20, 30), np.uint16)), source=str(path))
    os.symlink(path, tmp_path / "link.jpg")
    for name in ("own.jpg", "link.jpg", "../" + tmp_path.name + "/own.jpg"):
        with pytest.raises(UsageError, match="this is the picture itself"):
            found.save(tmp_path / name)
    assert path.read_bytes() == before
    found.save(tmp_path / "other.jpg")


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {"tolerance": 3}), ("a.npz", {"instances": True}), ("a.jpg", {"polygons": True}), ("a.txt", {"instances": True}),
     ("a.jpg", {"tolerance": "x"}), ("a.json", {"polygons": "no"})],
)  # fmt: skip
def test_options_that_say_nothing_of_a_file_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        segmentation(np.ones((4, 5), np.uint16)).save(tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_words_that_differ_in_case_are_one_category(tmp_path: Path) -> None:
    found = segmentation(np.ones((4, 5), np.uint16))
    other = replace(found, words=tuple(word.upper() for word in found.words))
    document = to_coco([found, other])
    assert [category["name"] for category in document["categories"]] == list(found.words)
    assert {entry["category_id"] for entry in document["annotations"]} == {1}
