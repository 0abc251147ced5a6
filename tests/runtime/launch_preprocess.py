"""Preprocesses by a bundle's cubins on a GPU, in a process without torch, and compares with the CPU's bits:
python launch_preprocess.py KERNELS, the folder that holds abi.json.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from fusioner_rt.cuda_driver import Device, Memory, Stream
from fusioner_rt.cuda_kernels import Kernels
from fusioner_rt.cuda_preprocess import CudaPreprocess
from fusioner_rt.preprocess import RESAMPLINGS, Preprocessing

Case = tuple[int, tuple[int, int], tuple[int, int]]  # pictures, H×W, h×w
SMALL: list[Case] = [
    (2, (37, 53), (24, 40)),  # both axes, the rows first
    (1, (90, 11), (8, 13)),  # the columns first
    (3, (21, 17), (21, 40)),  # one axis
    (2, (30, 7), (9, 7)),
    (2, (9, 14), (9, 14)),  # none
]
LARGE: list[Case] = [
    (2, (3001, 4003), (288, 384)),
    (4, (427, 640), (256, 384)),
    (1, (4000, 700), (544, 96)),
    (1, (5, 7), (801, 1111)),
]


def check(kernels: Kernels, cases: list[Case], resample: str) -> None:
    """Raises AssertionError where a bit differs, or a byte was written that is not the launch's."""
    preprocessing = Preprocessing(320, 1, 4096, resample, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    launcher = CudaPreprocess(kernels, preprocessing)
    device, random = kernels.device, np.random.default_rng(0)
    for count, before, size in cases:
        pictures = np.where(random.random((count, *before, 3)) > 0.5, 255, random.integers(0, 256)).astype(np.uint8)
        plan = launcher.plan(*before, size)
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(Stream(device))

            def held(array: np.ndarray, stack: contextlib.ExitStack = stack, stream: Stream = stream) -> Memory:
                memory = stack.enter_context(Memory(device, array.nbytes))
                memory.upload(array, stream.handle)
                return memory

            guard, needed = 64, plan.workspace_bytes(count)
            source, tables = held(pictures), held(plan.tables)
            between = held(np.full(needed + guard, 77, np.uint8))
            pixels = held(np.full(count * 3 * size[0] * size[1] + guard, 77, np.float32))
            for _ in range(2):  # the second finds the kernels loaded
                launcher.launch(
                    source.pointer, count, plan, tables.pointer, between.pointer, pixels.pointer, stream.handle
                )
            found = pixels.download(np.empty(count * 3 * size[0] * size[1] + guard, np.float32), stream.handle)
            work = between.download(np.empty(needed + guard, np.uint8), stream.handle)
        expected = np.stack([preprocessing(picture, size) for picture in pictures])
        np.testing.assert_array_equal(
            found[:-guard].reshape(expected.shape), expected, f"{before} to {size} {resample}"
        )
        assert (found[-guard:] == 77).all()
        assert (work[-guard:] == 77).all()


def main(folder: Path) -> None:
    device = Device()
    kernels = Kernels(folder, device)
    for resample in RESAMPLINGS:
        check(kernels, SMALL + LARGE, resample)
    kernels.close()
    device.close()
    assert "torch" not in sys.modules
    assert "triton" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]))
