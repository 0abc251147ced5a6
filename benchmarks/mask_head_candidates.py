"""The ways to a label map that benchmarks/mask_head.py compares: what each computes, needs and moves.

naive    plain torch: upsample all d channels, normalise, multiply, sigmoid, label map
compile  the same through torch.compile
lowres   the usual approximation: cosines at low resolution, upsampled; another function, so its error is reported
onnx     the naive form as an ONNX graph in ONNX Runtime (CPU)
ours     the mask head: ONNX Runtime graphs on the CPU, the demonstration bundle's kernels on a GPU
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import gpu_timing
from benchmarks.latency_candidates import naive_head
from benchmarks.latency_models import THRESHOLD
from export.onnx import mask_head_graphs
from fusioner_rt.bundle import Bundle
from fusioner_rt.gpu.driver import Device
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.mask_head import CudaMaskHead
from fusioner_rt.onnx.mask_head import BAND_BYTES, MaskHead
from fusioner_rt.onnx.runtime import OnnxRuntime

TEMPERATURE = 0.07
BUNDLE = Path(__file__).resolve().parents[1] / "models" / "demo" / "bundle"
TITLES = {
    "naive": "naive torch", "compile": "torch.compile", "lowres": "low-resolution logits",
    "onnx": "naive ONNX", "ours": "ours",
}  # fmt: skip

Stage = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class Case:
    """One cell: label map of size² pixels from low² features of `channels`, for `words` words."""

    maps: str  # random or smooth
    size: int
    channels: int
    words: int
    low: int
    dtype: str  # float32, float16, bfloat16
    device: str  # cpu, cuda

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Features (1, h, w, d) and words (1, K, d). Always the same ones for the same case.

        random: normal numbers; every word is as good as any other everywhere, which no model's maps are.
        smooth: eight Voronoi regions, each with a word: 0.6 of the word's direction and 0.8 of one of its own; blurred
        over 3×3 positions as a decoder does, plus white noise of 0.3 of the length. Few words can win below a tile.
        """
        generator = torch.Generator().manual_seed(self.size + self.channels + self.words)
        words = torch.randn(self.words, self.channels, generator=generator)
        noise = torch.randn(self.low, self.low, self.channels, generator=generator)
        if self.maps == "random":
            features = noise
        else:
            seeds = torch.rand(8, 2, generator=generator) * self.low
            places = torch.cartesian_prod(*[torch.arange(self.low, dtype=torch.float32)] * 2)
            region = F.one_hot(torch.cdist(places, seeds).argmin(1), 8).float().T.reshape(1, 8, self.low, self.low)
            region = F.avg_pool2d(F.pad(region, (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
            chosen = words[torch.randint(self.words, (8,), generator=generator)]
            prototypes = 0.6 * chosen + 0.8 * torch.randn(8, self.channels, generator=generator)
            features = torch.einsum("rhw,rd->hwd", region, prototypes) + 0.3 * noise
        return features[None].to(self.device, self.torch_dtype), words[None].to(self.device, self.torch_dtype)


@dataclass(frozen=True)
class Candidate:
    """stages run one after the other, each on the results of the one before, the first on `inputs`; the last returns
    labels and confidence. exact: held to the float64 truth. replay: milliseconds of every stage without what its launch
    from Python takes, where it can be told.
    """

    name: str
    inputs: tuple[Any, Any]
    stages: Mapping[str, Stage]
    exact: bool = True
    replay: Callable[[], list[float]] | None = None


def low_resolution_labels(features: Tensor, words: Tensor, size: int) -> tuple[Tensor, Tensor]:
    cosine = torch.einsum("bhwd,bkd->bkhw", F.normalize(features, dim=-1), F.normalize(words, dim=-1))
    cosine = F.interpolate(cosine, size=(size, size), mode="bilinear", align_corners=False)
    best, label = cosine.max(dim=1)  # the winner is found before the sigmoid, which keeps order
    confidence = torch.sigmoid(best / TEMPERATURE)
    return torch.where(confidence > THRESHOLD, label + 1, 0), confidence


def candidate(name: str, case: Case, inputs: tuple[Tensor, Tensor], threads: int) -> Candidate:
    """Built and, for torch.compile, compiled."""
    naive = naive_head((case.size, case.size), TEMPERATURE)
    if name == "naive":
        return Candidate(name, inputs, {"all": naive})
    if name == "lowres":
        return Candidate(name, inputs, {"all": lambda f, w: low_resolution_labels(f, w, case.size)}, exact=False)
    if name == "compile":
        torch.compiler.reset()  # past eight shapes it would give up compiling, and silently run the naive form
        compiled = torch.compile(naive, fullgraph=True, dynamic=False)
        compiled(*inputs)
        return Candidate(name, inputs, {"all": compiled})
    if case.device == "cuda":
        return _ours_on_gpu(case, inputs)
    arrays = inputs[0].numpy(), inputs[1].numpy()
    return Candidate(
        name, arrays, {"all": _naive_onnx(case, threads)} if name == "onnx" else _ours_on_cpu(case, threads)
    )


def _ours_on_cpu(case: Case, threads: int) -> dict[str, Stage]:
    runtime = OnnxRuntime("onnxruntime-cpu", threads)

    def load(name: str, argument: float, own_threads: int | None = None) -> Any:
        graph = getattr(mask_head_graphs, f"{name}_graph")(argument)
        return runtime.load(Path(f"mask_{name}.onnx"), graph.SerializeToString(), own_threads)

    head = MaskHead(
        load("scores", case.channels), load("tiles", TEMPERATURE, 1), load("probabilities", TEMPERATURE), threads
    )  # fmt: skip
    return {"maps": head.maps, "labels": lambda s, g: head.labels(s, g, (case.size, case.size), THRESHOLD)}


def _ours_on_gpu(case: Case, inputs: tuple[Tensor, Tensor]) -> Candidate:
    """The demonstration bundle's kernels by the runtime's launcher; timed by replay of recordings over rotated buffers,
    which Python's launches do not enter.
    """
    device = Device(torch.cuda.current_device())
    kernels = Kernels(Bundle.open(BUNDLE).kernels_folder, device)
    head, size = CudaMaskHead(kernels, TEMPERATURE), (case.size, case.size)
    new = functools.partial(torch.empty, device="cuda")
    workspace = new(CudaMaskHead.workspace_bytes(inputs[0].shape, case.words), dtype=torch.uint8)
    finite = new(1, dtype=torch.int32)

    def empty_maps() -> tuple[Tensor, Tensor]:
        return new(1, case.words, case.low, case.low), new(1, 5, case.low, case.low)

    def empty_labels() -> tuple[Tensor, Tensor]:
        return new(1, *size, dtype=torch.uint16), new(1, *size, dtype=torch.float16)

    def maps(features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        out = empty_maps()
        head.maps(features, words, workspace, *out, finite, torch.cuda.current_stream().cuda_stream)
        return out

    def labels(scores: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        out = empty_labels()
        head.labels(scores, gram, THRESHOLD, *out, torch.cuda.current_stream().cuda_stream)
        return out

    def replay() -> list[float]:
        ready = maps(*inputs)
        features = [inputs[0].clone() for _ in range(gpu_timing.rotations(inputs[0].nbytes))]
        outputs = [empty_labels() for _ in range(gpu_timing.rotations(4 * case.size**2))]
        torch.cuda.synchronize()
        taken = gpu_timing.mask_head_stages(
            device, head, features, inputs[1], workspace, ready, finite, outputs, THRESHOLD
        )
        return [microseconds / 1000 for microseconds in taken]

    return Candidate("ours", inputs, {"maps": maps, "labels": labels}, replay=replay)


def _naive_onnx(case: Case, threads: int) -> Stage:
    model = mask_head_graphs.naive_graph(case.channels, TEMPERATURE)
    graph = OnnxRuntime("onnxruntime-cpu", threads).load(Path("naive.onnx"), model.SerializeToString())

    def run(features: Any, refined: Any) -> tuple[Any, Any]:
        size, threshold = np.array([case.size, case.size]), np.array(THRESHOLD, np.float32)
        out = graph({"features": features, "refined": refined, "size": size, "threshold": threshold})
        return out["labels"], out["confidence"]

    return run


def sizes(name: str, case: Case) -> dict[str, int]:
    """Bytes, from the algorithm and not from a counter.

    needs_bytes   at the peak, above the inputs
    bytes_moved   read and written by the steps: each large array once a step, what stays in a cache within one not at all
    bytes_must    what no way to the label map avoids: inputs read once, labels and confidence written
    output_bytes  labels and confidence alone: uint16, and float32 or on a GPU float16
    """
    item, pixels, low = case.torch_dtype.itemsize, case.size**2, case.low**2
    d, k, maps = case.channels, case.words, 4 * (case.words + 5) * case.low**2
    inputs, outputs = item * d * (low + k), pixels * (6 if case.device == "cpu" else 4)
    wide = 24 * pixels  # torch's labels are int64, and where() and max() have temporaries
    if name in ("naive", "onnx"):
        # write up; read it for the norm; read and write to divide; read to multiply. K maps: product, /τ, sigmoid, max
        needs, moved = item * pixels * max(2 * d, d + 3 * k) + wide, inputs + item * pixels * (5 * d + 6 * k) + outputs
    elif name == "compile":
        needs, moved = item * pixels * (d + k) + wide, inputs + item * pixels * (2 * d + 2 * k) + outputs
    elif name == "lowres":
        # features: norm, divide, multiply. K maps: interpolate, max
        needs, moved = item * pixels * k + wide + 2 * inputs, 4 * inputs + item * pixels * 2 * k + outputs
    else:
        # features to maps, maps to outputs
        needs, moved = 6 * inputs + 2 * maps + outputs + BAND_BYTES, inputs + 2 * maps + outputs
    return {"needs_bytes": needs, "bytes_moved": moved, "bytes_must": inputs + outputs, "output_bytes": outputs}
