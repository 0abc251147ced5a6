"""Which kernels are compiled, with which types and tiles: what the launch from torch and the offline compiler share.

A *variant* is a kernel with its pointer types, say "maps.float16.few". For every GPU architecture it has a list of
*tilings*, the preferred one first; `kernels.compile.choose` takes the first that the compiler can hold in registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton.language as tl
from triton import knobs

from fusioner_rt.gpu import kernel_contract
from fusioner_rt.gpu.kernel_contract import EXTRAS, FEW_WORDS, SCORINGS, Grid, base_name
from kernels.names import names_kernel
from kernels.resize import resize_columns_kernel, resize_rows_kernel
from kernels.resolve import labels_kernel, masks_kernel, probabilities_kernel, softmax_masks_kernel
from kernels.score_maps import maps_kernel, measure_kernel

TARGETS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
"""Compute capabilities with cubins of their own, times ten. 87 and 110 are Tegra's (Jetson Orin and Thor), which takes no
cubin of a desktop GPU."""

FEATURE_TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
OUTPUT_TYPES = {"float16": "*fp16", "float32": "*fp32"}
RESIZES = {"rows": resize_rows_kernel, "columns": resize_columns_kernel}
PIXEL_TYPES = {"uint8": "*u8", "float32": "*fp32"}
"""What a resize writes: pixels for the next one, or normalised planes."""
DOT_TYPES = {"float16": tl.float16, "bfloat16": tl.bfloat16, "float32": tl.float32}
PARTS = 4 if knobs.runtime.interpret else kernel_contract.PARTS
"""The interpreter takes one program after another."""


@dataclass(frozen=True)
class Tiling:
    """How much one program does. constants: the kernel's constexpr tile edges. grid: see Grid."""

    constants: Mapping[str, int]
    grid: Grid
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Variant:
    """kernel: the jitted function. types: of its run-time arguments, in order. constants: constexprs but the tile's.

    multiples: arguments promised to be multiples of 16 (pointers: bytes), which lets loads be wide.
    fused: whether a product and a sum may become one instruction, which rounds once where two round twice.
    """

    kernel: Any
    types: Mapping[str, str]
    tilings: Sequence[Tiling]
    constants: Mapping[str, Any] = field(default_factory=dict)
    multiples: Sequence[str] = ()
    fused: bool = True


def names(features: Sequence[str] = tuple(FEATURE_TYPES), scorings: Sequence[str] = tuple(SCORINGS)) -> list[str]:
    """Every variant for features of the dtypes and for the scorings given: the mask head's, stage 1 first, then that of
    names and those of preprocessing.
    """
    first = [name for dtype in features for name in (f"measure.{dtype}", f"maps.{dtype}.few", f"maps.{dtype}.many")]
    labels = [f"labels.{dtype}.{many}" for dtype in OUTPUT_TYPES for many in ("few", "many")]
    second = [*labels, "probabilities.float16", "probabilities.float32", "masks"]
    scored = [SCORINGS[scoring] + name for scoring in scorings for name in second]
    looked_up = [f"names.{dtype}" for dtype in OUTPUT_TYPES]
    return [*first, *scored, *looked_up, *(f"resize_{axis}.{dtype}" for axis in RESIZES for dtype in PIXEL_TYPES)]


def shipped(extras: Iterable[str] = (), scoring: str = "sigmoid") -> list[str]:
    """The variants of a bundle: what sessions launch, and what the names in EXTRAS bring. scoring: the bundle's."""
    left_out = {name for extra in EXTRAS.keys() - set(extras) for name in EXTRAS[extra]}
    return [name for name in names(("float16", "float32"), (scoring,)) if base_name(name) not in left_out]


def exists(name: str, capability: int) -> bool:
    """Turing has no bfloat16."""
    return capability >= 80 or ".bfloat16" not in name


def variant(name: str, capability: int) -> Variant:
    """One of `names`, with its tilings for a compute capability (times ten)."""
    kind, *types = name.split(".")
    if kind == "measure":
        return _measure(types[0])
    if kind == "maps":
        return _maps(types[0], few=types[1] == "few", capability=capability)
    if kind == "names":
        return _names(types[0])
    if kind.startswith("resize_"):
        return _resize(kind.removeprefix("resize_"), types[0])
    softmax, kind = kind != base_name(kind), base_name(kind)
    if kind == "labels":
        return _labels(types[0], types[1] == "few", softmax)
    return _probabilities(types[0], softmax) if kind == "probabilities" else _masks(softmax)


def _measure(dtype: str) -> Variant:
    parts = 0 if dtype == "float16" else PARTS
    look: Grid = ((("one", parts),), (("words", 16),)) if parts else ((("words", 16),),)
    return Variant(
        measure_kernel,
        {"features": FEATURE_TYPES[dtype], "words": FEATURE_TYPES[dtype], "parts": "*i32", "units": "*fp32",
         "inverses": "*fp32", "finite": "*i32", "N": "i32", "K": "i32", "d": "i32"},
        [Tiling({"VALUES": 4096, "WORDS": 16, "CHANNELS": 64}, look)],
        {"PARTS": parts},
        ("features", "words", "parts", "units", "inverses", "d"),
    )  # fmt: skip


