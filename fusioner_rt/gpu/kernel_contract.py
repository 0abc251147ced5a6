"""What the compiled kernels and their launchers agree on: grids, limits and names. `kernels/` imports it too.

Letters: K words, H×W output, h×w features.
"""

import math
from collections.abc import Mapping, Sequence

Grid = Sequence[Sequence[tuple[str, int]]]
"""Σ over rows of Π over pairs of ⌈size / tile⌉: how many programs a picture takes. The name "one" stands for `tile`."""

ALIGNMENT = 16
"""Arrays lie at multiples of this many bytes: the loads are that wide."""
PARTS = 256
"""Programs that look for a picture's largest feature value, a power of two."""
FEW_WORDS = 32
"""Up to here "few": one tile of words; above, "many"."""
MAX_WORDS = 65535
"""Labels have 16 bits, and 0 is the background."""
MAX_EDGE = 65535
MAX_PICTURES = 65535
"""The second dimension of a CUDA grid."""
MAX_VALUES = 2**30 - 1
"""Elements of a picture in any array: kernels count them in 32 bits."""
PRECISION_BITS = 22
"""A resize's weight of 1 is 2^22, as in Pillow: 255 of them, and what negative weights add, stay below 2^31."""
MIN_TEMPERATURE = 1e-6
"""float32 holds its inverse, and any cosine divided by it."""

EXTRAS = {
    "float16": ("measure.float16", "maps.float16.few", "maps.float16.many"),
    "masks": ("masks",),
    "probabilities": ("probabilities.float16", "probabilities.float32"),
}
"""Kernels that no session launches, by the name under which `build_engine.py --kernels` adds them to a bundle."""

SCORINGS = {"sigmoid": "", "softmax": "softmax_"}
"""How the mask head makes probabilities of cosines: of each word alone (the paper), or among all words of a picture. With each
what stands before the names of stage 2's kernels; a bundle holds those of its own."""


def base_name(kernel: str) -> str:
    """The kernel's name without its scoring, as in EXTRAS."""
    return kernel.removeprefix(SCORINGS["softmax"])


def extra_of(kernel: str) -> str | None:
    """The name in EXTRAS that brings a kernel, or None."""
    return next((extra for extra, kernels in EXTRAS.items() if base_name(kernel) in kernels), None)


def few_or_many(words: int) -> str:
    """The form of a kernel that takes K words."""
    return "few" if words <= FEW_WORDS else "many"


def programs(grid: Grid, sizes: Mapping[str, int]) -> int:
    """How many programs a picture takes. sizes: of `mask_sizes` or `resize_sizes`."""
    return sum(math.prod(tile if name == "one" else -(-sizes[name] // tile) for name, tile in row) for row in grid)


def mask_sizes(features: tuple[int, int], words: int, output: tuple[int, int] = (1, 1)) -> dict[str, int]:
    """The sizes that the mask head's grids are made of. features: h, w. output: H, W.

    A band is the output rows between two low-resolution rows; one is above the first, one below the last.
    """
    (low_height, low_width), (height, width) = features, output
    return {
        "positions": low_height * low_width, "words": words, "bands": low_height + 1,
        "band_rows": -(-height // low_height), "columns": width,
    }  # fmt: skip


def resize_sizes(rows: int, columns: int) -> dict[str, int]:
    """The sizes that a resize's grid is made of: rows, and values of a row, of what it writes."""
    return {"rows": rows, "values": 3 * columns}


def least_cosine(temperature: float, threshold: float) -> float:
    """The cosine whose probability is the threshold: temperature × logit(threshold), infinite at 0 and 1."""
    if threshold in (0, 1):
        return math.inf if threshold else -math.inf
    return temperature * math.log(threshold / (1 - threshold))
