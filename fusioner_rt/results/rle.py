"""Run-length encoding of masks as COCO defines it: runs down the columns, the first one of zeros."""

import numpy as np


def encode(mask: np.ndarray) -> list[int]:
    """mask: (H, W) bool. Returns the lengths of alternating runs of 0 and 1, column by column, starting with 0."""
    flat = np.asarray(mask, bool).ravel(order="F")
    if not flat.size:
        return []
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    counts: list[int] = np.diff(edges).tolist()
    return [0, *counts] if flat[0] else counts


def decode(counts: list[int], height: int, width: int) -> np.ndarray:
    """The (H, W) bool mask. Raises ValueError where the runs do not fill it."""
    if sum(counts) != height * width:
        raise ValueError(f"the runs cover {sum(counts)} pixels, the mask has {height}x{width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def compress(counts: list[int]) -> str:
    """COCO's text form: from the fourth on a run is written as its difference to the run two before; every number in
    groups of five bits, lowest first, a sixth bit saying that more follow, as one character from '0' on."""
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group = value & 31
            value >>= 5
            # Done when what remains is the sign that bit 4 of this group already shows.
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + (group | 32 if more else group)))
    return "".join(text)


def decompress(text: str) -> list[int]:
    """The runs behind `compress`."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    return counts
