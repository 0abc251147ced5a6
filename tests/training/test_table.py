from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from training import arguments, evaluate, recipe
from training.table import runs as table_runs
from training.table.__main__ import main
from training.table.runs import Places, Run, RunsFailed
from training.table.scores import run_name


def write_scores(
    runs: Path, name: str, fold: int | None, seed: int, classes: dict[str, tuple[float, int]], *, folder: str = "",
    fb_iou: float = 70.0, baselines: dict[str, dict[str, tuple[float, int]]] | None = None,
) -> None:  # fmt: skip
    """Writes scores.json as training.evaluate does for this recipe."""
    trained = recipe.read(name)

    def plain(values: dict[str, tuple[float, int]]) -> dict[str, Any]:
        return {word: {"iou": iou, "pictures": pictures} for word, (iou, pictures) in values.items()}

    document = {
        "format": "fusioner-rt scores",
        "format_version": 1,
        "training": {"recipe": trained.name, "seed": seed, "fold": fold},
        "dataset": trained.evaluation.dataset,
        "folds": trained.evaluation.folds or None,
        "fold": fold,
        "protocol": asdict(trained.protocol),
        "classes": plain(classes),
        "miou": 0.0,
        "fb_iou": fb_iou,
        "baselines": {label: {"classes": plain(values)} for label, values in (baselines or {}).items()},
    }
    folder = folder or run_name(trained.name, fold, seed)
    (runs / folder).mkdir(parents=True)
    (runs / folder / "scores.json").write_text(json.dumps(document))


def cells(output: str, row: str) -> list[list[str]]:
    """The cells of each line of the table whose row has this name."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    return [line for line in lines if row in (line[0], " · ".join(line[:3]))]


def own(folder: Path, **recipes: str) -> str:
    """A folder of the user's own recipes; returns the table's name."""
    folder.mkdir()
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)
    return f"{folder}/"


TINY = 'extends = "tiny"\nabout = "x"\nfolds = [1, 2]\n[data]\nfolds = "pascal-5i"\n'


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "7"])
def test_without_runs_a_table_holds_the_papers_figures_alone(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([number, "--runs", str(tmp_path)]) == 0
    for line in capsys.readouterr().out.splitlines():
        for cell in line.split("|") if line.startswith("|") else ():
            assert cell.partition(" / ")[2].strip() == "", line


def test_scores_fill_the_cells_of_their_row_and_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(tmp_path, "table1/a-clip-b-bert-l-late", 2, 0, {"dog": (30.0, 9), "horse": (41.0, 1)})
    write_scores(tmp_path, "table1/c-dino-b-clip-b-early", 0, 0, {"bird": (80.0, 9)})
    assert main(["1", "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    (late,) = cells(output, "A · CLIP-B · BERT-L")
    assert late[3:] == [
        "48.5 /",
        "59.3 /",
        "47.5 /",
        "43.8 /",
        "49.7 /",
        "47.0 /",
        "56.6 /",
        "41.4 / 35.5",
        "38.8 /",
        "46.0 /",
    ]
    (early,) = cells(output, "C · DINO-B · CLIP-B")
    assert early[3:5] == ["56.4 / 80.0", "67.1 /"]
    assert output.count("/ 35.5") == output.count("/ 80.0") == 1
    assert "late fusion, fold 2: 2 classes in 10 masks (dog 9, horse 1)" in output


def test_the_mean_waits_for_all_folds_and_seeds_have_a_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, ious in enumerate(((50, 60, 40, 30), (54, 60, 40, 30), (52, 60, 40, None))):
        for fold, iou in enumerate(ious):
            if iou is not None:
                write_scores(tmp_path, "table4/b1-no-decoder", fold, seed, {"x": (iou, 3)})
    assert main(["4", "--runs", str(tmp_path)]) == 0
    (row,) = cells(capsys.readouterr().out, "B1-CLIP-L")
    # Seed 2 lacks a fold: it counts in the other folds, not in the mean over 45 and 46.
    assert row[3:] == [
        "59.4 / 52.0 ± 2.0",
        "63.7 / 60.0 ± 0.0",
        "47.3 / 40.0 ± 0.0",
        "44.0 / 30.0 ± 0.0",
        "53.6 / 45.5 ± 0.7",
    ]


def test_equal_recipes_of_several_tables_are_filled_from_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path, "table7/layers-12", 3, 0, {"sheep": (77.7, 20)}, folder="by-hand")
    for number, times in (("1", 1), ("2", 1), ("4", 1), ("7", 2)):
        assert main([number, "--runs", str(tmp_path)]) == 0
        assert capsys.readouterr().out.count("52.7 / 77.7") == times, number


def test_one_checkpoint_scored_on_two_data_sets_fills_two_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table 5 scores table 2's checkpoints: the scores tell them apart, not the recipe that trained."""
    trained = "table2/fusioner-vit-l-14-coco"
    write_scores(tmp_path, trained, 1, 0, {"bear": (11.1, 5)})
    write_scores(tmp_path, "table5/fusioner-vit-l", 1, 0, {"bus": (22.2, 5)})
    file = tmp_path / "table5-fusioner-vit-l-fold1-seed0" / "scores.json"
    file.write_text(file.read_text().replace("table5/fusioner-vit-l", trained))
    main(["2", "--runs", str(tmp_path)])
    second = capsys.readouterr().out
    main(["5", "--runs", str(tmp_path)])
    fifth = capsys.readouterr().out
    assert "35.7 / 11.1" in second
    assert "22.2" not in second
    assert "70.7 / 22.2" in fifth
    assert "11.1" not in fifth


