"""What a GPU is told, proved without one; and where there is one, that its masks are Triton's, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import interpreted
import numpy as np
import pytest
import torch
from cuda.bindings import driver as real
from emulated_driver import EmulatedDriver

from fusioner_rt.device_array import DeviceArray
from fusioner_rt.errors import (
    BackendUnavailable,
    DeviceArrayInvalid,
    FusionerError,
    GpuMemoryShort,
    KernelsUnusable,
    UsageError,
)
from fusioner_rt.gpu.driver import Device, Driver, Memory, Stream
from fusioner_rt.gpu.kernel_contract import extra_of
from fusioner_rt.gpu.kernel_launcher import Kernels, Record
from fusioner_rt.gpu.mask_head import CudaMaskHead

ROOT = Path(__file__).parents[3]
GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels of two architectures and PTX, as in a bundle with every extra, of either scoring."""
    from kernels.compile import write
    from kernels.variants import names

    folder = tmp_path_factory.mktemp("kernels")
    write(folder, names(("float16", "float32")), (80, 90))
    return folder


def head(
    folder: Path, driver: EmulatedDriver | None = None, scoring: str = "sigmoid"
) -> tuple[CudaMaskHead, Kernels, EmulatedDriver]:
    driver = driver or EmulatedDriver()
    kernels = Kernels(folder, Device(0, Driver(driver)))
    return CudaMaskHead(kernels, 0.07, scoring), kernels, driver


def at(shape: tuple[int, ...], dtype: str = "float32", pointer: int = 4096) -> DeviceArray:
    return DeviceArray(pointer, shape, dtype)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_launches_by_the_record_are_those_of_the_kernels(compiled: Path, which: str) -> None:
    interpreted.keep("cuda_laws.py", compiled, which)


@pytest.mark.parametrize(
    ("capability", "file"),
    [
        ((8, 0), "sm_80/labels.float16.few.cubin"),
        ((8, 6), "sm_80/labels.float16.few.cubin"),
        ((8, 9), "sm_80/labels.float16.few.cubin"),
        ((8, 7), "compute_80/labels.float16.few.ptx"),  # Tegra takes no cubin of a desktop GPU
        ((8, 8), "compute_80/labels.float16.few.ptx"),
        ((11, 0), "compute_80/labels.float16.few.ptx"),
        ((9, 0), "sm_90/labels.float16.few.cubin"),
        ((10, 3), "compute_80/labels.float16.few.ptx"),
        ((12, 1), "compute_80/labels.float16.few.ptx"),
    ],
)
def test_the_file_that_fits_the_gpu_is_taken(compiled: Path, capability: tuple[int, int], file: str) -> None:
    launch = Record(compiled).launches("labels.float16.few", capability)[0]
    assert launch.file == compiled / file
    assert launch.file.is_file()


@pytest.mark.parametrize(
    ("targets", "capability", "file"),
    [
        (["sm_86", "sm_87"], (8, 7), "sm_87"),
        (["sm_86", "sm_87"], (8, 9), "sm_86"),
        (["sm_87"], (8, 9), "compute_80"),
        (["sm_87"], (8, 8), "compute_80"),
        (["sm_75"], (7, 5), "sm_75"),
    ],
)
def test_desktop_and_tegra_never_take_each_others_cubins(
    compiled: Path, tmp_path: Path, targets: list[str], capability: tuple[int, int], file: str
) -> None:
    record = json.loads((compiled / "abi.json").read_text())
    entry = record["kernels"]["masks"]
    entry["targets"] = {name: {**entry["targets"]["sm_80"], "file": f"{name}/masks.cubin"} for name in targets}
    (tmp_path / "abi.json").write_text(json.dumps(record))
    assert Record(tmp_path).launches("masks", capability)[0].file.parent.name == file


LOADING = (
    "cuLibraryLoadData",
    "cuLibraryGetKernel",
    "cuKernelGetParamInfo",
    "cuKernelSetAttribute",
    "cuKernelGetFunction",
)


