import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from made_pictures import encoded, scene
from PIL import Image, ImageFile, TiffImagePlugin

from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import PictureUnreadable
from fusioner_rt.picture_formats import SUFFIXES, readable, suffixes


@pytest.fixture
def heic() -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(scene(64, 96))).save(stream, quality=-1, chroma=444)
    return stream.getvalue()


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as it is where nothing has taught it HEIC."""
    for table in (Image.OPEN, Image.SAVE, Image.MIME):
        monkeypatch.delitem(table, "HEIF", raising=False)  # type: ignore[arg-type]


@pytest.mark.usefixtures("untaught")
def test_heic_is_read_where_pillow_heif_is_installed(heic: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(heic)  # the content tells
    for source in (heic, tmp_path / "photo.jpg", io.BytesIO(heic)):
        assert np.abs(decode(source).astype(int) - scene(64, 96)).max() <= 4  # lossless but for its YCbCr


@pytest.mark.usefixtures("untaught")
def test_heic_without_pillow_heif_names_the_package(heic: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pillow_heif", "pi_heif"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(PictureUnreadable, match=r"this is HEIC, .*; pip install pillow-heif$"):
        decode(heic)


def test_a_broken_heic_asks_for_no_package(heic: bytes) -> None:
    for cut in (heic[:20], heic[:500], heic[: len(heic) // 2]):
        with pytest.raises(PictureUnreadable, match="broken") as caught:
            decode(cut)
        assert "pip" not in str(caught.value)


class NewFormat(ImageFile.ImageFile):
    format = "NEW"

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.read(3) != b"NEW":
            raise SyntaxError
        self._mode, self._size = "RGB", (2, 1)
        self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 3, ("RGB", 0, 1))]


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.OPEN, "NEW", (NewFormat, lambda head: head.startswith(b"NEW")))
    monkeypatch.setitem(Image.EXTENSION, ".new", "NEW")


def test_what_pillow_was_taught_is_read_and_counts_in_folders(request: pytest.FixtureRequest) -> None:
    assert ".new" not in suffixes()
    with pytest.raises(PictureUnreadable, match="whatever its name says"):
        decode(b"NEWabcdef")
    request.getfixturevalue("taught")
    assert decode(b"NEWabcdef").tobytes() == b"abcdef"
    assert ".new" in suffixes()


def test_formats_that_run_other_programs_stay_closed() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    Image.init()
    assert Image.open(io.BytesIO(postscript)).format == "EPS"  # Pillow would
    with pytest.raises(PictureUnreadable, match="this is PostScript"):
        decode(postscript)
    assert not {"EPS", "PDF", "WMF", "MPEG", "GRIB", "HDF5"} & set(readable())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xff\x0a" + bytes(40), "JPEG XL.*pip install pillow-jxl-plugin"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "a web page.*download the picture itself"),
        (b"<SVG xmlns='x'>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"/9j/4AAQSkZJRg", "base64.b64decode"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "a video.*its frames as pictures"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "a camera's raw file"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"\x93NUMPY\1\0", "numpy.load"),
        (b"docs/pictures/nowhere.jpg", "whatever its name says"),
    ],
)
def test_content_that_is_no_picture_is_called_what_it_is(content: bytes, says: str) -> None:
    with pytest.raises(PictureUnreadable, match=says):
        decode(content)


@pytest.mark.parametrize(
    ("suffix", "tags"),
    [(".NEF", {}), (".tif", {50706: b"\1\4\0\0"}), (".tif", {254: 1, 330: 8})],
    ids=["its name", "DNG's version", "a reduced page with others below it"],
)
def test_the_small_preview_of_a_raw_file_is_not_taken_for_it(tmp_path: Path, suffix: str, tags: dict[int, Any]) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(Image.fromarray(scene(9, 9)), "TIFF", tiffinfo=info))
    with pytest.raises(PictureUnreadable, match=r"a camera's raw file, .* develop it"):
        decode(path)


def test_an_ordinary_tiff_is_read_whatever_its_tags() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 0
    assert decode(encoded(Image.fromarray(scene(9, 9)), "TIFF", tiffinfo=info)).shape == (9, 9, 3)


def test_every_suffix_of_a_format_that_is_opened_counts_as_a_picture() -> None:
    said = subprocess.run(  # a process of its own: others may have taught this one's Pillow
        [sys.executable, "-c", "from PIL import Image; from fusioner_rt.picture_formats import readable\n"
         "names = {*readable(), 'MPO'}\n"
         "print(*(end for end, name in Image.registered_extensions().items() if name in names))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert set(said.split()) == SUFFIXES
