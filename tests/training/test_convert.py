"""Exports of labelling tools become the folder that training reads: what each form's shapes mean, pixel by pixel."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as codes

from fusioner_rt.decode_picture import decode
from fusioner_rt.results.yolo import data_file
from training.data import IGNORE, DataError, MaskFolder
from training.datasets.__main__ import main
from training.datasets.exports import Shape
from training.datasets.exports.coco import split_of

H, W = 20, 31


def picture(file: Path, turn: int = 1, mode: str = "RGB", size: tuple[int, int] = (H, W)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).convert(mode)
    image.save(file, exif=exif)
    return file


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def region(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme(root: Path, name: str, shapes: list[Any], **more: Any) -> Path:
    """A LabelMe file beside its picture, which is made where it is not there."""
    document = {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{Path(name).name}.jpg", "imageData": None,
        "imageHeight": H, "imageWidth": W, **more,
    }  # fmt: skip
    file = root / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    if "imagePath" not in more and not file.with_suffix(".jpg").exists():
        picture(file.with_suffix(".jpg"))
    return file


def png(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def converted(export: Path, *more: str) -> MaskFolder:
    out = export.parent / "out"
    assert main(["convert", str(export), "--out", str(out), *more]) == 0
    return MaskFolder(out)


def coco(
    root: Path, annotations: list[dict[str, Any]], count: int = 2, file: str = "annotations.json", **more: Any
) -> None:
    """A COCO JSON of pictures sub/p1.png, sub/p2.png, …, and categories 3 cat, 7 dog, 90 tv."""
    document = {
        "images": [{"id": 10 * n, "file_name": f"sub/p{n}.png", "height": H, "width": W} for n in range(1, count + 1)],
        "annotations": [{"id": n, "image_id": 10, **entry} for n, entry in enumerate(annotations, start=1)],
        "categories": [{"id": 90, "name": "tv"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        **more,
    }
    for n in range(1, count + 1):
        picture(root / "images" / "sub" / f"p{n}.png")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(document))


def yolo(root: Path, labels: dict[str, str], names: Any = ("cat", "dog"), yaml: str = "") -> None:
    """labels: split/NAME → the file's text, or "-" for a picture without one."""
    for name, text in labels.items():
        picture(root / "images" / f"{name}.jpg")
        if text != "-":
            file = root / "labels" / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    named = json.dumps(names if isinstance(names, dict) else list(names)).replace('"0"', "0").replace('"1"', "1")
    (root / "data.yaml").write_text(yaml or f"path: .\ntrain: images/train\nval: images/val\nnames: {named}\n")


# --- LabelMe ----------------------------------------------------------------------------------------------------------


def test_labelmes_shapes_are_drawn_in_their_order(tmp_path: Path) -> None:
    export = tmp_path / "export"
    bits = np.zeros((5, 8), bool)
    bits[:, ::2] = True
    labelme(export, "a", [
        shape("cat", box(2, 2, 20, 18)),
        shape("dog", [[4, 4], [10, 9]], "rectangle"),
        shape("Dog", [[25, 10], [25, 14]], "circle"),
        shape("dog", [[2, 12], [9, 16]], "mask", mask=png(bits)),
        shape("__ignore__", box(0, 0, 31, 1)),
        shape("_background_", box(15, 15, 20, 18)),
    ])  # fmt: skip
    labelme(export, "b", [])
    data = converted(export)
    assert data.classes == ["background", "cat", "dog"]  # Dog, once, is dog, twice
    expected = np.zeros((H, W), np.int16)
    expected[2:18, 2:20] = 1
    expected[4:9, 4:10] = 2
    expected[12:17, 2:10][bits] = 2
    expected[0] = IGNORE
    expected[15:18, 15:20] = 0
    y, x = np.mgrid[:H, :W] + 0.5
    expected[(x - 25) ** 2 + (y - 10) ** 2 <= 16] = 2
    found = data.mask("a")
    circle = np.zeros((H, W), bool)
    circle[5:15, 20:31] = True
    np.testing.assert_array_equal(found[~circle], expected[~circle])
    assert abs(int((found[circle] == 2).sum()) - np.pi * 16) < 3
    assert not data.mask("b").any()


