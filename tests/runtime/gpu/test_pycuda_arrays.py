"""Arrays as PyCUDA describes them, which is not installed where these tests run: strides always, and never a stream."""

from __future__ import annotations

from pathlib import Path

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from made_pictures import scene

from fusioner_rt import Session


class GPUArray:
    """What pycuda.gpuarray.GPUArray gives of itself (2026.1)."""

    def __init__(self, gpu: EmulatedGpu, array: np.ndarray, stream: int | None = None) -> None:
        self.pointer, self.shape, self.dtype = gpu.lay(array, stream), array.shape, array.dtype
        self.__cuda_array_interface__ = {
            "shape": array.shape, "strides": array.strides, "data": (self.pointer, False), "typestr": array.dtype.str,
            "stream": None, "version": 3,
        }  # fmt: skip

    def get(self) -> np.ndarray:
        return emulated_gpu.at(self.pointer, self.shape, self.dtype.name)


def test_frames_and_masks_of_pycuda_stay_where_they_lie(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    with Session(planned, backend="tensorrt-rtx", cache=False) as session:
        session.set_vocabulary(["cat", "tree"])
        frame = GPUArray(gpu, scene(61, 93), stream=55)
        out = GPUArray(gpu, np.zeros((61, 93), np.uint16)), GPUArray(gpu, np.zeros((61, 93), np.float32))
        for _ in range(3):
            session.segment_on_device(frame, stream=55, out=out)
        gpu.finish(55)
        host = session.segment(scene(61, 93))
        np.testing.assert_array_equal(out[0].get(), host.labels)
        np.testing.assert_array_equal(out[1].get(), host.confidence)
    assert not gpu.wrong
