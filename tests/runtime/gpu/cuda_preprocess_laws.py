"""Preprocessing's launcher end to end without a GPU: its launches run by Triton's interpreter in emulated device memory.

Run by test_preprocess_on_gpu.py in a process of its own (the interpreter is chosen when Triton is imported), with the
compiled kernels' folder in COMPILED_KERNELS.
"""

from __future__ import annotations

import pytest
from cuda_laws import Gpu

from benchmarks import gpu_proofs


@pytest.mark.parametrize("resample", ["bicubic"])
def test_launches_from_the_record_give_the_bits_of_the_cpu(resample: str) -> None:
    gpu = Gpu()
    gpu_proofs.preprocess(gpu.kernels, gpu_proofs.SMALL_RESIZES, resample)
    gpu.kernels.close()
    assert gpu.driver.contexts == 0
    assert gpu.driver.memory == {}
