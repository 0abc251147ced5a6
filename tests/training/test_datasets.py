"""The paper's data sets, on small trees of their true layout."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt.decode_picture import decode
from training.data import IGNORE, DataError, MaskFolder, PictureMasks, present, same_class
from training.datasets import KINDS, coco, fss, mosaic, open_dataset, sbd, splits, voc
from training.datasets.__main__ import main

PALETTE = [value for i in range(256) for value in (i, 255 - i, i * 7 % 256)]


def save(file: Path, values: np.ndarray, palette: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P") if image.mode != "L" else Image.frombytes("P", image.size, values.tobytes())
        image.putpalette(PALETTE)
    image.save(file)


def photograph(height: int = 12, width: int = 17, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


# --- small trees ------------------------------------------------------------------------------------------------------


def write_voc(root: Path) -> Path:
    """VOC: a, b in train, v in val; SBD has masks of b (VOC's own comes first), s, t and v (never trained on)."""
    home = root / "VOCdevkit" / "VOC2012"
    for name in "abstv":
        save(home / "JPEGImages" / f"{name}.jpg", photograph())
    for name, index in (("a", 8), ("b", 12), ("v", 20)):
        mask = np.zeros((12, 17), np.uint8)
        mask[3:9, 4:10], mask[3, 4:10] = index, 255
        save(home / "SegmentationClass" / f"{name}.png", mask, palette=True)
    for name, index in (("b", 1), ("s", 10), ("t", 15), ("v", 1)):
        save(home / "SegmentationClassAug" / f"{name}.png", np.full((12, 17), index, np.uint8))
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("v\n")
    return root


POLYGON = [2.0, 2.0, 12.0, 2.0, 12.0, 10.0, 2.0, 10.0]  # x 2..12, y 2..10
INNER = [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]


def instances(split: str, year: str, edit: Callable[[dict[str, Any]], None] = lambda d: None) -> dict[str, Any]:
    """Three pictures: one with a dog on a couch and a crowd of persons, one with a tv and broken shapes, one empty."""
    stem = {"2014": f"COCO_{split}2014_", "2017": ""}[year]
    offset = 0 if split == "train" else 100
    images = [
        {"id": offset + i, "file_name": f"{stem}{offset + i:012}.jpg", "height": 12, "width": 17} for i in (1, 2, 3)
    ]
    ids = {name: 3 * number for number, name in enumerate(coco.CLASSES)}  # like COCO's, not consecutive
    crowd = np.zeros((12, 17), int)
    crowd[:, 10:] = 1
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], crowd.T.ravel(), [-1]])) != 0)).tolist()
    annotations = [
        {"image_id": offset + 1, "category_id": ids["dog"], "segmentation": [INNER], "iscrowd": 0},
        {"image_id": offset + 1, "category_id": ids["couch"], "segmentation": [POLYGON], "iscrowd": 0},
        {
            "image_id": offset + 1,
            "category_id": ids["person"],
            "segmentation": {"counts": runs, "size": [12, 17]},
            "iscrowd": 1,
        },
        {
            "image_id": offset + 2,
            "category_id": ids["tv"],
            "segmentation": [[1.0, 1.0, 5.0, 5.0], POLYGON],
            "iscrowd": 0,
        },
        {"image_id": offset + 2, "category_id": ids["cup"], "segmentation": [[1.0, 1.0, 5.0, 5.0]], "iscrowd": 0},
        {
            "image_id": offset + 3,
            "category_id": ids["person"],
            "segmentation": {"counts": runs, "size": [12, 17]},
            "iscrowd": 1,
        },
    ]
    categories = [{"id": ids[name], "name": name} for name in reversed(coco.CLASSES[1:])]
    document = {"images": images, "annotations": annotations, "categories": categories}
    edit(document)
    return document


def write_coco(root: Path, year: str = "2017", edit: Callable[[dict[str, Any]], None] = lambda d: None) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        document = instances(split, year)
        for image in document["images"]:
            save(root / f"{split}{year}" / image["file_name"], photograph())
        (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(instances(split, year, edit)))
    return root


