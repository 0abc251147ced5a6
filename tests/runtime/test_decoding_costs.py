"""Small files of great cost are refused by their headers; the limit is the session's."""

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_pictures import encoded, png_header, scene
from PIL import Image

from fusioner_rt import Session
from fusioner_rt.cli import main
from fusioner_rt.decode_picture import MAX_PIXELS, PIXEL_LIMIT, decode
from fusioner_rt.decoding_costs import jpeg_scans, tags_overlap
from fusioner_rt.errors import PictureTooLarge, PictureUnreadable, UsageError
from tests.campaign import pictures


def progressive(edge: int, more: int, after: bytes = b"") -> bytes:
    """A progressive JPEG with `more` empty scans besides its ten. after: what follows its end."""
    content = encoded(Image.new("RGB", (edge, edge), (9, 90, 200)), "JPEG", progressive=True)
    scan = content.rfind(b"\xff\xda")
    return content[:scan] + content[scan : scan + 10] * more + content[scan:] + after


def test_a_progressive_jpeg_counts_by_its_scans() -> None:
    assert decode(progressive(1000, 390), max_pixels=MAX_PIXELS).shape == (1000, 1000, 3)
    start = time.process_time()
    says = r"3000x3000 in 410 scans costs as much as 231 million pixels, at most 67 .*; save it as another picture, or smaller$"
    with pytest.raises(PictureTooLarge, match=says):
        decode(progressive(3000, 400), max_pixels=MAX_PIXELS)
    assert time.process_time() - start < 2
    with pytest.raises(PictureTooLarge, match="max_pixels=123750000"):
        decode(progressive(3000, 210), max_pixels=MAX_PIXELS)


def test_what_lies_in_a_jpeg_or_behind_it_is_no_scan() -> None:
    markers = b"\xff\xda\0\x04" * 400
    assert jpeg_scans(progressive(64, 0, after=markers)) == 10
    content = encoded(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0" + markers)
    assert jpeg_scans(content) == 1
    assert jpeg_scans(progressive(64, 390)) == 400
    assert jpeg_scans(progressive(64, 390)[:-2]) == 400


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xda", b"\xff\xe1\0", b"\xff\xe1\0\0" * 9, b"\xff\xd9"])
def test_scans_of_what_is_cut_short_are_counted(end: bytes) -> None:
    assert 1 <= jpeg_scans(b"\xff\xd8" + b"\xff\xda\0\x02" * 20 + end) <= 21


def test_a_real_photograph_costs_what_its_pixels_do() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1000, 3), np.uint8))
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 98}, {"restart_marker_rows": 1}):
        content = encoded(noise, "JPEG", **options)
        assert decode(content, max_pixels=900_000).shape == (900, 1000, 3)


def test_ppm_that_python_decodes_counts_twenty_times() -> None:
    with pytest.raises(PictureTooLarge, match="as text, or of an odd range costs as much as 80 million"):
        decode(b"P2 2000 2000 255 ", max_pixels=MAX_PIXELS)
    assert decode(b"P6 2000 2000 255 " + bytes(12_000_000), max_pixels=4_000_000).shape == (2000, 2000, 3)


def test_jpeg_2000_counts_by_its_smallest_block() -> None:
    image = Image.fromarray(scene(300, 400))
    with pytest.raises(PictureTooLarge, match=r"in blocks of 16 pixels costs as much as 1\.9 million pixels"):
        decode(encoded(image, "JPEG2000", codeblock_size=(4, 4)), max_pixels=200_000)
    with pytest.raises(PictureTooLarge, match=r"in blocks of 64 pixels costs as much as 0\.48 million pixels"):
        decode(encoded(image, "JPEG2000", codeblock_size=(4, 16)), max_pixels=200_000)
    for usual in ({}, {"codeblock_size": (32, 32)}, {"precinct_size": (256, 256), "codeblock_size": (64, 64)}):
        assert decode(encoded(image, "JPEG2000", **usual), max_pixels=120_000).shape == (300, 400, 3)


