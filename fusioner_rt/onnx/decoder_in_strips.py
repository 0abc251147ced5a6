"""The convolutional decoder and the mask head's first stage on CPUs, in strips (paper 3.1.3; export/onnx/winograd_decoder.py).

A graph that runs operator by operator writes and reads whole maps between any two. Here a thread takes a strip of rows
through all operators of a stage, with a graph of one thread, while the strip is in the cache. Instance norm needs mean and
variance of the whole map, so all strips of a stage end before the next stage, which normalises its input.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..workers import Workers

OUTPUTS, WINDOW = 4, 6
"""Edge of a tile of outputs, and of its window: the upsampled values that a 3×3 conv reads for it."""

STRIP_BYTES = 5 << 20
"""Bytes of a strip's transformed values; four such arrays exist at a time. More would leave the cache, fewer make narrow
matrix products."""
BLOCK = 16
"""Tiles side by side whose windows one matrix cuts out. More would make the matrix sparser."""

EVENLY = 4
"""Strips come in multiples of this where the threads divide it: as many threads as that, or fewer, round alike."""

KEPT_BYTES = 128 << 20
"""Maximum bytes of maps whose memory is kept for the next call."""

_FIRST, _UP, _SCORES = "decoder_first", "decoder_up_", "decoder_scores"


class Graph(Protocol):
    """A loaded graph that can write into given arrays."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def channels(self, output: str) -> int:
        """The last dimension of an output."""

    def fill(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None: ...


def graph_names(names: Iterable[str]) -> list[str]:
    """Names of the decoder's graphs, in the order they run; empty where the model has no decoder."""
    ups = [name for name in names if name.startswith(_UP)]
    return [_FIRST, *sorted(ups, key=lambda name: int(name.removeprefix(_UP))), _SCORES] if _FIRST in names else []


def of_strips(name: str) -> bool:
    """Whether threads call a graph on strips in parallel, so that it is loaded with one thread."""
    return name.startswith(_UP) or name == _SCORES


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows of a map, and the rows of the next map computed from them.

    read: start and end row in the map. write: start and end row in the next map, multiples of OUTPUTS; rows past its end
        are written and never read.
    rows: (WINDOW, n, R) float32; weights of the R rows read in the upsampled rows of n tiles; zeros outside the map.
    valid: number of rows written that the next map has.
    """

    read: tuple[int, int]
    write: tuple[int, int]
    rows: np.ndarray
    valid: int


@dataclass(frozen=True, eq=False)
class Columns:
    """All columns of a map, in blocks of m tiles.

    points: (blocks, span) int64, the columns each block reads. windows: (blocks, WINDOW, m, span) float32, weights as in
        Strip.rows.
    """

    points: np.ndarray
    windows: np.ndarray

    @property
    def width(self) -> int:
        """Columns written, which may be a few more than the next map has."""
        return OUTPUTS * self.windows.shape[0] * self.windows.shape[2]


def windows(size: int) -> np.ndarray:
    """(WINDOW, tiles, size) float32: position i of tile t is upsampled position OUTPUTS·t + i − 1, by 2× bilinear.

    Zero outside the map, like the padding of a convolution.
    """
    tiles = -(-2 * size // OUTPUTS)
    upsampled = np.zeros((OUTPUTS * tiles + WINDOW - OUTPUTS, size))
    position = np.arange(2 * size)
    centre = np.clip((position + 0.5) / 2 - 0.5, 0, size - 1)
    lower = centre.astype(np.int64)
    upsampled[position + 1, lower] += 1 - (centre - lower)
    upsampled[position + 1, np.minimum(lower + 1, size - 1)] += centre - lower
    positions = np.arange(tiles)[None] * OUTPUTS + np.arange(WINDOW)[:, None]
    return upsampled[positions].astype(np.float32)


def evenly(threads: int) -> int:
    """Strips come in multiples of this: threads then share them out evenly."""
    return EVENLY if EVENLY % threads == 0 else threads


@functools.lru_cache(maxsize=32)
def strips(size: int, tile_rows: int, threads: int) -> tuple[Strip, ...]:
    """The rows of a map in strips of at most `tile_rows` rows of tiles, a multiple of `evenly(threads)` if possible."""
    weights = windows(size)
    tiles = weights.shape[1]
    count = -(-tiles // tile_rows)
    count = min(tiles, evenly(threads) * -(-count // evenly(threads)))
    made = []
    for part in np.array_split(np.arange(tiles), count):
        part_weights = weights[:, part[0] : part[-1] + 1]
        used = np.flatnonzero(part_weights.any(axis=(0, 1)))
        first, last = int(used[0]), int(used[-1]) + 1
        start, end = OUTPUTS * int(part[0]), OUTPUTS * (int(part[-1]) + 1)
        rows = _constant(part_weights[:, :, first:last])
        made.append(Strip((first, last), (start, end), rows, min(end, 2 * size) - start))
    return tuple(made)


@functools.lru_cache(maxsize=32)
def columns(size: int) -> Columns:
    """The columns of a map in blocks of about BLOCK tiles, of equal width if possible."""
    weights = windows(size)
    tiles = weights.shape[1]
    blocks = -(-tiles // BLOCK)
    blocks = next((count for count in range(blocks, 2 * blocks) if tiles % count == 0), blocks)
    m = -(-tiles // blocks)
    span = min(size, 2 * m + 2)
    points = np.empty((blocks, span), np.int64)
    cut = np.zeros((blocks, WINDOW, m, span), np.float32)
    for block in range(blocks):
        first = min(max(0, 2 * m * block - 1), size - span)
        points[block] = np.arange(first, first + span)
        block_weights = weights[:, m * block : m * (block + 1), first : first + span]
        cut[block, :, : block_weights.shape[1]] = block_weights
    return Columns(_constant(points), _constant(cut))


class Decoder:
    """fused and refined, the outputs of graph `fusion`, to scores and Gram maps. Threads may share one."""

    def __init__(self, graphs: Sequence[Graph], workers: Workers, cut_for: int | None = None) -> None:
        """graphs: in the order of `graph_names`. cut_for: as many threads as strips are shared out to, by default those of
        `workers`; means are summed by strips, and so rounded alike by other workers."""
        self._first, *self._ups, self._scores = graphs
        self._workers, self._cut_for = workers, cut_for or workers.threads
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()

    def maps(self, fused: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """fused: (B, h, w, D) float32. refined: (B, K, D) float32. D: d, and the channels of an aligned residual.

        Returns scores (B, K, h', w') and gram (B, 5, h', w'), float32, as `MaskHead.maps`, up to a factor per picture that
        cancels in the cosine. h' = h·2^(k-1) for k convolutions. A picture with a non-finite value on the way has NaN maps.
        """
        first = self._first({"fused": fused, "refined": refined})
        maps, mean, variance = first["map"], first["mean"], first["variance"]
        size = maps.shape[1], maps.shape[2]
        finite = _finite(mean, variance)
        taken: list[np.ndarray] = []
        for graph in self._ups:
            maps, mean, variance = self._upsample(graph, maps, size, mean, variance, taken)
            size = 2 * size[0], 2 * size[1]
            finite &= _finite(mean, variance)
        scores, gram = self._score(maps, size, mean, variance, first["words"], first.get("aligned"))
        self._give_back(taken)  # not after an error: threads may still write into them
        # a ReLU may turn NaN into 0, which would hide it
        scores[~finite], gram[~finite] = np.nan, np.nan
        return scores, gram

    def close(self) -> None:
        """Free the memory kept for the next call."""
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
        """The next map (B, H', W', outputs), its mean and its variance. Rows and columns past 2·size are undefined."""
        outputs = graph.channels("y")
        pictures, _, _, channels = maps.shape
        across = columns(size[1])
        row_bytes = 4 * 9 * across.width * max(channels, outputs)  # 36 floats per 4×4 outputs
        cut = strips(size[0], max(1, STRIP_BYTES // row_bytes), self._cut_for)
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
        strip_means = means[:, :, 0].astype(np.float64)
        mean = (weights * strip_means).sum(axis=1)
        variance = (weights * (variances[:, :, 0] + (strip_means - mean[:, None]) ** 2)).sum(axis=1)
        return result, mean.astype(np.float32), variance.astype(np.float32)

    def _score(
        self,
        maps: np.ndarray,
        size: tuple[int, int],
        mean: np.ndarray,
        variance: np.ndarray,
        words: np.ndarray,
        aligned: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """aligned: (B, h', w', r), of models with an aligned residual."""
        pictures, (height, width) = len(maps), size
        scores = np.empty((pictures, words.shape[1], height, width), np.float32)
        gram = np.empty((pictures, 5, height, width), np.float32)
        rows = max(1, STRIP_BYTES // (4 * 4 * width * max(maps.shape[3], words.shape[2])))
        even = evenly(self._cut_for)
        count = min(height, even * -(-height // (rows * even)))

        def run(task: tuple[int, np.ndarray]) -> None:
            picture, part = task
            first, last = int(part[0]), int(part[-1]) + 1
            x = maps[picture, first : min(last + 1, height), :width]  # Gram maps read one row below
            part_scores, part_gram = (np.empty((n, *x.shape[:2]), np.float32) for n in (words.shape[1], 5))
            self._scores.fill(
                {
                    "x": np.ascontiguousarray(x),
                    "mean": mean[picture],
                    "variance": variance[picture],
                    "words": words[picture],
                    **({} if aligned is None else {"aligned": aligned[picture, first : first + len(x)]}),
                },
                {"scores": part_scores, "gram": part_gram},
            )
            scores[picture, :, first:last] = part_scores[:, : last - first]
            gram[picture, :, first:last] = part_gram[:, : last - first]

        parts = np.array_split(np.arange(height), count)
        self._workers.run_all(run, [(picture, part) for picture in range(pictures) for part in parts])
        return scores, gram

    def _take(self, shape: tuple[int, ...], taken: list[np.ndarray]) -> np.ndarray:
        """An array of undefined content, reused if possible: the first write to new memory is slow."""
        with self._lock:
            index = next((i for i, kept in enumerate(self._kept) if kept.shape == shape), None)
            array = np.empty(shape, np.float32) if index is None else self._kept.pop(index)
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
    """(B,) bool: whether a picture's map is finite, by its statistics (B, c)."""
    finite: np.ndarray = (np.isfinite(mean) & np.isfinite(variance)).all(axis=1)
    return finite


@functools.lru_cache(maxsize=64)
def _share(rows: int, valid_rows: int, width: int, valid_width: int) -> np.ndarray:
    """(1, P) float32: the weight of each position in a mean over the valid ones."""
    weights = np.zeros((rows, width), np.float32)
    weights[:valid_rows, :valid_width] = 1 / (valid_rows * valid_width)
    return _constant(weights.reshape(1, -1))


def _constant(array: np.ndarray) -> np.ndarray:
    """A contiguous, read-only array, to be shared by threads."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array