FSS_CLASSES = ("abe's_flyingfish", "iphone", "groenendael", "stealth_aircraft", "swan", "one-armed_bandit", "abacus")


def write_fss(root: Path, pictures: int = 4) -> Path:
    """FSS-1000: five test classes and two training classes."""
    for number, class_ in enumerate(FSS_CLASSES):
        for k in range(1, pictures + 1):
            save(root / class_ / f"{k}.jpg", photograph(20, 20, 30 * number + k))
            mask = np.zeros((20, 20), np.uint8)
            mask[5:15, 5:15] = 255
            mask[4] = 100  # a grey border
            save(root / class_ / f"{k}.png", np.repeat(mask[..., None], 3, 2) if k % 2 else mask)
    return root


@pytest.fixture
def trees(tmp_path: Path, shapes: Path) -> dict[str, Path]:
    """A small tree per kind."""
    made = {
        "folder": shapes,
        "pascal-5i": write_voc(tmp_path / "voc"),
        "coco-20i": write_coco(tmp_path / "coco"),
        "fss-1000": write_fss(tmp_path / "fss"),
        "mosaic-4": tmp_path / "mosaic",
    }
    mosaic.write(fss.Fss1000(made["fss-1000"]), made["mosaic-4"], side=10)
    return made


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("pascal-5i", 20), ("coco-20i", 80), ("coco-20i-to-voc", 20)])
def test_four_folds_share_no_class_and_cover_all(split: str, count: int) -> None:
    names = [name for fold in range(4) for name in splits.held_out(split, fold)]
    assert len(names) == len(set(names)) == count
    assert set(names) == set((coco.CLASSES if split == "coco-20i" else voc.CLASSES)[1:])


def test_pascals_folds_are_consecutive_and_cocos_take_every_fourth_class() -> None:
    for fold in range(4):
        assert splits.held_out("pascal-5i", fold) == voc.CLASSES[1 + 5 * fold : 6 + 5 * fold]
        assert splits.held_out("coco-20i", fold) == coco.CLASSES[1 + fold :: 4]


@pytest.mark.parametrize("fold", range(4))
def test_cocos_novel_classes_on_voc_are_those_of_table_6(fold: int) -> None:
    novel = {same_class(name) for name in splits.held_out("coco-20i", fold)}
    assert splits.held_out("coco-20i-to-voc", fold) == tuple(
        sorted(name for name in voc.CLASSES[1:] if same_class(name) in novel)
    )