@pytest.mark.parametrize("kind", [b"P1 100 100\n", b"P2 100 100 255\n"])
def test_a_ppms_comments_count(kind: bytes) -> None:
    """Pillow moves up to a megabyte for each."""
    start = time.process_time()
    with pytest.raises(PictureTooLarge, match="as text, or of an odd range costs as much as 250 million"):
        decode(kind + b"#\n" * 500_000, max_pixels=MAX_PIXELS)
    assert time.process_time() - start < 1
    assert decode(kind + b"# a scan\n" + b"1 " * 10_000, max_pixels=MAX_PIXELS).shape == (100, 100, 3)


def test_rows_of_few_pixels_count_as_eight() -> None:
    with pytest.raises(PictureTooLarge, match="1x67108864 in rows of 1 costs as much as 537 million pixels"):
        decode(png_header(1, 1 << 26), max_pixels=MAX_PIXELS)
    assert decode(encoded(Image.new("RGB", (1, 500))), max_pixels=4000).shape == (500, 1, 3)
    assert decode(np.zeros((500, 1, 3), np.uint8), max_pixels=500).shape == (500, 1, 3)


def test_a_tiffs_tile_counts_whole() -> None:
    """libtiff decodes all of it, though the picture shows a corner."""
    tile = Image.new("L", (16384, 16384))
    content = bytearray(encoded(Image.new("L", (64, 64)), "TIFF", compression="tiff_adobe_deflate"))
    directory = struct.unpack_from("<I", content, 4)[0]
    names = {273: 324, 278: 322, 279: 325}  # of strips as of tiles: where they lie, how high or wide, their bytes
    entries = [
        list(struct.unpack_from("<HHII", content, place))
        for place in range(directory + 2, directory + 2 + 12 * content[directory], 12)
    ]
    kept = [[names.get(entry[0], entry[0]), *entry[1:]] for entry in entries]
    kept = [[tag, 4, 1, tile.width] if tag == 322 else [tag, kind, count, value] for tag, kind, count, value in kept]
    kept.append([323, 4, 1, tile.height])
    directory_bytes = b"".join(struct.pack("<HHII", *entry) for entry in sorted(kept))
    content[4:8] = struct.pack("<I", len(content))
    content += struct.pack("<H", len(kept)) + directory_bytes + bytes(4)
    says = "64x64 in tiles of 16384x16384 costs as much as 268 million pixels"
    with pytest.raises(PictureTooLarge, match=says):
        decode(bytes(content), max_pixels=MAX_PIXELS)


def test_a_pillow_image_that_is_not_decoded_yet_costs_what_its_file_does() -> None:
    opened = Image.open(io.BytesIO(progressive(3000, 400)))
    with pytest.raises(PictureTooLarge, match="in 410 scans"):
        decode(opened, max_pixels=MAX_PIXELS)
    plain = Image.open(io.BytesIO(encoded(Image.fromarray(scene(30, 40)), "JPEG")))
    assert decode(plain, max_pixels=1200).shape == (30, 40, 3)
    assert decode(plain, max_pixels=1200).shape == (30, 40, 3)  # decoded by now
    closed = Image.open(io.BytesIO(encoded(Image.fromarray(scene(30, 40)), "JPEG")))
    closed.close()
    with pytest.raises(PictureUnreadable, match="closed"):
        decode(closed)


