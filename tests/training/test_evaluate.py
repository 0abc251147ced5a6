from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import alignment, checkpoint, evaluate, scoring
from training.data import MaskFolder
from training.datasets.splits import FOLDS
from training.encoders import classifier_rows
from training.model import FusionerConfig, tiny
from training.recipe import Protocol

ROOT = Path(__file__).parents[2]


def arguments(target: Path, data: Path, *more: str) -> list[str]:
    return [str(target), "--data", str(data), "--cache", str(data.parent / "cache"), "--least", "1", *more]


@pytest.fixture
def voc_like(shapes: Path) -> Path:
    """The shapes with class names of pascal-5i: cat and cow of fold 1, dog of fold 2."""
    (shapes / "classes.txt").write_text("background\ncat\ndog\ncow\n")
    return shapes


def with_record(folder: Path, **record: object) -> Path:
    checkpoint.save(tiny(), folder / "checkpoint", record)
    return folder / "checkpoint"


def test_every_output_says_the_same(
    tiny_checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / "new" / name for name in ("s.json", "s.csv", "confusion.png", "sheet.png")}
    outputs = ["--json", "s.json", "--csv", "s.csv", "--confusion", "confusion.png", "--sheet", "sheet.png"]
    outputs = [str(files.get(word, word)) for word in outputs]
    assert evaluate.main(arguments(tiny_checkpoint, shapes, "--words", "all", *outputs)) == 0
    printed = capsys.readouterr().out
    made = json.loads(files["s.json"].read_text())
    assert (made["format"], made["format_version"], made["kind"]) == ("fusioner-rt scores", 1, "checkpoint")
    assert made["target"] == "tiny/checkpoint"
    assert made["protocol"] == {
        "words": "all", "masks": "labels", "mode": "joint", "window": "whole", "scale": None, "least": 1, "threshold": 0.5,
    }  # fmt: skip
    assert list(made["classes"]) == ["red thing", "green thing", "blue thing"]
    ious = [row["iou"] for row in made["classes"].values()]
    assert made["miou"] == pytest.approx(np.mean(ious), abs=1e-3)
    with files["s.csv"].open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["iou"]) for row in table] == ious
    for word, row in made["classes"].items():
        assert f"| {word} | {row['pictures']} | {row['iou']:.1f} |" in printed
    assert f"| {made['miou']:.1f} |" in printed
    pixels = np.array(made["confusion"]["pixels"])
    assert made["confusion"]["words"] == ["background", *made["classes"]]
    for n, row in enumerate(made["classes"].values(), 1):
        assert row["recall"] == pytest.approx(100 * pixels[n, n] / pixels[n].sum(), abs=1e-3)
    for name in ("confusion.png", "sheet.png"):
        with Image.open(files[name]) as picture:
            assert min(picture.size) > 300
    assert not list((tmp_path / "new").glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize("protocol", [("known", "independent", "whole"), ("all", "joint", "sliding")])
def test_checkpoint_and_bundle_take_every_protocol(
    protocol: tuple[str, str, str], tiny_checkpoint: Path, tiny_bundle: Path, shapes: Path, tmp_path: Path
) -> None:
    words, mode, window = protocol
    scores = []
    for target in (tiny_checkpoint, tiny_bundle):
        file = tmp_path / "scores.json"
        chosen = ["--words", words, "--mode", mode, "--window", window, "--scale", "1.5", "--json", str(file)]
        assert evaluate.main(arguments(target, shapes, *chosen)) == 0
        scores.append(json.loads(file.read_text()))
    assert [made["kind"] for made in scores] == ["checkpoint", "bundle"]
    assert scores[0]["miou"] == pytest.approx(scores[1]["miou"], abs=0.3)
    assert scores[0]["miou"] > 0


def test_masks_that_may_overlap_have_no_confusion(tiny_checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    scores = {}
    for masks in ("labels", "classwise"):
        file = tmp_path / f"{masks}.json"
        assert evaluate.main(arguments(tiny_checkpoint, shapes, "--masks", masks, "--json", str(file))) == 0
        scores[masks] = json.loads(file.read_text())
    assert scores["classwise"]["confusion"] is None
    assert scores["labels"]["confusion"] is not None
    for word, row in scores["labels"]["classes"].items():
        assert scores["classwise"]["classes"][word]["recall"] >= row["recall"], "a word loses no pixel to another"


def test_a_folds_model_is_scored_on_the_classes_it_never_saw(
    voc_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"dataset": "folder", "folds": "pascal-5i", "fold": 1, "holdout": [], "recipe": "mine", "seed": 3}
    target, file = with_record(tmp_path, **record), tmp_path / "s.json"
    for chosen, scored in (([], ["cat", "cow"]), (["--classes", "seen"], ["dog"]), (["--fold", "2"], ["dog"])):
        assert evaluate.main(arguments(target, voc_like, *chosen, "--json", str(file))) == 0
        made = json.loads(file.read_text())
        assert list(made["classes"]) == scored
        assert made["training"] == record, "as it was trained, whatever is scored"
        assert (made["folds"], made["fold"]) == ("pascal-5i", 2 if "--fold" in chosen else 1)
    printed = capsys.readouterr().out
    assert "2 classes held out of fold 1 of pascal-5i" in printed
    assert "Scored: cat, cow." in printed


def test_older_records_hold_out_classes_by_name(voc_like: Path, tmp_path: Path) -> None:
    data = MaskFolder(voc_like)
    chosen = evaluate.choice({"plan": {"holdout": ["cow", "zebra"]}}, None, None, None)
    assert evaluate.scored(data, chosen, "").classes == [3], "what this data set does not have is not scored"
    assert evaluate.scored(data, chosen, "all").classes == [1, 2, 3]
    (voc_like / "classes.txt").write_text("background\ncat\nTV/monitor\ncow\n")
    chosen = evaluate.choice({"holdout": ["tv"]}, None, None, None)
    assert evaluate.scored(MaskFolder(voc_like), chosen, "seen").classes == [1, 3], "by whatever name it was held out"
    assert evaluate.scored(data, evaluate.choice({}, None, None, None), "").classes == [1, 2, 3]


def test_folds_without_a_fold_give_a_mean_for_each(voc_like: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog", "cow"):
        assert any(name in fold for fold in FOLDS["pascal-5i"])
    (voc_like / "classes.txt").write_text("background\ncat\ndog\nsheep\n")
    names = MaskFolder(voc_like).classes
    file = tmp_path / "s.json"
    assert evaluate.main(arguments(tiny_checkpoint, voc_like, "--folds", "pascal-5i", "--json", str(file))) == 0
    made = json.loads(file.read_text())
    assert list(made["classes"]) == names[1:]
    assert made["fold"] is None
    assert made["miou_per_fold"] == {str(n + 1): made["classes"][name]["iou"] for n, name in enumerate(names[1:])}


def test_baselines_stand_beside_an_efficientnet_and_their_threshold_is_said_to_be_chosen_here(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, rows = classifier_rows("efficientnet-lite0")
    few = (names[::8], rows[::8])  # a thousand names, in 32 templates each, take minutes to encode
    monkeypatch.setattr(alignment, "classifier_rows", lambda name: few)
    config = FusionerConfig(width=16, layers=1, heads=2, decoder=(16,), templates=("a photo of a {category}.",))
    target, file = tmp_path / "small" / "checkpoint", tmp_path / "s.json"
    checkpoint.save(checkpoint.build(config), target, {})
    (shapes / "classes.txt").write_text("background\nbed\nlawn\nlake\n")
    assert evaluate.main(arguments(target, shapes, "--baselines", "--json", str(file))) == 0
    assert "best of several on these very pictures" in capsys.readouterr().out
    made = json.loads(file.read_text())
    everything, cosine = made["baselines"]
    assert everything == "everything"
    assert cosine.startswith("aligned cosine > ")
    assert all(row["recall"] == 100 for row in made["baselines"]["everything"]["classes"].values())


def test_known_words_compute_features_of_the_asked_pictures_alone(
    tiny_checkpoint: Path, shapes: Path, tmp_path: Path
) -> None:
    data = MaskFolder(shapes)
    assert evaluate.main(arguments(tiny_checkpoint, shapes, "--classes", "red thing")) == 0
    kept = {file.name.rsplit("-", 1)[0] for file in (shapes.parent / "cache").rglob("plain/*")}
    assert kept == {name for name in data.names("val") if 1 in scoring.present(data.mask(name))}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--baselines"], 2, "needs the image encoder's own ImageNet classifier"),
        (["--classes", "unseen"], 2, "what was held out"),
        (["--classes", "unicorn"], 72, "no class of"),
        (["--fold", "1"], 2, "--fold 1 needs --folds"),
        (["--folds", "pascal-5i", "--fold", "1"], 72, "has no class of pascal-5i's fold 1"),
        (["--folds", "nothing"], 72, "no split 'nothing'"),
        (["--split", "test"], 72, "test.txt"),
        (["--dataset", "pascal-5i"], 72, "holds no JPEGImages"),
        (["--classes", ","], 2, "names no class; "),
        (["--masks", "classwise", "--window", "sliding"], 2, "choose one of the two"),
        (["--masks", "classwise", "--confusion", "c.png"], 2, "--confusion needs --masks labels"),
        (["--cache", "/dev/null/x"], 50, "cannot be written"),
        (["--sheet", "sheet.png", "--sheet-pictures", "nothing"], 72, "is called 'nothing'"),
        (["--json", "/dev/null/x/s.json"], 50, "cannot be written"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    more: list[str], code: int, message: str, tiny_checkpoint: Path, shapes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(arguments(tiny_checkpoint, shapes, *more)) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("training.evaluate: ")
    assert message in said


@pytest.mark.parametrize("more", [["--threshold", "3"], ["--scale", "0.5"], ["--sheet-rows", "0"], ["--words", "some"]])
def test_a_flag_outside_its_meaning_is_refused_before_anything_is_read(more: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        evaluate.main(arguments(tmp_path / "nothing", tmp_path / "nothing", *more))
    assert refused.value.code == 2


def test_a_folder_that_is_no_target_and_a_bundle_with_baselines_are_refused(
    shapes: Path, tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(arguments(tmp_path, shapes)) == 72
    assert "neither config.json nor manifest.json" in capsys.readouterr().err
    assert evaluate.main(arguments(tiny_bundle, shapes, "--baselines")) == 2
    assert "--baselines needs a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["known", pytest.param("all", marks=pytest.mark.slow)])
def test_the_demonstrations_bundle_scores_as_its_checkpoint_does(words: str, tmp_path: Path) -> None:
    """On photographs with hand-drawn boxes as masks: the fp16 bundle is within 0.3 points."""
    root = tmp_path / "photographs"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    # Boxes around the objects: (top, bottom, left, right) as fractions of the edges.
    shown = {"cat": (1, (0.05, 1.0, 0.05, 0.95)), "astronaut": (2, (0.0, 1.0, 0.15, 0.75))}
    for name, (index, (top, bottom, left, right)) in shown.items():
        shutil.copy(ROOT / "docs" / "pictures" / f"{name}.jpg", root / "images")
        with Image.open(root / "images" / f"{name}.jpg") as picture:
            width, height = picture.size
        mask = np.zeros((height, width), np.uint8)
        mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = index
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("background\ncat\nperson\ndog\nhorse\n")
    (root / "val.txt").write_text("\n".join(shown) + "\n")
    data, names, scores = MaskFolder(root), list(shown), []
    for kind in ("checkpoint", "bundle"):
        with evaluate.Target(ROOT / "models" / "demo" / kind, data, tmp_path / "cache") as target:
            result = evaluate.evaluate(target, names, [1, 2, 3, 4], Protocol(words=words))["model"]
        scores.append(result.mean([1, 2]))
    assert scores[0] == pytest.approx(scores[1], abs=0.3)
    assert scores[0] > 30
