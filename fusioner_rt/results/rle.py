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
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, value = value & 31, value >> 5
            # the last group when bit 4 already shows the sign of the rest
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + (group | 32 if more else group)))
    return "".join(text)