def _maps(dtype: str, few: bool, capability: int) -> Variant:
    def tiling(positions: int, words: int, channels: int, warps: int, stages: int = 3) -> Tiling:
        constants = {
            "POSITIONS": positions, "WORDS": words, "CHANNELS": channels, "GRAM_POSITIONS": 4 * warps,
            "GRAM_CHANNELS": 64,
        }  # fmt: skip
        grid = ((("positions", 4 * warps),), (("positions", positions), ("words", words)))
        return Tiling(constants, grid, warps, stages)

    wide = 32 if dtype == "float32" else 64
    if capability < 80:  # no tensor-core products there: small tiles, every product in a register
        tilings = [tiling(32, 16, 32, 4, 1), tiling(16, 16, 32, 4, 1), tiling(16, 16, 16, 4, 1)]
    elif few:
        tilings = [tiling(64, 32, wide, 4), tiling(64, 32, 32, 4), tiling(32, 32, 32, 4)]
    else:
        tilings = [tiling(128, 128, wide, 8), tiling(128, 64, wide, 8), tiling(64, 64, 32, 8), tiling(64, 64, 32, 4)]
    precision = "tf32x3" if dtype == "float32" and capability >= 80 else "ieee"
    return Variant(
        maps_kernel,
        {"features": FEATURE_TYPES[dtype], "words": FEATURE_TYPES[dtype], "parts": "*i32", "units": "*fp32",
         "inverses": "*fp32", "scores": "*fp32", "gram": "*fp32", "finite": "*i32", "h": "i32", "w": "i32", "K": "i32", "d": "i32"},
        tilings,
        {"PARTS": 0 if dtype == "float16" else PARTS, "DOT": DOT_TYPES[dtype], "PRECISION": precision},
        ("features", "words", "parts", "units", "inverses", "scores", "gram", "d"),
    )  # fmt: skip


def _resolved(outputs: Mapping[str, str], scalars: Sequence[str]) -> dict[str, str]:
    whole = dict.fromkeys(("h", "w", "K", "H", "W", "band_rows"), "i32")
    return {"scores": "*fp32", "gram": "*fp32", **outputs, **whole, **dict.fromkeys(scalars, "fp32")}


def _tilings(columns: Sequence[int], **constants: int) -> list[Tiling]:
    """Eight rows: most bands are taller, and of a tile's rows few stay idle."""
    return [
        Tiling(
            {"ROWS": 8, "COLUMNS": wide, **constants}, ((("bands", 1), ("band_rows", 8), ("columns", wide)),), stages=1
        )
        for wide in columns
    ]


def _labels(dtype: str, few: bool, softmax: bool) -> Variant:
    """Of few words a tile is sixteen rows tall, as bands of 2048 pixels from maps of 128 are: candidates are found once
    for all of them. Four rows at a time fill the registers.
    """
    types = _resolved({"labels": "*u16", "confidence": OUTPUT_TYPES[dtype]}, ("inverse_temperature", "threshold"))
    tall = 16 if few else 4
    tilings = [
        Tiling(
            {"ROWS": 4, "TILE_ROWS": tall, "COLUMNS": wide, "WORDS": FEW_WORDS, "POINTS": 16},
            ((("bands", 1), ("band_rows", tall), ("columns", wide)),), stages=1,
        )
        for wide in (512, 256)
    ]  # fmt: skip
    return Variant(
        labels_kernel, types, tilings, {"FEW": few, "SOFTMAX": softmax}, ("scores", "gram", "labels", "confidence")
    )


def _probabilities(dtype: str, softmax: bool) -> Variant:
    types = _resolved({"probabilities": OUTPUT_TYPES[dtype]}, ("inverse_temperature",))
    multiples = ("scores", "gram", "probabilities")
    return Variant(probabilities_kernel, types, _tilings((128,)), {"SOFTMAX": softmax}, multiples)


def _masks(softmax: bool) -> Variant:
    scalars = ("inverse_temperature", "threshold") if softmax else ("least_cosine",)
    types, kernel = _resolved({"masks": "*i32"}, scalars), softmax_masks_kernel if softmax else masks_kernel
    return Variant(kernel, types, _tilings((128,)), multiples=("scores", "gram", "masks"))


def _names(dtype: str) -> Variant:
    return Variant(
        names_kernel,
        {"labels": "*u16", "confidence": OUTPUT_TYPES[dtype], "owners": "*u16", "thresholds": "*fp32", "N": "i32"},
        [Tiling({"PIXELS": 1024}, ((("pixels", 1024),),), stages=1)],
        multiples=("labels", "confidence", "owners", "thresholds"),
    )


def _resize(axis: str, dtype: str) -> Variant:
    scale = [f"{what}_{channel}" for what in ("gain", "shift") for channel in ("red", "green", "blue")]
    lengths = ("H", "W", "w" if axis == "rows" else "h", "T")
    return Variant(
        RESIZES[axis],
        {"pictures": "*u8", "first": "*i32", "weights": "*i32", "out": PIXEL_TYPES[dtype],
         **dict.fromkeys(scale, "fp32"), **dict.fromkeys(lengths, "i32")},
        [Tiling({"ROWS": 4, "VALUES": 256}, ((("rows", 4), ("values", 256)),), stages=1)],
        {"PLANES": dtype == "float32"},
        ("pictures", "first", "weights", "out"),
        fused=False,
    )  # fmt: skip
