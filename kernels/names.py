"""From the words that won to the names that were asked for, in Triton: groups, background words, thresholds of names.

`fusioner_rt.words.owners` is the definition: what `Session.segment` does on the CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def names_kernel(
    labels,  # (B, N) uint16, contiguous, in place: numbers of words become numbers of names
    confidence,  # (B, N) float16 or float32, contiguous: probability of the best word
    owners,  # (K + 1,) uint16: of word n the number of its name, 0 of a background word and of no word
    thresholds,  # (K + 1,) float32: of name n what its confidence must exceed, 0 of no name
    N,  # pixels of a picture
    PIXELS: tl.constexpr,
):
    """One program looks up PIXELS pixels of a picture. A name without the confidence it needs becomes 0, as does NaN."""
    first = tl.program_id(1).to(tl.int64) * N
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < N
    word = tl.load(labels + first + pixel, inside, other=0).to(tl.int32)
    sure = tl.load(confidence + first + pixel, inside, other=0.0).to(tl.float32)
    name = tl.load(owners + word)
    least = tl.load(thresholds + name.to(tl.int32))
    tl.store(labels + first + pixel, tl.where(sure > least, name, 0).to(tl.uint16), inside)
