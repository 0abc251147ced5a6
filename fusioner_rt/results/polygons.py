"""The regions of a label map as polygons along the edges of their pixels, by shapely."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..argument_checks import shown
from ..errors import Spelled, UsageError
from ..optional_packages import optional


@dataclass(frozen=True, eq=False)
class Polygon:
    """A region whose pixels join by their edges.

    exterior: (N, 2) float32, x and y in pixels: 0 is the left or upper edge of the first pixel, W or H the far edge of the
    last. The last point joins the first, which is not repeated; x grows to the right, y down, and the ring goes clockwise as
    one sees it. holes: rings like it, which go the other way.

    `shapely.Polygon(polygon.exterior, polygon.holes)` is shapely's.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    def moved(self, x: int, y: int) -> "Polygon":
        """The same polygon elsewhere."""
        by = np.array((x, y), np.float32)
        return Polygon(self.exterior + by, tuple(hole + by for hole in self.holes))


def check_tolerance(tolerance: Any) -> float:
    """Raises UsageError."""
    number = isinstance(tolerance, (Real, np.number)) and not isinstance(tolerance, bool)
    if not number or not 0 <= float(tolerance) < math.inf:
        raise UsageError(
            Spelled(f"tolerance is {shown(tolerance)}", f"--polygons is {shown(tolerance)}"),
            "give a number of pixels: 0 for exact edges, 1 or 2 for fewer points",
        )
    return float(tolerance)


def trace(labels: np.ndarray, tolerance: float = 0.0) -> Iterator[tuple[int, Polygon]]:
    """The regions of a label map, each with its label, by label and then from large to small; those of 0 are left out.

    labels: (H, W) unsigned. tolerance: pixels by which an outline may be off, nearly, to have fewer points. Every region is
    simplified for itself, so that neighbours may come to overlap or part by as much; none vanishes, nor does a hole.
    Raises PackageMissing.
    """
    shapely = optional("shapely", "shapely", "polygons")
    tolerance = check_tolerance(tolerance)
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_borders(labels))))
    numbers = labels[_inner_pixels(shapely, faces)]
    faces, numbers = faces[numbers > 0], numbers[numbers > 0]
    if not len(faces):
        return
    order = np.lexsort((-shapely.area(faces), numbers))
    faces, numbers = shapely.orient_polygons(faces[order]), numbers[order]
    rings, owners = _corners(*_rings(shapely, faces))
    if tolerance:
        points, ring = _closed(rings)
        faces = shapely.polygons(shapely.linearrings(points, indices=ring), indices=owners)
        simple = shapely.orient_polygons(shapely.simplify(faces, tolerance, preserve_topology=True))
        rings, owners = _rings(shapely, np.where(shapely.is_valid(simple), simple, faces))
    first = np.searchsorted(owners, np.arange(len(numbers) + 1))
    for number, start, stop in zip(numbers.tolist(), first[:-1], first[1:], strict=True):
        yield number, Polygon(rings[start], tuple(rings[start + 1 : stop]))


def _borders(labels: np.ndarray) -> np.ndarray:
    """(N, 2, 2) float64: the line segments, x and y of both ends, that part pixels of different labels and lie round the map.

    They end wherever lines meet or turn.
    """
    height, width = labels.shape
    across = np.zeros((height + 1, width + 2), bool)  # [y, x + 1]: a line from (x, y) to the right
    down = np.zeros((height + 2, width + 1), bool)  # [y + 1, x]: a line from (x, y) downwards
    across[[0, -1], 1:-1] = True
    across[1:-1, 1:-1] = labels[1:] != labels[:-1]
    down[1:-1, [0, -1]] = True
    down[1:-1, 1:-1] = labels[:, 1:] != labels[:, :-1]
    left, right, above, below = across[:, :-1], across[:, 1:], down[:-1], down[1:]
    ends = (left ^ right) | (above ^ below) | (left & above)
    y, x = np.nonzero(ends)
    starts = np.flatnonzero(right[y, x])
    rows = np.stack((x[starts], y[starts], x[starts + 1], y[starts + 1]), axis=1)
    order = np.lexsort((y, x))
    y, x = y[order], x[order]
    starts = np.flatnonzero(below[y, x])
    columns = np.stack((x[starts], y[starts], x[starts + 1], y[starts + 1]), axis=1)
    return np.concatenate((rows, columns)).reshape(-1, 2, 2).astype(np.float64)


def _inner_pixels(shapely: Any, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of a pixel in each face: the one below and to the right of the left of its uppermost corners."""
    points, owners = shapely.get_coordinates(shapely.get_exterior_ring(faces), return_index=True)
    order = np.lexsort((points[:, 0], points[:, 1], owners))
    first = order[np.searchsorted(owners, np.arange(len(faces)))]  # owners are sorted already
    x, y = points[first].astype(np.intp).T
    return y, x


def _rings(shapely: Any, faces: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The rings of polygons, their last point left out, exteriors before holes, and for each ring the number of its polygon."""
    rings, owners = shapely.get_rings(faces, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    stops = np.searchsorted(ring, np.arange(len(rings)), side="right")
    kept = np.ones(len(points), bool)
    kept[stops - 1] = False
    return np.split(points[kept].astype(np.float32), (stops - np.arange(1, len(rings) + 1))[:-1]), owners


def _corners(rings: list[np.ndarray], owners: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The same rings without points at which they go straight on."""
    lengths = np.array([len(ring) for ring in rings])
    stops = lengths.cumsum()
    points = np.concatenate(rings)
    following = np.arange(1, len(points) + 1)
    following[stops - 1] = stops - lengths
    step = points[following] - points
    level = step[:, 1] == 0  # every step is level or upright
    turns = np.empty(len(points), bool)
    turns[following] = level[following] != level
    kept = np.add.reduceat(turns, stops - lengths)
    return np.split(points[turns], kept.cumsum()[:-1]), owners


def _closed(rings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Points of all rings, each with its first repeated, and for each point the number of its ring."""
    points = np.concatenate([np.concatenate((ring, ring[:1])) for ring in rings])
    return points, np.repeat(np.arange(len(rings)), [len(ring) + 1 for ring in rings])
