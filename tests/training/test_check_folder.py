"""A folder of one's own: `check` says what is in it, and refuses whatever training refuses, in training's words."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training import train
from training.data import IGNORE, DataError, MaskFolder
from training.datasets.__main__ import main
from training.datasets.class_table import class_table


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def check(root: Path, *more: str) -> int:
    return main(["check", str(root), *more])


def mask(root: Path, values: np.ndarray, name: str = "shape00", mode: str = "L") -> None:
    Image.fromarray(values).convert(mode).save(root / "masks" / f"{name}.png")


def turned(root: Path) -> None:
    """A picture that EXIF turns, and a mask of the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "images" / "shape01.jpg") as image:
        image.save(root / "images" / "shape01.jpg", exif=exif)


def every_mask(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for file in (root / "masks").iterdir():
        with Image.open(file) as image:
            Image.fromarray(change(np.asarray(image))).save(file)


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


PLAIN = np.zeros((96, 96), np.uint8)
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no classes.txt": (lambda r: (r / "classes.txt").unlink(), r"classes\.txt cannot be read \(No such file.*; a data folder holds"),
    "one class": (text("classes.txt", "background\n"), r"classes\.txt names 1 class; .*; write a name a line"),
    "classes in one line": (text("classes.txt", "background, red, green, blue"), r"names 1 class; .*; write a name a line"),
    "a class twice": (text("classes.txt", "background\nred\nblue\nred\n"),
        r"names one class twice, 'red' in line 2 and 'red' in line 4; .*; give both one index"),
    "a synonym": (text("classes.txt", "background\ntv\nblue\nTV/monitor\n"), r"'tv' in line 2 and 'TV/monitor' in line 4"),
    "another spelling": (text("classes.txt", "background\nred thing\ngreen\nRed_Thing\n"), r"'red thing' in line 2 and 'Red_Thing' in"),
    "the background twice": (text("classes.txt", "background\nred\nBackground\nblue\n"), r"'background' in line 1 and 'Background'"),
    "an empty line": (text("classes.txt", "background\nred\n\nblue\n"), r"line 3 of .*classes\.txt is empty; .*; name that index"),
    "too many classes": (text("classes.txt", "".join(f"c{n}\n" for n in range(256))), r"names 256 classes; .* 255.*; 8-bit masks hold"),
    "classes in UTF-16": (text("classes.txt", "background\nred\n".encode("utf-16")), r"classes\.txt is not UTF-8 text; .*; save it as"),
    "no images/": (lambda r: (r / "images").rename(r / "pictures"), r"images is missing; expected a folder of pictures; a data folder"),
    "no train.txt": (lambda r: (r / "train.txt").unlink(), r"train\.txt cannot be read .*; write train\.txt, or remove the other list"),
    "no val.txt": (lambda r: (r / "val.txt").unlink(), r"val\.txt cannot be read .*; write val\.txt, or remove the other list"),
    "an empty train.txt": (text("train.txt", "\n"), r"train\.txt names no picture; .*; write a picture's name"),
    "an empty val.txt": (text("val.txt", ""), r"val\.txt names no picture; .*; write a picture's name"),
    "a list of files": (text("train.txt", "shape00.jpg\nshape01.jpg\n"), r"name the file 'shape00\.jpg'; .*; remove the endings"),
    "a list in UTF-16": (text("val.txt", "shape00\n".encode("utf-16")), r"val\.txt is not UTF-8 text; .*; save it as"),
    "a picture is missing": (lambda r: (r / "images" / "shape00.jpg").unlink(), r"shape00\.jpg is missing; .*; add it, or take the name"),
    "two pictures of one name": (lambda r: Image.fromarray(PLAIN).save(r / "images" / "shape00.png"),
        r"holds shape00\.jpg and shape00\.png; .*; rename one of them"),
    "a mask is missing": (lambda r: (r / "masks" / "shape00.png").unlink(), r"shape00\.png is missing; .*; add it, or take the name"),
    "a mask as JPEG": (lambda r: (r / "masks" / "shape00.png").rename(r / "masks" / "shape00.jpg"),
        r"shape00\.jpg is there; expected a PNG; write the indices as 8-bit PNG"),
    "a mask in colours": (lambda r: mask(r, PLAIN, mode="RGB"), r"is a RGB picture; .*; write the indices again"),
    "a mask of 16 bits": (lambda r: Image.fromarray(PLAIN.astype(np.uint16)).save(r / "masks" / "shape00.png"),
        r"is a I;16 picture; .*; write the indices again"),
    "a mask of one bit": (lambda r: mask(r, PLAIN, mode="1"), r"is a 1 picture; .*; write the indices again"),
    "an index without a name": (lambda r: mask(r, PLAIN + 9), r"holds index 9, but the class names end at 3; name every class"),
    "no line of the background": (text("classes.txt", "red\ngreen\nblue\n"),
        r"holds index 3, but the class names end at 2; does classes\.txt lack its first line, background\? It begins with 'red'"),
    "a pipe for classes.txt": (lambda r: _pipe(r / "classes.txt"), r"classes\.txt cannot be read \(it is a named pipe"),
    "a pipe for a list": (lambda r: _pipe(r / "train.txt"), r"train\.txt cannot be read \(it is a named pipe"),
    "a pipe for a mask": (lambda r: _pipe(r / "masks" / "shape00.png"), r"shape00\.png is missing"),
    "a pipe for a picture": (lambda r: _pipe(next((r / "images").glob("shape00.*"))), r"it is a named pipe"),
    "a mask cut short": (lambda r: (r / "masks" / "shape00.png").write_bytes(b"\x89PNG\r\n"), r"cannot be read as a mask .*; fetch it"),
    "a mask of another size": (lambda r: mask(r, PLAIN[:5, :7]), r"has 7×5 pixels, its picture 96×96 .*; they must agree: scale the"),
    "a turned picture": (turned, r"its picture 64×128 as a viewer shows it; the picture is turned by its EXIF data, its mask is not"),
    "a picture cut short": (lambda r: (r / "images" / "shape00.jpg").write_bytes((r / "images" / "shape00.jpg").read_bytes()[:900]),
        r"shape00\.jpg: the picture is broken or cut short .*; fetch or export it again"),
    "a picture that is none": (lambda r: (r / "images" / "shape00.jpg").write_bytes(b"html"), r"the content is not a picture .*; convert"),
    "masks of 0 and 255": (lambda r: every_mask(r, lambda m: np.where(m > 0, 255, 0).astype(np.uint8)), r"expected .*indices.*; "),
    "masks of nothing": (lambda r: every_mask(r, np.zeros_like), r"expected .*indices above 0; "),
    "an export": (lambda r: (shutil.rmtree(r / "masks"), (r / "a.json").write_text('{"shapes": []}')),
        r"is an export in the form labelme; .*; convert it: python -m training\.datasets convert"),
    "no folder": (lambda r: shutil.rmtree(r), r"is no folder; expected pictures and masks; .* convert EXPORT"),
}  # fmt: skip


@pytest.mark.parametrize("damage", WRONG)
def test_what_stops_a_training_is_one_line_with_a_cure_and_check_finds_it_first(
    damage: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRONG[damage][0](shapes)
    command = ["tiny", "--data", str(shapes), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert train.main(command) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "training.train: " in line]
    assert re.search(WRONG[damage][1], line), line
    assert "; " in line
    assert not (tmp_path / "run").exists()
    assert check(shapes) == DataError.exit_code
    said = capsys.readouterr()
    assert re.search(WRONG[damage][1], said.out + said.err)


def test_check_counts_pictures_and_pixels_and_says_what_to_run_next(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MaskFolder(shapes)
    values = np.concatenate([data.mask(name).ravel() for split in ("train", "val") for name in data.names(split)])
    shown = [sum(2 in data.present(name) for name in data.names(split)) for split in ("train", "val")]
    assert check(shapes, "--sheet", str(tmp_path / "sheet.png")) == 0
    said = capsys.readouterr().out
    assert re.search(rf"2 green thing +{shown[0]} +{shown[1]} +{100 * (values == 2).mean():.1f}%", said)
    assert re.search(rf"ignored \(255\) .* {100 * (values == -1).mean():.1f}%", said)
    assert said.endswith(
        f"usable; next: python -m training.train demo --data {shapes} --steps 100 --out models/shapes\n"
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_what_spoils_a_training_is_a_note(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "classes.txt").write_text("ground\nred thing\ngreen thing\nblue thing\nunicorn\n")
    (shapes / "train.txt").write_text("shape00\nshape00\nshape01\n")
    (shapes / "val.txt").write_text("shape00\nshape04\n")
    mask(shapes, np.full((96, 96), 1, np.uint8))
    mask(shapes, np.full((64, 128), 2, np.uint8), "shape01")
    mask(shapes, np.full((96, 96), 3, np.uint8), "shape04")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(shapes / "images" / "shape04.jpg") as image:
        image.save(shapes / "images" / "shape04.jpg", exif=exif)
    assert check(shapes) == 0
    said = capsys.readouterr().out
    for note in (
        "line 1 of classes.txt is 'ground'",
        "train.txt names 1 picture more than once: shape00",
        "1 picture of val is turned by EXIF data",
        "1 picture is in both lists, so that scores flatter: shape00",
        "1 class without a picture: unicorn",
        "1 class in val alone, which training never shows: blue thing",
        "1 class in train alone, which no score tells of: green thing",
        "9 pictures are in no list: shape02",
        "2 classes with fewer than 10 training pictures: red thing 1, green thing 1",
    ):
        assert note in said


def test_a_complaint_of_many_pictures_is_one_line_with_a_count(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every_mask(shapes, lambda m: np.repeat(m[..., None], 3, axis=2))
    assert check(shapes) == DataError.exit_code
    said = capsys.readouterr().out
    counts = [len(MaskFolder(shapes).names(split)) - 1 for split in ("train", "val")]
    assert "not usable: 2 problems" in said
    assert re.findall(r"is a RGB picture; .* \((\d+) more pictures? of (?:train|val) alike\)", said) == [
        *map(str, counts)
    ]


def test_without_lists_a_share_is_kept_and_the_next_command_says_so(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shapes / "train.txt").unlink()
    (shapes / "val.txt").unlink()
    assert check(shapes, "--split", "0.25") == 0
    said = capsys.readouterr().out
    assert "val of 0.25   3 pictures" in said
    assert f"--data {shapes} --split 0.25 --steps 100 --out" in said
    assert check(shapes) == 0
    assert f"--data {shapes} --split 0.1 --steps 100 --out" in capsys.readouterr().out
    assert check(shapes, "--split", "2") == DataError.exit_code


def test_names_with_brackets_and_dots_in_folders_are_found(shapes: Path) -> None:
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        (shapes / folder / "day 1").mkdir()
        (shapes / folder / f"shape00.{ending}").rename(shapes / folder / "day 1" / f"a[1].b.{ending}")
    (shapes / "train.txt").write_text("day 1/a[1].b\nshape01\n")
    assert check(shapes) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["check", "nowhere"],
            "nowhere is no folder; expected pictures and masks; python -m training.datasets convert EXPORT",
        ),
        (["check", "pascal-5i"], "check pascal-5i lacks its folder; "),
        (["check", "ade20k", "--data", "."], "no kind of data set called 'ade20k'; "),
        (["check", ".", "--sheet", "sheet.txt"], "--sheet is sheet.txt; "),
    ],
)
def test_a_wrong_check_is_one_line(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_an_empty_path_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", ""])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'' is no path" in line


def test_help_says_that_a_folder_of_ones_own_is_always_opened_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "a folder of one's own is always checked so" in " ".join(capsys.readouterr().out.split())


class Emptied(dict[str, list[Path]]):
    """A listing that another thread drops while it is looked into."""

    data: MaskFolder

    def __contains__(self, name: object) -> bool:
        vars(self.data).pop("pictures", None)
        return super().__contains__(name)


def test_a_picture_is_found_though_another_thread_drops_the_listing(shapes: Path) -> None:
    data, listing = MaskFolder(shapes), Emptied()
    listing.data, vars(data)["pictures"] = data, listing
    assert data.picture("shape00").name == "shape00.jpg"


@given(
    names=st.lists(st.text("abcxyz ", min_size=1, max_size=30), min_size=2, max_size=5),
    pixels=st.dictionaries(st.sampled_from([IGNORE, 0, 1, 4]), st.integers(0, 10**6)),
    columns=st.lists(st.sampled_from(["train", "val", "all"]), min_size=1, unique=True),
)
def test_the_columns_of_a_class_table_are_below_their_headings(
    names: list[str], pixels: dict[int, int], columns: list[str]
) -> None:
    heading, *rows = class_table(names, {column: {1: 12_345} for column in columns}, pixels).split("\n")
    assert len(rows) == len(names) + bool(pixels.get(IGNORE))
    assert {len(row) for row in rows} == {len(heading)}
    for column in columns:
        end = heading.index(f" {column}") + 1 + len(column)
        assert [row[end - 6 : end].strip() for row in rows[:2]] == ["–", "12,345"]
