"""The label map by tiles of the output, each resolved among the few words that can win in it.

A bilinear interpolation is a mean of four low-resolution values. So where word a scores higher than word k at every
low-resolution point under a tile, k wins nowhere in it, and leaving k out changes nothing. In a picture few words are
left, whatever K, and most tiles have one winner, whose probability alone is to be computed.

The graph `mask_tiles` gives a word the same number at a pixel whatever the tile and whatever the other words, so labels
and confidence do not depend on the tiling, on what was left out, or on the threads, bit for bit.

By softmax every word counts at every pixel, and none is left out. Where a tile has one winner, no other is looked for.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
RunAll = Callable[[Callable[[Any], None], list[Any]], None]
"""Calls a function with each of a list of tasks, in threads or not."""

BROAD = 64
"""Output rows and columns of a tile with one winner: more would make its interpolation matrices sparser, and slower."""
NARROW, WIDE = 16, 64
"""Least and most rows or columns of a tile whose words compete. Smaller ones have fewer words, larger ones fewer
calls; in between, a tile is a little more than the output pixels between two low-resolution points."""
LONGEST = 60
"""Most low-resolution steps under a tile's edge: ONNX Runtime sums up to 128 products in order (twice 62 for a norm)."""
ELEMENTS = 1 << 19
"""Scores computed at once, 2 MB: what follows reads them in the cache."""
TILES = 512
"""Tiles whose candidates are looked for and sorted together, by one thread: 512² pixels have twice as many."""
FEW_TILES = 64
"""Fewer than this are not worth a thread."""

_NEAR = 2.0**-19
"""Scores closer than this, of the largest, may change places when interpolated in float32: ten roundings of 2**-24."""
_STEPS = 32766
"""Scores are compared as int16, of which a vector holds twice as many as of float32; one step is 16 times _NEAR or more."""


@dataclass(frozen=True)
class Axis:
    """One axis of an output, cut into tiles of `edge` pixels. The last tile ends with the output: it may overlap.

    An edge is at least 2, though the output has one pixel, which then is there twice: ONNX Runtime sums the products of
    a single row or column in another order.

    starts: (n,) first output index of each tile.
    points: (n, span) the low-resolution indices under each; past the last one that is needed, that one again.
    taps, squares: (n, edge, span) and (n, edge, 2·span) float32, what `kernels.reference` calls the interpolation
        matrix and the two quadratic ones, for each tile's window. `across` and `across_squares` are their transposes.
    """

    edge: int
    starts: np.ndarray
    points: np.ndarray
    taps: np.ndarray
    squares: np.ndarray
    across: np.ndarray
    across_squares: np.ndarray


@functools.lru_cache(maxsize=16)
def axis(size_in: int, size_out: int, edge: int) -> Axis:
    """Positions are divided as integers, as in the reference: only the fraction is ever rounded."""
    edge = max(2, min(edge, size_out))
    starts = np.minimum(np.arange(0, size_out, edge), max(0, size_out - edge))
    outputs = np.minimum(starts[:, None] + np.arange(edge), size_out - 1)
    unit = 2 * size_out
    position = np.clip((2 * outputs + 1) * size_in - size_out, 0, (size_in - 1) * unit)
    lower = position // unit
    fraction = ((position - lower * unit) / unit).astype(np.float32)
    first = lower[:, :1]
    span = int((lower[:, -1:] - first).max()) + 2
    points = np.minimum(first + np.arange(span), np.minimum(lower[:, -1:] + 1, size_in - 1))

    taps = np.zeros((len(starts), edge, span + 1), np.float32)
    place = (lower - first)[:, :, None]
    np.put_along_axis(taps, place, 1 - fraction[:, :, None], axis=2)
    np.put_along_axis(taps, place + 1, fraction[:, :, None], axis=2)
    taps, following = taps[:, :, :-1].copy(), taps[:, :, 1:]
    squares = np.concatenate([taps * taps, 2 * taps * following], axis=2)
    transposed = [np.ascontiguousarray(matrix.transpose(0, 2, 1)) for matrix in (taps, squares)]
    arrays = (starts, points, taps, squares, *transposed)
    for array in arrays:
        array.setflags(write=False)  # they are kept, and shared by threads
    return Axis(edge, *arrays)