@pytest.mark.parametrize("call", LOADING)
def test_where_a_cubin_fails_at_any_call_the_ptx_is_tried(compiled: Path, call: str) -> None:
    class OldDriver(EmulatedDriver):
        """Fails on whatever is no PTX. The function that is launched must be the PTX's."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != call:
                return found

            def refusing(*arguments: Any) -> Any:
                if b".version" not in (arguments[0] if name == "cuLibraryLoadData" else self.codes[-1]):
                    self.calls.append(name)
                    return (real.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU,)
                return found(*arguments)

            return refusing

    launched: list[bytes] = []
    driver = OldDriver(execute=lambda code, grid, values: launched.append(code))
    one, kernels, _ = head(compiled, driver)
    maps, finite = (at((1, 150, 4, 5)), at((1, 5, 4, 5))), at((1,), "int32")
    workspace = at((CudaMaskHead.workspace_bytes((1, 4, 5, 16), 150),), "uint8")
    one.maps(at((1, 4, 5, 16), "float16"), at((1, 150, 16), "float16"), workspace, *maps, finite, 0)
    many = [code for code in launched if b"maps_kernel" in code]
    assert len(many) == 1
    assert b".version" in many[0]
    assert any("maps.float16.many.ptx runs, compiled by the driver" in note for note in kernels.notes)
    assert driver.calls.count("cuLibraryUnload") == (0 if call == "cuLibraryLoadData" else len(kernels.notes))
    kernels.close()


@pytest.mark.parametrize("call", LOADING)
def test_where_neither_loads_both_files_are_named(compiled: Path, call: str) -> None:
    driver = EmulatedDriver()
    driver.failing = call
    one, _, _ = head(compiled, driver)
    maps, finite = (at((1, 150, 4, 5)), at((1, 5, 4, 5))), at((1,), "int32")
    workspace = at((CudaMaskHead.workspace_bytes((1, 4, 5, 16), 150),), "uint8")
    with pytest.raises(KernelsUnusable, match=rf"\.cubin, .*\.ptx: the driver of .* does not load it \({call} failed"):
        one.maps(at((1, 4, 5, 16), "float16"), at((1, 150, 16), "float16"), workspace, *maps, finite, 0)


def test_too_little_memory_for_a_cubin_is_not_taken_for_a_cubin_that_does_not_fit(compiled: Path) -> None:
    class Full(EmulatedDriver):
        def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:  # noqa: N802
            return (real.CUresult.CUDA_ERROR_OUT_OF_MEMORY,)

    driver = Full()
    with pytest.raises(GpuMemoryShort):
        head(compiled, driver)[0].labels(at(S), at(G), 0.5, at((1, 9, 8), "uint16"), at((1, 9, 8)), 0)
    assert driver.calls.count("cuLibraryLoadData") == 1


def test_a_gpu_older_than_every_file_is_refused_with_the_command_that_helps(compiled: Path) -> None:
    with pytest.raises(KernelsUnusable, match=r"sm_80, sm_90 .* 7\.5; build .* --kernels sm_75"):
        Record(compiled).launches("maps.float16.few", (7, 5))


def test_records_that_cannot_be_launched_by_say_why(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelsUnusable, match="without kernels"):
        Record(tmp_path)
    record = json.loads((compiled / "abi.json").read_text())

    def altered(change: str) -> Path:
        (tmp_path / "abi.json").write_text(change)
        return tmp_path

    with pytest.raises(KernelsUnusable, match="not JSON"):
        Record(altered("{"))
    for version in ("[]", json.dumps({**record, "abi_version": 1})):
        with pytest.raises(KernelsUnusable, match="ABI version"):
            Record(altered(version))
    with pytest.raises(KernelsUnusable, match="no object of names"):
        Record(altered(json.dumps({**record, "kernels": 5})))
    with pytest.raises(KernelsUnusable, match=r"no kernel labels\.float64, only measure"):
        Record(compiled).launches("labels.float64", (8, 0))
    del record["kernels"]["masks"]["targets"]["sm_80"]["grid"]
    with pytest.raises(KernelsUnusable, match="missing a field"):
        Record(altered(json.dumps(record))).launches("masks", (8, 0))


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("extra", ["float16", "masks", "probabilities"])
def test_a_kernel_that_the_bundle_was_built_without_is_named_with_the_option_that_adds_it(
    compiled: Path, tmp_path: Path, extra: str, scoring: str
) -> None:
    record = json.loads((compiled / "abi.json").read_text())
    record["kernels"] = {name: entry for name, entry in record["kernels"].items() if extra_of(name) is None}
    (tmp_path / "abi.json").write_text(json.dumps(record))
    one, _, driver = head(tmp_path, scoring=scoring)
    ask = {
        "float16": lambda: one.maps(
            at(F, "float16"), at(T, "float16"), at((10**6,), "uint8"), at(S), at(G), at((1,), "int32"), 0
        ),
        "masks": lambda: one.masks(at(S), at(G), 0.5, at((1, 3, 9, 1), "int32"), 8, 0),
        "probabilities": lambda: one.probabilities(at(S), at(G), at((1, 3, 9, 8)), 0),
    }
    with pytest.raises(KernelsUnusable, match=rf"holds no kernel \S+, only .*; build .* --kernels all,{extra}$"):
        ask[extra]()
    assert "cuLaunchKernel" not in driver.calls


def test_a_kernel_whose_parameters_are_not_the_records_is_not_launched(compiled: Path) -> None:
    one, _, driver = head(compiled)
    driver.parameters["labels_kernel"][5] = 8
    with pytest.raises(KernelsUnusable, match=r"parameter 5 has offset and size \(40, 8\), the record says \(36, 4\)"):
        one.labels(at((1, 3, 4, 5)), at((1, 5, 4, 5)), 0.5, at((1, 9, 9), "uint16"), at((1, 9, 9)), 0)
    assert "cuLaunchKernel" not in driver.calls


def test_a_missing_file_and_a_driver_too_old_for_it_are_told_apart(compiled: Path, tmp_path: Path) -> None:
    arrays = at((1, 3, 4, 5)), at((1, 5, 4, 5))
    copy = shutil.copytree(compiled, tmp_path / "kernels")
    (copy / "sm_80" / "labels.float32.few.cubin").unlink()
    with pytest.raises(KernelsUnusable, match="cannot be read"):
        head(copy)[0].labels(*arrays, 0.5, at((1, 9, 9), "uint16"), at((1, 9, 9)), 0)
    driver = EmulatedDriver()
    driver.failing = "cuLibraryLoadData"
    with pytest.raises(KernelsUnusable, match=r"does not load it .* CUDA 12\.4, the kernels need 12\.0"):
        head(compiled, driver)[0].labels(*arrays, 0.5, at((1, 9, 9), "uint16"), at((1, 9, 9)), 0)


def everything(folder: Path, driver: EmulatedDriver) -> None:
    """Every call of the driver that the runtime makes."""
    one, kernels, _ = head(folder, driver)
    device = kernels.device
    with Stream(device) as stream, Memory(device, 1024) as memory:
        memory.upload(np.arange(4), stream.handle)
        memory.download(np.arange(4), stream.handle)
        maps = at((1, 150, 4, 5)), at((1, 5, 4, 5))
        # many words: the one kernel with more shared memory than a block has unasked
        workspace = at((CudaMaskHead.workspace_bytes((1, 4, 5, 16), 150),), "uint8")
        finite = at((1,), "int32")
        one.maps(at((1, 4, 5, 16), "float16"), at((1, 150, 16), "float16"), workspace, *maps, finite, stream.handle)
        one.labels(*maps, 0.5, at((1, 9, 9), "uint16"), at((1, 9, 9)), stream.handle)
        stream.wait()
    kernels.close()
    device.close()


def test_every_return_code_is_read(compiled: Path) -> None:
    driver = EmulatedDriver()
    everything(compiled, driver)
    assert driver.contexts == 0
    assert driver.memory == {}
    calls = set(driver.calls)
    assert len(calls) >= 21
    for call in sorted(calls):
        driver = EmulatedDriver()
        driver.failing = call
        with pytest.raises(FusionerError, match=f"{call} failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
            everything(compiled, driver)
        if call not in ("cuCtxPushCurrent", "cuCtxPopCurrent"):
            assert driver.contexts == 0, call


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_driver_the_error_says_what_to_install() -> None:
    with pytest.raises(BackendUnavailable, match="install NVIDIA's driver"):
        Device()


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="GPU 3: this process sees 1"):
        Device(3, Driver(EmulatedDriver()))


F, T, S, G = (1, 4, 5, 16), (1, 3, 16), (1, 3, 4, 5), (1, 5, 4, 5)


@pytest.mark.parametrize(
    ("features", "words", "scores", "says"),
    [
        (at(F, "int32"), at(T, "int32"), at(S), "features is int32; expected float16"),
        (at(F, "float16"), at(T), at(S), "words is float32; expected float16"),
        (at((1, 4, 5, 24)), at((1, 3, 24)), at(S), "24 channels"),
        (at(F), at((1, 0, 16)), at((1, 0, 4, 5)), r"words has shape \(1, 0, 16\)"),
        (at(F), at((2, 3, 16)), at(S), r"words is float32 \(2, 3, 16\); expected float32 \(1, 3, 16\)"),
        (at(F[1:]), at(T), at(S), r"expected \(B, h, w, d\)"),
        (at(F), at(T), at((1, 3, 5, 4)), r"scores is float32 \(1, 3, 5, 4\)"),
        (at(F), at(T), at(S, "float16"), "expected float32"),
        (at(F, pointer=4104), at(T), at(S), "0x1008; expected an address that is a multiple of 16"),
        (at(F), at(T), at(S, pointer=0), "scores lies at 0x0"),
        (at((1, 4096, 4096, 64)), at((1, 3, 64)), at((1, 3, 4096, 4096)), "count to"),
        (np.zeros(F, np.float32), at(T), at(S), "is a ndarray without __cuda_array_interface__"),
    ],
)  # fmt: skip
def test_bad_arrays_of_stage_1_are_refused_before_any_launch(
    compiled: Path, features: object, words: object, scores: DeviceArray, says: str
) -> None:
    one, _, driver = head(compiled)
    with pytest.raises(DeviceArrayInvalid, match=says):
        one.maps(features, words, at((10**6,), "uint8"), scores, at((1, 5, *scores.shape[2:])), at((1,), "int32"), 0)
    assert "cuLaunchKernel" not in driver.calls


def test_a_small_workspace_is_refused_with_the_size_it_should_have(compiled: Path) -> None:
    with pytest.raises(DeviceArrayInvalid, match="workspace has 64 bytes; these shapes need 1536"):
        head(compiled)[0].maps(at(F), at(T), at((64,), "uint8"), at(S), at(G), at((1,), "int32"), 0)


@pytest.mark.parametrize(
    ("scores", "gram", "labels", "confidence", "says"),
    [
        (at(S, "float16"), at(G), at((1, 9, 8), "uint16"), at((1, 9, 8)), "scores is float16"),
        (at(S), at((1, 4, 4, 5)), at((1, 9, 8), "uint16"), at((1, 9, 8)), "gram is float32"),
        (at(S), at(G), at((1, 9, 8), "int32"), at((1, 9, 8)), "labels is int32; expected uint16"),
        (at(S), at(G), at((1, 9, 8), "uint16"), at((1, 8, 9)), "confidence is"),
        (at(S), at(G), at((2, 9, 8), "uint16"), at((2, 9, 8)), "scores is"),
        (at(S), at(G), at((1, 0, 8), "uint16"), at((1, 0, 8)), "none of them 0"),
        (at(S), at(G), at((1, 70000, 8), "uint16"), at((1, 70000, 8)), "65535 pixels"),
    ],
)  # fmt: skip
def test_bad_arrays_of_stage_2_are_refused_before_any_launch(
    compiled: Path, scores: object, gram: object, labels: object, confidence: object, says: str
) -> None:
    one, _, driver = head(compiled)
    with pytest.raises(DeviceArrayInvalid, match=says):
        one.labels(scores, gram, 0.5, labels, confidence, 0)
    assert "cuLaunchKernel" not in driver.calls


@pytest.mark.parametrize(
    ("labels", "confidence", "owners", "thresholds", "says"),
    [
        (at((1, 9, 8), "int32"), at((1, 9, 8)), at((4,), "uint16"), at((4,)), "labels is int32; expected uint16"),
        (at((1, 9, 8), "uint16"), at((1, 8, 9)), at((4,), "uint16"), at((4,)), "confidence is float32"),
        (at((1, 9, 8), "uint16"), at((1, 9, 8)), at((4,)), at((4,)), "owners is float32; expected uint16"),
        (at((1, 9, 8), "uint16"), at((1, 9, 8)), at((4,), "uint16"), at((5,)), r"thresholds is float32 \(5,\)"),
        (at((1, 2**15, 2**15), "uint16"), at((1, 2**15, 2**15)), at((4,), "uint16"), at((4,)), "count to"),
    ],
)  # fmt: skip
def test_bad_arrays_of_names_are_refused_before_any_launch(
    compiled: Path, labels: object, confidence: object, owners: object, thresholds: object, says: str
) -> None:
    one, _, driver = head(compiled)
    with pytest.raises(DeviceArrayInvalid, match=says):
        one.names(labels, confidence, owners, thresholds, 0)
    assert "cuLaunchKernel" not in driver.calls


def test_an_array_of_another_gpu_or_of_none_is_refused(compiled: Path) -> None:
    one, _, driver = head(compiled)
    driver.owners[8192] = 1
    arrays = at(S), at(G, pointer=8192), 0.5, at((1, 9, 8), "uint16"), at((1, 9, 8)), 0
    with pytest.raises(DeviceArrayInvalid, match=r"gram lies on GPU 1; expected memory of GPU 0 \(Emulated"):
        one.labels(*arrays)
    driver.failing = "cuPointerGetAttribute"
    with pytest.raises(DeviceArrayInvalid, match="scores at 0x1000 is no memory of a GPU"):
        one.labels(*arrays)
    assert "cuLaunchKernel" not in driver.calls


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(compiled: Path, temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature is"):
        CudaMaskHead(head(compiled)[1], temperature)


def test_a_scoring_that_is_none_of_the_two_is_refused(compiled: Path) -> None:
    with pytest.raises(UsageError, match="scoring is 'Softmax'; expected sigmoid or softmax"):
        CudaMaskHead(head(compiled)[1], 0.07, "Softmax")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(compiled: Path, threshold: float) -> None:
    with pytest.raises(UsageError, match="expected 0 to 1"):
        head(compiled)[0].labels(at(S), at(G), threshold, at((1, 9, 8), "uint16"), at((1, 9, 8)), 0)


class Array:
    """What torch or CuPy hand over."""

    def __init__(self, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self.__cuda_array_interface__ = {
            "typestr": typestr, "shape": shape, "strides": strides, "data": (512, False), "version": 3,
        }  # fmt: skip


def test_arrays_of_other_libraries_are_read_in_place() -> None:
    assert DeviceArray.of(Array("<f2", (2, 3), None)) == DeviceArray(512, (2, 3), "float16")
    assert DeviceArray.of(Array("<f4", (2, 1, 3), (12, 999, 4))) == DeviceArray(512, (2, 1, 3), "float32")
    with pytest.raises(DeviceArrayInvalid, match="make it contiguous"):
        DeviceArray.of(Array("<f4", (2, 3), (4, 8)))
    with pytest.raises(DeviceArrayInvalid, match="dtype <f8"):
        DeviceArray.of(Array("<f8", (2, 3), None))


def test_arguments_by_wrong_names_or_no_multiples_of_16_never_reach_a_kernel(compiled: Path) -> None:
    launch = Record(compiled).launches("measure.float16", (8, 0))[0]
    arguments: dict[str, int | float] = {name: 16 for name, _ in launch.arguments}
    with pytest.raises(UsageError, match="expected features, words"):
        Kernels.pack(launch, {**arguments, "more": 1})
    with pytest.raises(UsageError, match="d is 24"):
        Kernels.pack(launch, {**arguments, "d": 24})


@pytest.mark.skipif(not GPU, reason="needs a GPU: launched cubins against Triton's own launches")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("words", [20, 150])
def test_on_a_gpu_cubins_launched_without_torch_give_tritons_masks_bit_for_bit(
    tmp_path: Path, dtype: str, words: int
) -> None:
    """Of this GPU alone, by the Triton that is here. The shipped ones are compared with their definition: test_on_gpu.py."""
    import this_gpu

    from kernels import mask_head
    from kernels.compile import write
    from kernels.variants import names

    write(tmp_path / "kernels", names((dtype,)), (this_gpu.target(),))
    kind = getattr(torch, dtype)
    generator = torch.Generator("cuda").manual_seed(0)
    features = torch.randn(2, 61, 83, 256, generator=generator, device="cuda").to(kind)
    vectors = torch.randn(2, words, 256, generator=generator, device="cuda").to(kind)
    bits = {"features": features, "vectors": vectors}
    np.savez(tmp_path / "inputs.npz", **{name: value.view(torch.uint8).cpu().numpy() for name, value in bits.items()})
    script = Path(__file__).with_name("launch_cubins.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), dtype], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    scores, gram = mask_head.score_maps(features, vectors)
    expected = {"scores": scores, "gram": gram}
    for scoring in ("sigmoid", "softmax"):
        labels, confidence = mask_head.resolve(scores, gram, (517, 773), 0.07, 0.5, torch.float16, scoring)
        expected |= {
            f"{scoring}_labels": labels, f"{scoring}_confidence": confidence,
            f"{scoring}_probabilities": mask_head.probabilities(scores, gram, (117, 73), 0.07, scoring=scoring),
            f"{scoring}_masks": mask_head.masks(scores, gram, (517, 773), 0.07, 0.6, scoring),
        }  # fmt: skip
    with np.load(tmp_path / "outputs.npz") as found:
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value.cpu().numpy(), err_msg=name)
