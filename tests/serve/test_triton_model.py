"""What no real server here shows of the model for Triton Inference Server: pixels in GPU memory, on the emulated GPU, and memory
that runs short in the middle of a batch.

`Backend` is what a model sees of the server, in the least that these ways use. The model in a real server, on CPUs: tests/triton.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import MemoryShort
from fusioner_rt.serve.triton import TritonPythonModel
from fusioner_rt.serve.triton_steps import Prepare
from fusioner_rt.words.cache import TextCache

KIND = "tensorrt-rtx"


class Tensor:
    """Of the server: in host memory, or in the GPU's, where a model may have it by DLPack alone."""

    def __init__(self, name: str, array: Any, device: Any = None) -> None:
        self._name, self._array, self._device = name, array, device
        if device is not None:
            pointer = device.lay(array, None)
            self.__cuda_array_interface__ = {
                "version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (pointer, True), "strides": None,
                "stream": None,
            }  # fmt: skip

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        assert array.__dlpack_device__() == (2, 0)
        return cls(name, array)

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return self._device is None

    def as_numpy(self) -> np.ndarray:
        assert self._device is None
        return np.asarray(self._array)

    def found(self) -> np.ndarray:
        return self._array.numpy() if hasattr(self._array, "numpy") else self._array


class TritonError:
    INVALID_ARG, INTERNAL, UNSUPPORTED, UNAVAILABLE, CANCELLED = range(5)

    def __init__(self, message: str, code: int) -> None:
        self.text, self.code = message, code