def edges(size_in: int, size_out: int) -> tuple[int, int]:
    """Edge of the tiles with one winner, and of those whose words compete."""
    longest = _longest(size_in, size_out)
    between = 8 * -(-5 * size_out // (32 * size_in))  # 1.25 times the pixels between two points, a multiple of 8
    return min(BROAD, longest), min(max(NARROW, min(between, WIDE)), longest)


def _longest(size_in: int, size_out: int) -> int:
    return max(1, LONGEST * size_out // size_in)


def resolve(
    graph: Run,
    scores: np.ndarray,
    gram: np.ndarray,
    size: tuple[int, int],
    threshold: float,
    run_all: RunAll,
    competing: tuple[int, int] | None = None,
    prune: bool = True,
    threads: int = 1,
    scoring: str = "sigmoid",
) -> tuple[np.ndarray, np.ndarray]:
    """One picture's labels (H, W) uint16 and confidence (H, W) float32, as `MaskHead.labels` describes them.

    graph: mask_tiles. scores: (K, h, w) float32, finite. gram: (5, h, w) float32. competing: the edges of the tiles
    whose words compete, shorter where LONGEST asks for it; prune: whether words that cannot win are left out; threads:
    how many `run_all` has; none of them changes a bit of the result. scoring: of the graph, "sigmoid" or "softmax".
    """
    softmax = scoring == "softmax"
    task = _Task(graph, scores, gram, size, threshold, competing, prune, softmax)
    if task.settled.any() and not softmax:
        run_all(task.settle, list(range(len(task.broad[0].starts))))
    rows, columns = np.nonzero((task.settled == 0) | softmax)
    blocks = max(1, -(-len(rows) // TILES), min(threads, len(rows) // FEW_TILES))
    run_all(task.weigh if softmax else task.compete, [block for block in zip(
        np.array_split(rows, blocks), np.array_split(columns, blocks), strict=True) if len(block[0])
    ])  # fmt: skip
    if min(size) > 1:
        return task.labels, task.confidence
    return task.labels[: size[0], : size[1]].copy(), task.confidence[: size[0], : size[1]].copy()


class _Task:
    """One label map in the making. `settle` and then `compete` fill it, by softmax `weigh`; threads may share the work."""

    def __init__(
        self,
        graph: Run,
        scores: np.ndarray,
        gram: np.ndarray,
        size: tuple[int, int],
        threshold: float,
        competing: tuple[int, int] | None,
        prune: bool,
        softmax: bool,
    ) -> None:
        words, height, width = scores.shape
        self.graph, self.threshold, self.width = graph, np.float32(threshold), width
        self.scores, self.gram = np.ascontiguousarray(scores).reshape(words, -1), np.ascontiguousarray(gram).reshape(-1)
        fit = [edges(*pair) for pair in ((height, size[0]), (width, size[1]))]
        cut = competing or (fit[0][1], fit[1][1])
        cut = min(cut[0], _longest(height, size[0])), min(cut[1], _longest(width, size[1]))
        self.broad = axis(height, size[0], fit[0][0]), axis(width, size[1], fit[1][0])
        self.narrow = axis(height, size[0], cut[0]), axis(width, size[1], cut[1])

        self.top, self.winner, sure = _winners(self.scores)
        only = np.where(sure, self.winner + 1, 0).astype(np.uint16).reshape(height, width)
        self.settled = _settled(only, *self.narrow) if prune else np.zeros(
            [len(one.starts) for one in self.narrow], np.uint16
        )  # fmt: skip
        # below four points a pixel, looking for the words that can win costs more than computing all
        window = self.narrow[0].points.shape[1] * self.narrow[1].points.shape[1]
        self.prune = prune and not softmax and words > 2 and 4 * window <= self.narrow[0].edge * self.narrow[1].edge
        self.steps = _quantised(self.scores) if self.prune and not self.settled.all() else None

        room = max(2, size[0]), max(2, size[1])  # see Axis
        self.labels, self.confidence = np.empty(room, np.uint16), np.empty(room, np.float32)

    def settle(self, row: int) -> None:
        """One row of broad tiles: the best word's confidence, and its label where a narrow tile has one winner."""
        down, across = self.broad
        confidence = _tiles_of(self.confidence, down, across)
        step = max(1, ELEMENTS // 2 // (down.edge * across.edge))
        for start in range(0, len(across.starts), step):
            columns = np.arange(start, min(start + step, len(across.starts)))
            rows = np.full(len(columns), row)
            points = self._points(rows, columns, down, across)
            made = self._run(rows, columns, down, across, points, self.top.take(points)[:, :, None], _ONE_WORD)
            confidence[down.starts[rows], across.starts[columns]] = made["confidence"]

        narrow_down, narrow_across = self.narrow
        inside = slice(down.starts[row], down.starts[row] + down.edge)
        words = self.settled[np.arange(inside.start, inside.stop) // narrow_down.edge]
        words = np.repeat(words, narrow_across.edge, axis=1)[:, : self.labels.shape[1]]
        np.multiply(self.confidence[inside] > self.threshold, words, out=self.labels[inside])

    def compete(self, tiles: tuple[np.ndarray, np.ndarray]) -> None:
        """Narrow tiles, their rows and columns: the best of the words that can win in each."""
        counts, words = self._candidates(*tiles)
        order = np.argsort(counts, kind="stable")
        counts = counts[order]
        for first, last in _runs(counts, self._area()):
            chosen = words[order[first:last], : counts[last - 1]]
            rows, columns = (index[order[first:last]] for index in tiles)
            self._fill(rows, columns, chosen, chosen + 1)

    def weigh(self, tiles: tuple[np.ndarray, np.ndarray]) -> None:
        """Narrow tiles, their rows and columns: the softmax of the best word, to which all words add."""
        count = len(self.scores)
        some = max(1, ELEMENTS // (count * self._area()))
        winner = self.settled[tiles]
        for found in (True, False):
            rows, columns = (index[(winner > 0) == found] for index in tiles)
            for start in range(0, len(rows), some):
                down, across = rows[start : start + some], columns[start : start + some]
                numbers = self.settled[down, across][:, None] if found else np.arange(1, count + 1)
                self._fill(down, across, np.broadcast_to(np.arange(count), (len(down), count)), numbers)

    def _area(self) -> int:
        """Values of a word in a narrow tile, before or after it is interpolated."""
        down, across = self.narrow
        return max(down.edge * across.edge, down.points.shape[1] * across.points.shape[1])

    def _fill(self, rows: np.ndarray, columns: np.ndarray, chosen: np.ndarray, numbers: np.ndarray) -> None:
        """T narrow tiles, resolved among K words each. chosen: (T, K), their places. numbers: what the graph is to call them."""
        down, across = self.narrow
        points = self._points(rows, columns, down, across)
        scores = self.scores.reshape(-1).take(chosen[:, None, :, None] * self.scores.shape[1] + points[:, :, None])
        made = self._run(rows, columns, down, across, points, scores, numbers)
        where = down.starts[rows], across.starts[columns]
        _tiles_of(self.confidence, down, across)[where] = made["confidence"]
        found = made["word"] * (made["confidence"] > self.threshold)
        _tiles_of(self.labels, down, across)[where] = found

    def _points(self, rows: np.ndarray, columns: np.ndarray, down: Axis, across: Axis) -> np.ndarray:
        """(T, S, V): where in a flat low-resolution map the windows of T tiles lie."""
        return down.points[rows][:, :, None] * self.width + across.points[columns][:, None]

    def _run(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        down: Axis,
        across: Axis,
        points: np.ndarray,
        scores: np.ndarray,
        words: np.ndarray,
    ) -> dict[str, np.ndarray]:
        positions = len(self.gram) // 5
        return self.graph({
            "scores": scores,
            "gram": self.gram.take(points[:, None] + (np.arange(5) * positions)[:, None, None]),
            "words": np.broadcast_to(words, (len(rows), np.shape(words)[-1])).astype(np.uint16),
            "down": down.taps.take(rows, axis=0),
            "across": across.across.take(columns, axis=0),
            "down_squares": down.squares.take(rows, axis=0),
            "across_squares": across.across_squares.take(columns, axis=0),
        })  # fmt: skip

    def _candidates(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many words can win in each of T tiles, (T,), and which, (T, most) in order; the rest repeats the first.

        A word is left out where one of the winners at the tile's corners beats it, by more than a step, at every point.
        """
        count = len(self.scores)
        if self.steps is None:
            return np.full(len(rows), count), np.broadcast_to(np.arange(count), (len(rows), count))
        alive = np.ones((len(rows), count), bool)
        down, across = self.narrow
        some = max(1, ELEMENTS // (count * down.points.shape[1] * across.points.shape[1]))
        for start in range(0, len(rows), some):
            part = slice(start, start + some)
            points = self._points(rows[part], columns[part], down, across)
            points = points.reshape(len(points), -1).T  # (points, T)
            steps = self.steps.take(points, axis=0)  # (points, T, K)
            tiles = np.arange(points.shape[1])
            for corner in (0, across.points.shape[1] - 1, -across.points.shape[1], -1):
                winner = self.winner[points[corner]]
                reached = (steps > steps[:, tiles, winner][:, :, None] - np.int16(2)).any(axis=0)
                alive[part] &= reached
        counts = alive.sum(axis=1)
        tile, word = np.nonzero(alive)
        before = np.cumsum(counts) - counts
        words = np.repeat(word[before][:, None], counts.max(), axis=1)
        words[tile, np.arange(len(tile)) - before[tile]] = word
        return counts, words


_ONE_WORD = np.zeros((1, 1), np.uint16)


def _winners(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (K, points): the highest score at each point, the first word within _NEAR of it, and whether that has it.

    Where it has, no later word can overtake it when interpolated, and no earlier one tie with it.
    """
    count = len(scores)
    top = scores.max(axis=0)
    near = scores >= top - np.float32(_NEAR) * np.maximum(np.abs(top).max(), np.abs(scores.min()))
    reversed_rank = np.arange(count, 0, -1, dtype=np.uint16)[
        :, None
    ]  # a maximum runs in vectors, argmax along the first axis does not
    first = count - np.where(near, reversed_rank, np.uint16(0)).max(axis=0).astype(np.int64)
    return top, first, np.take_along_axis(scores, first[None], axis=0)[0] == top


def _settled(only: np.ndarray, down: Axis, across: Axis) -> np.ndarray:
    """(rows of tiles, columns of tiles) uint16: the one winner at all points under a tile, 0 where there is none.

    only: (h, w) uint16, the winner's number from 1, 0 where it is not sure.
    """
    rows = only[down.points]  # (rows of tiles, S, w)
    least, most = rows.min(axis=1), rows.max(axis=1)
    least, most = least[:, across.points].min(axis=2), most[:, across.points].max(axis=2)
    return np.where(least == most, least, np.uint16(0))


def _quantised(scores: np.ndarray) -> np.ndarray:
    """(K, points) as (points, K) int16, in steps of at most the largest magnitude times 2 / _STEPS."""
    low, high = min(0.0, float(scores.min())), max(0.0, float(scores.max()))
    scale = np.float32(_STEPS / (high - low)) if high - low > 1e-30 else np.float32(0)  # all equal: none is beaten
    return (scores.T * scale - np.float32(low * float(scale))).astype(np.int16, order="C")


def _runs(counts: np.ndarray, area: int) -> Iterator[tuple[int, int]]:
    """Consecutive tiles of ascending candidate counts, cut where padding to the last's would double the first's work."""
    first = 0
    while first < len(counts):
        last = int(np.searchsorted(counts, 2 * counts[first], side="right"))
        fit = counts[first:last] * np.arange(1, last - first + 1) * area <= ELEMENTS
        last = first + max(1, int(fit.sum()))
        yield first, last
        first = last


def _tiles_of(whole: np.ndarray, down: Axis, across: Axis) -> Any:
    """A view of every (edge, edge) tile of an (H, W) array, by its first row and column; to write to."""
    return sliding_window_view(whole, (down.edge, across.edge), writeable=True)
