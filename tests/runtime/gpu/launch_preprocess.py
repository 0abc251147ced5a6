"""Preprocesses by a bundle's cubins on a GPU, in a process without torch, and compares with the CPU's bits:
python launch_preprocess.py KERNELS, the folder that holds abi.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import gpu_proofs
from fusioner_rt.gpu.driver import Device
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.preprocess import RESAMPLINGS


def main(folder: Path) -> None:
    device = Device()
    kernels = Kernels(folder, device)
    for resample in RESAMPLINGS:
        gpu_proofs.preprocess(kernels, gpu_proofs.SMALL_RESIZES + gpu_proofs.LARGE_RESIZES, resample)
    kernels.close()
    device.close()
    assert "torch" not in sys.modules
    assert "triton" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]))
