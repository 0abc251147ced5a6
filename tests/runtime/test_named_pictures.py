import os
import sys
from pathlib import Path

import numpy as np
import pytest
from made_pictures import encoded, scene
from PIL import Image

from fusioner_rt.decode_picture import decode
from fusioner_rt.errors import PictureMissing, UsageError
from fusioner_rt.named_pictures import named_pictures, names_a_picture


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: photos/ of pictures and other files."""
    monkeypatch.chdir(tmp_path)
    content = encoded(Image.fromarray(scene(5, 7)))
    for name in ("photos/b.png", "photos/a.JPG", "photos/deeper/c.png", "photos/.hidden/d.png", "photos/.e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [name for name, _ in named_pictures(arguments, Path("output"))]


def test_a_folder_names_its_pictures_and_nothing_hidden(folder: Path) -> None:
    assert names("photos") == ["photos/a.JPG", "photos/b.png", "photos/deeper/c.png"]


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".jxl", ".jp2", ".cr2", ".NEF", ".dng", ".psd", ".svg", ".raf"])
def test_a_folder_leaves_out_no_file_whose_suffix_says_picture(folder: Path, suffix: str) -> None:
    (folder / "photos" / f"z{suffix}").write_bytes(b"unreadable")
    assert f"photos/z{suffix}" in names("photos")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_folder_leaves_out_no_link_to_a_picture_that_is_gone_and_waits_for_no_pipe(folder: Path) -> None:
    (folder / "photos" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "photos" / "pipe.jpg")
    assert "photos/gone.jpg" in names("photos")
    assert "photos/pipe.jpg" not in names("photos")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["photos/b.png"]),
        ("photos/*", ["photos/a.JPG", "photos/b.png", "photos/deeper/c.png"]),  # the folder's too, as of a shell
        ("**/*.png", ["photos/b.png", "photos/deeper/c.png"]),
        ("**", ["photos/a.JPG", "photos/b.png", "photos/deeper/c.png"]),
        ("photos/[ab].*", ["photos/a.JPG", "photos/b.png"]),
        ("photos/?.png", ["photos/b.png"]),
        ("photos/*.txt", ["photos/notes.txt"]),  # who says it shall have the error
    ],
)
def test_a_pattern_names_what_it_matches_once_and_in_order(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(pattern) == expected
    assert names_a_picture(pattern)


def test_a_file_that_is_really_named_like_a_pattern_comes_first(folder: Path) -> None:
    (folder / "photos" / "[ab].png").touch()
    assert names("photos/[ab].png") == ["photos/[ab].png"]


def test_a_tilde_in_quotes_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    for argument in ("~/photos/*.png", "~/photos/deeper"):
        assert names_a_picture(argument)
        assert all(name.startswith(str(folder / "photos")) for name in names(argument))


def test_a_pattern_takes_no_results_of_earlier_runs(folder: Path) -> None:
    (folder / "output").mkdir()
    for name in ("b.overlay.png", "b.labels.png", "b.png"):
        (folder / "output" / name).touch()
    assert names("**/*.png") == ["output/b.png", "photos/b.png", "photos/deeper/c.png"]


@pytest.mark.parametrize("argument", ["photos/*.webp", "nowhere/*.jpg", "photos/deeper/*.jpg"])
def test_a_pattern_without_matches_is_an_error(folder: Path, argument: str) -> None:
    with pytest.raises(UsageError, match="no picture has such a name"):
        names(argument)
    assert not names_a_picture(argument)


def test_a_name_that_is_missing_is_kept_for_its_own_error(folder: Path) -> None:
    assert names("photos/nowhere.jpg", "https://example.org/a.jpg") == [
        "photos/nowhere.jpg",
        "https://example.org/a.jpg",
    ]


def test_stdin_is_named_once_and_is_no_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(folder / "photos" / "b.png") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        ((name, picture),) = named_pictures(["-"], Path("output"))
        assert (name, picture) == ("stdin", piped.buffer)
        assert names("./-") == ["./-"]
        with pytest.raises(UsageError, match="named twice"):
            names("-", "-")
        monkeypatch.setattr(piped, "isatty", lambda: True, raising=False)
        with pytest.raises(UsageError, match="nothing is piped into stdin"):
            names("-")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="/dev/fd")
def test_a_shells_pipe_is_read_and_other_pipes_are_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiving, sending = os.pipe()
    os.write(sending, (folder / "photos" / "b.png").read_bytes())
    os.close(sending)
    ((name, picture),) = named_pictures([f"/dev/fd/{receiving}"], Path("output"))
    os.close(receiving)
    assert name == f"/dev/fd/{receiving}"
    with picture:  # type: ignore[union-attr]
        np.testing.assert_array_equal(decode(picture), scene(5, 7))
    os.mkfifo(folder / "pipe.jpg")
    assert named_pictures(["pipe.jpg", "/dev/zero"], Path("output")) == [
        ("pipe.jpg", "pipe.jpg"),
        ("/dev/zero", "/dev/zero"),
    ]
    for path in ("pipe.jpg", "/dev/zero"):
        with pytest.raises(PictureMissing, match="a regular file was expected"):
            decode(path)


def test_dev_stdin_is_stdin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("photos/b.png") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert [name for name, _ in named_pictures(["/dev/stdin"], Path("output"))] == ["stdin"]
        with pytest.raises(UsageError, match="stdin is named twice"):
            named_pictures(["-", "/dev/stdin"], Path("output"))