def test_a_labelme_picture_is_found_by_any_systems_path_or_is_embedded(tmp_path: Path) -> None:
    export = tmp_path / "export"
    picture(export / "photos" / "one.jpg")
    embedded = picture(tmp_path / "elsewhere" / "two.jpg").read_bytes()
    labelme(export, "labels/first", [shape("cat", box(1, 1, 9, 9))], imagePath="..\\photos\\one.jpg")
    labelme(
        export, "labels/second", [shape("cat", box(1, 1, 9, 9))], imagePath="two.jpg",
        imageData=base64.b64encode(embedded).decode(),
    )  # fmt: skip
    data = converted(export)
    assert data.picture("labels-second").read_bytes() == embedded
    assert sorted([*data.names("train"), *data.names("val")]) == ["labels-first", "labels-second"]


@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_are_of_the_picture_as_a_viewer_shows_it(turn: int, tmp_path: Path) -> None:
    """Drawn on the turned picture, as LabelMe shows it, or on the stored pixels, as a tool that knows no EXIF does."""
    export = tmp_path / "export"
    marked = np.zeros((H, W, 3), np.uint8)
    marked[2:9, 3:20] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    export.mkdir()
    for name in "ab":
        Image.fromarray(marked).save(export / f"{name}.png", exif=exif)
    shown = decode(export / "a.png")[..., 0] > 128
    ys, xs = np.nonzero(shown)
    corners = box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    size = {"imageHeight": shown.shape[0], "imageWidth": shown.shape[1]}
    labelme(export, "a", [shape("cat", corners)], imagePath="a.png", **size)
    turned = turn > 4  # only an exchange of width and height tells the two apart
    labelme(export, "b", [shape("cat", box(3, 2, 20, 9) if turned else corners)], imagePath="b.png",
            **({"imageHeight": H, "imageWidth": W} if turned else size))  # fmt: skip
    data = converted(export)
    for name in "ab":
        np.testing.assert_array_equal(data.mask(name) == 1, shown)
    assert main(["check", str(data.root)]) == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_grey_and_transparent_pictures_convert_and_pass_the_check(mode: str, tmp_path: Path) -> None:
    export = tmp_path / "export"
    for name in "ab":
        picture(export / f"{name}.png", mode=mode)
        labelme(export, name, [shape("cat", box(1, 1, 9, 9))], imagePath=f"{name}.png")
    assert main(["check", str(converted(export).root)]) == 0


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_cocos_polygons_and_both_run_length_codes_give_one_mask(tmp_path: Path) -> None:
    export = tmp_path / "export"
    cat = region(3, 2, 12, 9) | region(20, 5, 28, 19)
    packed = codes.encode(np.asfortranarray(cat.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], cat.T.ravel(), [2]])) != 0), prepend=0)
    crowd = {"counts": packed["counts"], "size": [H, W]}
    rings = [np.ravel(box(3, 2, 12, 9)).tolist(), np.ravel(box(20, 5, 28, 19)).tolist()]
    for number, code in enumerate((rings, packed, {"counts": runs.tolist(), "size": [H, W]}), start=1):
        coco(export, [
            {"image_id": 10, "category_id": 7, "segmentation": [np.ravel(box(4, 3, 6, 5)).tolist()]},
            {"image_id": 10, "category_id": 3, "segmentation": code, "iscrowd": 0},
            {"image_id": 20, "category_id": 3, "segmentation": crowd, "iscrowd": 1},
            {"image_id": 20, "category_id": 90, "segmentation": [[1, 1, 5, 5]], "iscrowd": 0},
        ])  # fmt: skip
        out = tmp_path / f"out{number}"
        assert main(["convert", str(export), "--out", str(out)]) == 0
        data = MaskFolder(out)
        assert data.classes == ["background", "cat", "dog", "tv"]  # by id, whatever their gaps
        expected = np.where(cat, 1, 0)
        expected[3:5, 4:6] = 2  # the smaller over the larger, though it comes first
        np.testing.assert_array_equal(data.mask("sub-p1"), expected)
        np.testing.assert_array_equal(data.mask("sub-p2"), np.where(cat, IGNORE, 0))