def test_table_3_has_both_measures_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(tmp_path, "table3/fusioner", None, 0, {"abacus": (50.0, 10), "ab wheel": (60.0, 10)}, fb_iou=71.5)
    assert main(["3", "--runs", str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out, "Fusioner") == [["Fusioner", "53.7 / 55.0", "76.3 / 71.5"]]


def test_own_recipes_make_a_table_with_both_means_and_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own(tmp_path / "mine", plain=TINY, wide=TINY + "[model]\nwidth = 32\n")
    found = str(tmp_path / "mine" / "plain.toml")
    for seed, (cat, dog, horse) in enumerate(((10, 20, 60), (20, 30, 70))):
        extra = {"everything": {"cat": (25.0, 15)}, "aligned cosine > 0.04": {"cat": (39.0, 15)}}
        classes = {"cat": (cat, 15), "cow": (99.0, 14)}
        write_scores(tmp_path / "runs", found, 1, seed, classes, baselines=None if seed else extra)
        write_scores(tmp_path / "runs", found, 2, seed, {"dog": (dog, 20), "horse": (horse, 15)})
    wide = str(tmp_path / "mine" / "wide.toml")
    fold_2 = {"everything": {"dog": (27.0, 20)}}  # the same baseline, from another row's run of another fold
    write_scores(tmp_path / "runs", wide, 2, 0, {"dog": (0.0, 20)}, baselines=fold_2)
    assert main([name, "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert cells(output, "model") == [["model", "fold 1", "fold 2", "mean of folds", "mean of classes"]]
    # Cow has 14 pictures and does not count. Folds: 10 and 40 of seed 0, 20 and 50 of seed 1; classes: 30 and 40.
    assert cells(output, "plain") == [["plain", "15.0 ± 7.1", "45.0 ± 7.1", "30.0 ± 7.1", "35.0 ± 7.1"]]
    assert cells(output, "wide") == [["wide", "", "0.0", "", ""]]
    assert cells(output, "baseline: everything") == [["baseline: everything", "25.0", "27.0", "26.0", "26.0"]]
    assert cells(output, "baseline: aligned cosine") == [["baseline: aligned cosine", "39.0", "", "", ""]]
    assert "fold 1: 1 class of 15 or more pictures in 15 masks (cat 15)" in output
    assert "standard deviation over 2 seeds" in output


def test_a_record_gives_the_same_table_as_the_runs_it_was_written_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        extra = {"everything": {"dog": (20.0, 7)}}
        write_scores(tmp_path / "runs", "table4/b2-no-fusion", 2, seed, {"dog": (31.249 + seed, 7)}, baselines=extra)
    write_scores(tmp_path / "runs", "table5/fusioner-vit-l", 1, 0, {"bus": (22.2, 5)})
    (tmp_path / "runs" / run_name("table4/b2-no-fusion", 2, 1) / "log.csv").write_text("epoch,seconds\n1,2.5\n2,4.0\n")
    record = tmp_path / "record.json"
    assert main(["4", "--runs", str(tmp_path / "runs"), "--write-record", str(record)]) == 0
    expected = capsys.readouterr().out
    assert main(["4", "--record", str(record), "--runs", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == expected
    document = json.loads(record.read_text())
    assert [(run["recipe"], run["seed"], run["seconds"]) for run in document["runs"]] == [
        ("table4/b2-no-fusion", 0, None),
        ("table4/b2-no-fusion", 1, 6.5),
    ]
    assert document["device"]
    assert "torch" in document["versions"]


def test_the_chart_has_a_bar_per_finished_row_and_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.svg"
    assert main(["4", "--runs", str(tmp_path), "--plot", str(chart)]) == 76
    for fold in range(4):
        write_scores(tmp_path, "table4/b0-full", fold, 0, {"x": (50.0, 3), "y": (40.0, 3)})
    assert main(["4", "--runs", str(tmp_path), "--plot", str(chart)]) == 0
    text = chart.read_text()
    assert "<svg" in text
    assert "B0-CLIP-L" in text
    assert "B1-CLIP-L" not in text
    assert main(["4", "--runs", str(tmp_path), "--plot", str(tmp_path / "chart.nix")]) == 76


def test_a_dry_run_lists_one_training_for_equal_recipes_and_what_scores_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path, "table4/b0-full", 2, 0, {"dog": (50.0, 9)})
    options = ["--run", "--dry-run", "--runs", str(tmp_path), "--data", "VOC", "--only", "12 · 8 · 512"]
    assert main(["7", *options, "--", "--workers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    b, protocol = "table1/b-clip-l-clip-l-early", "--masks classwise --least 1"
    assert lines == [
        line
        for fold in (0, 1, 3)  # fold 2 has scores
        for out in [tmp_path / f"table1-b-clip-l-clip-l-early-fold{fold}-seed0"]
        for line in (
            f"python -m training.train {b} --fold {fold} --seed 0 --out {out} --data VOC --workers 2",
            f"python -m training.evaluate {out}/checkpoint --data VOC --fold {fold} {protocol} --json {out}/scores.json",
        )
    ]
    assert not list(tmp_path.glob("table1*"))


def test_table_5_scores_the_checkpoints_of_table_2_on_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tmp_path / "table2-fusioner-vit-l-14-coco-fold3-seed0" / "checkpoint"
    trained.mkdir(parents=True)
    (trained / "config.json").write_text("{}")
    options = ["--run", "--dry-run", "--runs", str(tmp_path), "--data", "coco-20i=COCO", "--data", "pascal-5i=VOC"]
    assert main(["5", *options, "--only", "vit-l", "--cache", "C"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 3, "fold 3 is trained"
    assert lines[0].endswith("fold0-seed0 --data COCO --cache C")
    assert lines[-1] == (
        f"python -m training.evaluate {trained} --data VOC --fold 3 --dataset pascal-5i --folds coco-20i-to-voc"
        f" --masks classwise --least 1 --cache C --json {tmp_path}/table5-fusioner-vit-l-fold3-seed0/scores.json"
    )


def test_moved_weights_go_to_what_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--run", "--dry-run", "--runs", str(tmp_path), "--data", "VOC", "--only", "12 · 8 · 512"]
    assert main(["7", *options, "--image-weights", "new.pt", "--text-weights", "folder"]) == 0
    for line in capsys.readouterr().out.splitlines():
        scores = "training.evaluate" in line
        assert (" --image-weights new.pt --text-weights folder --json " in line) == scores
        if scores:
            given = evaluate.parser().parse_args(shlex.split(line)[3:])
            assert (given.image_weights, given.text_weights) == (Path("new.pt"), Path("folder"))


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "7"])
def test_the_commands_of_a_dry_run_are_those_that_training_takes(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsers = {"training.train": arguments.parser(), "training.evaluate": evaluate.parser()}
    assert main([number, "--run", "--dry-run", "--data", "DIR", "--baselines", "--runs", str(tmp_path)]) == 0
    for line in capsys.readouterr().out.splitlines():
        python, _, module, *rest = shlex.split(line)
        assert python == "python"
        given = parsers[module].parse_args(rest)
        if module == "training.train":
            recipe.read(given.recipe, arguments.overrides(given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["8"], "no recipe belongs to a table '8'; tables: 1, 2"),
        (["./nowhere/"], "no folder with recipes"),
        (["4", "--run"], "--run needs --data"),
        (["2", "--run", "--data", "pascal-5i=X"], "add --data coco-20i=DIR"),
        (["4", "--run", "--data", "X", "--only", "b9"], "fits no row"),
        (["4", "--dry-run"], "give both"),
        (["4", "--run", "--data", "X", "--record", "r.json"], "give one of them"),
        (["4", "--run", "--data", "X", "--jobs", "0"], "--jobs is 0"),
        (["4", "--", "--workers", "2"], "which only --run starts"),
        (["4", "--text-weights", "w.pt"], "--text-weights is for checkpoints that --run scores"),
        (["4", "--record", "/nowhere.json"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", str(tmp_path / "runs"), *options]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "something else"),
        ({"format_version": 9}, "format version 9"),
        ({"classes": {"cat": {"pictures": 3}}}, "garbles 'iou'"),
        ({"training": {"recipe": "table4/b0-full"}}, "garbles 'seed'"),
    ],
)
def test_a_garbled_scores_file_is_named(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path, "table4/b0-full", 0, 0, {"cat": (50.0, 3)}, folder="run")
    file = tmp_path / "run" / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert main(["4", "--runs", str(tmp_path)]) == 74
    error = capsys.readouterr().err
    assert message in error
    assert str(file) in error


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failed_run_is_reported_with_its_log_and_the_others_go_on(tmp_path: Path, jobs: int) -> None:
    runs = tmp_path / "runs"
    failing = Run(
        "b", [python("import sys; sys.exit('no such weights')"), python(f"open({str(tmp_path / 'never')!r}, 'w')")]
    )
    others = [Run(name, [python(f"open({str(tmp_path / name)!r}, 'w')")]) for name in ("a", "c")]
    with pytest.raises(
        RunsFailed, match=r"1 of 3 runs failed: b: .*exited with 1; see .*b\.log; the same command starts them again$"
    ):
        table_runs.start([others[0], failing, others[1]], Places(runs, {}), jobs)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "c").exists()
    assert not (tmp_path / "never").exists(), "a run ends with its first failing command"
    assert "no such weights" in (runs / "b.log").read_text()


def test_an_interrupt_ends_the_run_that_is_under_way_and_starts_no_other(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from training.table.runs import Places, Run, start
import sys
calm = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
calm += "open({str(tmp_path / "child")!r}, 'w').write(str(os.getpid())); time.sleep(100)"
first = [sys.executable, "-c", calm]  # exits with 0 when terminated
other = [sys.executable, "-c", "open({str(tmp_path / "other")!r}, 'w')"]
start([Run("one", [first, other]), Run("two", [other])], Places(Path({str(tmp_path / "runs")!r}), {{}}))
"""
    # A shell's background jobs ignore interrupts, and their children inherit that.
    hearing = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(python(code), stderr=subprocess.DEVNULL, preexec_fn=hearing)
    child = tmp_path / "child"
    deadline = time.monotonic() + 60
    while not (child.exists() and child.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_table_is_trained_scored_and_printed_and_a_second_call_has_nothing_to_do(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real commands: one row works, one names a missing encoder."""
    plain = 'extends = "tiny"\nabout = "x"\nseeds = [1]\n[training]\nepochs = 1\n[evaluation]\nleast = 1\n'
    name = own(tmp_path / "mine", good=plain, bad=plain + '[model]\nimage_encoder = "dinov9"\n')
    options = ["--run", "--data", str(shapes), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    record = tmp_path / "record.json"
    assert main([name, *options, "--only", "GOOD", "--write-record", str(record)]) == 0
    output = capsys.readouterr().out
    (row,) = cells(output, "good")
    assert 0 <= float(row[1]) <= 100
    scores = json.loads((tmp_path / "runs" / "good-seed1" / "scores.json").read_text())
    classes = json.loads(record.read_text())["runs"][0]["classes"]
    assert {word: v["iou"] for word, v in classes.items()} == {
        word: v["iou"] for word, v in scores["classes"].items() if v["pictures"]
    }
    assert main([name, *options]) == 75
    second = capsys.readouterr()
    assert "1 of 1 runs failed" in second.err
    assert "bad-seed1.log" in second.err
    assert cells(second.out, "good") == [row], "scored rows are printed as before"
    assert "dinov9" in (tmp_path / "runs" / "bad-seed1.log").read_text()
