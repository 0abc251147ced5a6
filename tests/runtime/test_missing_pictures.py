import os
from pathlib import Path

import pytest
from made_pictures import encoded, scene
from PIL import Image

from fusioner_rt.cli import main
from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import PictureMissing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a picture in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(encoded(Image.fromarray(scene(5, 7)), "JPEG"))
    return tmp_path


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a.jpg", "https://example.org/a.jpg", "HTTPS://example.org/", "s3://bucket/a.png", "gs://b/a"],
)
def test_a_url_is_not_fetched_and_says_so(url: str) -> None:
    for source in (url, Path(url)):  # a Path makes one slash of two
        with pytest.raises(PictureMissing, match=r"this is a URL, and nothing is fetched.*download it") as caught:
            decode(source)
        assert caught.value.subject == url.rstrip("/") or caught.value.subject == url


def test_urls_that_name_or_hold_the_picture_say_what_to_pass() -> None:
    for url in ("file:///photos/a%20b.jpg", "file:/photos/a%20b.jpg", Path("file:///photos/a%20b.jpg")):
        with pytest.raises(PictureMissing, match=r"pass /photos/a b.jpg$"):
            decode(url)
    with pytest.raises(PictureMissing, match=r"data URL.*base64.b64decode"):
        decode("data:image/png;base64," + "iVBORw0KGgo" * 9000)
    with pytest.raises(PictureMissing, match=r"this is base64.*base64.b64decode") as caught:
        decode("/9j/4AAQ" * 9000)
    assert len(str(caught.value)) < 200


def test_a_file_that_is_really_named_like_a_url_is_read(folder: Path) -> None:
    (folder / "s3:").mkdir()
    (folder / "photos" / "cat.jpg").rename(folder / "s3:" / "cat.jpg")
    assert decode("s3:/cat.jpg").shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "path of the picture is empty"),
        ("photos/CAT.jpg", "did you mean photos/cat.jpg?"),
        ("photos/cat.png", "did you mean photos/cat.jpg?"),
        ("photos/cat", "did you mean photos/cat.jpg?"),
        ("photos/cat.jpg ", "did you mean photos/cat.jpg?"),
        ("photos/cats.jpg", "did you mean photos/cat.jpg?"),
        ("photos/zebra.jpg", "check the path (relative to "),
        ("fotos/cat.jpg", "there is no folder fotos"),
        ("photos/*.jpg", "glob.glob"),
        ("**/cat.jpg", "glob.glob"),
        ("photos", "this is a folder"),
        ("x" * 9000, "check the path"),
        ("photos/cat.jpg/deeper.jpg", "check the path"),
    ],
)
def test_a_path_that_cannot_be_opened_says_what_was_probably_meant(folder: Path, name: str, says: str) -> None:
    with pytest.raises(PictureMissing) as caught:
        decode(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tilde_is_the_home_folder_unless_a_file_is_named_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert decode("~/photos/cat.jpg").shape == (5, 7, 3)
    (folder / "~").write_bytes(encoded(Image.fromarray(scene(2, 3))))
    assert decode("~").shape == (2, 3, 3)


def test_entries_and_names_in_bytes_are_paths(folder: Path) -> None:
    for place in ("photos", b"photos"):
        (entry,) = os.scandir(place)
        assert decode(entry).shape == (5, 7, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["http://me:geheim@[1/x.mp4", "rtsp://[::1:554/stream", "https://[/x.jpg"])
def test_what_only_begins_like_a_url_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", url, "--words", "cat"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no URL that can be read (Invalid IPv6 URL); check its host" in line
    assert "geheim" not in line