def test_the_splits_of_several_json_files_are_kept_and_a_test_split_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "export"
    square = [np.ravel(box(1, 1, 9, 9)).tolist()]
    for split in ("train", "valid", "test"):
        images = [{"id": 10, "file_name": f"{split}.jpg"}]
        coco(export, [{"category_id": 3, "segmentation": square}], 0, f"{split}/_annotations.coco.json", images=images)
        picture(export / split / f"{split}.jpg")
    data = converted(export)
    assert (data.names("train"), data.names("val")) == (["train"], ["valid"])
    assert "_annotations.coco.json is a test split: left out" in capsys.readouterr().out


def test_coco_pictures_of_absolute_paths_are_called_by_what_is_below_their_folder(tmp_path: Path) -> None:
    export = tmp_path / "export"
    files = [picture(tmp_path / "photos" / f"{name}.png") for name in ("day/one", "night/one")]
    images = [{"id": 10 * n, "file_name": str(file)} for n, file in enumerate(files, start=1)]
    coco(export, [{"category_id": 3, "segmentation": RING}], 0, images=images)
    assert sorted(converted(export).pictures) == ["day-one", "night-one"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_train2017.json", "train"),
        ("training/a.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("VAL/a.json", "val"),
        ("validation-set.json", "val"),
        ("test-dev.json", "test"),
        ("test/train.json", "train"),
        ("train/valid/a.json", "val"),
        ("latest_1.json", ""),
        ("restraint.json", ""),
        ("intervals/contest.json", ""),
        ("evaluation.json", ""),
    ],
)
def test_a_split_is_a_whole_word_of_a_path_the_file_name_first(path: str, split: str) -> None:
    assert split_of(Path("test/export", path), Path("test/export")) == split


def test_files_that_are_called_nearly_as_a_split_are_read(tmp_path: Path) -> None:
    for name in ("latest_1", "restraint"):
        images = [{"id": 10, "file_name": f"{name}.jpg"}]
        coco(tmp_path / "export", [{"category_id": 3, "segmentation": RING}], 0, f"{name}.json", images=images)
        picture(tmp_path / "export" / f"{name}.jpg")
    data = converted(tmp_path / "export")
    assert sorted([*data.names("train"), *data.names("val")]) == ["latest_1", "restraint"]


# --- YOLO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("cat", "dog"), {0: "cat", 1: "dog"}])
def test_yolos_polygons_are_shares_and_a_picture_without_labels_is_background(names: Any, tmp_path: Path) -> None:
    export = tmp_path / "export"
    small = " ".join(f"{x / W} {y / H}" for x, y in box(4, 4, 8, 9))
    large = " ".join(f"{x / W} {y / H}" for x, y in box(2, 3, 20, 18))
    yolo(export, {"train/a": f"1 {small}\n0 {large}\n", "train/b": "-", "train/c": "", "val/a2": f"0 {large}"}, names)
    data = converted(export)
    assert data.classes == ["background", "cat", "dog"]
    expected = np.zeros((H, W), np.int16)
    expected[3:18, 2:20] = 1
    expected[4:9, 4:8] = 2
    np.testing.assert_array_equal(data.mask("train-a"), expected)
    assert not data.mask("train-b").any()
    assert not data.mask("train-c").any()
    assert data.names("val") == ["val-a2"]


