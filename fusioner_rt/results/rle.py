"""Run-length encoding of masks as COCO defines it: runs down the columns, starting with zeros."""

import numpy as np


def run_lengths(mask: np.ndarray) -> list[int]:
    """mask: (H, W) bool. Returns the lengths of alternating runs of 0 and 1, column by column, starting with 0."""
    flat = np.asarray(mask, bool).ravel(order="F")
    if not flat.size:
        return []
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    counts: list[int] = np.diff(edges).tolist()
    return [0, *counts] if flat[0] else counts


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
