"""Stage 2 of the mask head in Triton: low-resolution maps to masks of any size (design section 4).

A program resolves ROWS × COLUMNS output pixels that lie between the same two low-resolution rows (a *band*), so that
interpolating along a row is done once for all of its ROWS. Held to `kernels.reference`.

Letters: B pictures, K words, H×W output, h×w maps. Products of an output edge and its low-resolution edge stay below
2^30 (the caller's check), so that taps are computed in int32.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from kernels.reference import CANCELLED, TINY

_CANCELLED = tl.constexpr(CANCELLED)
_TINY = tl.constexpr(TINY * (1 + 2**-20))  # a weighted mean of two is still a normal number: rsqrt flushes others to 0
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def position_of(index, size_in, size_out):
    """Where an output index lies between input indices, in units of 1 / (2 · size_out)."""
    position = (2 * index + 1) * size_in - size_out
    return tl.minimum(tl.maximum(position, 0), 2 * (size_in - 1) * size_out)


@triton.jit
def weights_of(remainder, unit):
    """Weights of the lower and the upper neighbour: 1 - remainder / unit and remainder / unit.

    Both are whole numbers below 2^24. The quotient is rounded once, as by a division, which takes three times as long.
    """
    divisor = tl.cast(unit, tl.float32)
    inverse = 1.0 / divisor
    remainder = remainder.to(tl.float32)
    fraction = remainder * inverse
    fraction = tl.fma(tl.fma(-fraction, divisor, remainder), inverse, fraction)
    return 1.0 - fraction, fraction


@triton.jit
def interpolation_taps(index, size_in, size_out):
    """As `kernels.reference.interpolation_taps`: lower and upper neighbour, weights of both."""
    unit = 2 * size_out
    position = position_of(index, size_in, size_out)
    lower = position // unit
    at_lower, at_upper = weights_of(position - lower * unit, unit)
    return lower, tl.minimum(lower + 1, size_in - 1), at_lower, at_upper


@triton.jit
def first_output(lower, size_in, size_out):
    """The first output whose lower neighbour is `lower` or a later one; size_out where there is none."""
    index = tl.cdiv((2 * lower + 1) * size_out - size_in, 2 * size_in)
    index = tl.minimum(tl.maximum(index, 0), size_out)
    return tl.where(lower == 0, 0, tl.where(lower >= size_in, size_out, index))


@triton.jit
def tile_of(h, H, W, band_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's band, first row, one past the band's last row, and first column.

    Programs run over columns first, then over the ROWS of a band, then over bands.
    """
    program = tl.program_id(0)
    column_blocks = tl.cdiv(W, COLUMNS)
    row_blocks = tl.cdiv(band_rows, ROWS)
    block = program // column_blocks
    band = block // row_blocks
    first_row = first_output(band, h, H) + (block - band * row_blocks) * ROWS
    return band, first_row, first_output(band + 1, h, H), (program - block * column_blocks) * COLUMNS


@triton.jit
def band_taps(band, row, end_row, h, H):
    """Weights of a band's two rows for its output rows; those from end_row on take its last one's."""
    unit = 2 * H
    return weights_of(position_of(tl.minimum(row, end_row - 1), h, H) - band * unit, unit)


@triton.jit
def interpolated(upper_map, lower_map, left, right, at_left, at_right, at_above, at_below):
    """(ROWS, COLUMNS): one word's score map at a tile's pixels; the band's two rows first, to the columns.

    Sums of products with weights that are not negative: rounding keeps the order of what is interpolated, so that a
    word that is nowhere above another at low resolution is nowhere above it here.
    """
    upper = at_left * tl.load(upper_map + left) + at_right * tl.load(upper_map + right)
    lower = at_left * tl.load(lower_map + left) + at_right * tl.load(lower_map + right)
    return at_above[:, None] * upper[None, :] + at_below[:, None] * lower[None, :]


