"""PyTorch reads a result's arrays by DLPack, without a copy. CuPy reads those of `segment_on_device` so: docs/nvidia.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from made_results import results

from fusioner_rt import Segmentation


@pytest.mark.parametrize(
    ("name", "dtype"), [("labels", torch.uint16), ("masks", torch.bool), ("confidence", torch.float32)]
)
@settings(max_examples=15, deadline=None)
@given(result=results())
def test_a_tensor_is_the_array(result: Segmentation, name: str, dtype: torch.dtype) -> None:
    array = getattr(result, name)
    tensor = torch.from_dlpack(array)
    assert (tensor.dtype, tensor.device.type, tensor.data_ptr()) == (dtype, "cpu", array.ctypes.data)
    assert (tensor.numpy() == array).all()
