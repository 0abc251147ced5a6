"""Polygons of label maps: held to the pixels that they came from, by shapely and by COCO's own rasteriser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from made_labels import covered, label_maps, noise, segmentation
from pycocotools import mask as coco_masks

from fusioner_rt import FusionerError, Session
from fusioner_rt.errors import PackageMissing, UsageError
from fusioner_rt.results.key_holes import in_one, without_holes
from fusioner_rt.results.polygons import Polygon, trace

ROOT = Path(__file__).parents[3]
tolerances = st.sampled_from([0.4, 0.5, 1.0, 1.5, 3.0])
quick = settings(deadline=None, max_examples=60)


def of_shapely(polygon: Polygon) -> Any:
    return shapely.Polygon(polygon.exterior, polygon.holes)


def of_coco(rings: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool: what pycocotools sees of an annotation."""
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(rings, *shape))).astype(bool)


@given(label_maps())
@quick
def test_polygons_cover_each_words_pixels_and_no_other(labels: np.ndarray) -> None:
    found = segmentation(labels)
    polygons = found.polygons()
    assert list(polygons) == list(found.words)
    for number, word in enumerate(found.words, start=1):
        shapes = [of_shapely(polygon) for polygon in polygons[word]]
        assert all(shape.is_valid and shape.exterior.is_ccw for shape in shapes)
        assert not any(hole.is_ccw for shape in shapes for hole in shape.interiors)
        areas = [shape.area for shape in shapes]
        assert areas == sorted(areas, reverse=True)
        assert sum(areas) == (labels == number).sum()
        rings = [ring for polygon in polygons[word] for ring in (polygon.exterior, *polygon.holes)]
        np.testing.assert_array_equal(covered(rings, labels.shape), labels == number)
        for ring in rings:
            assert ring.dtype == np.float32
            steps = np.roll(ring, -1, axis=0) - ring
            assert (np.count_nonzero(steps, axis=1) == 1).all()  # along the pixels, and a corner at each point
            assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()


def test_polygons_are_parts_that_join_by_edges_with_their_holes() -> None:
    labels = np.zeros((7, 9), np.uint16)
    labels[0:5, 0:5] = 1
    labels[1, 1] = labels[3, 3] = 0
    labels[5, 5] = 1  # joins by a corner
    large, small = segmentation(labels).polygons()["cat"]
    assert large.exterior.tolist() in [np.roll([[0, 0], [5, 0], [5, 5], [0, 5]], n, axis=0).tolist() for n in range(4)]
    assert sorted(hole.min(axis=0).tolist() for hole in large.holes) == [[1, 1], [3, 3]]
    assert small.exterior.min(axis=0).tolist() == [5, 5]
    assert small.holes == ()


@given(label_maps(), tolerances)
@quick
def test_with_a_tolerance_outlines_have_fewer_points_and_stay_near(labels: np.ndarray, tolerance: float) -> None:
    exact, simple = list(trace(labels)), list(trace(labels, tolerance))
    assert [label for label, _ in simple] == [label for label, _ in exact]
    for (_, before), (_, after) in zip(exact, simple, strict=True):
        old, new = of_shapely(before), of_shapely(after)
        assert new.is_valid
        assert len(after.holes) == len(before.holes)
        assert shapely.get_num_coordinates(new) <= shapely.get_num_coordinates(old)
        # Twice: the points between a ring's ends are left out, and then, where it may be, the ends.
        assert shapely.hausdorff_distance(old.boundary, new.boundary) <= 2 * tolerance


@given(label_maps(1))
@quick
def test_one_ring_without_holes_is_the_same_pixels_to_coco_and_by_the_even_odd_rule(labels: np.ndarray) -> None:
    rings = [without_holes(polygon) for _, polygon in trace(labels)]
    for ways in (rings, [in_one(rings)] if rings else []):
        np.testing.assert_array_equal(covered(ways, labels.shape), labels > 0)
        if ways:
            np.testing.assert_array_equal(of_coco([way.ravel().tolist() for way in ways], labels.shape), labels > 0)


@given(label_maps(1), st.just(0.0) | tolerances)
@quick
def test_the_way_to_a_hole_never_leaves_the_polygon(labels: np.ndarray, tolerance: float) -> None:
    for _, polygon in trace(labels, tolerance):
        ring = without_holes(polygon)
        assert of_shapely(polygon).buffer(1e-3).covers(shapely.LinearRing(ring))
        assert shapely.Polygon(ring).area == pytest.approx(of_shapely(polygon).area, abs=1e-3)


@given(label_maps(1), tolerances)
@quick
def test_polygons_in_one_ring_have_their_areas_sum(labels: np.ndarray, tolerance: float) -> None:
    polygons = [polygon for _, polygon in trace(labels, tolerance)]
    if polygons:
        together = shapely.Polygon(in_one([without_holes(polygon) for polygon in polygons])).area
        assert together == pytest.approx(sum(of_shapely(polygon).area for polygon in polygons), abs=1e-2)


def test_photographs_polygons_rasterised_again_are_their_masks() -> None:
    with Session(ROOT / "models" / "demo" / "bundle", cache=False) as session:
        found = session.segment(ROOT / "docs" / "pictures" / "coffee.jpg", "cup, spoon, table", size=(607, 911))
    assert sum(len(polygon.holes) for polygons in found.polygons().values() for polygon in polygons) > 2
    for instances in (False, True):
        covered = np.zeros_like(found.labels)
        for entry in found.to_coco(polygons=True, instances=instances):
            mask = of_coco(entry["segmentation"], found.labels.shape)
            assert mask.sum() == entry["area"]
            covered[mask] = entry["category_id"]
        np.testing.assert_array_equal(covered, found.labels)
    for entry in found.to_coco(polygons=True, tolerance=1):
        mask, own = of_coco(entry["segmentation"], found.labels.shape), found[entry["category"]]
        assert (mask & own).sum() > 0.95 * (mask | own).sum()


def test_a_large_map_of_many_holes_stays_exact() -> None:
    labels = np.ones((167, 203), np.uint16)
    labels[1:-1:3, 1:-1:3] = 0
    ((_, polygon),) = trace(labels)
    assert len(polygon.holes) == 55 * 67
    ring = without_holes(polygon)
    np.testing.assert_array_equal(of_coco([ring.ravel().tolist()], labels.shape), labels > 0)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "1", None, True])
def test_tolerances_are_numbers_of_pixels(tolerance: Any) -> None:
    with pytest.raises(UsageError, match="give a number of pixels"):
        segmentation(noise(5, 5, 0, 0.5, 1)).polygons(tolerance)


@pytest.mark.parametrize(("package", "call"), [("shapely", "polygons"), ("scipy", "instances")])
def test_a_package_that_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, package: str, call: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PackageMissing, match=f"; pip install {package}$") as caught:
        getattr(segmentation(noise(5, 5, 0, 0.5, 1)), call)()
    assert isinstance(caught.value, FusionerError)
