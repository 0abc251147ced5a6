"""Which value of a file's pixels is white and which transparent, of each mode and format: the table of docs/pictures.md."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import encoded, scene
from PIL import Image

from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import PictureUnreadable

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339


def tiff(rows: bytes, width: int, bits: int, white_is_zero: bool = False, sample_format: int = 1) -> bytes:
    """One row of grey, uncompressed, as no encoder here writes it."""
    entries = [
        (256, width), (257, 1), (BITS, bits), (259, 1), (PHOTOMETRIC, 0 if white_is_zero else 1), (273, 200), (277, 1),
        (278, 1), (279, len(rows)), (SAMPLE_FORMAT, sample_format),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return (struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory).ljust(200, b"\0") + rows


def png(width: int, depth: int, kind: int, row: bytes, transparent: bytes = b"") -> bytes:
    """One row, with tRNS."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    extra = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def greys(content: bytes) -> list[int]:
    rgb = decode(content)
    assert (rgb == rgb[..., :1]).all()
    return rgb[0, :, 0].tolist()


def test_grey_of_12_bits_is_scaled_by_12_bits() -> None:
    row = bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF])  # 0, 2048, 4095, 4095
    assert greys(tiff(row, 4, 12)) == [0, 128, 255, 255]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_where_white_is_zero_grey_of_16_bits_is_turned_round(compression: str | None) -> None:
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    options: dict[str, Any] = {"compression": compression} if compression else {}
    plain = encoded(Image.fromarray(wide), "TIFF", **options)
    turned = encoded(Image.fromarray(wide), "TIFF", tiffinfo={PHOTOMETRIC: 0}, **options)
    assert Image.open(io.BytesIO(turned)).tag_v2[PHOTOMETRIC] == 0  # type: ignore[attr-defined]
    assert greys(plain) == [0, 1, 128, 255]
    assert greys(turned) == [255, 254, 127, 0]
    assert decode(Image.open(io.BytesIO(turned)))[0, :, 0].tolist() == [255, 254, 127, 0]


def test_where_white_is_zero_grey_of_8_bits_and_less_is_turned_round() -> None:
    assert greys(tiff(b"\0\1\xff", 3, 8, white_is_zero=True)) == [255, 254, 0]
    assert greys(tiff(b"\x1b", 4, 2, white_is_zero=True)) == [255, 170, 85, 0]
    assert greys(tiff(b"\x50", 4, 1, white_is_zero=True)) == [255, 0, 255, 0]


@pytest.mark.parametrize(
    ("row", "bits", "sample_format"),
    [
        (struct.pack("<2I", 0, 1 << 31), 32, 1), (struct.pack("<2i", 0, 1 << 30), 32, 2), (struct.pack("<2h", -1, 9), 16, 2),
        (b"\0\xff", 8, 2),
    ],
)  # fmt: skip
def test_signed_grey_and_grey_of_32_bits_is_refused_with_what_to_do(row: bytes, bits: int, sample_format: int) -> None:
    content = tiff(row, 2, bits, sample_format=sample_format)
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(PictureUnreadable, match=f"of {bits} bits are signed, or wider .*bring its values"):
            decode(source)


@pytest.mark.parametrize("bits", [6, 10, 14, 24])
def test_a_tiff_of_a_kind_that_pillow_does_not_read_is_called_one(bits: int) -> None:
    with pytest.raises(PictureUnreadable, match=r"this TIFF is broken, or of a kind .*; save it with 8 or 16 bits"):
        decode(tiff(bytes(12), 2, bits))


@pytest.mark.parametrize(
    "content", [tiff(struct.pack("<2f", 0, 1), 2, 32, sample_format=3), b"Pf 2 1 -1.0 " + bytes(8)]
)
def test_floating_point_is_refused(content: bytes) -> None:
    with pytest.raises(PictureUnreadable, match=r"no defined white.*convert it to 8-bit RGB"):
        decode(content)


def test_a_transparent_grey_of_png_is_white_at_every_depth() -> None:
    assert greys(png(3, 16, 0, struct.pack(">3H", 300, 301, 65535), struct.pack(">H", 300))) == [255, 1, 255]
    assert greys(png(3, 8, 0, bytes([30, 31, 0]), b"\0\x1f")) == [30, 255, 0]
    assert greys(png(2, 4, 0, b"\x12", b"\0\1")) == [255, 34]
    assert greys(png(4, 2, 0, b"\x1b", b"\0\1")) == [0, 255, 170, 255]
    assert greys(png(2, 1, 0, b"\x40", b"\0\0")) == [255, 255]


