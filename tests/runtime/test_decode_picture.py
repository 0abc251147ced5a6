import io
import mmap
import os
import pickle
import socket
import tempfile
import threading
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encoded, png_header, scene
from PIL import Image, ImageFile

from fusioner_rt import decode_picture
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
        (np.zeros((4, 4, 5), np.uint8), "height, width, 3"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.broadcast_to(np.zeros(3, np.uint8), (60_000, 60_000, 3)), "at most"),
        ([[0, 0, 0]], "numpy.asarray"),
        (None, "cv2.imread gives None"),
        (iter([]), "pass a list of pictures"),
        (3, "builtins.int; pass a path"),
        (memoryview(scene(4, 4)), "numpy.asarray"),
        (memoryview(bytes(8))[::2], "pass bytes"),
        (memoryview(bytes(8))[::-1], "pass bytes"),
        (pickle.PickleBuffer(memoryview(bytes(8))[::2]), "pass bytes"),
        (memoryview(bytes(8)).cast("I"), "format 'I'"),
        (memoryview(bytes(8)).cast("B", (2, 4)), "pass bytes"),
        (memoryview(bytes(1)).cast("B", ()), "pass bytes"),
        (__file__.encode(), "os.fsdecode"),
    ],
)  # fmt: skip
def test_what_is_no_picture_in_memory(array: Any, says: str) -> None:
    with pytest.raises((PictureInvalid, PictureTooLarge), match=says):
        decode(array)


def test_a_released_memoryview() -> None:
    view = memoryview(b"content")
    view.release()
    with pytest.raises(PictureInvalid, match="released memoryview"):
        decode(view)


class Pipe:
    """A stream that cannot be sought, as a response's body."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def read(self) -> Any:
        return self.content


class Upload:
    async def read(self) -> bytes:
        return b""


def test_a_file_object_is_read_from_its_start_or_where_that_cannot_be_from_where_it_stands(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(scene(5, 7)))
    written = io.BytesIO()
    written.write(content)
    (tmp_path / "picture.png").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("picture.png", content)
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    spooled.write(content)
    receiving, sending = os.pipe()
    os.write(sending, content)
    os.close(sending)
    with (
        open(tmp_path / "picture.png", "rb") as opened,
        zipfile.ZipFile(tmp_path / "pictures.zip") as archive,
        archive.open("picture.png") as member,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        spooled,
        os.fdopen(receiving, "rb") as pipe,
    ):
        for source in (written, opened, member, mapped, spooled, pipe, Pipe(content), Pipe(bytearray(content))):
            np.testing.assert_array_equal(decode(source), scene(5, 7))  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_a_path_to_a_pipe_a_device_or_a_socket_is_refused_at_once(tmp_path: Path, linked: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    with listening:
        for path, says in (
            (tmp_path / "pipe", "named pipe"), (Path("/dev/zero"), "device"), (tmp_path / "socket", "socket"),
        ):  # fmt: skip
            if linked:
                (tmp_path / f"{path.name}.jpg").symlink_to(path)
                path = tmp_path / f"{path.name}.jpg"
            with pytest.raises(PictureMissing, match=rf"it is a {says}, .*pass the file object"):
                decode(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_that_was_opened_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    content = encoded(Image.fromarray(scene(5, 7)), "WEBP", lossless=True)
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content), daemon=True)
    writer.start()
    with open(tmp_path / "pipe", "rb") as pipe:
        np.testing.assert_array_equal(decode(pipe), scene(5, 7))
    writer.join(10)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="/dev/zero")
def test_a_file_object_without_end_is_read_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_picture, "BYTE_LIMIT", 10_000_000)
    with open("/dev/zero", "rb") as endless, open("/dev/zero", "rb", buffering=0) as raw:
        for source in (endless, raw):
            tracemalloc.start()
            with pytest.raises(PictureTooLarge, match=r"more than 10 million bytes.*give the picture alone"):
                decode(source)  # type: ignore[arg-type]
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 20_000_000


def test_file_objects_that_hold_no_bytes_say_what_they_need(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(scene(5, 7))))
    closed = open(path, "rb")  # noqa: SIM115
    closed.close()
    released = memoryview(b"content")
    released.release()
    with open(path) as text:
        cases: list[tuple[Any, type[FusionerError], str]] = [
            (text, PictureInvalid, "picture.png: this file is opened as text"),
            (io.StringIO("text"), PictureInvalid, "open it in binary mode"),
            (Pipe("text"), PictureInvalid, "open it in binary mode"),
            (Pipe(None), PictureInvalid, "gives NoneType"),
            (Upload(), PictureInvalid, "await file.read"),
            (closed, PictureUnreadable, "closed file.*open it again"),
            (Pipe(b""), PictureUnreadable, "is empty"),
            (Pipe(released), PictureUnreadable, "released memoryview"),
            (Pipe(memoryview(b"GIF nothing")[::2]), PictureUnreadable, "not a picture"),
        ]
        for source, kind, says in cases:
            with pytest.raises(kind, match=says):
                decode(source)


def frames(form: str) -> bytes:
    """Three frames, the first of one colour."""
    images = [Image.new("RGB", (8, 8), colour) for colour in ((10, 20, 30), (200, 0, 0), (0, 200, 0))]
    return encoded(images[0], form, save_all=True, append_images=images[1:])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken_and_that_is_logged(form: str, caplog: pytest.LogCaptureFixture) -> None:
    decoded = decode(io.BytesIO(frames(form)))
    np.testing.assert_allclose(decoded, np.broadcast_to([10, 20, 30], (8, 8, 3)), atol=4)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fusioner_rt", "WARNING")
    assert record.getMessage() == "the BytesIO: holds several frames or pages; the first one is taken"


def test_single_pictures_and_a_cameras_mpo_are_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    for form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "JPEG"):
        decode(encoded(Image.fromarray(scene(8, 8)), form))
    decode(frames("MPO"))
    decode(Image.open(io.BytesIO(frames("GIF"))))  # whoever opened it chose the frame
    assert caplog.records == []


def test_a_broken_second_frame_does_not_cost_the_first() -> None:
    content = frames("GIF")
    assert decode(content[: len(content) * 2 // 3]).shape == (8, 8, 3)


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


def test_what_is_transparent_everywhere_is_white_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.full((3, 5, 4), 90, np.uint8)
    decode(pixels)
    assert not caplog.records
    pixels[..., 3] = 0
    assert (decode(pixels) == 255).all()
    assert "transparent everywhere" in caplog.text


def test_what_a_captures_read_gives_is_told_from_its_frame() -> None:
    with pytest.raises(PictureInvalid, match="pass the frame"):
        decode(True)  # type: ignore[arg-type]
