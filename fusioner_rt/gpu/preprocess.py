"""Preprocessing on a GPU: pictures in its memory to the network's input, with the bits of `Preprocessing` on the CPU.

It launches the bundle's kernels with the tables of `fusioner_rt.gpu.resize_tables`. A launch allocates and copies nothing:
pictures, tables, workspace and output are the caller's, so that a graph may capture it.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import PictureInvalid, UsageError
from ..preprocess import Preprocessing
from .argument_checks import check_address
from .kernel_contract import ALIGNMENT, MAX_EDGE, MAX_PICTURES, MAX_VALUES, resize_sizes
from .kernel_launcher import Kernels
from .resize_tables import columns_first, taps

_AXES = ("columns", "rows")


@dataclass(frozen=True)
class Pass:
    """A resize along one axis, 0 the columns, 1 the rows. before, after: rows and columns. first, weights: bytes into
    the plan's tables.
    """

    axis: int
    kernel: str
    before: tuple[int, int]
    after: tuple[int, int]
    taps: int
    first: int
    weights: int


@dataclass(frozen=True, eq=False)
class ResizePlan:
    """How pictures of one size become inputs of one size; whoever makes many keeps it.

    before, after: H, W and h, w. passes: one or two; all but the last write 8-bit pixels. tables: (n,) int32, which the
    caller uploads once, to an address that is a multiple of 16.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    passes: tuple[Pass, ...]
    tables: np.ndarray

    def workspace_bytes(self, batch: int) -> int:
        """Bytes of GPU memory between the passes of a batch; 0 where there is one pass."""
        return sum(_values(one.after) for one in self.passes[:-1]) * batch


class CudaPreprocess:
    """Both steps, resize and normalisation, on one GPU. Threads may share it, each with its own stream and memory."""

    def __init__(self, kernels: Kernels, preprocessing: Preprocessing) -> None:
        self._kernels, self._preprocessing = kernels, preprocessing
        gain, shift = preprocessing.gain_and_shift()
        channels = ("red", "green", "blue")
        self._scale = {f"gain_{name}": float(value) for name, value in zip(channels, gain, strict=True)}
        self._scale |= {f"shift_{name}": float(value) for name, value in zip(channels, shift, strict=True)}

    def plan(self, height: int, width: int, size: tuple[int, int] | None = None) -> ResizePlan:
        """For pictures of height x width pixels. size: (h, w) of the result, by default `Preprocessing.input_size`.

        Keep it: the tables are computed on the CPU. Raises PictureInvalid, UsageError.
        """
        after = self._preprocessing.input_size(height, width) if size is None else (int(size[0]), int(size[1]))
        before = (height, width)
        if min(before) < 1 or max(before) > MAX_EDGE:
            raise PictureInvalid(
                f"a picture of {width}x{height} pixels; the kernels take edges of 1 to {MAX_EDGE}",
                "make it smaller first",
            )
        if min(after) < 1 or max(after) > MAX_EDGE:
            raise UsageError(
                f"size is {after[1]}x{after[0]} pixels; the kernels make edges of 1 to {MAX_EDGE}", "give a smaller one"
            )
        order = (0, 1) if columns_first(before, after) else (1, 0)
        axes = [axis for axis in order if before[axis] != after[axis]] or [0]  # at least one: it normalises
        passes, parts, length = [], [], 0
        sizes = [before]
        for axis in axes:
            now = sizes[-1]
            following = (after[0], now[1]) if axis == 0 else (now[0], after[1])
            first, weights = taps(now[axis], following[axis], self._preprocessing.resample)
            places = []
            for table in (first, weights.T):  # taps outermost: neighbouring threads read neighbouring weights
                places.append(4 * length)
                parts.append(np.pad(table.ravel(), (0, -table.size % (ALIGNMENT // 4))))
                length += parts[-1].size
            kind = "float32" if axis == axes[-1] else "uint8"
            passes.append(Pass(axis, f"resize_{_AXES[axis]}.{kind}", now, following, weights.shape[1], *places))
            sizes.append(following)
        for rows, columns in sizes:
            if _values((rows, columns)) > MAX_VALUES:
                raise PictureInvalid(
                    f"{columns}x{rows} pixels of a picture of {width}x{height} resized to {after[1]}x{after[0]}",
                    "the kernels count to 2**30 values, three a pixel: make it smaller first",
                )
        return ResizePlan(before, after, tuple(passes), np.concatenate(parts))

    def launch(
        self, pictures: int, batch: int, plan: ResizePlan, tables: int, workspace: int, pixels: int, stream: int
    ) -> None:
        """Preprocess a batch; returns at once, the stream does the work.

        Addresses in this GPU's memory, all multiples of 16: pictures (B, H, W, 3) uint8, contiguous; tables, the plan's;
        workspace, at least `plan.workspace_bytes(batch)`, anything where that is 0; pixels (B, 3, h, w) float32 out.
        stream: CUstream as an integer. The first launch of a pass loads its kernel: launch once before a capture.
        Raises DeviceArrayInvalid, KernelsUnusable, CudaFailed, UsageError.
        """
        if not 1 <= batch <= MAX_PICTURES:
            raise UsageError(f"a batch of {batch} pictures; expected 1 to {MAX_PICTURES}")
        needed = {"pictures": pictures, "tables": tables, "pixels": pixels}
        if plan.workspace_bytes(1):
            needed["workspace"] = workspace
        self._check(needed)
        source = pictures
        for one in plan.passes:
            out = pixels if one is plan.passes[-1] else workspace
            arguments: dict[str, int | float] = {
                "pictures": source, "first": tables + one.first, "weights": tables + one.weights, "out": out,
                **self._scale, "H": one.before[0], "W": one.before[1], "hw"[one.axis]: one.after[one.axis], "T": one.taps,
            }  # fmt: skip
            self._kernels.launch(one.kernel, batch, resize_sizes(*one.after), arguments, stream)
            source = out

    def _check(self, addresses: dict[str, int]) -> None:
        for name, address in addresses.items():
            check_address(name, address)
            self._kernels.device.check_owns(address, name)


def _values(size: tuple[int, int]) -> int:
    return 3 * size[0] * size[1]