def test_a_transparent_grey_of_an_image_in_memory() -> None:
    image = Image.open(io.BytesIO(png(2, 16, 0, struct.pack(">2H", 300, 301), struct.pack(">H", 300))))
    image.load()
    assert decode(image)[0, :, 0].tolist() == [255, 1]


def test_colours_of_16_bits() -> None:
    colours = png(2, 16, 2, struct.pack(">6H", 0, 65535, 32896, 300, 300, 300))
    assert decode(colours)[0].tolist() == [[0, 255, 128], [1, 1, 1]]
    with_alpha = png(2, 16, 6, struct.pack(">8H", 0, 65535, 0, 65535, 9, 9, 9, 0))
    assert decode(with_alpha)[0].tolist() == [[0, 255, 0], [255, 255, 255]]
    assert greys(png(2, 16, 4, struct.pack(">4H", 32896, 65535, 9, 0))) == [128, 255]


def test_a_transparent_colour_of_16_bits_is_refused_of_8_bits_it_is_white() -> None:
    with pytest.raises(PictureUnreadable, match=r"16-bit colours is transparent.*alpha channel"):
        decode(png(1, 16, 2, bytes(6), bytes(6)))
    assert decode(png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), b"\0\1\0\2\0\3"))[0].tolist() == [[255] * 3, [4, 5, 6]]


def test_ppm_is_scaled_by_its_largest_value() -> None:
    assert greys(b"P5 3 1 100 " + bytes([0, 50, 100])) == [0, 128, 255]
    assert greys(b"P5 3 1 4095 " + struct.pack(">3H", 0, 2048, 4095)) == [0, 128, 255]
    assert greys(b"P5 3 1 65535 " + struct.pack(">3H", 0, 32768, 65535)) == [0, 128, 255]
    assert greys(b"P2 3 1 9 0 3 9") == [0, 85, 255]
    assert greys(b"P1 3 1 0 1 0") == [255, 0, 255]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_every_format_scales_grey_of_16_bits(form: str) -> None:
    wide = np.tile(np.array([0, 257, 32768, 65535], np.uint16), (8, 8))
    decoded = decode(encoded(Image.fromarray(wide), form))
    assert decoded[3, :4, 0].tolist() == [0, 1, 128, 255]


RED = Image.new("RGB", (16, 16), (255, 51, 51))


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("TIFF", mode) for mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "P", "LAB")), ("JPEG", "CMYK"), ("JPEG", "YCbCr"),
        ("JPEG2000", "RGBA"), ("JPEG2000", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("GIF", "P"), ("TGA", "P"), ("TGA", "RGBA"),
        ("BMP", "P"), ("BMP", "RGBA"), ("WEBP", "RGBA"), ("AVIF", "RGBA"), ("PPM", "RGB"),
    ],
)  # fmt: skip
def test_every_mode_of_colour_keeps_its_colour(form: str, mode: str) -> None:
    decoded = decode(encoded(RED.convert(mode), form))
    allowed = 40 if mode == "CMYK" or form in ("AVIF", "WEBP", "JPEG") else 4
    assert np.abs(decoded[5, 5].astype(int) - (255, 51, 51)).max() <= allowed


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_strips_make_the_whole_picture(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is turned into RGB in strips; their edges do not show."""
    from fusioner_rt import decode_picture

    images = [
        Image.fromarray(scene(37, 21)),
        Image.fromarray(scene(37, 21)).convert("P"),
        Image.fromarray(scene(37, 21)[..., 0]),
    ]
    alpha = Image.fromarray(np.dstack([scene(37, 21), scene(37, 21, 1)[..., :1]]))
    contents = [encoded(image, form) for image in images if form in ("PNG", "TIFF") or image.mode != "P"]
    contents += [encoded(alpha, form)] if form != "JPEG" else []
    whole = [decode(content) for content in contents]
    monkeypatch.setattr(decode_picture, "_BLOCK", 50)
    for content, expected in zip(contents, whole, strict=True):
        np.testing.assert_array_equal(decode(content), expected)


def test_libtiff_writes_nothing_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for compression in ("tiff_lzw", "jpeg", "group4", "tiff_adobe_deflate"):
        image = Image.fromarray(scene(60, 60)).convert("1" if compression == "group4" else "RGB")
        content = bytearray(encoded(image, "TIFF", compression=compression))
        for place in range(30, 600, 7):
            content[place % len(content)] ^= 0xFF
        with contextlib.suppress(PictureUnreadable):
            decode(bytes(content))
    assert capfd.readouterr().err == ""