class Backend(ModuleType):
    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.Tensor, self.TritonError = Tensor, TritonError
        self.TritonModelException = type("TritonModelException", (Exception,), {})
        self.Logger = SimpleNamespace(**dict.fromkeys(("log_info", "log_warn", "log_error"), lambda text: None))

    @staticmethod
    def InferenceResponse(output_tensors: Any, error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(tensors={one.name(): one for one in output_tensors}, error=error)


def request(gpu: EmulatedGpu | None, pixels: np.ndarray, outputs: list[str], **options: str) -> Any:
    inputs = [Tensor("PIXELS", pixels, gpu)]
    inputs += [Tensor(name, np.array([[text.encode()]] * len(pixels), object)) for name, text in options.items()]
    return SimpleNamespace(
        parameters=lambda: "", inputs=lambda: inputs, requested_output_names=lambda: outputs, request_id=lambda: "7",
        is_cancelled=lambda: False,
    )  # fmt: skip


def arguments(bundle: Path, device: str = "0", **parameters: str) -> dict[str, str]:
    parameters = {"bundle": str(bundle), "backend": KIND, **parameters}
    config = {"parameters": {name: {"string_value": text} for name, text in parameters.items()}}
    return {
        "model_name": "demo", "model_config": json.dumps(config), "model_repository": "/", "model_instance_kind": "GPU",
        "model_instance_device_id": device,
    }  # fmt: skip


@pytest.fixture
def gpu(planned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    gpu = EmulatedGpu(planned)
    emulated_gpu.install(monkeypatch, gpu)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend())
    yield gpu
    assert not gpu.wrong


def test_labels_of_pixels_in_gpu_memory_stay_there(planned: Path, gpu: EmulatedGpu) -> None:
    model = TritonPythonModel()
    model.initialize(arguments(planned))
    assert model.is_ready()
    pixels = np.stack([scene(61, 93, seed) for seed in range(2)])
    asked = {"WORDS": "cat, tree|car", "BACKGROUND": "sky", "THRESHOLD": "0.1"}
    outputs = ["LABELS", "CONFIDENCE", "SHARES", "WORDS"]
    (answer,) = model.execute([request(gpu, pixels, outputs, **asked)])
    assert answer.error is None
    with Session(planned, backend=KIND, cache=False) as session:
        own = session.segment(list(pixels), "cat, tree|car", background="sky", threshold=0.1)
    assert np.array_equal(answer.tensors["LABELS"].found(), np.stack([one.labels for one in own]))
    assert np.array_equal(answer.tensors["CONFIDENCE"].found(), np.stack([one.confidence for one in own]))
    assert np.allclose(answer.tensors["SHARES"].found(), np.stack([one.shares for one in own]), atol=1e-7)
    assert answer.tensors["WORDS"].found().tolist() == [["cat", "tree"]] * 2
    model.finalize()
    assert not model.is_ready()


def test_labels_alone_do_not_cross_to_the_host(planned: Path, gpu: EmulatedGpu) -> None:
    model = TritonPythonModel()
    model.initialize(arguments(planned))
    pixels = scene(61, 93)[None]
    model.execute([request(gpu, pixels, ["LABELS"], WORDS="cat, tree")])
    gpu.calls.clear()
    (answer,) = model.execute([request(gpu, pixels, ["LABELS"], WORDS="cat, tree")])
    assert not [name for name in gpu.calls if name.startswith("cuMemcpyDtoH")]
    assert answer.tensors["LABELS"].found().shape == (1, 61, 93)
    (wrong,) = model.execute([request(gpu, pixels, ["LABELS"], WORDS="cat", MODE="independent")])
    assert wrong.error.code == TritonError.INVALID_ARG
    assert wrong.error.text.startswith("RequestInvalid: PIXELS: ")
    model.finalize()


def test_an_instance_for_another_gpu_does_not_load(planned: Path, gpu: EmulatedGpu) -> None:
    model = TritonPythonModel()
    with pytest.raises(Exception, match="an instance is for GPU 1") as found:
        model.initialize(arguments(planned, "1"))
    assert type(found.value).__name__ == "TritonModelException"


def test_a_call_that_fails_as_a_whole_is_made_for_each_request_and_large_ones_are_made_in_parts(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be short for three pictures and for the second, and be there for the others."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend())
    model = TritonPythonModel()
    most = str(3 * 61 * 93)
    model.initialize(
        arguments(tiny_bundle, backend="onnxruntime-cpu", max_pixels=most) | {"model_instance_kind": "CPU"}
    )
    assert model._session is not None
    own, calls = model._session.segment, []
    pictures = [scene(61, 93, seed) for seed in range(4)]

    def short(given: list[np.ndarray], **options: Any) -> Any:
        calls.append(len(given))
        if any(np.array_equal(one, pictures[1]) for one in given):
            raise MemoryShort("too little memory is free", "send it again later")
        return own(given, **options)

    monkeypatch.setattr(model._session, "segment", short)
    answers = model.execute([request(None, one[None], ["LABELS"], WORDS="cat, tree") for one in pictures])
    assert calls == [3, 1, 1, 1, 1]
    assert answers[1].error.code == TritonError.UNAVAILABLE
    assert answers[1].error.text.startswith("MemoryShort: too little memory is free")
    for place in (0, 2, 3):
        assert np.array_equal(answers[place].tensors["LABELS"].found()[0], own(pictures[place], "cat, tree").labels)
    model.finalize()


def test_the_first_step_has_the_input_size_and_cache_of_its_parameters(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend())
    bundle = Bundle.open(tiny_bundle)
    other = bundle.with_input_side(bundle.preprocessing.side - 16)
    model = Prepare()
    model.initialize(
        arguments(tiny_bundle, cache=str(tmp_path / "words"), input_size=str(other.preprocessing.side))
        | {"model_instance_kind": "CPU"}
    )
    picture = scene(61, 93)
    (answer,) = model.execute([request(None, picture[None], [], WORDS="cat, tree")])
    assert answer.error is None
    size = other.input_size(61, 93, "PIXELS")
    assert size != bundle.input_size(61, 93, "PIXELS")
    assert answer.tensors["pixels"].found().shape == (1, 3, *size)
    assert [one.word for one in TextCache(tmp_path / "words").words()] == ["cat", "tree"]
    model.finalize()
