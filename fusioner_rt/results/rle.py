"""Run-length encoding of masks as COCO defines it: runs down the columns, starting with zeros."""

import numpy as np


def run_lengths(crop: np.ndarray, corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> list[int]:
    """The lengths of alternating runs of 0 and 1, column by column, starting with 0.

    crop: (h, w) bool, the mask or the part of it that has ones. corner: x and y of the crop in the mask. size: (H, W) of the
    mask, by default the crop's.
    """
    crop = np.asarray(crop, bool)
    (x, y), (height, width) = corner, size or crop.shape
    if not height * width:
        return []
    closed = np.zeros((crop.shape[1], crop.shape[0] + 2), bool)  # every run of a column begins and ends in it
    closed[:, 1:-1] = crop.T
    column, row = np.nonzero(closed[:, 1:] != closed[:, :-1])
    edges = (column + x) * height + row + y
    through = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1  # runs that go on in the next column
    edges = np.delete(edges, np.concatenate((through, through + 1)))
    counts: list[int] = np.diff(edges, prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]


def compress(counts: list[int]) -> str:
    """COCO's text form of run lengths.

    From the fourth on, a run is its difference to the run two before. A number is groups of five bits, lowest first; a
    sixth bit tells that more follow. A group is one character, from '0' on.
    """
    values = np.array(counts, np.int64)
    values[3:] -= np.array(counts[1:-2], np.int64)
    magnitude = np.where(values < 0, ~values, values)
    shifts = 5 * np.arange(int(magnitude.max(initial=0)).bit_length() // 5 + 1)
    # the last group is the first whose bit 4 already shows the sign of the rest
    more = magnitude[:, None] >> (shifts + 4) > 0
    groups = (values[:, None] >> shifts & 31) + np.where(more, 80, 48)
    written = np.concatenate([np.ones((len(values), 1), bool), more[:, :-1]], axis=1)
    return groups[written].astype(np.uint8).tobytes().decode()
