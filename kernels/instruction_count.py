"""How many machine instructions the label kernel executes for a pixel, counted in its disassembly.

The case: a label map of 2048 × 2048 pixels from maps of 128 × 128, at most 32 words. Every instruction counts once for
each time it is executed: outside of loops once, in a loop as often as the case runs through it. Loops are backward
branches, and there are three: over the points under the tile, over its rows, and within those over further candidates.
By softmax there is a fourth, within the rows too: over all words, whose powers it sums.
Of the two ways to store rows the one without masks is taken, and what its branch jumps over is not executed. Where one of
two short ways is taken, both count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LOW, HIGH = 128, 2048
"""Edges of the maps and of the label map."""
BEFORE = {89: 90, 90: 90}
"""By compute capability, of the kernel as it was: tiles of 8 × 256, divisions of whole numbers, an offset and a mask for
every store. Its unrolled loops were counted by hand, which no command repeats. A further candidate took 8.2.
"""


class Count(NamedTuple):
    """pixel: instructions a pixel, the word compared with included. candidate: more for every further candidate. word: by
    softmax, more for every word, be it a candidate or not; else 0.
    """

    pixel: float
    candidate: float
    word: float


def of_labels(code: Sequence[tuple[int, str]], tile: Mapping[str, int], threads: int) -> Count:
    """code: address and text of every instruction. tile: the kernel's constants. Raises ValueError for other loops."""
    spans = [(target, address) for address, text in code if (target := _target(text)) is not None and target < address]
    rows = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    within = [span for span in spans if span != rows and rows[0] <= span[0] < rows[1]]
    points = [span for span in spans if span != rows and span not in within]
    sums = [
        span for span in within if any(text.startswith("MUFU.EX2") and span[0] <= at < span[1] for at, text in code)
    ]
    candidates = [span for span in within if span not in sums]
    if len(candidates) != 1 or len(points) != 1 or len(sums) > 1:
        raise ValueError(f"{len(spans)} loops, expected one over points, one over rows and in it one over candidates")
    jumped = [
        (address + 1, target - 1)
        for address, text in code
        if rows[0] <= address < rows[1] and (target := _target(text)) is not None and target > address
        and not text.startswith("@")
    ]  # fmt: skip

    def length(*ranges: tuple[int, int]) -> int:
        return sum(first <= address <= last for address, _ in code for first, last in ranges)

    pixels = tile["TILE_ROWS"] * tile["COLUMNS"] / threads  # of a thread
    turns = tile["TILE_ROWS"] // tile["ROWS"]
    passes = -(-(tile["COLUMNS"] * LOW // HIGH + 2) // tile["POINTS"])
    once = length((0, code[-1][0])) - length(rows) + (passes - 1) * length(*points)
    a_turn = length(rows) - length(*within) - length(*jumped)
    return Count((once + turns * a_turn) / pixels, *(turns * length(*loop) / pixels for loop in (candidates, sums)))


def _target(text: str) -> int | None:
    """Where a branch leads, or None of other instructions."""
    found = re.match(r"(?:@!?U?P\w+ )?BRA(?:\.\w+)* (?:!?U?P\w+, )?0x([0-9a-f]+)", text)
    return int(found[1], 16) if found else None
