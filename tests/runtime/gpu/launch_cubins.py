"""Runs the mask head's cubins on a GPU in a process without torch: python launch_cubins.py FOLDER DTYPE.

FOLDER holds `kernels` and inputs.npz (features (2, 61, 83, 256) and vectors (2, K, 256), as bytes); outputs.npz is written.
"""

import sys
from pathlib import Path

import numpy as np

from fusioner_rt.device_array import DTYPES, DeviceArray
from fusioner_rt.gpu.driver import Device, Memory, Stream
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.mask_head import CudaMaskHead


def main(folder: Path, dtype: str) -> None:
    device = Device()
    kernels = Kernels(folder / "kernels", device)
    heads = {scoring: CudaMaskHead(kernels, 0.07, scoring) for scoring in ("sigmoid", "softmax")}
    memories: dict[int, Memory] = {}

    def new(shape: tuple[int, ...], kind: str) -> DeviceArray:
        memory = Memory(device, DeviceArray(0, shape, kind).nbytes)
        memories[memory.pointer] = memory
        return DeviceArray(memory.pointer, shape, kind)

    with np.load(folder / "inputs.npz") as inputs, Stream(device) as stream:
        features = new((*inputs["features"].shape[:-1], inputs["features"].shape[-1] // DTYPES[dtype]), dtype)
        vectors = new((*inputs["vectors"].shape[:-1], inputs["vectors"].shape[-1] // DTYPES[dtype]), dtype)
        memories[features.pointer].upload(inputs["features"], stream.handle)
        memories[vectors.pointer].upload(inputs["vectors"], stream.handle)
        pictures, height, width, _ = features.shape
        words = vectors.shape[1]
        out = {
            "scores": new((pictures, words, height, width), "float32"),
            "gram": new((pictures, 5, height, width), "float32"),
            "finite": new((pictures,), "int32"),
        }
        maps = out["scores"], out["gram"]
        workspace = new((CudaMaskHead.workspace_bytes(features.shape, words),), "uint8")
        heads["sigmoid"].maps(features, vectors, workspace, *maps, out["finite"], stream.handle)
        for scoring, head in heads.items():
            labels = out[f"{scoring}_labels"] = new((pictures, 517, 773), "uint16")
            confidence = out[f"{scoring}_confidence"] = new((pictures, 517, 773), "float16")
            every = out[f"{scoring}_probabilities"] = new((pictures, words, 117, 73), "float32")
            bits = out[f"{scoring}_masks"] = new((pictures, words, 517, 25), "int32")
            head.labels(*maps, 0.5, labels, confidence, stream.handle)
            head.probabilities(*maps, every, stream.handle)
            head.masks(*maps, 0.6, bits, 773, stream.handle)
        results = {
            name: memories[array.pointer].download(np.empty(array.shape, array.dtype), stream.handle)
            for name, array in out.items()
        }
    np.savez(folder / "outputs.npz", **results)
    kernels.close()
    for memory in memories.values():
        memory.close()
    device.close()
    assert "torch" not in sys.modules
    assert "triton" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
