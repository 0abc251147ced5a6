from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encoded, scene
from PIL import Image

from fusioner_rt.decode_picture import decode, pictures_of
from fusioner_rt.errors import PictureInvalid, UsageError
from fusioner_rt.pixel_arrays import check_channels

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def pixels(size: tuple[int, int], channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


@given(SIZES, st.sampled_from([1, 2, 3, 4]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_array_decodes_as_its_file_does(size: tuple[int, int], channels: int, seed: int) -> None:
    array = pixels(size, channels, seed)
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    image = Image.frombytes(mode, (size[1], size[0]), array.tobytes())
    np.testing.assert_array_equal(decode(array), decode(encoded(image)))
    if channels == 1:
        np.testing.assert_array_equal(decode(array[:, :, 0]), decode(array))


@given(SIZES, st.sampled_from([1, 2, 3, 4]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_layout_in_memory_changes_the_picture(size: tuple[int, int], channels: int, seed: int) -> None:
    array = pixels(size, channels, seed)
    read_only = array.copy()
    read_only.flags.writeable = False
    layouts = [np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2], read_only, array[::-1].copy()[::-1]]
    for order in ("rgb", "bgr"):
        for layout in layouts:
            decoded = decode(layout, order)  # type: ignore[arg-type]
            assert decoded.flags.c_contiguous
            np.testing.assert_array_equal(decoded, decode(array, order))  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", [cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE, cv2.IMREAD_UNCHANGED])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_what_opencv_reads_is_the_file_in_bgr(tmp_path: Path, flag: int, mode: str) -> None:
    path = tmp_path / "picture.png"
    rgba = np.dstack([scene(7, 5), scene(7, 5, 1)[:, :, 0]])
    Image.fromarray(rgba).convert(mode).save(path)
    read = cv2.imread(str(path), flag)
    assert read is not None
    expected = decode(path)
    if flag == cv2.IMREAD_GRAYSCALE:
        expected = np.repeat(read[:, :, None], 3, axis=2)
    elif flag == cv2.IMREAD_COLOR and mode == "RGBA":  # it drops alpha
        expected = rgba[:, :, :3]
    np.testing.assert_array_equal(decode(read, "bgr"), expected)
    if read.ndim == 3 and mode != "L":
        assert (decode(read) != expected).any()


def test_channels_concern_arrays_alone(tmp_path: Path) -> None:
    image = Image.fromarray(scene(5, 7))
    content = encoded(image)
    (tmp_path / "picture.png").write_bytes(content)
    for source in (content, tmp_path / "picture.png", image):
        np.testing.assert_array_equal(decode(source, "bgr"), scene(5, 7))


@pytest.mark.parametrize("channels", ["BGR", "bgra", "", None, 3, ["rgb"]])
def test_another_order_of_channels_is_refused(channels: Any) -> None:
    with pytest.raises(UsageError, match="choose 'rgb', or 'bgr'"):
        check_channels(channels)


class Interface:
    """An array of a library that offers one protocol alone."""

    def __init__(self, array: np.ndarray, protocol: str) -> None:
        self.array, self.protocol = array, protocol


class ByInterface(Interface):
    @property
    def __array_interface__(self) -> Any:
        return self.array.__array_interface__


class ByDlpack(Interface):
    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class InGpuMemory:
    dtype, shape = "uint8", (4, 5, 3)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "|u1", "data": (4096, False), "version": 3}


class TorchOnGpu(InGpuMemory):
    """As a tensor of PyTorch that needs a gradient: the interface raises."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("requires grad")


def test_tensors_and_arrays_of_other_libraries_decode_as_numpys() -> None:
    array = np.ascontiguousarray(scene(5, 7))
    for source in (torch.from_numpy(array), ByInterface(array, ""), ByDlpack(array, "")):
        np.testing.assert_array_equal(decode(source), array)  # type: ignore[arg-type]
        np.testing.assert_array_equal(decode(source, "bgr"), array[..., ::-1])  # type: ignore[arg-type]
    turned = torch.from_numpy(array.transpose(2, 0, 1).copy()).permute(1, 2, 0)
    np.testing.assert_array_equal(decode(turned), array)
    np.testing.assert_array_equal(decode(torch.from_numpy(array[:, :, 0].copy()))[:, :, 1], array[:, :, 0])


def test_a_copy_shares_no_memory_with_what_was_given() -> None:
    array = np.ascontiguousarray(scene(5, 7))
    for source in (array, torch.from_numpy(array)):
        assert np.may_share_memory(decode(source), array)
        assert not np.may_share_memory(decode(source, copy=True), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_batch_is_its_pictures(channels: int) -> None:
    batch = np.stack([pixels((5, 7), channels, seed) for seed in range(3)])
    for source in (batch, torch.from_numpy(batch), batch[:1]):
        listed = pictures_of(source)
        assert listed is not None
        for one, picture in zip(listed, batch, strict=False):
            np.testing.assert_array_equal(one, picture)
        assert len(listed) == len(source)
    assert pictures_of(batch[0]) is None
    assert pictures_of(Image.fromarray(scene(3, 3))) is None
    assert pictures_of("photo.jpg") is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (torch.zeros(3, 8, 9, dtype=torch.uint8), r"channels come last: .* x\.permute\(1, 2, 0\)"),
        (np.zeros((4, 8, 9), np.uint8), r"channels come last: x\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 9), np.uint8), "channels come last"),
        (np.zeros((7, 8, 9), np.uint8), r"a batch of grey pictures is \(pictures, height, width, 1\)"),
        (np.zeros((8, 9, 5), np.uint8), "one picture must be"),
        (np.zeros((2, 4, 4, 3), np.uint8), "give a batch by itself"),
        (np.zeros(99, np.uint8), r"x\.tobytes\(\)"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "one picture must be"),
        (np.uint8(3), "one picture must be"),
        (np.zeros((4, 0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4), bool), "black and white"),
        (np.zeros((4, 4), np.uint16), "x >> 8"),
        (np.zeros((4, 4, 3), np.int8), "uint8"),
        (torch.zeros(4, 4, 3, requires_grad=True), r"\.byte\(\)"),
        (torch.zeros(4, 4, 3, dtype=torch.bfloat16), r"the bfloat16 Tensor of shape \(4, 4, 3\)"),
        (torch.zeros(4, 4, 3, dtype=torch.bool), "black and white"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"), "cannot be read as an array"),
        (InGpuMemory(), "segment_on_device"),
        (TorchOnGpu(), "segment_on_device"),
    ],
)  # fmt: skip
def test_pixels_that_are_no_picture_say_what_to_do(source: Any, says: str) -> None:
    with pytest.raises(PictureInvalid, match=says) as caught:
        decode(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 9), (2, 8, 9, 5)])
def test_a_batch_of_another_order_is_refused(shape: tuple[int, ...]) -> None:
    cure = r"permute\(0, 2, 3, 1\)" if shape[1] < 4 else "give 1, 3 or 4 channels"
    for batch in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(PictureInvalid, match=cure):
            pictures_of(batch)