def test_voc_and_coco_share_all_of_vocs_classes() -> None:
    assert {same_class(name) for name in voc.CLASSES[1:]} < {same_class(name) for name in coco.CLASSES[1:]}
    for names in (voc.CLASSES, coco.CLASSES):
        assert len({same_class(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "in_voc", "in_coco"),
    [
        ("tv/monitor", "tvmonitor", "tv"), ("tv", "tvmonitor", "tv"), ("aeroplane", "aeroplane", "airplane"),
        ("airplane", "aeroplane", "airplane"), ("motorcycle", "motorbike", "motorcycle"), ("couch", "sofa", "couch"),
        ("pottedplant", "pottedplant", "potted plant"), ("dining table", "diningtable", "dining table"),
        ("hotdog", "", "hot dog"), ("sportsball", "", "sports ball"), ("cellphone", "", "cell phone"),
    ],
)  # fmt: skip
def test_a_class_is_found_by_either_data_sets_name(
    name: str, in_voc: str, in_coco: str, trees: dict[str, Path]
) -> None:
    for kind, wanted in (("pascal-5i", in_voc), ("coco-20i", in_coco)):
        data = open_dataset(kind, trees[kind])
        if wanted:
            assert data.classes[data.index(name)] == wanted
        else:
            with pytest.raises(DataError, match="no class"):
                data.index(name)


def test_every_held_out_class_has_an_index_in_both_voc_and_coco(trees: dict[str, Path]) -> None:
    for fold in range(4):
        for split, kind in (("pascal-5i", "pascal-5i"), ("coco-20i", "coco-20i"), ("coco-20i-to-voc", "pascal-5i")):
            data = open_dataset(kind, trees[kind])
            indices = splits.held_out_indices(data, split, fold)
            assert tuple(data.classes[i] for i in indices) == splits.held_out(split, fold)
        assert len(splits.held_out_indices(open_dataset("coco-20i", trees["coco-20i"]), "pascal-5i", fold)) == 5


def test_a_folder_with_some_of_a_folds_classes_will_do_and_one_with_none_will_not(shapes: Path) -> None:
    (shapes / "classes.txt").write_text("background\ncow\ntree\nTV monitor\n")
    data = MaskFolder(shapes)
    assert splits.held_out_indices(data, "pascal-5i", 1) == [1]
    assert splits.held_out_indices(data, "pascal-5i", 3) == [3]
    with pytest.raises(DataError, match=r"no class of pascal-5i's fold 0 \(aeroplane, bicycle"):
        splits.held_out_indices(data, "pascal-5i", 0)


@pytest.mark.parametrize(("split", "fold"), [("pascal", 0), ("pascal-5i", 4), ("coco-20i", -1), ("coco-20i", True)])
def test_an_unknown_split_or_fold_is_named(split: str, fold: int) -> None:
    with pytest.raises(DataError, match="expected"):
        splits.held_out(split, fold)


# --- every kind -------------------------------------------------------------------------------------------------------


def test_every_kind_keeps_the_interfaces_promises(trees: dict[str, Path]) -> None:
    for kind, definition in KINDS.items():
        data = open_dataset(kind, trees[kind])
        assert len(data.words) == len(data.classes) == len(set(data.classes))
        seen: set[str] = set()
        for split in definition.splits:
            names = data.names(split)
            assert names
            assert not seen & set(names), "a picture is in both splits"
            seen |= set(names)
            assert names == open_dataset(kind, trees[kind]).names(split)
            for name in names:
                mask, rgb = data.mask(name), decode(data.picture(name))
                assert mask.dtype == np.int16
                assert mask.shape == rgb.shape[:2]
                assert set(np.unique(mask)) <= {IGNORE, *range(len(data.classes))}
                assert data.present(name) == present(mask)
                assert "/" not in name, "a feature cache names its files so"
                assert data.stamp(name) == open_dataset(kind, trees[kind]).stamp(name)


def test_a_stamp_changes_with_the_mask(trees: dict[str, Path]) -> None:
    for kind, definition in KINDS.items():
        data = open_dataset(kind, trees[kind])
        name = data.names(definition.splits[-1])[0]
        before = data.stamp(name)
        file = data.annotation_file("val") if isinstance(data, coco.Coco) else data.mask_file(name)  # type: ignore[attr-defined]
        file.write_bytes(file.read_bytes() + b" ")
        assert data.stamp(name) != before, kind


def test_an_unknown_kind_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'ade20k'; expected one of folder, pascal-5i"):
        open_dataset("ade20k", tmp_path)
    with pytest.raises(DataError, match="is no folder; expected coco-20i"):
        open_dataset("coco-20i", tmp_path / "nowhere")


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_trains_on_sbd_too_but_on_no_validation_picture(trees: dict[str, Path]) -> None:
    data = open_dataset("pascal-5i", trees["pascal-5i"])
    assert data.names("train") == ["a", "b", "s", "t"]
    assert data.names("val") == ["v"]
    assert [data.present(name) for name in "abstv"] == [[8], [12], [10], [15], [20]]  # VOC's own mask where it has one


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_at_three_depths(inside: str, trees: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copytree(trees["pascal-5i"] / "VOCdevkit" / "VOC2012", tmp_path / "other" / inside, dirs_exist_ok=True)
    assert voc.PascalVoc(tmp_path / "other").names("val") == ["v"]


@pytest.mark.parametrize(
    ("name", "line"),
    [("trainaug", "{0}"), ("train_aug", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png")],
)
def test_an_augmented_list_is_heeded_less_the_validation_pictures(name: str, line: str, trees: dict[str, Path]) -> None:
    data = voc.PascalVoc(trees["pascal-5i"])
    (data.home / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(line.format(n) + "\n" for n in "tva"))
    assert data.names("train") == ["t", "a"]


def test_sbds_matlab_masks_become_index_masks_once(trees: dict[str, Path], tmp_path: Path) -> None:
    from scipy.io import savemat

    data = voc.PascalVoc(trees["pascal-5i"])
    shutil.rmtree(data.home / "SegmentationClassAug")
    release = tmp_path / "benchmark_RELEASE" / "dataset" / "cls"
    release.mkdir(parents=True)
    truth = np.zeros((12, 17), np.uint8)
    truth[2:5] = 17
    for name in ("s", "t", "v"):
        savemat(release / f"{name}.mat", {"GTcls": {"Boundaries": np.zeros(3), "Segmentation": truth}})
    command = ["convert-sbd", "--sbd", str(tmp_path / "benchmark_RELEASE"), "--data", str(trees["pascal-5i"])]
    assert main(command) == 0
    again = voc.PascalVoc(trees["pascal-5i"])
    assert again.names("train") == ["a", "b", "s", "t"]
    np.testing.assert_array_equal(again.mask("s"), truth)
    assert sbd.convert(release.parent, again) == 0


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_small_instances_lie_over_large_ones_and_crowds_are_ignored(year: str, tmp_path: Path) -> None:
    data = coco.Coco(write_coco(tmp_path / "coco", year))
    first, second = data.names("train")  # the third shows nothing but a crowd
    dog, couch, tv = (data.index(name) for name in ("dog", "couch", "tv"))
    expected = np.zeros((12, 17), np.int16)
    expected[:, 10:] = IGNORE
    expected[2:10, 2:12] = couch
    expected[4:8, 4:8] = dog
    np.testing.assert_array_equal(data.mask(first), expected)
    assert first.endswith("000000000001")
    np.testing.assert_array_equal(data.mask(second) == tv, expected == np.where(expected > 0, expected, -9))
    assert data.present(first) == sorted([dog, couch])


def test_prepared_masks_are_the_rasterised_ones_and_need_no_json(trees: dict[str, Path]) -> None:
    root = trees["coco-20i"]
    data = coco.Coco(root)
    before = {split: {name: data.mask(name) for name in data.names(split)} for split in ("train", "val")}
    assert main(["prepare", "--data", str(root)]) == 0
    for file in (root / "annotations").glob("*.json"):
        file.unlink()
    prepared = coco.Coco(root)
    for split, masks in before.items():
        assert prepared.names(split) == list(masks)
        for name, mask in masks.items():
            np.testing.assert_array_equal(prepared.mask(name), mask)
            assert prepared.present(name) == present(mask)
    assert main(["prepare", "--data", str(root)]) == 0


def test_an_interrupted_preparation_is_not_taken_for_a_data_set_and_goes_on(
    trees: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trees["coco-20i"]
    whole, rasterise, calls = coco.Coco(root).names("train"), coco.rasterise, []

    def once(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rasterise(*arguments)

    monkeypatch.setattr(coco, "rasterise", once)
    assert main(["prepare", "--data", str(root), "--split", "train"]) == 130
    assert coco.Coco(root).names("train") == whole
    assert not coco.Coco(root).is_prepared("train")
    assert coco.prepare(coco.Coco(root), "train") == 1  # the first is kept
    assert coco.Coco(root).is_prepared("train")
    assert coco.Coco(root).names("train") == whole


# --- FSS-1000 and Mosaic-4 --------------------------------------------------------------------------------------------


def test_fss_has_240_test_classes_among_them_the_papers() -> None:
    assert len(fss.TEST_CLASSES) == len(set(fss.TEST_CLASSES)) == 240
    assert {"stealth_aircraft", "iphone", "groenendael", "abe's_flyingfish"} <= set(fss.TEST_CLASSES)  # figure 2
    assert all(re.fullmatch(r"[a-z0-9_']+", name) for name in fss.TEST_CLASSES)


def test_fss_holds_its_test_classes_out_of_training(trees: dict[str, Path]) -> None:
    data = open_dataset("fss-1000", trees["fss-1000"])
    shown = {s: {data.classes[i] for n in data.names(s) for i in data.present(n)} for s in ("train", "val")}
    assert shown == {"train": {"abacus", "one-armed_bandit"}, "val": set(FSS_CLASSES) & set(fss.TEST_CLASSES)}
    assert data.words[data.index("abe's flyingfish")] == "abe's flyingfish"
    mask = data.mask("one-armed_bandit-3")
    assert np.count_nonzero(mask == data.index("one-armed_bandit")) == 100
    assert np.count_nonzero(mask) == 100  # grey is no class


def test_fss_numbers_pictures_by_number(tmp_path: Path) -> None:
    data = fss.Fss1000(write_fss(tmp_path, pictures=10))
    assert data.names("train")[:10] == [f"abacus-{k}" for k in range(1, 11)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=4, max_size=12), st.integers(0, 2**32 - 1))
def test_every_picture_is_in_one_mosaic_and_no_class_twice_in_any(sizes: list[int], seed: int) -> None:
    classes = [f"class{number}" for number, size in enumerate(sizes) for _ in range(size)]
    try:
        rows = mosaic.arrange(classes, np.random.default_rng(seed))
    except DataError:
        assert max(sizes) > len(classes) // 4
        return
    assert rows.shape == (len(classes) // 4, 4)
    assert len(set(rows.ravel().tolist())) == rows.size
    assert all(len({classes[i] for i in row}) == 4 for row in rows)


def test_the_papers_600_mosaics_are_random_and_repeatable() -> None:
    classes = [f"class{i // 10}" for i in range(2400)]
    rows, again, reseeded = (mosaic.arrange(classes, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert sorted(rows.ravel().tolist()) == list(range(2400))
    np.testing.assert_array_equal(rows, again)
    assert (rows != reseeded).mean() > 0.99
    pairs = Counter(tuple(sorted((int(a) // 10, int(b) // 10))) for row in rows for a in row for b in row if a < b)
    # 3,600 shared mosaics over 28,680 pairs of classes: random pairs share one mosaic or none, few share more.
    assert max(pairs.values()) <= 5
    assert len(pairs) > 3200


def test_a_mosaic_is_its_four_pictures(trees: dict[str, Path]) -> None:
    source, data = fss.Fss1000(trees["fss-1000"]), open_dataset("mosaic-4", trees["mosaic-4"])
    names = data.names("val")
    assert len(names) == 5  # 20 pictures of test classes
    rows = list(csv.DictReader((trees["mosaic-4"] / "list.csv").open()))
    assert [row["mosaic"] for row in rows] == names
    for row in rows:
        mask, rgb = data.mask(row["mosaic"]), decode(data.picture(row["mosaic"]))
        assert len(data.present(row["mosaic"])) == 4
        for tile, place in zip(mosaic.TILES, np.ndindex(2, 2), strict=True):
            part = tuple(slice(10 * k, 10 * k + 10) for k in place)
            class_, number = row[f"{tile} class"], row[f"{tile} picture"].removesuffix(".jpg")
            wanted = source.mask(f"{class_}-{number}")[1::2, 1::2] > 0  # 20 pixels to 10: those right of a centre
            np.testing.assert_array_equal(mask[part], np.where(wanted, data.index(class_), 0))
            assert abs(int(rgb[part].mean()) - int(decode(source.picture(f"{class_}-{number}")).mean())) <= 1


def test_the_same_seed_writes_the_same_bytes_and_nothing_is_written_over(
    trees: dict[str, Path], tmp_path: Path
) -> None:
    command = ["mosaic-4", "--data", str(trees["fss-1000"]), "--side", "10", "--out"]
    assert main([*command, str(tmp_path / "again")]) == 0
    for file in sorted(trees["mosaic-4"].rglob("*.*")):
        assert (tmp_path / "again" / file.relative_to(trees["mosaic-4"])).read_bytes() == file.read_bytes()
    assert main([*command, str(tmp_path / "again")]) == DataError.exit_code
    assert main([*command, str(tmp_path / "other"), "--seed", "1"]) == 0
    assert (tmp_path / "other" / "list.csv").read_text() != (tmp_path / "again" / "list.csv").read_text()


def test_a_mosaic_that_fails_leaves_nothing_behind(trees: dict[str, Path], tmp_path: Path) -> None:
    (trees["fss-1000"] / "swan" / "2.jpg").write_bytes(b"no picture")
    assert main(["mosaic-4", "--data", str(trees["fss-1000"]), "--out", str(tmp_path / "new" / "m")]) != 0
    assert list((tmp_path / "new").iterdir()) == []


# --- errors -----------------------------------------------------------------------------------------------------------


def spoil(damage: str, trees: dict[str, Path]) -> tuple[PictureMasks, str]:
    """Damages a tree; returns its data set and the affected split."""
    home = trees["pascal-5i"] / "VOCdevkit" / "VOC2012"
    annotations = trees["coco-20i"] / "annotations" / "instances_train2017.json"
    match damage:
        case "voc: a mask in colours":
            save(home / "SegmentationClass" / "a.png", photograph())
        case "voc: a picture is missing":
            (home / "JPEGImages" / "s.jpg").unlink()
        case "voc: no list":
            (home / "ImageSets" / "Segmentation" / "val.txt").unlink()
        case "voc: no SBD":
            shutil.rmtree(home / "SegmentationClassAug")
        case "voc: a mask is missing":
            (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a\nq\n")
            save(home / "JPEGImages" / "q.jpg", photograph())
        case "voc: an index without a name":
            save(home / "SegmentationClassAug" / "s.png", np.full((12, 17), 21, np.uint8))
        case "voc: a mask cut short":
            file = home / "SegmentationClass" / "b.png"
            file.write_bytes(file.read_bytes()[:60])
        case "voc: another folder":
            shutil.rmtree(home / "JPEGImages")
        case "coco: no annotations":
            annotations.unlink()
        case "coco: JSON cut short":
            annotations.write_text(annotations.read_text()[:200])
        case "coco: another JSON":
            annotations.write_text('{"licenses": []}')
        case "coco: another category":
            annotations.write_text(annotations.read_text().replace('"couch"', '"settee"'))
        case "coco: a picture is missing":
            next((trees["coco-20i"] / "train2017").glob("*2.jpg")).unlink()
        case "coco: a code of another size":
            annotations.write_text(annotations.read_text().replace("[12, 17]", "[17, 12]"))
        case "fss: a mask is missing":
            (trees["fss-1000"] / "abacus" / "3.png").unlink()
        case "fss: no class folders":
            for name in FSS_CLASSES:
                shutil.rmtree(trees["fss-1000"] / name)
        case "mosaic: no list":
            (trees["mosaic-4"] / "val.txt").unlink()
    kind = {"voc": "pascal-5i", "coco": "coco-20i", "fss": "fss-1000", "mosaic": "mosaic-4"}[damage.split(":")[0]]
    return open_dataset(kind, trees[kind]), "val" if kind == "mosaic-4" else "train"


WRONG = {
    "voc: a mask in colours": r"a\.png is a RGB picture; expected 8-bit class indices",
    "voc: a picture is missing": r"s\.jpg is missing; expected every picture of the train list",
    "voc: no list": r"val\.txt cannot be read \(No such file",
    "voc: no SBD": r"SegmentationClassAug holds no mask; .* convert-sbd",
    "voc: a mask is missing": r"q of the train list has no mask in SegmentationClass or SegmentationClassAug",
    "voc: an index without a name": r"s\.png holds index 21, but the class names end at 20",
    "voc: a mask cut short": r"b\.png cannot be read as a mask",
    "voc: another folder": r"holds no JPEGImages.*check pascal-5i",
    "coco: no annotations": r"instances_train2017\.json is missing; expected COCO's annotations, or prepared masks",
    "coco: JSON cut short": r"cannot be read as JSON",
    "coco: another JSON": r"is not a COCO instances file \(KeyError",
    "coco: another category": r"has a category 'settee'; expected COCO's 80 classes",
    "coco: a picture is missing": r"2\.jpg is missing; expected every annotated picture of train",
    "coco: a code of another size": r"malformed \(its run-length code is of size \[17, 12\]",
    "fss: a mask is missing": r"3\.png is missing; every picture needs a mask",
    "fss: no class folders": r"holds no CLASS/1\.jpg.*check fss-1000",
    "mosaic: no list": r"val\.txt cannot be read \(No such file",
}


@pytest.mark.parametrize("damage", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_check_finds_it(
    damage: str, trees: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=WRONG[damage]) as caught:  # noqa: PT012
        data, split = spoil(damage, trees)
        for name in data.names(split):
            data.mask(name)
    assert "\n" not in str(caught.value)
    kind = {"voc": "pascal-5i", "coco": "coco-20i", "fss": "fss-1000", "mosaic": "mosaic-4"}[damage.split(":")[0]]
    capsys.readouterr()
    assert main(["check", kind, "--data", str(trees[kind]), "--thorough"]) == DataError.exit_code
    out = capsys.readouterr().out
    assert re.search(WRONG[damage], out)
    assert "expected layout:" in out


def test_a_split_that_is_none_is_named(trees: dict[str, Path]) -> None:
    for kind in ("pascal-5i", "coco-20i", "fss-1000"):
        with pytest.raises(DataError, match="has no split 'test'; expected train or val"):
            open_dataset(kind, trees[kind]).names("test")
    with pytest.raises(DataError, match=r"mosaic-4 is for scoring.*train on fss-1000"):
        open_dataset("mosaic-4", trees["mosaic-4"]).names("train")


def test_too_large_a_class_and_too_few_pictures_make_no_mosaic() -> None:
    with pytest.raises(DataError, match="a alone has 3"):
        mosaic.arrange(["a"] * 3 + ["b", "c", "d", "e", "f"], np.random.default_rng(0))
    with pytest.raises(DataError, match="none can be made"):
        mosaic.arrange(["a", "b", "c"], np.random.default_rng(0))


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_passes_every_whole_data_set(trees: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        for more in ([], ["--thorough"]):
            assert main(["check", kind, "--data", str(trees[kind]), *more]) == 0, capsys.readouterr().out
            assert capsys.readouterr().out.splitlines()[-1].startswith("usable")


def test_check_counts_pictures_classes_and_folds(trees: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "pascal-5i", "--data", str(trees["pascal-5i"]), "--folds", "coco-20i-to-voc"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 pictures (the complete data set has 10,582)" in out
    assert re.search(r"12 dog +1 +0", out)
    assert (
        "0: aeroplane, boat, chair, diningtable, dog, person: 2 training pictures show none of them; 0 validation"
        in out
    )
    assert (
        "2: bird, car, pottedplant, sheep, train, tvmonitor: 4 training pictures show none of them; 1 validation" in out
    )


def test_check_looks_at_one_split_where_it_is_asked_to(trees: dict[str, Path]) -> None:
    home = trees["pascal-5i"] / "VOCdevkit" / "VOC2012"
    shutil.rmtree(home / "SegmentationClassAug")
    assert main(["check", "pascal-5i", "--data", str(trees["pascal-5i"])]) == DataError.exit_code
    assert main(["check", "pascal-5i", "--data", str(trees["pascal-5i"]), "--split", "val"]) == 0


def test_thorough_finds_a_mask_of_another_size(trees: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = trees["pascal-5i"]
    save(root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / "s.png", np.zeros((5, 7), np.uint8))
    assert main(["check", "pascal-5i", "--data", str(root)]) == 0
    assert main(["check", "pascal-5i", "--data", str(root), "--thorough"]) == DataError.exit_code
    assert "train s: the mask has 7×5 pixels, the picture 17×12" in capsys.readouterr().out


def test_folds_that_share_no_class_with_the_data_are_a_problem(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "folder", "--data", str(shapes), "--folds", "pascal-5i"]) == DataError.exit_code
    assert "no class of pascal-5i is here" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "prepare", "convert-sbd", "mosaic-4"])
def test_help_teaches_by_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"python -m training.datasets {command}" in capsys.readouterr().out.split("examples:")[1]