@pytest.mark.parametrize("yaml", [
    "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [cat]\n",  # as Roboflow writes it
    "path: /nowhere\ntrain: [train/images]\nval: valid/images\nnames: {0: cat}\n",
    "train: train.txt\nval: valid/images\nnames: [cat]\n",
])  # fmt: skip
def test_yolos_paths_are_found_as_exporters_write_them(yaml: str, tmp_path: Path) -> None:
    export = tmp_path / "export"
    for split in ("train", "valid"):
        picture(export / split / "images" / f"{split}1.jpg")
        (export / split / "labels").mkdir()
        (export / split / "labels" / f"{split}1.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    (export / "data.yaml").write_text(yaml)
    (export / "train.txt").write_text("./train/images/train1.jpg\n")
    data = converted(export)
    assert (data.names("train"), data.names("val")) == (["train-train1"], ["valid-valid1"])
    assert (data.mask("train-train1") == 1).all()


def test_yolos_pictures_may_lie_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `fusioner-rt segment photos --yolo` leaves them: labels and data.yaml, by the pictures' names alone."""
    export, photos = tmp_path / "export", tmp_path / "photos"
    (export / "labels").mkdir(parents=True)
    (export / "data.yaml").write_text(data_file(("cat",)))
    for name in ("one", "day/two", "unlabelled"):
        picture(photos / f"{name}.jpg")
    for name in ("one", "two"):
        (export / "labels" / f"{name}.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    assert main(["convert", str(export), "--out", str(tmp_path / "out")]) == DataError.exit_code
    assert "give the folder of the pictures: --pictures DIR" in capsys.readouterr().err
    data = converted(export, "--pictures", str(photos))
    assert sorted(data.pictures) == ["day-two", "one"]
    assert all((data.mask(name) == 1).all() for name in data.pictures)
    assert "1 picture is not listed or without a label file, such as " in capsys.readouterr().out
    (export / "labels" / "three.txt").touch()
    assert (
        main(["convert", str(export), "--out", str(tmp_path / "2"), "--pictures", str(photos)]) == DataError.exit_code
    )
    assert "1 label file has no picture: " in capsys.readouterr().err


def test_yolos_splits_may_lie_elsewhere(tmp_path: Path) -> None:
    export, photos = tmp_path / "export", tmp_path / "photos"
    yolo(export, {"train/a": "0 0 0 1 0 1 1", "val/b": ""})
    (export / "images").rename(photos)
    for moved in (photos, photos / "images"):  # the folder of the pictures, or the one that holds images/
        data = converted(export, "--pictures", str(photos))
        assert (data.names("train"), data.names("val")) == (["train-a"], ["val-b"])
        shutil.rmtree(data.root)
        if moved == photos:
            photos.rename(tmp_path / "images")
            photos.mkdir()
            (tmp_path / "images").rename(photos / "images")


# --- all forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["labelme", "coco", "yolo"])
def test_a_hole_that_is_joined_to_its_ring_stays_a_hole(form: str, tmp_path: Path) -> None:
    """As tools write a hole where the form has none: out to the hole by an edge, around it, and back by the same edge."""
    export, hole = tmp_path / "export", [[8, 6], [8, 12], [15, 12], [15, 6], [8, 6]]
    ring = [[2, 2], *hole, *box(2, 2, 20, 18)]
    if form == "labelme":
        labelme(export, "a", [shape("cat", ring)])
        labelme(export, "b", [])
    elif form == "coco":
        coco(export, [{"category_id": 3, "segmentation": [np.ravel(ring).tolist()]}])
    else:
        yolo(export, {"train/a": "0 " + " ".join(f"{x / W} {y / H}" for x, y in ring), "val/b": ""})
    data = converted(export)
    name = {"labelme": "a", "coco": "sub-p1", "yolo": "train-a"}[form]
    np.testing.assert_array_equal(data.mask(name) == 1, region(2, 2, 20, 18) & ~region(8, 6, 15, 12))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_box_covers_the_pixels_whose_centres_it_holds_whatever_lies_outside(
    h: int, w: int, data: st.DataObject
) -> None:
    x0, x1 = sorted(data.draw(st.lists(st.integers(-5, w + 5), min_size=2, max_size=2)))
    y0, y1 = sorted(data.draw(st.lists(st.integers(-5, h + 5), min_size=2, max_size=2)))
    found = Shape("a", (np.array(box(x0, y0, x1, y1), float),), "here").draw((h, w))
    np.testing.assert_array_equal(found, region(max(0, x0), max(0, y0), max(0, x1), max(0, y1), (h, w)))


@settings(max_examples=30, deadline=None)
@given(st.integers(-9, 30), st.integers(-9, 30), st.integers(1, 12), st.integers(1, 12))
def test_a_placed_mask_is_cut_off_at_the_edges(x: int, y: int, h: int, w: int) -> None:
    found = Shape("a", (np.ones((h, w), bool), np.array([x, y])), "here").draw((H, W))
    np.testing.assert_array_equal(found, region(max(0, x), max(0, y), max(0, x + w), max(0, y + h)))


def test_unmarked_pixels_may_be_ignored_and_pictures_linked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = tmp_path / "export"
    for name in "abc":
        labelme(
            export,
            name,
            [shape("tv", box(2, 2, 8, 8)), shape("TV/monitor", box(9, 9, 12, 12)), shape("TV", box(1, 1, 2, 2))],
        )
    data = converted(export, "--unmarked", "ignored", "--link", "--split", "0.4")
    assert (data.mask("a") == IGNORE).sum() == H * W - 36 - 9 - 1
    assert data.picture("a").is_symlink()
    assert len(data.names("val")) == 1
    said = capsys.readouterr().out
    assert "'TV/monitor', 'TV' and 'tv' are one class, called 'tv'" in said
    assert "3 pictures linked, 2 in train.txt, 1 in val.txt" in said


def test_a_shape_is_cut_at_the_edge_and_one_that_covers_no_pixel_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, thin = tmp_path / "export", [[2, 3.6], [20, 3.6], [20, 3.9]]
    labelme(export, "a", [shape("cat", box(-4, 2, 5, 90)), shape("cat", thin), shape("dog", thin)])
    labelme(export, "b", [])
    data = converted(export)
    np.testing.assert_array_equal(data.mask("a"), region(0, 2, 5, H).astype(np.int16))
    said = capsys.readouterr().out
    assert re.search(r"note: 2 shapes cover no pixel, such as .*a\.json, shape 2 \(cat\): left out", said)


def test_a_conversion_that_fails_leaves_nothing_and_one_that_would_mix_is_refused(tmp_path: Path) -> None:
    export = tmp_path / "export"
    labelme(export, "a", [shape("cat", box(1, 1, 9, 9))])
    labelme(export, "b", [shape("cat", [[1, 1], [2, 2]])])
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(export), "--out", str(tmp_path / "out")]) == DataError.exit_code
    assert sorted(tmp_path.iterdir()) == before
    labelme(export, "b", [])
    (tmp_path / "out").mkdir()
    assert main(["convert", str(export), "--out", str(tmp_path / "out")]) == 0  # an empty folder will do
    assert main(["convert", str(export), "--out", str(tmp_path / "out")]) == DataError.exit_code


