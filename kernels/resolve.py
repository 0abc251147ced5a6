"""Stage 2 of the mask head in Triton: low-resolution maps to masks of any size (design section 4).

A program resolves a tile of output pixels that lie between the same two low-resolution rows (a *band*), so that
interpolating along a row is done once for all rows of the tile. `kernels.reference` is the definition.

Band b, of 0 to h, lies between low-resolution rows b - 1 and b: the first and the last are half as tall, and there both
are the edge's row.

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

    Both are whole numbers below 2^24. The quotient is rounded once, as by a division, in fewer instructions.
    """
    divisor = tl.cast(unit, tl.float32)
    inverse = 1.0 / divisor
    remainder = remainder.to(tl.float32)
    fraction = remainder * inverse
    fraction = tl.fma(tl.fma(-fraction, divisor, remainder), inverse, fraction)
    return 1.0 - fraction, fraction


@triton.jit
def divided(number, divisor):
    """Quotient and remainder of whole numbers, neither negative; the quotient is below 2^17.

    In float32 the quotient errs by less than 2^-4, so that it is off by one at most.
    """
    quotient = (tl.cast(number, tl.float32) * (1.0 / tl.cast(divisor, tl.float32))).to(tl.int32)
    remainder = number - quotient * divisor
    above = remainder >= divisor
    below = remainder < 0
    quotient += above.to(tl.int32) - below.to(tl.int32)
    return quotient, remainder + tl.where(below, divisor, tl.where(above, -divisor, 0))


@triton.jit
def interpolation_taps(index, size_in, size_out):
    """As `kernels.reference.interpolation_taps`: lower and upper neighbour, weights of both."""
    unit = 2 * size_out
    lower, remainder = divided(position_of(index, size_in, size_out), unit)
    at_lower, at_upper = weights_of(remainder, unit)
    return lower, tl.minimum(lower + 1, size_in - 1), at_lower, at_upper


@triton.jit
def first_of_band(band, h, H):
    """The first output row of a band or of those after it; H where there is none."""
    index = divided(tl.maximum((2 * band - 1) * H + h - 1, 0), 2 * h)[0]  # rounded up
    return tl.where(band == 0, 0, tl.where(band > h, H, tl.minimum(index, H)))


