"""pycocotools both ways, through its own decoder and index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from made_results import found, result_of, results
from pycocotools import mask as coco_mask

from fusioner_rt import Segmentation, to_coco
from fusioner_rt.errors import UsageError
from fusioner_rt.interfaces.pycocotools import from_coco, to_index


@settings(max_examples=40, deadline=None)
@given(results())
def test_an_index_decodes_to_the_results_masks(result: Segmentation) -> None:
    index = to_index([result])
    annotations = index.loadAnns(index.getAnnIds(imgIds=[1]))
    assert [index.cats[one["category_id"]]["name"] for one in annotations] == [result.words[k] for k in found(result)]
    for one, k in zip(annotations, found(result), strict=True):
        assert np.array_equal(index.annToMask(one), result.masks[k])
        rle = index.annToRLE(one)
        assert (coco_mask.area(rle), coco_mask.toBbox(rle).tolist()) == (one["area"], one["bbox"])


@settings(max_examples=40, deadline=None)
@given(results())
def test_a_result_comes_back_from_its_annotations(result: Segmentation) -> None:
    back = from_coco(to_index([result]), 1)
    assert back.words == result.words
    assert np.array_equal(back.labels, result.labels)
    assert np.array_equal(back.masks, result.masks)
    assert np.allclose(back.scores, result.scores, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(results())
def test_parts_come_back_as_the_same_masks(result: Segmentation) -> None:
    assert np.array_equal(from_coco(to_index([result], instances=True), 1).masks, result.masks)


def test_files_and_contents_are_read_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((9, 14), int)
    labels[2:5, 3:11] = 3
    content = to_coco([result_of(labels * 0), result_of(labels)])
    (tmp_path / "masks.json").write_text(json.dumps(content))
    for source in (content, tmp_path / "masks.json", str(tmp_path / "masks.json")):
        assert np.array_equal(from_coco(source, 2).labels, labels)
    assert capsys.readouterr().out == ""


def test_of_annotations_that_overlap_the_smaller_lies_above() -> None:
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    polygons = [(5, [[0, 0, 20, 0, 20, 10, 0, 10]], 200), (9, square, 36)]
    for order in (polygons, polygons[::-1]):
        entries = [
            {"id": n, "image_id": 7, "category_id": category, "segmentation": outline, "area": area, "iscrowd": 0}
            for n, (category, outline, area) in enumerate(order, start=1)
        ]
        content = {
            "images": [{"id": 7, "width": 20, "height": 10, "file_name": "a.jpg"}],
            "categories": [{"id": 9, "name": "cat"}, {"id": 5, "name": "sofa"}],
            "annotations": entries,
        }
        result = from_coco(content, 7)
        assert result.words == ("sofa", "cat")
        assert result.masks.sum(axis=(1, 2)).tolist() == [200 - 36, 36]
        assert result["cat"][2:8, 2:8].all()
        assert result.source == "a.jpg"


def test_annotations_without_masks_are_left_out_and_unknown_categories_refused() -> None:
    content = to_coco([result_of(np.ones((3, 4)))])
    (whole,) = content["annotations"]
    box = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    assert (from_coco({**content, "annotations": [whole, box]}, 1).labels == 1).all()
    with pytest.raises(UsageError, match="category 77"):
        from_coco({**content, "annotations": [{**whole, "category_id": 77}]}, 1)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_coco_file_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "masks.json").write_text(text)
    for source in (tmp_path / "masks.json", tmp_path / "none.json", 3):
        with pytest.raises(UsageError, match="cannot be read"):
            from_coco(source, 1)  # type: ignore[arg-type]


def test_an_unknown_image_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no image 3.*: 1"):
        from_coco(to_index([result_of(np.ones((3, 4)))]), 3)