@triton.jit
def inverse_lengths(gram, N, above, below, left, right, at_left, at_right, at_above, at_below):
    """(ROWS, COLUMNS): 1 / length of every upsampled feature, `kernels.reference.squared_length`.

    gram: (5, N) of one picture. above, below: offsets of the band's two rows.
    """
    both = at_left * at_right
    itself = gram
    a_left = tl.load(itself + above + left)
    a_right = tl.load(itself + above + right)
    b_left = tl.load(itself + below + left)
    b_right = tl.load(itself + below + right)
    along_above = at_left * at_left * a_left + at_right * at_right * a_right
    along_above += 2 * both * tl.load(gram + N + above + left)
    along_below = at_left * at_left * b_left + at_right * at_right * b_right
    along_below += 2 * both * tl.load(gram + N + below + left)
    across = at_left * at_left * tl.load(gram + 2 * N + above + left)
    across += at_right * at_right * tl.load(gram + 2 * N + above + right)
    across += both * (tl.load(gram + 3 * N + above + left) + tl.load(gram + 4 * N + above + left))

    least_above = tl.maximum((at_left * a_left + at_right * a_right) * _CANCELLED, _TINY)
    least_below = tl.maximum((at_left * b_left + at_right * b_right) * _CANCELLED, _TINY)

    squared = (at_above * at_above)[:, None] * along_above[None, :]
    squared += (at_below * at_below)[:, None] * along_below[None, :]
    squared += (2 * at_above * at_below)[:, None] * across[None, :]
    least = at_above[:, None] * least_above[None, :] + at_below[:, None] * least_below[None, :]
    return tl.rsqrt(tl.maximum(squared, least, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def sigmoid(values, scale):
    """1 / (1 + 2^(values · scale)): with scale = -log2(e), the sigmoid."""
    return 1.0 / (1.0 + tl.exp2(values * scale))


@triton.jit
def lowest_bit(bits):
    """Index of the lowest of an int32's bits that are set, from the exponent of that bit as float32."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 0xFF) - 127


@triton.jit
def labels_kernel(
    scores,  # (B, K, h, w) float32, contiguous
    gram,  # (B, 5, h, w) float32, contiguous
    labels,  # (B, H, W) uint16 out: 0 = background, n = word n
    confidence,  # (B, H, W) float16 or float32 out: probability of the best word
    h,
    w,
    K,
    H,
    W,
    band_rows,  # rows of the tallest band
    inverse_temperature,
    threshold,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Label map and winner's probability: K costs neither memory nor, where few words can win, time.

    Interpolation is a convex combination. A word that is below another one at every low-resolution point under this
    tile is below it at every pixel of it, and is not interpolated: those left are the tile's *candidates*. Any word may
    be the one compared with; that whose lowest of six points is highest leaves few. NaN is below nothing, so that a word
    with NaN under the tile is a candidate, and a pixel one of whose neighbours is NaN becomes NaN.
    Words are looked at WORDS at a time, 32 at most, points POINTS at a time.
    """
    N = h * w
    picture = tl.program_id(1).to(tl.int64)
    band, first_row, end_row, first_column = tile_of(h, H, W, band_rows, ROWS, COLUMNS)
    if first_row >= end_row:
        return
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    at_above, at_below = band_taps(band, row, end_row, h, H)
    left, right, at_left, at_right = interpolation_taps(tl.minimum(column, W - 1), w, W)
    scores += picture * K * N
    upper_map = scores + band * w
    lower_map = scores + tl.minimum(band + 1, h - 1) * w

    first_point = position_of(first_column, w, W) // (2 * W)
    end_point = tl.minimum(position_of(tl.minimum(first_column + COLUMNS, W) - 1, w, W) // (2 * W) + 2, w)
    highest = tl.full([WORDS], -float("inf"), tl.float32)
    highest_word = tl.zeros([WORDS], tl.int32)
    for start in range(0, K, WORDS):
        word = start + tl.arange(0, WORDS)
        lowest = tl.full([WORDS], float("inf"), tl.float32)
        for third in tl.static_range(3):
            point = first_point + (end_point - 1 - first_point) * third // 2
            lowest = tl.minimum(lowest, tl.load(upper_map + word * N + point, word < K, other=-float("inf")))
            lowest = tl.minimum(lowest, tl.load(lower_map + word * N + point, word < K, other=-float("inf")))
        higher = lowest > highest
        highest = tl.where(higher, lowest, highest)
        highest_word = tl.where(higher, word, highest_word)
    reference = tl.max(tl.where(highest == tl.max(highest, axis=0), highest_word, 0), axis=0)

    best = tl.full([ROWS, COLUMNS], -float("inf"), tl.float32)
    winner = tl.zeros([ROWS, COLUMNS], tl.int32)
    for start in range(0, K, WORDS):
        word = start + tl.arange(0, WORDS)
        bit = 1 << tl.arange(0, WORDS)
        reaching = tl.zeros([WORDS, POINTS], tl.int32)
        for from_point in range(first_point, end_point, POINTS):
            point = from_point + tl.arange(0, POINTS)
            offset = word[:, None] * N + point[None, :]
            inside = (word < K)[:, None] & (point < end_point)[None, :]
            one = tl.load(upper_map + offset, inside, other=-float("inf"))
            other = tl.load(lower_map + offset, inside, other=-float("inf"))
            one_bar = tl.load(upper_map + reference * N + point, point < end_point, other=0.0)
            other_bar = tl.load(lower_map + reference * N + point, point < end_point, other=0.0)
            below = (one < one_bar[None, :]) & (other < other_bar[None, :])
            reaching |= tl.where(inside & (below == 0), bit[:, None], 0)
        # a bit a word: their sum is their union
        candidates = tl.reduce_or(tl.sum(reaching, axis=0), axis=0)
        while candidates != 0:
            candidate = start + lowest_bit(candidates)
            candidates &= candidates - 1
            plane = candidate * N
            value = interpolated(
                upper_map + plane, lower_map + plane, left, right, at_left, at_right, at_above, at_below
            )
            better = value > best  # in the words' order: a tie stays with the word named first
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
            winner = tl.where(better, candidate + 1, winner)

    inverse = inverse_lengths(
        gram + picture * 5 * N, N, band * w, tl.minimum(band + 1, h - 1) * w,
        left, right, at_left, at_right, at_above, at_below,
    )  # fmt: skip
    probability = sigmoid(best * inverse, inverse_temperature * -_LOG2_E)
    out = (tl.arange(0, ROWS) * W)[:, None] + column[None, :]
    first_out = (picture * H + first_row) * W
    labels += first_out
    confidence += first_out
    inside = (row < end_row)[:, None] & (column < W)[None, :]
    tl.store(labels + out, tl.where(probability > threshold, winner, 0).to(tl.uint16), inside)
    tl.store(confidence + out, probability.to(confidence.dtype.element_ty), inside)


@triton.jit
def taps_and_lengths(gram, band, row, end_row, column, h, w, H, W):
    """A tile's neighbours and weights along both axes, and its (ROWS, COLUMNS) 1 / length. gram: (5, N) of one picture."""
    at_above, at_below = band_taps(band, row, end_row, h, H)
    left, right, at_left, at_right = interpolation_taps(tl.minimum(column, W - 1), w, W)
    inverse = inverse_lengths(
        gram, h * w, band * w, tl.minimum(band + 1, h - 1) * w, left, right, at_left, at_right, at_above, at_below
    )
    return left, right, at_left, at_right, at_above, at_below, inverse


@triton.jit
def probabilities_kernel(
    scores,  # (B, K, h, w) float32, contiguous
    gram,  # (B, 5, h, w) float32, contiguous
    probabilities,  # (B, K, H, W) float16 or float32 out
    h,
    w,
    K,
    H,
    W,
    band_rows,  # rows of the tallest band
    inverse_temperature,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One probability map per word."""
    N = h * w
    picture = tl.program_id(1).to(tl.int64)
    band, first_row, end_row, first_column = tile_of(h, H, W, band_rows, ROWS, COLUMNS)
    if first_row >= end_row:
        return
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    left, right, at_left, at_right, at_above, at_below, inverse = taps_and_lengths(
        gram + picture * 5 * N, band, row, end_row, column, h, w, H, W
    )
    scale = inverse_temperature * -_LOG2_E
    scores += picture * K * N
    upper_map = scores + band * w
    lower_map = scores + tl.minimum(band + 1, h - 1) * w
    plane = tl.cast(H, tl.int64) * W  # a size of 1 is a constant to the compiler, and has no method `to`
    out = probabilities + picture * K * plane + row.to(tl.int64)[:, None] * W + column[None, :]
    inside = (row < end_row)[:, None] & (column < W)[None, :]
    for word in range(0, K):
        value = interpolated(
            upper_map + word * N, lower_map + word * N, left, right, at_left, at_right, at_above, at_below
        )
        probability = sigmoid(value * inverse, scale)
        tl.store(out, probability.to(probabilities.dtype.element_ty), inside)
        out += plane


@triton.jit
def masks_kernel(
    scores,  # (B, K, h, w) float32, contiguous
    gram,  # (B, 5, h, w) float32, contiguous
    masks,  # (B, K, H, ⌈W / 32⌉) int32 out: bit x % 32 of element x // 32 is pixel x; those beyond W are 0
    h,
    w,
    K,
    H,
    W,
    band_rows,  # rows of the tallest band
    least_cosine,  # temperature × logit(threshold)
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One bit per word and pixel: whether the word's probability exceeds the threshold, whatever other words do."""
    N = h * w
    picture = tl.program_id(1).to(tl.int64)
    band, first_row, end_row, first_column = tile_of(h, H, W, band_rows, ROWS, COLUMNS)
    if first_row >= end_row:
        return
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    left, right, at_left, at_right, at_above, at_below, inverse = taps_and_lengths(
        gram + picture * 5 * N, band, row, end_row, column, h, w, H, W
    )
    scores += picture * K * N
    upper_map = scores + band * w
    lower_map = scores + tl.minimum(band + 1, h - 1) * w
    pitch = tl.cdiv(W, 32)
    element = first_column // 32 + tl.arange(0, COLUMNS // 32)
    out = masks + (picture * K * H + row.to(tl.int64)[:, None]) * pitch + element[None, :]
    inside = (row < end_row)[:, None] & (element < pitch)[None, :]
    bit = tl.arange(0, 32)[None, None, :]
    for word in range(0, K):
        value = interpolated(
            upper_map + word * N, lower_map + word * N, left, right, at_left, at_right, at_above, at_below
        )
        over = (value * inverse > least_cosine) & (column < W)[None, :]
        bits = tl.reshape(over.to(tl.int32), [ROWS, COLUMNS // 32, 32]) << bit
        tl.store(out, tl.sum(bits, axis=2), inside)
        out += H * pitch