@triton.jit
def tile_of(h, H, W, band_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's band, first row, one past the band's last row, and first column.

    Programs run over columns first, then over the ROWS of a band, then over bands.
    """
    program = tl.program_id(0)
    column_blocks = tl.cdiv(W, COLUMNS)
    row_blocks = tl.cdiv(band_rows, ROWS)
    block, across = divided(program, column_blocks)
    band, down = divided(block, row_blocks)
    return band, first_of_band(band, h, H) + down * ROWS, first_of_band(band + 1, h, H), across * COLUMNS


@triton.jit
def rows_of_band(band, h):
    """The low-resolution rows above and below a band."""
    return tl.maximum(band - 1, 0), tl.minimum(band, h - 1)


@triton.jit
def band_taps(above, row, end_row, h, H):
    """Weights of a band's two rows for its output rows; those from end_row on take its last one's."""
    unit = 2 * H
    return weights_of(position_of(tl.minimum(row, end_row - 1), h, H) - above * unit, unit)


@triton.jit
def along_rows(upper_map, lower_map, plane, left, right, at_left, at_right):
    """One word's score map along the band's two rows, at a tile's columns: two (COLUMNS). plane: the word's offset."""
    left += plane
    right += plane
    upper = at_left * tl.load(upper_map + left) + at_right * tl.load(upper_map + right)
    lower = at_left * tl.load(lower_map + left) + at_right * tl.load(lower_map + right)
    return upper, lower


@triton.jit
def between_rows(upper, lower, at_above, at_below):
    """(ROWS, COLUMNS): values at a tile's pixels, of those along the band's two rows.

    Sums of products with weights that are not negative, here as along the rows: rounding keeps the order of what is
    interpolated, so that a word that is nowhere above another at low resolution is nowhere above it at a pixel.
    """
    return at_above[:, None] * upper[None, :] + at_below[:, None] * lower[None, :]


@triton.jit
def lengths_of_columns(gram, N, above, below, left, right, at_left, at_right):
    """What the columns of a tile need for `inverse_lengths`, (COLUMNS) each. gram: (5, N) of one picture.

    above, below: offsets of the band's two rows.
    """
    both = at_left * at_right
    a_left = tl.load(gram + above + left)
    a_right = tl.load(gram + above + right)
    b_left = tl.load(gram + below + left)
    b_right = tl.load(gram + below + right)
    along_above = at_left * at_left * a_left + at_right * at_right * a_right
    along_above += 2 * both * tl.load(gram + N + above + left)
    along_below = at_left * at_left * b_left + at_right * at_right * b_right
    along_below += 2 * both * tl.load(gram + N + below + left)
    across = at_left * at_left * tl.load(gram + 2 * N + above + left)
    across += at_right * at_right * tl.load(gram + 2 * N + above + right)
    across += both * (tl.load(gram + 3 * N + above + left) + tl.load(gram + 4 * N + above + left))
    least_above = tl.maximum((at_left * a_left + at_right * a_right) * _CANCELLED, _TINY)
    least_below = tl.maximum((at_left * b_left + at_right * b_right) * _CANCELLED, _TINY)
    return along_above, along_below, across, least_above, least_below


@triton.jit
def inverse_lengths(along_above, along_below, across, least_above, least_below, at_above, at_below):
    """(ROWS, COLUMNS): 1 / length of every upsampled feature, `kernels.reference.squared_length`."""
    squared = (at_above * at_above)[:, None] * along_above[None, :]
    squared += (at_below * at_below)[:, None] * along_below[None, :]
    squared += (2 * at_above * at_below)[:, None] * across[None, :]
    least = at_above[:, None] * least_above[None, :] + at_below[:, None] * least_below[None, :]
    return tl.rsqrt(tl.maximum(squared, least, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def sigmoid(values, scale):
    """1 / (1 + 2^(values · scale)): with scale = -log2(e), the sigmoid.

    A reciprocal square root, squared, takes fewer instructions than a division: beside the power's own error it is off by
    2^-21 of itself at most (rsqrt.approx: 2^-22.9, PTX ISA). Of 4 the root is exact, so that the value 0 gives a half.
    """
    root = tl.rsqrt(2.0 + 2.0 * tl.exp2(values * scale))
    return root * (root + root)


@triton.jit
def lowest_bit(bits):
    """Index of the lowest of an int32's bits that are set, from the exponent of that bit as float32."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 0xFF) - 127


@triton.jit
def lowest_under_tile(upper_map, lower_map, word, N, K, first_point, end_point):
    """Of every word the lowest of six points under the tile; -inf beyond K."""
    lowest = tl.where(word < K, float("inf"), -float("inf"))
    for third in tl.static_range(3):
        point = first_point + (end_point - 1 - first_point) * third // 2
        lowest = tl.minimum(lowest, tl.load(upper_map + word * N + point, word < K, other=-float("inf")))
        lowest = tl.minimum(lowest, tl.load(lower_map + word * N + point, word < K, other=-float("inf")))
    return lowest


@triton.jit
def candidates_of(
    upper_map, lower_map, word, compared, N, K, first_point, end_point, WORDS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    """A bit for each of the words that is not below the word compared with at every point under the tile."""
    bit = 1 << tl.arange(0, WORDS)
    reaching = tl.zeros([WORDS, POINTS], tl.int32)
    for from_point in range(first_point, end_point, POINTS):
        point = from_point + tl.arange(0, POINTS)
        offset = word[:, None] * N + point[None, :]
        inside = (word < K)[:, None] & (point < end_point)[None, :]
        one = tl.load(upper_map + offset, inside, other=-float("inf"))
        other = tl.load(lower_map + offset, inside, other=-float("inf"))
        one_bar = tl.load(upper_map + compared * N + point, point < end_point, other=0.0)
        other_bar = tl.load(lower_map + compared * N + point, point < end_point, other=0.0)
        below = (one < one_bar[None, :]) & (other < other_bar[None, :])
        reaching |= tl.where(inside & (below == 0), bit[:, None], 0)
    # a bit a word: their sum is their union
    return tl.reduce_or(tl.sum(reaching, axis=0), axis=0)


@triton.jit
def best_of(
    candidates, start, best, winner, upper_map, lower_map, N, left, right, at_left, at_right, at_above, at_below
):
    """The best so far and these candidates, words from `start` on: value and number (ROWS, COLUMNS)."""
    while candidates != 0:
        candidate = start + lowest_bit(candidates)
        candidates &= candidates - 1
        upper, lower = along_rows(upper_map, lower_map, candidate * N, left, right, at_left, at_right)
        value = between_rows(upper, lower, at_above, at_below)
        better = value > best  # in the words' order: a tie stays with the word named first
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
        winner = tl.where(better, candidate + 1, winner)
    return best, winner


@triton.jit
def power_of(plane, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse):
    """2^((score - best) · inverse) of one word at a tile's pixels, (ROWS, COLUMNS): 1 of the best word, less of others.

    plane: the word's offset. No exponent is positive, however the compiler rounds a score here and where it was best.
    """
    upper, lower = along_rows(upper_map, lower_map, plane, left, right, at_left, at_right)
    behind = between_rows(upper, lower, at_above, at_below) - best
    return tl.exp2(tl.minimum(behind, 0.0, propagate_nan=tl.PropagateNan.ALL) * inverse)


@triton.jit
def softmax_of_best(K, N, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse):
    """1 / Σ 2^((score - best) · inverse) over all K words, (ROWS, COLUMNS): the softmax of the best word.

    Words are added in their order, so that tiles do not change the sum. A reciprocal square root, squared, and a step of
    Newton's take fewer instructions than a division. The step squares an error of 2^-21, so that the reciprocal of a
    power of two is exact: a word alone has probability 1, and each of two equal words 1/2.
    """
    total = tl.zeros_like(best)
    for word in range(0, K):
        total += power_of(
            word * N, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
        )
    total = tl.maximum(total, 1.0, propagate_nan=tl.PropagateNan.ALL)  # the best word's alone, but for rounding
    root = tl.rsqrt(total)
    inverse_total = root * root
    return tl.fma(tl.fma(-total, inverse_total, 1.0), inverse_total, inverse_total)


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
    FEW: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Label map and winner's probability: K costs neither memory nor, where few words can win, time.

    Interpolation is a convex combination. A word that is below another one at every low-resolution point under this
    tile is below it at every pixel of the tile, and is not interpolated. The other words are the tile's *candidates*. Any
    word may be the one compared with; the word whose lowest of six points is highest leaves few candidates. NaN is below
    nothing: a word with NaN under the tile is a candidate, and NaN neighbours give NaN pixels.

    SOFTMAX: the probability is that of all K words, the sigmoid's otherwise. The winner is found alike, then a loop over
    all words sums their powers, candidates or not. Where the threshold is below 1/K the labels alone need no sum, as the
    winner has at least 1/K; but confidence is always written, so nothing is skipped.

    A tile has TILE_ROWS rows, taken ROWS at a time. Words are looked at WORDS at a time, 32 at most, points POINTS at a
    time. FEW: K is at most WORDS, so that candidates are found once for the whole tile.
    """
    N = h * w
    picture = tl.program_id(1).to(tl.int64)
    band, first_row, end_row, first_column = tile_of(h, H, W, band_rows, TILE_ROWS, COLUMNS)
    if first_row >= end_row:
        return
    end_row = tl.minimum(end_row, first_row + TILE_ROWS)
    row_above, row_below = rows_of_band(band, h)
    above, below = row_above * w, row_below * w
    column = first_column + tl.arange(0, COLUMNS)
    left, right, at_left, at_right = interpolation_taps(tl.minimum(column, W - 1), w, W)
    scores += picture * K * N
    upper_map = scores + above
    lower_map = scores + below
    along_above, along_below, across, least_above, least_below = lengths_of_columns(
        gram + picture * 5 * N, N, above, below, left, right, at_left, at_right
    )

    first_point = divided(position_of(first_column, w, W), 2 * W)[0]
    end_point = tl.minimum(divided(position_of(tl.minimum(first_column + COLUMNS, W) - 1, w, W), 2 * W)[0] + 2, w)
    word = tl.arange(0, WORDS)
    highest = lowest_under_tile(upper_map, lower_map, word, N, K, first_point, end_point)
    highest_word = tl.where(highest == -float("inf"), 0, word)  # none beyond K
    candidates = 0
    if FEW:
        compared = tl.max(tl.where(highest == tl.max(highest, axis=0), highest_word, 0), axis=0)
        candidates = candidates_of(upper_map, lower_map, word, compared, N, K, first_point, end_point, WORDS, POINTS)
        first = lowest_bit(candidates)  # there is one: the word compared with
        candidates &= candidates - 1
        first_upper, first_lower = along_rows(upper_map, lower_map, first * N, left, right, at_left, at_right)
    else:
        for start in range(WORDS, K, WORDS):
            lowest = lowest_under_tile(upper_map, lower_map, start + word, N, K, first_point, end_point)
            higher = lowest > highest
            highest = tl.where(higher, lowest, highest)
            highest_word = tl.where(higher, start + word, highest_word)
        compared = tl.max(tl.where(highest == tl.max(highest, axis=0), highest_word, 0), axis=0)

    scale = inverse_temperature * _LOG2_E  # of all words alike: taken once a row, not once a pixel
    labels += picture * H * W
    confidence += picture * H * W
    whole = first_column + COLUMNS <= W
    for from_row in range(first_row, end_row, ROWS):
        row = from_row + tl.arange(0, ROWS)
        at_above, at_below = band_taps(row_above, row, end_row, h, H)
        scaled_above, scaled_below = at_above * scale, at_below * scale
        if FEW:
            best = between_rows(first_upper, first_lower, scaled_above, scaled_below)
            winner = tl.full([ROWS, COLUMNS], 1, tl.int32) + first
            best, winner = best_of(
                candidates, 0, best, winner, upper_map, lower_map, N, left, right, at_left, at_right,
                scaled_above, scaled_below,
            )  # fmt: skip
        else:
            best = tl.full([ROWS, COLUMNS], -float("inf"), tl.float32)
            winner = tl.zeros([ROWS, COLUMNS], tl.int32)
            for start in range(0, K, WORDS):
                some = candidates_of(
                    upper_map, lower_map, start + word, compared, N, K, first_point, end_point, WORDS, POINTS
                )
                best, winner = best_of(
                    some, start, best, winner, upper_map, lower_map, N, left, right, at_left, at_right, scaled_above,
                    scaled_below,
                )  # fmt: skip
        inverse = inverse_lengths(along_above, along_below, across, least_above, least_below, at_above, at_below)
        if SOFTMAX:
            probability = softmax_of_best(
                K, N, best, upper_map, lower_map, left, right, at_left, at_right, scaled_above, scaled_below, inverse
            )
        else:
            probability = sigmoid(best * inverse, -1.0)
        label = tl.where(probability > threshold, winner, 0).to(tl.uint16)
        probability = probability.to(confidence.dtype.element_ty)
        first_out = tl.cast(from_row, tl.int64) * W + first_column + tl.arange(0, ROWS) * W
        label_out = (labels + first_out)[:, None] + tl.arange(0, COLUMNS)[None, :]
        confidence_out = (confidence + first_out)[:, None] + tl.arange(0, COLUMNS)[None, :]
        if whole & (from_row + ROWS <= end_row):
            tl.store(label_out, label)
            tl.store(confidence_out, probability)
        else:
            inside = (row < end_row)[:, None] & (column < W)[None, :]
            tl.store(label_out, label, inside)
            tl.store(confidence_out, probability, inside)


@triton.jit
def taps_and_lengths(gram, band, row, end_row, column, h, w, H, W):
    """A tile's neighbours and weights along both axes, and its (ROWS, COLUMNS) 1 / length. gram: (5, N) of one picture."""
    above, below = rows_of_band(band, h)
    at_above, at_below = band_taps(above, row, end_row, h, H)
    left, right, at_left, at_right = interpolation_taps(tl.minimum(column, W - 1), w, W)
    along_above, along_below, across, least_above, least_below = lengths_of_columns(
        gram, h * w, above * w, below * w, left, right, at_left, at_right
    )
    inverse = inverse_lengths(along_above, along_below, across, least_above, least_below, at_above, at_below)
    return left, right, at_left, at_right, at_above, at_below, inverse


@triton.jit
def maps_of_band(scores, band, h, w):
    """Where the score maps of a band's two rows begin. scores: (K, h, w) of one picture."""
    above, below = rows_of_band(band, h)
    return scores + above * w, scores + below * w


@triton.jit
def softmax_terms(K, N, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse):
    """The best score and its softmax, (ROWS, COLUMNS) each: that of a word is its `power_of` times the best one's."""
    upper, lower = along_rows(upper_map, lower_map, 0, left, right, at_left, at_right)
    best = between_rows(upper, lower, at_above, at_below)
    for word in range(1, K):
        upper, lower = along_rows(upper_map, lower_map, word * N, left, right, at_left, at_right)
        value = between_rows(upper, lower, at_above, at_below)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    share = softmax_of_best(
        K, N, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
    )
    return best, share


@triton.jit
def cosine_of(plane, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse):
    """One word's cosine at a tile's pixels, (ROWS, COLUMNS). plane: the word's offset."""
    upper, lower = along_rows(upper_map, lower_map, plane, left, right, at_left, at_right)
    return between_rows(upper, lower, at_above, at_below) * inverse


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
    SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One probability map per word. SOFTMAX: what all words of a pixel share is summed first, then each is written."""
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
    upper_map, lower_map = maps_of_band(scores + picture * K * N, band, h, w)
    plane = tl.cast(H, tl.int64) * W  # a size of 1 is a constant to the compiler, and has no method `to`
    out = probabilities + picture * K * plane + row.to(tl.int64)[:, None] * W + column[None, :]
    inside = (row < end_row)[:, None] & (column < W)[None, :]
    if SOFTMAX:
        inverse *= -scale
        best, share = softmax_terms(
            K, N, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
        )
    for word in range(0, K):
        if SOFTMAX:
            probability = share * power_of(
                word * N, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
            )
        else:
            cosine = cosine_of(
                word * N, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
            )
            probability = sigmoid(cosine, scale)
        tl.store(out, probability.to(probabilities.dtype.element_ty), inside)
        out += plane


@triton.jit
def bits_of(masks, picture, row, end_row, first_column, K, H, W, COLUMNS: tl.constexpr):
    """Where the bits of a tile lie in the first word's mask, which of them lie inside, and the step to the next word."""
    pitch = tl.cdiv(W, 32)
    element = first_column // 32 + tl.arange(0, COLUMNS // 32)
    out = masks + (picture * K * H + row.to(tl.int64)[:, None]) * pitch + element[None, :]
    return out, (row < end_row)[:, None] & (element < pitch)[None, :], H * pitch


@triton.jit
def packed(over, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) of yes and no to (ROWS, COLUMNS / 32) int32."""
    bits = tl.reshape(over.to(tl.int32), [ROWS, COLUMNS // 32, 32]) << tl.arange(0, 32)[None, None, :]
    return tl.sum(bits, axis=2)


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
    upper_map, lower_map = maps_of_band(scores + picture * K * N, band, h, w)
    out, inside, step = bits_of(masks, picture, row, end_row, first_column, K, H, W, COLUMNS)
    for word in range(0, K):
        cosine = cosine_of(word * N, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse)
        tl.store(out, packed((cosine > least_cosine) & (column < W)[None, :], ROWS, COLUMNS), inside)
        out += step


@triton.jit
def softmax_masks_kernel(
    scores,  # (B, K, h, w) float32, contiguous
    gram,  # (B, 5, h, w) float32, contiguous
    masks,  # (B, K, H, ⌈W / 32⌉) int32 out, as of masks_kernel
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
):
    """One bit per word and pixel: whether the word's softmax exceeds the threshold, be it the best word or not."""
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
    inverse *= inverse_temperature * _LOG2_E
    upper_map, lower_map = maps_of_band(scores + picture * K * N, band, h, w)
    out, inside, step = bits_of(masks, picture, row, end_row, first_column, K, H, W, COLUMNS)
    best, share = softmax_terms(K, N, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse)
    for word in range(0, K):
        probability = share * power_of(
            word * N, best, upper_map, lower_map, left, right, at_left, at_right, at_above, at_below, inverse
        )
        tl.store(out, packed((probability > threshold) & (column < W)[None, :], ROWS, COLUMNS), inside)
        out += step
