"""The launcher end to end without a GPU: its launches run by Triton's interpreter in emulated device memory.

Run by test_mask_head.py in a process of its own (the interpreter is chosen when Triton is imported), with the
compiled kernels' folder in COMPILED_KERNELS.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_driver import EmulatedDriver

from benchmarks import gpu_proofs
from fusioner_rt.device_array import DeviceArray
from fusioner_rt.gpu.driver import Device, Driver, Memory, Stream
from fusioner_rt.gpu.kernel_contract import PARTS, SCORINGS
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.mask_head import CudaMaskHead
from kernels import mask_head
from kernels.variants import variant

FOLDER = Path(os.environ["COMPILED_KERNELS"])
TEMPERATURE = 0.07
VIEWS = {"*fp16": np.float16, "*fp32": np.float32, "*i32": np.int32, "*u16": np.uint16, "*u8": np.uint8}


class Gpu:
    """A device whose kernels are interpreted, and arrays in its memory."""

    def __init__(self) -> None:
        self.driver = EmulatedDriver(execute=self.interpret)
        self.device = Device(0, Driver(self.driver))
        self.kernels = Kernels(FOLDER, self.device)
        self.heads = {scoring: CudaMaskHead(self.kernels, TEMPERATURE, scoring) for scoring in SCORINGS}
        self.arrays: dict[int, tuple[Memory, DeviceArray]] = {}

    def interpret(self, code: bytes, grid: tuple[int, int], values: tuple) -> None:
        (name,) = (name for name in self.kernels.record.names
                   if self.kernels.record.launches(name, (8, 0))[0].file.read_bytes() + b"\0" == code)  # fmt: skip
        launch, chosen = self.kernels.record.launches(name, (8, 0))[0], variant(name, 80)
        arguments = [
            self.view(int(value), VIEWS[kind]) if kind.startswith("*") else value
            for value, (_, kind) in zip(values, launch.arguments, strict=True)
        ]
        constants = {**chosen.constants, **launch.tile}
        if constants.get("PARTS"):
            constants["PARTS"] = PARTS  # as compiled
        chosen.kernel[grid](*arguments, **constants)

    def view(self, address: int, dtype: type) -> torch.Tensor:
        start, piece = next((s, p) for s, p in self.driver.memory.items() if s <= address < s + len(p))
        rest = piece[address - start :]
        return torch.from_numpy(rest[: len(rest) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype))

    def put(self, array: np.ndarray) -> DeviceArray:
        memory = Memory(self.device, array.nbytes)
        memory.upload(array)
        held = DeviceArray(memory.pointer, array.shape, array.dtype.name)
        self.arrays[memory.pointer] = memory, held
        return held

    def get(self, array: DeviceArray) -> np.ndarray:
        return self.arrays[array.pointer][0].download(np.empty(array.shape, array.dtype))

    def new(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self.put(np.full(shape, 77, dtype))


@pytest.mark.parametrize(
    ("dtype", "pictures", "words", "low", "channels", "size"),
    [
        ("float16", 2, 5, (1, 3), 48, (5, 300)),
        pytest.param("float16", 2, 5, (3, 7), 48, (17, 300), marks=pytest.mark.slow),
        ("float16", 1, 40, (1, 1), 16, (5, 33)),
        ("float32", 1, 3, (4, 3), 16, (3, 64)),
    ],
)
def test_launches_from_the_record_do_what_the_kernels_do_from_torch(dtype, pictures, words, low, channels, size):
    random = np.random.default_rng(0)
    features = random.standard_normal((pictures, *low, channels)).astype(dtype)
    vectors = random.standard_normal((pictures, words, channels)).astype(dtype)
    scores, gram = mask_head.score_maps(torch.from_numpy(features), torch.from_numpy(vectors))

    gpu = Gpu()
    with Stream(gpu.device) as stream:
        workspace = gpu.new((CudaMaskHead.workspace_bytes(features.shape, words),), "uint8")
        maps = gpu.new(tuple(scores.shape), "float32"), gpu.new(tuple(gram.shape), "float32")
        finite = gpu.new((pictures,), "int32")
        gpu.heads["sigmoid"].maps(gpu.put(features), gpu.put(vectors), workspace, *maps, finite, stream.handle)
        assert (gpu.get(finite) == 1).all()
        np.testing.assert_array_equal(gpu.get(maps[0]), scores)
        np.testing.assert_array_equal(gpu.get(maps[1]), gram)

        for scoring, head in gpu.heads.items():
            labels, confidence = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.6, scoring=scoring)
            out = gpu.new((pictures, *size), "uint16"), gpu.new((pictures, *size), "float32")
            head.labels(*maps, 0.6, *out, stream.handle)
            np.testing.assert_array_equal(gpu.get(out[0]), labels)
            np.testing.assert_array_equal(gpu.get(out[1]), confidence)

            probabilities = gpu.new((pictures, words, *size), "float16")
            head.probabilities(*maps, probabilities, stream.handle)
            every = mask_head.probabilities(scores, gram, size, TEMPERATURE, torch.float16, scoring)
            np.testing.assert_array_equal(gpu.get(probabilities), every)

            bits = gpu.new((pictures, words, size[0], -(-size[1] // 32)), "int32")
            head.masks(*maps, 0.6, bits, size[1], stream.handle)
            packed = mask_head.masks(scores, gram, size, TEMPERATURE, 0.6, scoring)
            np.testing.assert_array_equal(gpu.get(bits), packed)
    gpu.kernels.close()
    assert gpu.driver.contexts == 0


@pytest.mark.parametrize("wrong", ["", "labels", "thresholds"])
def test_labels_of_words_become_those_of_names_as_on_the_host(wrong, monkeypatch):
    """And the check finds a label that is left as it was, and a threshold that is not looked at."""
    interpret = Gpu.interpret

    def faulty(self, code, grid, values):
        labels, _, _, thresholds, pixels = map(int, values)
        first = int(self.view(labels, np.uint16)[pixels * grid[1] - 1])
        if wrong == "thresholds":
            self.view(thresholds, np.float32)[1] = 0
        interpret(self, code, grid, values)
        if wrong == "labels":
            self.view(labels, np.uint16)[pixels * grid[1] - 1] = first

    monkeypatch.setattr(Gpu, "interpret", faulty)
    gpu = Gpu()
    with pytest.raises(gpu_proofs.Wrong, match="not those of the host") if wrong else contextlib.nullcontext():
        gpu_proofs.names(gpu.kernels)
    gpu.kernels.close()


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("words", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_the_check_of_a_gpu_proves_every_kernel_that_the_bundle_holds(words, scoring):
    gpu = Gpu()
    pictures = 1 if scoring == "softmax" else 2  # interpreted, a sum over 40 words takes seconds a picture
    case = gpu_proofs.MaskCase("float16", words, pictures, (3, 4), 16, (5, 37), scoring)
    features, vectors = case.inputs()
    names = {
        name for stage in ("labels", "confidence", "probabilities") for name in (f"{stage}.float16", f"{stage}.float32")
    }
    assert gpu_proofs.launched(gpu.kernels, case, features, vectors).keys() == {"finite", "masks", *names}
    gpu_proofs.mask_head(gpu.kernels, case, repeats=2)
    gpu.kernels.close()


@pytest.mark.parametrize(
    ("kernel", "scoring"),
    [
        ("probabilities.float16", "sigmoid"),
        ("masks", "softmax"),
        *(
            pytest.param(kernel, scoring, marks=pytest.mark.slow)
            for kernel in ("probabilities.float16", "probabilities.float32", "masks")
            for scoring in SCORINGS
            if (kernel, scoring) not in (("probabilities.float16", "sigmoid"), ("masks", "softmax"))
        ),
    ],
)
def test_the_check_of_a_gpu_finds_a_fault_in_a_kernel_that_no_session_launches(kernel, scoring, monkeypatch):
    interpret = Gpu.interpret

    def faulty(self, code, grid, values):
        interpret(self, code, grid, values)
        launch = self.kernels.record.launches(SCORINGS[scoring] + kernel, (8, 0))[0]
        if launch.file.read_bytes() + b"\0" == code:
            at, kind = next((at, kind) for at, (name, kind) in enumerate(launch.arguments) if name in kernel)
            self.view(int(values[at]), VIEWS[kind])[:] = 0

    monkeypatch.setattr(Gpu, "interpret", faulty)
    gpu = Gpu()
    with pytest.raises(gpu_proofs.Wrong, match=kernel.partition(".")[0]):
        gpu_proofs.mask_head(gpu.kernels, gpu_proofs.MaskCase("float16", 3, 1, (3, 4), 16, (5, 37), scoring))
    gpu.kernels.close()
