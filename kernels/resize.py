"""Preprocessing in Triton: Pillow's resize and the normalisation, bit for bit (`fusioner_rt.preprocess`).

A resize is a pass along the rows and one along the columns, in the order and with the tables that
`fusioner_rt.gpu.resize_tables` gives. A pass gives 8-bit pixels for the other one, or, being the last, the network's input.
Weighted sums are in whole numbers, so that no order of adding them changes a bit; normalising is a product rounded to
float32, then a difference rounded to float32, as numpy takes them: compiled without fused multiply-add.

Letters: B pictures of H×W pixels before a pass; h rows or w columns after it; T taps. A picture's values, 3·H·W before
a pass and after it, number less than 2^30 (the caller's check), so that offsets within a picture are int32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusioner_rt.gpu.kernel_contract import PRECISION_BITS

_BITS = tl.constexpr(PRECISION_BITS)
_HALF = tl.constexpr(1 << (PRECISION_BITS - 1))


@triton.jit
def store_resized(
    out, row, value, rows, columns, total, gain_red, gain_green, gain_blue, shift_red, shift_green, shift_blue,
    PLANES: tl.constexpr,
):  # fmt: skip
    """Round (ROWS, VALUES) sums to 8 bits and store them: as pixels, or normalised as planes.

    out: of one picture, (rows, columns, 3) uint8 or with PLANES (3, rows, columns) float32. value: 3 · column + channel.
    """
    level = tl.minimum(tl.maximum(total >> _BITS, 0), 255)
    inside = (row < rows)[:, None] & (value < 3 * columns)[None, :]
    if PLANES:
        column = value // 3
        channel = value - 3 * column
        gain = tl.where(channel == 0, gain_red, tl.where(channel == 1, gain_green, gain_blue))
        shift = tl.where(channel == 0, shift_red, tl.where(channel == 1, shift_green, shift_blue))
        offset = (channel * rows * columns + column)[None, :] + (row * columns)[:, None]
        tl.store(out + offset, level.to(tl.float32) * gain[None, :] - shift[None, :], inside)
    else:
        offset = (row * (3 * columns))[:, None] + value[None, :]
        tl.store(out + offset, level.to(tl.uint8), inside)


@triton.jit
def tile_of(values, ROWS: tl.constexpr, VALUES: tl.constexpr):
    """This program's picture, rows and values. values: of a row that is written."""
    value_blocks = tl.cdiv(values, VALUES)
    program = tl.program_id(0)
    picture = tl.program_id(1).to(tl.int64)
    block = program // value_blocks
    row = block * ROWS + tl.arange(0, ROWS)
    return picture, row, (program - block * value_blocks) * VALUES + tl.arange(0, VALUES)


@triton.jit
def resize_rows_kernel(
    pictures,  # (B, H, W, 3) uint8, contiguous
    first,  # (w,) int32: the first of the T pixels that make a column
    weights,  # (T, w) int32: how much they weigh, in units of 2^-PRECISION_BITS
    out,  # (B, H, w, 3) uint8 out; with PLANES (B, 3, H, w) float32 out
    gain_red,  # with PLANES: value = level · gain - shift
    gain_green,
    gain_blue,
    shift_red,
    shift_green,
    shift_blue,
    H,
    W,
    w,
    T,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Along the rows: one program makes ROWS × VALUES of a picture's H × 3w values. first[i] + T is at most W."""
    picture, row, value = tile_of(3 * w, ROWS, VALUES)
    column = tl.minimum(value // 3, w - 1)  # what lies beyond the picture is computed from its edge and not stored
    from_pixel = 3 * tl.load(first + column) + value % 3
    from_row = tl.minimum(row, H - 1) * (3 * W)
    taken = pictures + picture * H * (3 * W) + from_row[:, None] + from_pixel[None, :]
    weight = weights + column
    total = tl.full([ROWS, VALUES], _HALF, tl.int32)
    for _ in range(0, T):
        total += tl.load(taken).to(tl.int32) * tl.load(weight)[None, :]
        taken += 3
        weight += w
    store_resized(
        out + picture * H * (3 * w), row, value, H, w, total,
        gain_red, gain_green, gain_blue, shift_red, shift_green, shift_blue, PLANES,
    )  # fmt: skip


@triton.jit
def resize_columns_kernel(
    pictures,  # (B, H, W, 3) uint8, contiguous
    first,  # (h,) int32: the first of the T rows that make a row
    weights,  # (T, h) int32: how much they weigh, in units of 2^-PRECISION_BITS
    out,  # (B, h, W, 3) uint8 out; with PLANES (B, 3, h, W) float32 out
    gain_red,  # with PLANES: value = level · gain - shift
    gain_green,
    gain_blue,
    shift_red,
    shift_green,
    shift_blue,
    H,
    W,
    h,
    T,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Along the columns: one program makes ROWS × VALUES of a picture's h × 3W values. first[i] + T is at most H."""
    picture, row, value = tile_of(3 * W, ROWS, VALUES)
    made = tl.minimum(row, h - 1)  # what lies beyond the picture is computed from its edge and not stored
    from_row = tl.load(first + made) * (3 * W)
    taken = pictures + picture * H * (3 * W) + from_row[:, None] + tl.minimum(value, 3 * W - 1)[None, :]
    weight = weights + made
    total = tl.full([ROWS, VALUES], _HALF, tl.int32)
    for _ in range(0, T):
        total += tl.load(taken).to(tl.int32) * tl.load(weight)[:, None]
        taken += 3 * W
        weight += h
    store_resized(
        out + picture * h * (3 * W), row, value, h, W, total,
        gain_red, gain_green, gain_blue, shift_red, shift_green, shift_blue, PLANES,
    )  # fmt: skip
