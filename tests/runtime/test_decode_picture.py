import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encoded, png_header, scene
from PIL import Image, ImageFile

from fusioner_rt.decode_picture import PIXEL_LIMIT, decode
from fusioner_rt.errors import FusionerError, PictureInvalid, PictureMissing, PictureTooLarge, PictureUnreadable

# EXIF orientation to what makes the stored pixels upright (EXIF 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def test_path_text_bytes_pillow_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = scene(5, 7)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(pixels)))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path), pixels):
        np.testing.assert_array_equal(decode(source), pixels)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(orientation: int) -> None:
    stored = scene(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), exif=exif)
    upright = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(decode(content), upright)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(content))), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture() -> None:
    content = encoded(Image.fromarray(scene(4, 4)), "JPEG", exif=b"Exif\x00\x00MM\x00*garbage" + bytes(range(40)))
    assert decode(content).shape == (4, 4, 3)


def test_grey_is_the_same_in_every_channel() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=2))


def test_transparent_pixels_lie_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 255, 0, 128  # black: opaque, absent, half
    expected = [[0] * 3, [255] * 3, [127] * 3]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba)))[0], expected)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba[:, :, 2:], "LA")))[0], expected)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(encoded(image))[0], [[10, 20, 30], [200, 100, 50]])
    np.testing.assert_array_equal(decode(encoded(image, transparency=0))[0], [[255] * 3, [200, 100, 50]])


def test_16_bit_grey_keeps_its_range() -> None:
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        content = encoded(Image.fromarray(wide), form)
        np.testing.assert_array_equal(decode(content)[0, :, 0], [0, 1, 128, 255])


def test_every_16_bit_grey_is_rounded_to_the_nearest_of_8_bits() -> None:
    wide = np.arange(65536).reshape(64, 1024)
    expected = np.floor(wide / 257 + 0.5)
    for kind in (np.uint16, np.int32):  # Pillow's modes I;16 and I
        np.testing.assert_array_equal(decode(Image.fromarray(wide.astype(kind)))[:, :, 0], expected)
    beyond = Image.fromarray(np.array([[-5, 70_000]], np.int32))
    assert decode(beyond)[0, :, 0].tolist() == [0, 255]


def test_16_bit_grey_costs_memory_as_its_pixels_do() -> None:
    image = Image.fromarray(np.full((2000, 3000), 40_000, np.uint16))
    tracemalloc.start()
    decode(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 6_000_000  # bytes: 2 as read, 1 as grey, 3 as RGB, and what Pillow copies; 8 for each int64


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)  # no cyan ink: red
    red, green, blue = decode(content)[4, 4].tolist()
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("mode", ["1", "YCbCr", "HSV", "La", "RGBa", "PA"])
def test_modes_of_images_in_memory(mode: str) -> None:
    source = Image.fromarray(scene(3, 5))
    by_way = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}
    image = source.convert(by_way[mode]).convert(mode) if mode in by_way else source.convert(mode)
    decoded = decode(image)
    assert decoded.shape == (3, 5, 3)
    assert decoded.dtype == np.uint8


def test_views_of_arrays_are_accepted() -> None:
    pixels = scene(6, 8)
    decoded = decode(pixels[::-1, ::2])
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels[::-1, ::2])


def test_what_is_no_picture_file(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("this is not a picture\n" * 50)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encoded(Image.fromarray(scene(200, 200)), "JPEG")[:2000])
    cases = [
        (tmp_path / "absent.jpg", PictureMissing, "no such file"),
        (tmp_path, PictureMissing, "folder"),
        (Path("null\0byte"), PictureMissing, "path"),
        (text, PictureUnreadable, "whatever its name says"),
        (empty, PictureUnreadable, "not a picture"),
        (cut, PictureUnreadable, "cut short"),
        (b"GIF89a", PictureUnreadable, "not a picture"),
        (Image.new("F", (2, 2)), PictureUnreadable, "mode F"),
    ]
    for source, kind, says in cases:
        with pytest.raises(kind, match=says) as caught:
            decode(source)
        assert "\n" not in str(caught.value)


def test_a_header_of_60000_by_60000_is_refused_before_decoding() -> None:
    with pytest.raises(PictureTooLarge, match="shrink"):
        decode(png_header(60_000, 60_000))
    edge = int(PIXEL_LIMIT**0.5) + 1
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(PictureTooLarge, match="at most 134 million"):
        decode(png_header(edge, edge))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 3), np.int64), "uint8"),
        (np.zeros((4, 4), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 4), np.uint8), "height, width, 3"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.broadcast_to(np.zeros(3, np.uint8), (60_000, 60_000, 3)), "at most"),
        ([[0, 0, 0]], "pass a path"),
        (None, "pass a path"),
    ],
)  # fmt: skip
def test_what_is_no_picture_in_memory(array: Any, says: str) -> None:
    with pytest.raises((PictureInvalid, PictureTooLarge), match=says):
        decode(array)


def test_a_pillow_image_without_pixels() -> None:
    with pytest.raises(PictureInvalid, match="no pixels"):
        decode(Image.new("RGB", (0, 5)))


def test_pillow_is_left_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for content in (png_header(60_000, 60_000), b"nothing", encoded(Image.fromarray(scene(9, 9)))[:60]):
        with pytest.raises(FusionerError):
            decode(content)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


DAMAGED = {form: encoded(Image.fromarray(scene(16, 16)), form) for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP")}


@given(st.sampled_from(sorted(DAMAGED)), st.integers(0, 2**16), st.integers(0, 255), st.booleans())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_decode_or_raise_one_of_ours(form: str, place: int, value: int, cut: bool) -> None:
    content = bytearray(DAMAGED[form])
    place %= len(content)
    content[place] = value
    try:
        decoded = decode(bytes(content[:place] if cut else content))
    except FusionerError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
