"""The tensors of a graph that lie in other files are those that the package onnx finds; broken graphs are errors."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fusioner_rt.onnx.external_weights import external_tensors

SHAPES = st.lists(st.lists(st.integers(0, 300), max_size=4), max_size=4)


def outside(name: str, shape: list[int], file: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", str(offset)), ("location", file)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(tensors: list[TensorProto]) -> bytes:
    inside = [numpy_helper.from_array(np.ones(40, np.float32), "location")]
    made: bytes = helper.make_model(helper.make_graph([], "g", [], [], [*inside, *tensors])).SerializeToString()
    return made


@given(shapes=SHAPES, offset=st.integers(0, 2**40))
def test_every_tensor_in_another_file_is_found_with_its_shape_and_place(shapes: list[list[int]], offset: int) -> None:
    tensors = [outside(f"w{index}", shape, f"{index}.bin", offset) for index, shape in enumerate(shapes)]
    found = external_tensors(model_of(tensors))
    expected = {(f"w{index}", f"{index}.bin", 10, tuple(shape), offset) for index, shape in enumerate(shapes)}
    assert {(one.name, one.file, one.dtype, one.shape, one.offset) for one in found} == expected
    assert all(one.outer for one in found)


@given(data=st.data())
def test_a_broken_graph_is_a_value_error_or_read_to_its_end(data: st.DataObject) -> None:
    content = bytearray(model_of([outside("w", [3, 4], "w.bin", 0)]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for broken in (bytes(content), bytes(content[:cut])):
        try:
            found = external_tensors(broken)
        except ValueError:
            continue
        assert len(found) <= 2


@pytest.mark.parametrize("shape", [[-1], [2**62, 2**62], [7], [3, -4]])
def test_values_that_the_file_does_not_hold_are_refused(shape: list[int]) -> None:
    (tensor,) = external_tensors(model_of([outside("w", shape, "w.bin", 0)]))
    with pytest.raises(ValueError, match="is not at 0 of"):
        tensor.of(bytes(13))


def test_values_out_of_step_are_copied_and_the_others_are_not() -> None:
    content = np.arange(8, dtype=np.float16).tobytes()
    for offset in (0, 1, 2):
        (tensor,) = external_tensors(model_of([outside("w", [3], "w.bin", offset)]))
        values = tensor.of(content)
        assert values.flags.aligned
        np.testing.assert_array_equal(values.view(np.uint8), np.frombuffer(content, np.uint8)[offset : offset + 6])
    assert not external_tensors(onnx.ModelProto().SerializeToString())