# --- what is wrong ----------------------------------------------------------------------------------------------------

SQUARE = shape("cat", box(1, 1, 9, 9))
RING = [[1, 1, 9, 1, 9, 9]]
_stream = io.BytesIO()
Image.fromarray(np.random.default_rng(1).integers(0, 255, (H, W, 3), np.uint8)).save(_stream, "JPEG")
JPEG = base64.b64encode(_stream.getvalue()).decode()

WRONG: dict[str, tuple[Any, str]] = {
    "a polygon of two points": (lambda e: labelme(e, "b", [SQUARE, shape("dog", [[1, 1], [2, 2]])]),
        r"b\.json, shape 2 \(dog\) has 2 points; expected 3 or more; draw it again"),
    "a line": (lambda e: labelme(e, "b", [shape("dog", [[1, 1], [2, 2]], "line")]),
        r"b\.json, shape 1 \(dog\) is a line, which has no area; .*; delete it"),
    "no label": (lambda e: labelme(e, "b", [shape(" ", box(1, 1, 2, 2))]), r"b\.json, shape 1 has no label; name it"),
    "words as points": (lambda e: labelme(e, "b", [shape("dog", [["a", "b"]] * 3)]),
        r"shape 1 \(dog\) has points that are no pairs of numbers; draw"),
    "a coordinate that is NaN": (lambda e: labelme(e, "b", [shape("dog", [[1, 1], [9, float("nan")], [3, 4]])]),
        r"shape 1 \(dog\) has a coordinate that is no number; draw"),
    "a broken mask": (lambda e: labelme(e, "b", [shape("dog", [[1, 1], [2, 2]], "mask", mask="AAAA")]),
        r"shape 1 \(dog\) holds no PNG as its mask .*; draw it again"),
    "no picture": (lambda e: labelme(e, "b", [], imagePath="gone.jpg"), r"b\.json names the picture 'gone\.jpg', .*; put it there"),
    "another picture": (lambda e: labelme(e, "b", [], imageHeight=7), r"b\.json is of 31×7 pixels, its picture has 31×20; put"),
    "a broken picture": (lambda e: (labelme(e, "b", []), (e / "b.jpg").write_bytes(b"no")), r"b\.jpg cannot be read as a picture"),
    "JSON cut short": (lambda e: (e / "b.json").write_text('{"shapes": ['), r"b\.json cannot be read as JSON .*; export it again"),
    "another JSON": (lambda e: (e / "b.json").write_text("[]"), r"b\.json is not LabelMe's; .*; move it out"),
    "nothing labelled": (lambda e: (labelme(e, "a", []), labelme(e, "b", [])), r"marks no class; .*; label the pictures first"),
    "one picture": (lambda e: None, r"holds 1 picture; .*; label another"),
    "a polygon outside": (lambda e: labelme(e, "b", [SQUARE, shape("dog", box(31, 2, 40, 9))]),
        r"b\.json, shape 2 \(dog\) lies outside of its picture of 31×20 pixels; delete it"),
    "a mask outside": (lambda e: labelme(e, "b", [shape("dog", [[5, -9], [9, -4]], "mask", mask=png(np.ones((5, 4), bool)))]),
        r"b\.json, shape 1 \(dog\) lies outside of its picture"),
    "coco: a polygon outside": (lambda e: only(e, coco, [{"category_id": 3, "segmentation": [[1, -9, 9, -9, 9, 0]]}]),
        r"annotation 1 \(cat\) lies outside of its picture of 31×20 pixels"),
    "coco: no file_name": (lambda e: only(e, coco, [], images=[{"id": 10, "file_name": "sub/p1.png"}, {"id": 20}]),
        r"annotations\.json, image 20 has no file_name"),
    "a picture of two files": (lambda e: labelme(e, "b", [], imagePath="a.jpg"), r"b\.json and .*a\.json mark one picture; .*; remove one"),
    "an embedded picture of two files": (lambda e: [labelme(e, n, [], imagePath="", imageData=JPEG) for n in "bc"],
        r"c\.json and .*b\.json mark one picture; "),
    "a picture cut short": (lambda e: (labelme(e, "b", []), (e / "b.jpg").write_bytes((e / "b.jpg").read_bytes()[:-200])),
        r"b\.jpg: the picture is broken or cut short .*; fetch or export it again"),
    "an embedded picture cut short": (lambda e: labelme(e, "b", [], imagePath="", imageData=JPEG[:-200]),
        r"the embedded picture of .*b\.json: the picture is broken or cut short"),
    "yolo: labels without a picture": (lambda e: (only(e, yolo, {f"train/{n}": "" for n in "abcde"}), [(e / f"images/train/{n}.jpg").unlink()
        for n in "bcde"]), r"4 label files have no picture: .*train/b\.txt, .*d\.txt, …; .*; add the pictures, or remove the label files"),
    "two forms": (lambda e: yolo(e, {"train/a": "-"}), r"in the forms labelme and yolo; expected one; choose it: --from labelme"),
    "an annotation of no image": (lambda e: only(e, coco, [{"image_id": 5, "category_id": 3, "segmentation": RING}]),
        r"annotations\.json, annotation 1 is of image 5, which the file does not list"),
    "an annotation of no category": (lambda e: only(e, coco, [{"category_id": 4, "segmentation": RING}]),
        r"annotation 1 is of category 4, which the file does not list"),
    "a box alone": (lambda e: only(e, coco, [{"category_id": 3, "segmentation": [], "bbox": [1, 1, 5, 5]}]),
        r"annotation 1 \(cat\) has no segmentation; .* not a box alone; export instance segmentation"),
    "a code of another size": (lambda e: only(e, coco, [{"category_id": 3, "segmentation": {"counts": [9], "size": [3, 3]}}]),
        r"annotation 1 \(cat\) is malformed \(its run-length code is of size \[3, 3\]"),
    "test splits alone": (lambda e: (only(e, coco, [], file="test/a.json"), coco(e, [], file="test/b.json")),
        r"holds no picture \(.*a\.json is a test split: left out, .*b\.json is a test split: left out\); expected two or more; "),
    "a list without names": (lambda e: only(e, coco, [], categories=[{"id": 3}]), r"is no COCO JSON \(KeyError: 'name'\)"),
    "yolo: a box": (lambda e: only(e, yolo, {"train/a": "0 0 0 1 0 1 1\n1 .5 .5 .1 .1", "train/b": "-"}),
        r"a\.txt, line 2 is a box \(5 numbers\); .*; export segmentation, not detection"),
    "yolo: pixels": (lambda e: only(e, yolo, {"train/a": "0 0 0 31 0 31 20", "train/b": "-"}),
        r"a\.txt, line 1 has the coordinate 31; expected shares of the picture, 0 to 1; divide"),
    "yolo: no such class": (lambda e: only(e, yolo, {"train/a": "2 0 0 1 0 1 1", "train/b": "-"}),
        r"a\.txt, line 1 is of class 2; names end at 1"),
    "yolo: words": (lambda e: only(e, yolo, {"train/a": "cat 0 0 1 0 1 1", "train/b": "-"}), r"a\.txt, line 1 holds what is no number"),
    "yolo: an odd number": (lambda e: only(e, yolo, {"train/a": "0 0 0 1 0 1 1 1", "train/b": "-"}), r"line 1 has 8 numbers; expected"),
    "yolo: no names": (lambda e: only(e, yolo, {"train/a": ""}, yaml="train: images/train\n"), r"data\.yaml has no names; .*; add it"),
    "yolo: no folder": (lambda e: only(e, yolo, {"train/a": ""}, yaml="train: gone\nnames: [cat]\n"),
        r"train of .*data\.yaml is gone, which is not there; .*; correct it"),
    "yolo: no labels": (lambda e: only(e, yolo, {"train/a": "-", "val/b": "-"}), r"no picture of .* has a label file; .*; put labels/"),
    "yolo: no YAML": (lambda e: only(e, yolo, {"train/a": ""}, yaml="names: [cat\n"), r"data\.yaml cannot be read as YAML"),
    "yolo: code in YAML": (lambda e: only(e, yolo, {"train/a": ""}, yaml="names: !!python/object/apply:os.getcwd []\n"),
        r"data\.yaml cannot be read as YAML"),
}  # fmt: skip