def test_pillow_warns_of_no_broken_tag(tmp_path: Path) -> None:
    tags = b"".join(struct.pack("<HHII", tag, 1, 400_000, 0) for tag in range(1, 500))
    exif = struct.pack("<2sHIH", b"II", 42, 8, 499) + tags + bytes(4)
    whole = struct.pack("<2sHIHHHIIHHII", b"II", 42, 8, 2, 0x112, 3, 1, 6, 0x8769, 4, 1, 38) + bytes(4) + exif[8:]
    picture = tmp_path / "a.png"
    picture.write_bytes(pictures._png(5, 3, 8, 2, [(b"eXIf", whole)]))
    script = "import sys; from fusioner_rt.decode_picture import decode; print(decode(sys.argv[1]).shape)"
    done = subprocess.run([sys.executable, "-c", script, picture], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(5, 3, 3)\n", "")


@pytest.mark.parametrize("big", [False, True])
def test_tags_that_lie_in_each_other_are_told_from_those_beside_each_other(big: bool) -> None:
    plain = encoded(Image.fromarray(scene(40, 40)), "TIFF", big_tiff=big, tiffinfo={270: "a description" * 100})
    assert not tags_overlap(io.BytesIO(plain))
    assert decode(plain).shape == (40, 40, 3)
    assert tags_overlap(io.BytesIO(pictures._exif(1000, 60_000)))
    for cut in range(0, 40, 3):
        assert tags_overlap(io.BytesIO(plain[:cut])) in (True, False)


def test_tags_that_lie_in_each_other_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    tags, start = pictures._exif(60_000, 900_000), time.process_time()  # 54 GB, were each read
    with pytest.raises(PictureUnreadable, match="tags lie in each other"):
        decode(tags)
    with_exif = pictures._png(4, 4, 8, 2, [(b"eXIf", tags)])
    assert decode(with_exif).shape == (4, 4, 3)  # unturned: its pixels are good
    profile = b"Raw profile type exif\0\nexif\n 1\n" + tags[:500_000].hex().encode()
    assert decode(pictures._png(4, 4, 8, 2, [(b"tEXt", profile)])).shape == (4, 4, 3)
    assert time.process_time() - start < 3


def test_orientation_in_a_text_profile_is_still_applied() -> None:
    tiff = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0)
    profile = b"Raw profile type exif\0\nexif\n 26\n" + (b"Exif\0\0" + tiff).hex().encode()
    assert decode(pictures._png(5, 3, 8, 2, [(b"tEXt", profile)])).shape == (5, 3, 3)


@pytest.fixture
def session(tiny_bundle: Path) -> Session:
    opened = Session(tiny_bundle, cache=False, max_pixels=100_000)
    opened.set_vocabulary("cat, sofa")
    return opened


def test_a_sessions_limit_holds_for_every_kind_of_picture_and_for_size(session: Session) -> None:
    large, small = scene(400, 300), scene(20, 30)
    content, image = encoded(Image.fromarray(large)), Image.fromarray(large)
    for picture in (large, content, image, io.BytesIO(content), np.stack([large, large]), [small, large]):
        for call in (session.segment, session.encode):
            with pytest.raises(
                PictureTooLarge, match=r"300x400 is 0.12 million pixels, at most 0.1 .*max_pixels=120000"
            ):
                call(picture)  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"400x300 is over 0.1 million.*max_pixels=120000"):
        session.segment(small, size=(400, 300))
    assert session.segment(small, size=(300, 300)).labels.shape == (300, 300)


def test_the_limit_is_67_million_by_default_and_134_million_at_most(tiny_bundle: Path) -> None:
    bomb = png_header(9000, 9000)
    with Session(tiny_bundle, cache=False) as default, pytest.raises(PictureTooLarge, match="at most 67 million"):
        default.segment(bomb, words="cat")
    with Session(tiny_bundle, cache=False, max_pixels=PIXEL_LIMIT) as high, pytest.raises(PictureUnreadable):
        high.segment(bomb, words="cat")  # it is cut short
    for wrong in (0, -1, PIXEL_LIMIT + 1, 1.5, "9", True):
        with pytest.raises(
            UsageError, match=f"max_pixels is .*; give 1 to {PIXEL_LIMIT}, or leave it out for {MAX_PIXELS}"
        ):
            Session(tiny_bundle, cache=False, max_pixels=wrong)  # type: ignore[arg-type]


def test_the_command_line_has_the_limit_in_its_own_words(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(scene(40, 50))))
    command = ["segment", str(path), "--words", "cat", "--engine", str(tiny_bundle), "--out", str(tmp_path / "out")]
    assert main([*command, "--max-pixels", "1000"]) == PictureTooLarge.exit_code
    assert (
        "0.002 million pixels, at most 0.001 million are accepted; shrink the picture first, or add --max-pixels 2000"
        in (capsys.readouterr().err)
    )
    assert main([*command, "--max-pixels", "2000"]) == 0
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--max-pixels", "999999999"])
    assert exit_.value.code == 2
    assert f"--max-pixels: 999999999 is too large, at most {PIXEL_LIMIT} is taken" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_mutants_decode_or_raise_one_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """A few hundred cases of the campaign (tests/campaign/pictures.py), the same each time."""
    cases, start = pictures.cases(18), time.process_time()
    while time.process_time() - start < 6:
        for _ in range(20):
            name, content = next(cases)
            begun = time.process_time()
            assert pictures.check(None, name, content) is None, name
            assert time.process_time() - begun < 5, name
