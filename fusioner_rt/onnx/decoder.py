"""The convolutional decoder and the mask head's first stage on CPUs, strip by strip (paper 3.1.3; export/onnx/winograd_decoder.py).

Every stage halves or doubles what lies in memory, and a graph that runs operator by operator writes and reads all of it
between any two. Here a thread takes a strip of a map's rows through all operators of a stage at once, with a graph of one
thread, while it is in the processor's cache. Instance norm needs the whole map's mean and variance, so stages end
together; the next one normalises what it reads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .workers import Workers

OUTPUTS, WINDOW = 4, 6
"""Edge of a tile of outputs, and of the upsampled values that a 3×3 conv reads for it."""

STRIP_BYTES = 5 << 20
"""Transformed values of a strip, of which there are four at a time. More would leave the cache, fewer make narrow products."""
BLOCK = 16
"""Tiles side by side whose windows are cut out by one matrix: more would make it sparser."""


KEPT_BYTES = 128 << 20
"""Of maps whose memory is kept for the next call."""

_FIRST, _UP, _SCORES = "decoder_first", "decoder_up_", "decoder_scores"


class Graph(Protocol):
    """A loaded graph, which can write into arrays it is given."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def channels(self, output: str) -> int:
        """The last dimension of an output."""

    def fill(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None: ...


def graph_names(names: Iterable[str]) -> list[str]:
    """Those of a decoder's graphs, in the order in which they run; none where the model has no decoder."""
    ups = [name for name in names if name.startswith(_UP)]
    return [_FIRST, *sorted(ups, key=lambda name: int(name.removeprefix(_UP))), _SCORES] if _FIRST in names else []


def of_strips(name: str) -> bool:
    """Whether a graph is called for strips, by several threads at once: it is to be loaded with one thread."""
    return name.startswith(_UP) or name == _SCORES


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows of a map, and the rows of the next one that are made of them.

    read: first and one past the last row of the map. write: of the next map, a multiple of OUTPUTS; those past its end
        are written, and never read.
    rows: (WINDOW, n, R) float32; the upsampled rows under each of n tiles, as sums of the R rows read; zeros outside.
    valid: how many of the rows written there are.
    """

    read: tuple[int, int]
    write: tuple[int, int]
    rows: np.ndarray
    valid: int


@dataclass(frozen=True, eq=False)
class Columns:
    """All columns of a map, in blocks of m tiles.

    points: (blocks, span) int64, the columns under each block. windows: (blocks, WINDOW, m, span) float32, as
        Strip.rows.
    """

    points: np.ndarray
    windows: np.ndarray

    @property
    def width(self) -> int:
        """Columns written of the next map: it may be a few more than it has."""
        return OUTPUTS * self.windows.shape[0] * self.windows.shape[2]


def windows(size: int) -> np.ndarray:
    """(WINDOW, tiles, size) float32: position i of tile t is upsampled position OUTPUTS·t + i − 1, by 2× bilinear.

    Zero where that lies outside the map, as convolutions pad.
    """
    tiles = -(-2 * size // OUTPUTS)
    upsampled = np.zeros((OUTPUTS * tiles + WINDOW - OUTPUTS, size))
    position = np.arange(2 * size)
    centre = np.clip((position + 0.5) / 2 - 0.5, 0, size - 1)
    lower = centre.astype(np.int64)
    upsampled[position + 1, lower] += 1 - (centre - lower)
    upsampled[position + 1, np.minimum(lower + 1, size - 1)] += centre - lower
    every = np.arange(tiles)[None] * OUTPUTS + np.arange(WINDOW)[:, None]
    return upsampled[every].astype(np.float32)


@functools.lru_cache(maxsize=32)
def strips(size: int, tile_rows: int, threads: int) -> tuple[Strip, ...]:
    """The rows of a map, `tile_rows` rows of tiles each at most, in as many strips as keep all threads busy."""
    every = windows(size)
    tiles = every.shape[1]
    count = -(-tiles // tile_rows)
    count = min(tiles, threads * -(-count // threads))
    made = []
    for part in np.array_split(np.arange(tiles), count):
        of_part = every[:, part[0] : part[-1] + 1]
        used = np.flatnonzero(of_part.any(axis=(0, 1)))
        first, last = int(used[0]), int(used[-1]) + 1
        start, end = OUTPUTS * int(part[0]), OUTPUTS * (int(part[-1]) + 1)
        rows = _constant(of_part[:, :, first:last])
        made.append(Strip((first, last), (start, end), rows, min(end, 2 * size) - start))
    return tuple(made)


@functools.lru_cache(maxsize=32)
def columns(size: int) -> Columns:
    """The columns of a map, in blocks of about BLOCK tiles, as even as they can be."""
    every = windows(size)
    tiles = every.shape[1]
    blocks = -(-tiles // BLOCK)
    # one that leaves nothing over, where there is one
    blocks = next((count for count in range(blocks, 2 * blocks) if tiles % count == 0), blocks)
    m = -(-tiles // blocks)
    span = min(size, 2 * m + 2)
    points = np.empty((blocks, span), np.int64)
    cut = np.zeros((blocks, WINDOW, m, span), np.float32)
    for block in range(blocks):
        first = min(max(0, 2 * m * block - 1), size - span)
        points[block] = np.arange(first, first + span)
        of_block = every[:, m * block : m * (block + 1), first : first + span]
        cut[block, :, : of_block.shape[1]] = of_block
    return Columns(_constant(points), _constant(cut))


class Decoder:
    """fused and refined, the outputs of the graph `fusion`, to scores and Gram maps. Threads may share one."""

    def __init__(self, graphs: Sequence[Graph], workers: Workers) -> None:
        """graphs: those of `graph_names`, in that order."""
        self._first, *self._ups, self._scores = graphs
        self._workers = workers
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()

    def maps(self, fused: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """fused: (B, h, w, d) float32. refined: (B, K, d) float32.

        Returns scores (B, K, h', w') and gram (B, 5, h', w'), float32: those of `MaskHead.maps` but for a factor per
        picture, which no cosine knows. h' = h·2^(k-1) for k convolutions. Maps of a picture for which anything on the way
        was not finite are not-a-number.
        """
        begun = self._first({"fused": fused, "refined": refined})
        maps, mean, variance = begun["map"], begun["mean"], begun["variance"]
        size = maps.shape[1], maps.shape[2]
        finite = _finite(mean, variance)
        taken: list[np.ndarray] = []
        for graph in self._ups:
            maps, mean, variance = self._upsample(graph, maps, size, mean, variance, taken)
            size = 2 * size[0], 2 * size[1]
            finite &= _finite(mean, variance)
        scores, gram = self._score(maps, size, mean, variance, begun["words"])
        self._give_back(taken)  # not after an error: other strips of the call may still be written
        # A ReLU may make 0 of what is no number: it is to be seen in the maps.
        scores[~finite], gram[~finite] = np.nan, np.nan
        return scores, gram

    def close(self) -> None:
        """Give the memory back that is kept for the next call."""
        with self._lock:
            self._kept = []

    def _upsample(
        self,
        graph: Graph,
        maps: np.ndarray,
        size: tuple[int, int],
        mean: np.ndarray,
        variance: np.ndarray,
        taken: list[np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next map (B, H', W', outputs), of which rows and columns past twice `size` are to be ignored."""
        outputs = graph.channels("y")
        pictures, _, _, channels = maps.shape
        across = columns(size[1])
        row_bytes = 4 * 9 * across.width * max(channels, outputs)  # 36 floats for 4×4 outputs
        cut = strips(size[0], max(1, STRIP_BYTES // row_bytes), self._workers.threads)
        result = self._take((pictures, cut[-1].write[1], across.width, outputs), taken)
        means, variances = (np.empty((pictures, len(cut), 1, outputs), np.float32) for _ in range(2))

        def run(task: tuple[int, int]) -> None:
            picture, index = task
            strip = cut[index]
            written = result[picture, strip.write[0] : strip.write[1]]
            graph.fill(
                {
                    "x": maps[picture, strip.read[0] : strip.read[1]],
                    "mean": mean[picture],
                    "variance": variance[picture],
                    "rows": strip.rows,
                    "columns": across.windows,
                    "points": across.points,
                    "share": _share(written.shape[0], strip.valid, across.width, 2 * size[1]),
                },
                {
                    "y": written.reshape(-1, outputs),
                    "y_mean": means[picture, index],
                    "y_variance": variances[picture, index],
                },
            )

        self._workers.run_all(run, [(picture, index) for picture in range(pictures) for index in range(len(cut))])
        weights = np.array([strip.valid for strip in cut], np.float64)[None, :, None] / (2 * size[0])
        each = means[:, :, 0].astype(np.float64)
        mean = (weights * each).sum(axis=1)
        variance = (weights * (variances[:, :, 0] + (each - mean[:, None]) ** 2)).sum(axis=1)
        return result, mean.astype(np.float32), variance.astype(np.float32)

    def _score(
        self, maps: np.ndarray, size: tuple[int, int], mean: np.ndarray, variance: np.ndarray, words: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        pictures, (height, width) = len(maps), size
        scores = np.empty((pictures, words.shape[1], height, width), np.float32)
        gram = np.empty((pictures, 5, height, width), np.float32)
        rows = max(1, STRIP_BYTES // (4 * 4 * width * maps.shape[3]))
        count = min(height, self._workers.threads * -(-height // (rows * self._workers.threads)))

        def run(task: tuple[int, np.ndarray]) -> None:
            picture, part = task
            first, last = int(part[0]), int(part[-1]) + 1
            x = maps[picture, first : min(last + 1, height), :width]  # a row more: Gram maps look one down
            made = np.empty((words.shape[1], *x.shape[:2]), np.float32), np.empty((5, *x.shape[:2]), np.float32)
            self._scores.fill(
                {
                    "x": np.ascontiguousarray(x),
                    "mean": mean[picture],
                    "variance": variance[picture],
                    "words": words[picture],
                },
                {"scores": made[0], "gram": made[1]},
            )
            scores[picture, :, first:last] = made[0][:, : last - first]
            gram[picture, :, first:last] = made[1][:, : last - first]

        parts = np.array_split(np.arange(height), count)
        self._workers.run_all(run, [(picture, part) for picture in range(pictures) for part in parts])
        return scores, gram

    def _take(self, shape: tuple[int, ...], taken: list[np.ndarray]) -> np.ndarray:
        """An array of unknown content; one used before where there is one: new memory costs its first touch."""
        with self._lock:
            found = next((i for i, kept in enumerate(self._kept) if kept.shape == shape), None)
            array = np.empty(shape, np.float32) if found is None else self._kept.pop(found)
        taken.append(array)
        return array

    def _give_back(self, taken: list[np.ndarray]) -> None:
        with self._lock:
            room, kept = KEPT_BYTES, []
            for array in (*taken, *self._kept):
                if array.nbytes <= room:
                    room -= array.nbytes
                    kept.append(array)
            self._kept = kept


def _finite(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(B,) bool: whether all of a picture's map is finite, as its statistics (B, c) tell."""
    every: np.ndarray = (np.isfinite(mean) & np.isfinite(variance)).all(axis=1)
    return every


@functools.lru_cache(maxsize=64)
def _share(rows: int, valid_rows: int, width: int, valid_width: int) -> np.ndarray:
    """(1, P) float32: what each position weighs in a mean over the valid ones."""
    weights = np.zeros((rows, width), np.float32)
    weights[:valid_rows, :valid_width] = 1 / (valid_rows * valid_width)
    return _constant(weights.reshape(1, -1))


def _constant(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)  # they are kept, and shared by threads
    return array