def only(export: Path, write: Any, *given: Any, **more: Any) -> None:
    """Writes an export where nothing else lies."""
    for file in export.iterdir():
        file.unlink()
    write(export, *given, **more)


@pytest.mark.parametrize("damage", WRONG)
def test_what_is_wrong_with_an_export_is_one_line_that_names_file_and_shape(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "export"
    labelme(export, "a", [SQUARE])
    WRONG[damage][0](export)
    capsys.readouterr()
    assert main(["convert", str(export), "--out", str(tmp_path / "out")]) == DataError.exit_code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "training.datasets: " in line]
    assert re.search(WRONG[damage][1], line), line
    assert "; " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--from", "yolo"], "holds no data.yaml"),
        (["--split", "1"], "--split is 1; expected a share between 0 and 1"),
        (["--split", "0.9"], "leaves no picture to train on"),
        (["--pictures", "gone"], "gone is no folder"),
        (["--out", __file__], "test_convert.py is a file; expected a folder"),
    ],
)
def test_a_wrong_option_of_a_conversion_is_one_line(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        labelme(tmp_path / "export", name, [SQUARE])
    assert main(["convert", str(tmp_path / "export"), "--out", str(tmp_path / "out"), *more]) == DataError.exit_code
    assert told in capsys.readouterr().err


def test_an_export_that_is_not_there_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "no.json"), "--out", str(tmp_path / "out")]) == DataError.exit_code
    assert f"there is no file or folder {tmp_path / 'no.json'}; expected an export" in capsys.readouterr().err
