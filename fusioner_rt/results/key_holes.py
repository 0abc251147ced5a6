"""Polygons with holes, and several polygons, as one ring: for formats that know no holes.

What is joined is joined by two edges that lie on each other, there and back, so that the area stays what it was by the
even-odd rule and by winding numbers alike.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .polygons import Polygon


def without_holes(polygon: Polygon) -> np.ndarray:
    """(N, 2) float32: a polygon as one ring. Each hole is joined to what lies straight left of its leftmost point."""
    if not polygon.holes:
        return polygon.exterior
    holes = sorted((np.roll(hole, -_leftmost(hole), axis=0) for hole in polygon.holes), key=lambda hole: tuple(hole[0]))
    rings = [polygon.exterior, *(np.concatenate((hole, hole[:1])) for hole in holes)]
    points = np.concatenate(rings).astype(np.float64)
    stops = np.cumsum([len(ring) for ring in rings])
    starts = stops - [len(ring) for ring in rings]
    following = np.arange(1, len(points) + 1)
    following[stops[0] - 1] = 0
    owners = np.repeat(np.arange(len(rings)), stops - starts)
    edges = _Edges(points, following, np.delete(np.arange(len(points)), stops[1:] - 1))

    count = len(holes)
    hit, joints = np.empty(count, np.intp), np.empty((count, 2))
    for index, start in enumerate(starts[1:].tolist()):  # only rings that reach further left can be met
        near = edges.beside(points[start, 1])
        hit[index], joints[index] = edges.left_of(points[start], near[owners[near] <= index])
    distances = np.abs(joints - points[hit]).sum(axis=1)
    following = np.concatenate((following, np.empty(2 * count, np.intp)))
    order = np.lexsort((-distances, hit))  # the last of an edge's comes first, as each is put behind its start
    for index in order.tolist():
        there, back = len(points) + index, len(points) + count + index
        following[back] = following[hit[index]]
        following[hit[index]] = there
        following[there] = starts[index + 1]
        following[stops[index + 1] - 1] = back
    return _walk(np.concatenate((points, joints, joints)), following.tolist())


def in_one(rings: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2) float32: rings as one, joined where they touch, and else by the way to a near point."""
    points = [tuple(point) for ring in rings for point in ring.tolist()]
    stops = np.cumsum([len(ring) for ring in rings]).tolist()
    starts = [0, *stops[:-1]]
    following = list(range(1, len(points) + 1))
    at: dict[tuple[float, ...], list[int]] = defaultdict(list)
    owners: list[int] = []
    for ring, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        following[stop - 1] = start
        owners += [ring] * (stop - start)
        for node in range(start, stop):
            at[points[node]].append(node)

    joined = {0}
    waiting = [0]
    apart = iter(range(1, len(rings)))
    places = np.array(points)
    while len(joined) < len(rings):
        if not waiting:
            ring = next(ring for ring in apart if ring not in joined)
            own = places[starts[ring] : stops[ring]]
            there = np.flatnonzero(np.isin(owners, list(joined)))
            node = int(there[np.argmin(np.abs(places[there] - own[0]).sum(axis=1))])
            other = starts[ring] + int(np.argmin(np.abs(own - places[node]).sum(axis=1)))
            for end in (node, other):  # both are passed twice
                following.append(following[end])
                following[end] = len(points)
                points.append(points[end])
            following[node], following[other] = following[other], following[node]
            joined.add(ring)
            waiting.append(ring)
        now = waiting.pop()
        for node in range(starts[now], stops[now]):
            for other in at[points[node]]:
                if owners[other] not in joined:
                    following[node], following[other] = following[other], following[node]
                    joined.add(owners[other])
                    waiting.append(owners[other])
    return _walk(np.array(points), following)


class _Edges:
    """Edges of rings, found by the rows of pixels that they touch. An edge is the number of its first point."""

    def __init__(self, points: np.ndarray, following: np.ndarray, edges: np.ndarray) -> None:
        self._points, self._following = points, following
        rows = np.floor(np.stack((points[edges, 1], points[following[edges], 1]))).astype(np.intp)
        lowest, counts = rows.min(axis=0), np.abs(rows[0] - rows[1]) + 1
        first = counts.cumsum() - counts
        touched = np.arange(counts.sum()) + np.repeat(lowest - first, counts)
        order = np.argsort(touched, kind="stable")
        self._edges = np.repeat(edges, counts)[order]
        self._starts = np.searchsorted(touched[order], np.arange(rows.max() + 2))

    def beside(self, y: float) -> np.ndarray:
        """Edges that may cross the height y."""
        row = int(y)
        return self._edges[self._starts[row] : self._starts[row + 1]]

    def left_of(self, point: np.ndarray, edges: np.ndarray) -> tuple[int, np.ndarray]:
        """The nearest of `edges` straight left of a point, and where it is met."""
        x, y = point
        from_, to = self._points[edges].T, self._points[self._following[edges]].T
        rise = to[1] - from_[1]
        part = np.divide(y - from_[1], rise, out=np.zeros(len(edges)), where=rise != 0)
        met = np.where(rise != 0, from_[0] + part * (to[0] - from_[0]), np.minimum(np.maximum(from_[0], to[0]), x))
        met[
            (np.minimum(from_[1], to[1]) > y) | (np.maximum(from_[1], to[1]) < y) | (np.minimum(from_[0], to[0]) > x)
        ] = -1
        met[met > x + 1e-3] = -1
        nearest = int(np.argmax(met))
        return int(edges[nearest]), np.array((min(met[nearest], x), y))


def _leftmost(ring: np.ndarray) -> int:
    return int(np.lexsort((ring[:, 1], ring[:, 0]))[0])


def _walk(points: np.ndarray, following: list[int]) -> np.ndarray:
    """The ring from point 0 on, without a point that repeats the one before."""
    way = [0]
    while following[way[-1]]:
        way.append(following[way[-1]])
    ring = points[way].astype(np.float32)
    return ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
