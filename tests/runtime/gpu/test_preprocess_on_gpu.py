"""What a GPU is told to preprocess, proved without one; and where there is one, that its bits are the CPU's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import interpreted
import numpy as np
import pytest
import torch
from emulated_driver import EmulatedDriver
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner_rt.errors import DeviceArrayInvalid, PictureInvalid, UsageError
from fusioner_rt.gpu.driver import Device, Driver
from fusioner_rt.gpu.kernel_launcher import Kernels
from fusioner_rt.gpu.preprocess import CudaPreprocess
from fusioner_rt.preprocess import RESAMPLINGS, Preprocessing

ROOT = Path(__file__).parents[3]
GPU = torch.cuda.is_available()
SHIPPED = ROOT / "models" / "demo" / "bundle" / "kernels"
PREPROCESSING = Preprocessing(320, 32, 1024)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels of one architecture and PTX, as in a bundle."""
    from kernels.compile import write
    from kernels.variants import names

    folder = tmp_path_factory.mktemp("kernels")
    write(folder, names(()), (80,))
    return folder


def launcher(folder: Path, preprocessing: Preprocessing = PREPROCESSING) -> tuple[CudaPreprocess, EmulatedDriver]:
    driver = EmulatedDriver()
    return CudaPreprocess(Kernels(folder, Device(0, Driver(driver))), preprocessing), driver


def test_launches_by_the_record_give_the_bits_of_the_cpu(compiled: Path) -> None:
    interpreted.keep("cuda_preprocess_laws.py", compiled)


@pytest.mark.parametrize(
    ("before", "after", "kernels"),
    [
        ((375, 500), (288, 384), ["resize_rows.uint8", "resize_columns.float32"]),
        ((900, 110), (80, 130), ["resize_columns.uint8", "resize_rows.float32"]),
        ((375, 500), (288, 500), ["resize_columns.float32"]),
        ((375, 500), (375, 384), ["resize_rows.float32"]),
        ((375, 500), (375, 500), ["resize_columns.float32"]),
    ],
)
def test_an_axis_that_stays_takes_no_launch_and_a_launch_allocates_and_copies_nothing(
    compiled: Path, before: tuple[int, int], after: tuple[int, int], kernels: list[str]
) -> None:
    one, driver = launcher(compiled)
    plan = one.plan(*before, after)
    assert [each.kernel for each in plan.passes] == kernels
    between = plan.passes[0].after
    assert plan.workspace_bytes(5) == (15 * between[0] * between[1] if len(kernels) == 2 else 0)
    arguments = 4096, 5, plan, 8192, 12288 if len(kernels) == 2 else 0, 16384, 0
    one.launch(*arguments)
    driver.calls.clear()
    one.launch(*arguments)
    assert driver.calls.count("cuLaunchKernel") == len(kernels)
    assert set(driver.calls) == {"cuPointerGetAttribute", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuLaunchKernel"}


@given(
    st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 900), st.integers(1, 900), st.sampled_from(RESAMPLINGS)
)
@settings(max_examples=100, deadline=None)
def test_plans_keep_every_table_and_tap_inside(height: int, width: int, h: int, w: int, resample: str) -> None:
    plan = CudaPreprocess(SimpleNamespace(), Preprocessing(320, 1, 1024, resample)).plan(height, width, (h, w))
    assert plan.tables.dtype == np.int32
    assert plan.passes[0].before == plan.before == (height, width)
    assert plan.passes[-1].after == plan.after == (h, w)
    for one in plan.passes:
        size = one.after[one.axis]
        assert one.first % 16 == one.weights % 16 == 0
        assert one.first // 4 + size <= one.weights // 4
        assert one.weights // 4 + one.taps * size <= plan.tables.size
        first = plan.tables[one.first // 4 :][:size]
        assert first.min() >= 0
        assert first.max() + one.taps <= one.before[one.axis]


def test_by_default_the_size_is_that_of_preprocessing(compiled: Path) -> None:
    assert launcher(compiled)[0].plan(375, 500).after == PREPROCESSING.input_size(375, 500)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pictures": 4104}, "pictures lies at 0x1008; expected an address that is a multiple of 16"),
        ({"pictures": 0}, "pictures lies at 0x0"),
        ({"tables": 8196}, "tables lies at 0x2004"),
        ({"workspace": 0}, "workspace lies at 0x0"),
        ({"pixels": 16388}, "pixels lies at 0x4004"),
        ({"pixels": 20480}, r"pixels lies on GPU 1; expected memory of GPU 0 \(Emulated"),
    ],
)
def test_addresses_a_kernel_cannot_take_are_refused_before_any_launch(
    compiled: Path, changed: dict[str, int], says: str
) -> None:
    one, driver = launcher(compiled)
    driver.owners[20480] = 1
    addresses = {"pictures": 4096, "tables": 8192, "workspace": 12288, "pixels": 16384, **changed}
    with pytest.raises(DeviceArrayInvalid, match=says):
        one.launch(batch=2, plan=one.plan(375, 500), stream=0, **addresses)
    assert "cuLaunchKernel" not in driver.calls


def test_memory_of_no_gpu_is_refused(compiled: Path) -> None:
    one, driver = launcher(compiled)
    driver.failing = "cuPointerGetAttribute"
    with pytest.raises(DeviceArrayInvalid, match="pictures at 0x1000 is no memory of a GPU"):
        one.launch(4096, 1, one.plan(375, 500), 8192, 12288, 16384, 0)


@pytest.mark.parametrize("batch", [0, -1, 65536])
def test_a_batch_no_grid_has_is_refused(compiled: Path, batch: int) -> None:
    one, _ = launcher(compiled)
    with pytest.raises(UsageError, match=f"a batch of {batch} pictures; expected 1 to 65535"):
        one.launch(4096, batch, one.plan(375, 500), 8192, 12288, 16384, 0)


@pytest.mark.parametrize(
    ("before", "size", "kind", "says"),
    [
        ((0, 5), (32, 32), PictureInvalid, "a picture of 5x0 pixels"),
        ((5, 65536), (32, 32), PictureInvalid, "edges of 1 to 65535"),
        ((5, 5), (32, 0), UsageError, "size is 0x32 pixels"),
        ((5, 5), (65536, 32), UsageError, "size is 32x65536 pixels"),
        ((20000, 20000), (32, 32), PictureInvalid, r"20000x20000 pixels of .* resized to 32x32; .* 2\*\*30 values"),
        ((20000, 10), (20000, 20000), PictureInvalid, "20000x20000 pixels of a picture of 10x20000"),
    ],
)  # fmt: skip
def test_sizes_the_kernels_do_not_count_to_are_refused(
    compiled: Path, before: tuple[int, int], size: tuple[int, int], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        launcher(compiled)[0].plan(*before, size)


@pytest.mark.skipif(not GPU, reason="needs a GPU: launched cubins against preprocessing on the CPU")
@pytest.mark.parametrize("kernels", ["shipped", "compiled for this GPU"])
def test_on_a_gpu_cubins_launched_without_torch_give_the_bits_of_the_cpu(tmp_path: Path, kernels: str) -> None:
    folder = SHIPPED
    if kernels != "shipped":
        import this_gpu

        from kernels.compile import write
        from kernels.variants import names

        folder = tmp_path
        write(folder, names(()), (this_gpu.target(),))
    script = Path(__file__).with_name("launch_preprocess.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
