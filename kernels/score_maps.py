"""Stage 1 of the mask head in Triton: features and words to low-resolution score and Gram maps (design section 4).

Two launches: `measure_kernel` finds the scales, `maps_kernel` takes the products. The maps are those of
`kernels.reference.score_maps` times one power of two per picture, which cancels in the cosine.

Letters: B pictures, K words, h×w features, N = h·w positions, d channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def magnitude_bits(values):
    """|values| as float32, read as int32: these order as the magnitudes do, infinity above them, NaN above all."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def unit_of(bits):
    """The power of two that brings a magnitude of these bits into [1, 2): a product with it rounds nothing.

    Infinite and NaN magnitudes give NaN, and so does what is computed from them.
    """
    exponent = bits >> 23
    power = tl.maximum(254 - exponent, 1) << 23
    return tl.where(exponent == 255, 0x7FC00000, power).to(tl.float32, bitcast=True)


@triton.jit
def measure_kernel(
    features,  # (B, N, d) float16, bfloat16 or float32, contiguous
    words,  # (B, K, d) likewise
    parts,  # (B, PARTS) int32 out: magnitude bits of the largest feature value of every PARTS-th block; PARTS = 0: none
    units,  # (B, K) float32 out: the power of two a word is scaled by
    inverses,  # (B, K) float32 out: 1 / length of the scaled word; 0 for the zero word
    finite,  # (B,) int32 out: 1; maps_kernel writes 0 where a value is infinite or NaN
    N,
    K,
    d,
    PARTS: tl.constexpr,
    VALUES: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The first PARTS programs of a picture look at its features, the others at WORDS words each.

    Float16 needs no scaling (no product of two overflows float32): there PARTS is 0 and every unit 1.
    """
    program = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    if program == 0:
        tl.store(finite + picture, 1)
    if program < PARTS:
        features += picture * N * d
        largest = tl.zeros([VALUES], tl.int32)
        for start in range(program * VALUES, N * d, PARTS * VALUES):
            index = start + tl.arange(0, VALUES)
            largest = tl.maximum(largest, magnitude_bits(tl.load(features + index, index < N * d, other=0.0)))
        tl.store(parts + picture * PARTS + program, tl.max(largest, axis=0))
    else:
        word = (program - PARTS) * WORDS + tl.arange(0, WORDS)
        rows = words + (picture * K + word.to(tl.int64))[:, None] * d
        bits = tl.zeros([WORDS], tl.int32)
        for start in range(0, d, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            inside = (word < K)[:, None] & (channel < d)[None, :]
            values = tl.load(rows + channel[None, :], inside, other=0.0)
            bits = tl.maximum(bits, tl.max(magnitude_bits(values), axis=1))
        unit = unit_of(bits)
        if PARTS == 0:
            unit = tl.where(unit == unit, 1.0, unit)
        squares = tl.zeros([WORDS], tl.float32)
        for start in range(0, d, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            inside = (word < K)[:, None] & (channel < d)[None, :]
            values = tl.load(rows + channel[None, :], inside, other=0.0).to(tl.float32) * unit[:, None]
            squares += tl.sum(values * values, axis=1)
        inverse = tl.where(squares == 0.0, 0.0, 1.0 / tl.sqrt_rn(tl.where(squares == 0.0, 1.0, squares)))
        tl.store(units + picture * K + word, unit, word < K)
        tl.store(inverses + picture * K + word, inverse, word < K)


@triton.jit
def report(values, inside, finite):
    """Write 0 to `finite` where one of the values inside is infinite or NaN."""
    wrong = magnitude_bits(values) >= 0x7F800000
    tl.store(finite + tl.zeros_like(wrong).to(tl.int32), 0, wrong & inside)


@triton.jit
def gram_tile(
    features, gram, finite, position, h, w, d, unit, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The five inner products of POSITIONS features with their neighbours; edges repeat the last row and column.

    features (N, d) and gram (5, N) of one picture; unit: what a feature is multiplied by.
    """
    N = h * w
    inside = position < N
    here = features + position * d
    step_right = tl.where(position % w < w - 1, d, 0)
    step_down = tl.where(position < N - w, w * d, 0)
    itself = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    with_right = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    with_down = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    with_diagonal = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    right_with_down = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for start in range(0, d, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)[None, :]
        mask = inside[:, None] & (channel < d)
        feature = tl.load(here[:, None] + channel, mask, other=0.0).to(tl.float32) * unit
        right = tl.load((here + step_right)[:, None] + channel, mask, other=0.0).to(tl.float32) * unit
        down = tl.load((here + step_down)[:, None] + channel, mask, other=0.0).to(tl.float32) * unit
        diagonal = tl.load((here + step_right + step_down)[:, None] + channel, mask, other=0.0).to(tl.float32) * unit
        itself += feature * feature
        with_right += feature * right
        with_down += feature * down
        with_diagonal += feature * diagonal
        right_with_down += right * down
    itself = tl.sum(itself, axis=1)
    with_right = tl.sum(with_right, axis=1)
    with_down = tl.sum(with_down, axis=1)
    with_diagonal = tl.sum(with_diagonal, axis=1)
    right_with_down = tl.sum(right_with_down, axis=1)
    tl.store(gram + position, itself, inside)
    tl.store(gram + N + position, with_right, inside)
    tl.store(gram + 2 * N + position, with_down, inside)
    tl.store(gram + 3 * N + position, with_diagonal, inside)
    tl.store(gram + 4 * N + position, right_with_down, inside)
    # a sum of all is NaN or infinite where one of them is
    report(itself + (with_right + with_down) + (with_diagonal + right_with_down), inside, finite)


@triton.jit
def score_tile(
    features, words, units, inverses, scores, finite, position, word, N, K, d, unit,
    SCALED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    POSITIONS: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Scores of POSITIONS features with WORDS words, all pointers those of one picture."""
    rows = features + position[:, None] * d
    columns = words + word[None, :] * d
    products = tl.zeros([POSITIONS, WORDS], tl.float32)
    if SCALED:
        word_unit = tl.load(units + word, word < K, other=1.0)[None, :]
    for start in range(0, d, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        feature = tl.load(rows + channel[None, :], (position < N)[:, None] & (channel < d)[None, :], other=0.0)
        vector = tl.load(columns + channel[:, None], (channel < d)[:, None] & (word < K)[None, :], other=0.0)
        if SCALED:
            feature = feature.to(tl.float32) * unit
            vector = vector.to(tl.float32) * word_unit
        products = tl.dot(feature.to(DOT), vector.to(DOT), products, input_precision=PRECISION)
    inverse = tl.load(inverses + word, word < K, other=0.0)
    report(inverse, word < K, finite)  # products of finite values are: none overflows
    out = scores + word[None, :] * N + position[:, None]
    tl.store(out, products * inverse[None, :], (position < N)[:, None] & (word < K)[None, :])


@triton.jit
def maps_kernel(
    features,  # (B, N, d) float16, bfloat16 or float32, contiguous
    words,  # (B, K, d) likewise
    parts,  # (B, PARTS) int32, of measure_kernel
    units,  # (B, K) float32, of measure_kernel
    inverses,  # (B, K) float32, of measure_kernel
    scores,  # (B, K, N) float32 out: <f, t/|t|>
    gram,  # (B, 5, N) float32 out: <f,f>, <f,f_right>, <f,f_down>, <f,f_diagonal>, <f_right,f_down>
    finite,  # (B,) int32: becomes 0 where one of these is infinite or NaN
    h,
    w,
    K,
    d,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    POSITIONS: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GRAM_POSITIONS: tl.constexpr,
    GRAM_CHANNELS: tl.constexpr,
):
    """The first ⌈N / GRAM_POSITIONS⌉ programs of a picture make its Gram maps, the others POSITIONS × WORDS scores each.

    DOT: the dtype products are taken in (scaling by a power of two rounds nothing but what is 2^126 times smaller than
    the largest); accumulation is float32. PRECISION: how float32 products are taken.
    """
    N = h * w
    picture = tl.program_id(1).to(tl.int64)
    features += picture * N * d
    unit = 1.0
    if PARTS > 0:
        unit = unit_of(tl.max(tl.load(parts + picture * PARTS + tl.arange(0, PARTS)), axis=0))
    gram_programs = tl.cdiv(N, GRAM_POSITIONS)
    program = tl.program_id(0)
    if program < gram_programs:
        gram_tile(
            features, gram + picture * 5 * N, finite + picture, program * GRAM_POSITIONS + tl.arange(0, GRAM_POSITIONS),
            h, w, d, unit, GRAM_POSITIONS, GRAM_CHANNELS,
        )  # fmt: skip
    else:
        word_blocks = tl.cdiv(K, WORDS)
        tile = program - gram_programs
        score_tile(
            features, words + picture * K * d, units + picture * K, inverses + picture * K, scores + picture * K * N, finite + picture,
            (tile // word_blocks) * POSITIONS + tl.arange(0, POSITIONS),
            (tile % word_blocks) * WORDS + tl.arange(0, WORDS),
            N, K, d, unit, PARTS > 0, DOT, PRECISION, POSITIONS, WORDS, CHANNELS,
        )  # fmt: skip
