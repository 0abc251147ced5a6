"""The latency benchmark: its cells and rows, its honesty about wrong, failing and large candidates, its report and gate."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import command, latency, latency_models, latency_report, machine
from benchmarks.latency_candidates import APPROXIMATE, TITLES, Job, needed_bytes, open_candidate
from benchmarks.latency_models import Files
from fusioner_rt.errors import UsageError

ROOT = Path(__file__).parents[2]
EDGE = 61


@pytest.fixture(scope="session")
def work(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that another run has made: what is measured is not how bundles are built."""
    files = Files(tmp_path_factory.mktemp("latency"), "tiny")
    files.folder.mkdir()
    shutil.copytree(tiny_checkpoint, files.checkpoint)
    shutil.copytree(tiny_bundle, files.bundle("fp32"))
    (files.folder / "made.json").write_text(json.dumps({"key": latency_models.key("tiny")}))
    assert files.missing(["fp32"], 20) == ["fp32"]
    latency_models.prepare(files, ["fp32"], 20)
    assert files.missing(["fp32"], 20) == []
    assert files.missing(["fp32"], 21) == ["fp32"]
    return files.work


def job(work: Path, candidate: str = "eager", **changed: Any) -> Job:
    return Job(**{"candidate": candidate, "model": "tiny", "picture": EDGE, "output": EDGE, "words": 5, "batch": 1,
                  "precision": "fp32", "device": "cpu", "threads": 1, "work": str(work), **changed})  # fmt: skip


@pytest.fixture(scope="session")
def record(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two sizes; other tests may be running, hence --busy."""
    file = tmp_path_factory.mktemp("benchmark") / "rows.jsonl"
    arguments = ["--suite", "smoke", "--models", "tiny", "--outputs", EDGE, "--words", "5", "--repeats", 3, "--cold", 1,
                 "--candidates", "eager,ort,ort-scores,ours,ours-words,clipseg", "--threads", 1, "--work", work, "--busy", "--json", file]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "benchmarks/latency.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("**tiny encoders**")
    return file


def rows_of(record: Path, what: str = "latency") -> list[dict[str, Any]]:
    return [row for row in map(json.loads, record.read_text().splitlines()) if row["what"] == what]


def test_a_cell_has_a_row_for_every_candidate(record: Path) -> None:
    assert [row["candidate"] for row in rows_of(record)] == [
        "eager",
        "ort",
        "ort-scores",
        "ours",
        "ours-words",
        "clipseg",
    ]


def test_a_row_tells_time_memory_accuracy_and_where_it_was_measured(record: Path) -> None:
    for row in rows_of(record):
        if row["candidate"] == "clipseg":
            continue
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["pictures_per_s"] == pytest.approx(1000 / row["p50_ms"], rel=0.01)
        assert row["processor_p50_ms"] > 0
        assert row["first_ms"] > 0
        assert row["peak_bytes"] > 30e6
        assert row["bytes_on_disk"] > 1e5
        if row["candidate"] in APPROXIMATE:  # which the run goes on with, and the row tells
            assert row["labels_agree"] > 0.9
            assert row["shortfall"] > 3 * row["explained"]
        else:
            assert row["labels_agree"] > 0.99
            assert row["shortfall"] <= row["explained"] < 1e-3
        assert row["words_winning"] > 1
        assert {"machine", "processor", "commit", "date", "load", "threads", "repeats"} <= set(row)
        assert row["interleaved"] is row["busy"] is True
        total = sum(row["stages_p50_ms"].values())
        assert 0 < total < 1.5 * row["p50_ms"] + 5


def test_candidates_name_the_stages_that_a_plot_knows(record: Path) -> None:
    for row in rows_of(record):
        assert set(row.get("stages_p50_ms", ())) <= set(latency_report.STAGES)


def test_a_candidate_that_cannot_run_is_a_row_with_the_reason(record: Path) -> None:
    for row in rows_of(record):
        if row["candidate"] == "clipseg":
            assert "no CLIPSeg with an encoder of the size of tiny's was made" in row["skipped"]
            assert "p50_ms" not in row
    assert "no CLIPSeg with an encoder" in latency_report.table(rows_of(record))


def test_a_cold_start_is_longer_from_the_process_than_from_its_first_line(record: Path) -> None:
    found = {row["candidate"]: row for row in rows_of(record, "cold")}
    assert set(found) == {"eager", "ort", "ours", "ours-uncached", "clipseg"}
    for name in ("eager", "ort", "ours", "ours-uncached"):
        assert 0 < found[name]["import_p50_ms"] < found[name]["process_p50_ms"]
        assert found[name]["installed_bytes"] > 20e6
    assert found["eager"]["installed_bytes"] > found["ours"]["installed_bytes"]
    assert found["eager"]["import_p50_ms"] > found["ours"]["import_p50_ms"]


def test_from_prints_the_table_of_the_record_and_draws_it(record: Path, tmp_path: Path) -> None:
    twice = tmp_path / "rows.jsonl"
    larger = [json.dumps(row | {"output": 97}) + "\n" for row in rows_of(record)]
    twice.write_text(record.read_text() + "".join(larger))
    arguments = ["--from", twice, "--table", tmp_path / "table.md", "--plot", tmp_path / "plot.png"]
    assert latency.main(list(map(str, arguments))) == 0
    told = (tmp_path / "table.md").read_text()
    assert told == latency_report.table(command.read(twice, "latency", "cold"))
    assert told.count("busy machine") == 10
    for name in ("plot.png", "plot-channels.png", "plot-stages.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "plot-words.png").exists()  # one number of words was measured


def darker(labels: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return labels, confidence * np.float32(0.999)


def other_words(labels: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(labels > 0, labels % 5 + 1, 0), confidence


def all_background(labels: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return labels * 0, confidence


def a_row_below(labels: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.roll(labels, 1, axis=1), np.roll(confidence, 1, axis=1)


def not_a_number(labels: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return labels, np.where(np.arange(EDGE) == 3, np.float32("nan"), confidence)


@pytest.mark.parametrize("wrong", [darker, other_words, all_background, a_row_below, not_a_number])
def test_float32_that_computes_something_else_ends_the_run(work: Path, wrong: Any) -> None:
    from benchmarks.truth import Truth

    one = job(work, batch=2)
    truth = Truth(one)
    labels, confidence = open_candidate(one).call(one.pictures())
    row = {"candidate": "eager", "model": "tiny", "output": EDGE, "words": 5, "precision": "fp32"}
    latency.refuse_disagreement(row | truth.compare(labels, confidence))
    found = truth.compare(*wrong(labels, confidence))
    with pytest.raises(latency.Disagreement, match="computes something else"):
        latency.refuse_disagreement(row | found)
    latency.refuse_disagreement(row | found | {"precision": "fp16"})  # told, not refused


def test_a_model_in_which_one_word_wins_everywhere_is_refused() -> None:
    row = {"candidate": "eager", "model": "tiny", "output": EDGE, "words": 5, "precision": "fp32", "shortfall": 0.0,
           "explained": 1e-4, "words_winning": 1}  # fmt: skip
    with pytest.raises(latency.Disagreement, match="one word wins everywhere"):
        latency.refuse_disagreement(row)
    latency.refuse_disagreement(row | {"words": 1})


def test_pytorch_compared_on_every_picture_of_a_batch_gets_its_own(work: Path) -> None:
    one = job(work, batch=3)
    labels, confidence = open_candidate(one).call(one.pictures())
    assert labels.shape == confidence.shape == (3, EDGE, EDGE)
    assert not np.array_equal(labels[0], labels[1])


def test_the_kernels_candidate_agrees_where_there_is_no_gpu(work: Path) -> None:
    from benchmarks.truth import Truth

    one = job(work, "kernels")  # tensors on the CPU take the kernels' definition
    found = Truth(one).compare(*open_candidate(one).call(one.pictures()))
    assert found["shortfall"] <= found["explained"] + np.finfo(np.float16).eps / 4  # its confidence is float16
    assert found["labels_agree"] > 0.99


def test_what_does_not_fit_is_a_row_that_says_what_it_needs(work: Path) -> None:
    given = options(work, "--candidates", "eager,ours", "--memory-limit", "0.5", "--outputs", "1024", "--words", "5")
    (cell,) = latency.cells(given)
    with latency.tqdm(disable=True) as bar:
        eager, ours = latency.measure(cell, given, bar)
    assert eager["skipped"] == "needs 0.6 GB, 0.5 GB allowed"
    assert "p50_ms" not in eager
    assert ours["p50_ms"] > 0


def test_candidates_take_turns_as_many_as_fit_and_ours_is_with_those_it_is_compared_with() -> None:
    needed = {"eager": 3, "compile": 3, "ort": 3, "openvino": 3, "ours": 1, "clipseg": 2}
    assert latency.groups(needed, 15) == [["ours", "eager", "openvino", "ort", "compile", "clipseg"]]
    assert latency.groups(needed, 10) == [["ours", "eager", "openvino", "ort"], ["compile", "clipseg"]]
    assert latency.groups(needed, 3) == [["ours"], ["eager"], ["openvino"], ["ort"], ["compile"], ["clipseg"]]
    assert latency.groups({}, 3) == []
    assert latency.groups({"eager": 3, "ours": 1, "openvino-scores": 2}, 3) == [["ours", "openvino-scores"], ["eager"]]


def test_a_naive_head_needs_its_features_at_output_size_and_ours_does_not(work: Path) -> None:
    naive, ours = (
        needed_bytes(job(work, name, output=2048)) - needed_bytes(job(work, name, output=1024))
        for name in ("eager", "ours")
    )
    assert naive > 3 * 1024**2 * 2 * 32 * 4 > 10 * ours  # d = 32, before and after normalising


def options(work: Path, *more: str) -> argparse.Namespace:
    return latency.options(["--suite", "smoke", "--models", "tiny", "--busy", "--cold", "0", "--threads", "1", "--repeats", "3",
                            "--work", str(work), *more])  # fmt: skip


def test_one_graph_needs_its_head_in_more_copies_than_pytorch(work: Path) -> None:
    eager, ort, openvino = (
        needed_bytes(job(work, name, output=2048)) - needed_bytes(job(work, name, output=1024))
        for name in ("eager", "ort", "openvino")
    )
    head = 3 * 1024**2 * 2 * 32 * 4
    assert (ort - eager, openvino - eager) == (head, head / 2)


def test_upsampled_scores_need_maps_of_words_alone(work: Path) -> None:
    few, many = (
        needed_bytes(job(work, "openvino-scores", output=2048, words=words))
        - needed_bytes(job(work, "openvino-scores", output=1024, words=words))
        for words in (1, 5)
    )
    assert many - few == 3 * 1024**2 * 4 * 3 * 4


def test_every_candidate_has_a_colour() -> None:
    assert set(latency_report.COLOURS) == set(TITLES)


def test_precisions_of_one_model_are_lines_of_their_own_and_a_head_without_a_time_is_none() -> None:
    from matplotlib.figure import Figure

    rows = [
        timed(name, 30, output) | {"precision": precision, "stages_p50_ms": {} if name == "eager" else {"mask_head": 2.0}}
        for name in ("eager", "ours") for precision in ("fp16", "fp32") for output in (224, 512)
    ]  # fmt: skip
    figure = Figure()
    assert latency_report.by_channels(figure, rows)
    head, call = ({line.get_label(): len(line.get_xdata()) for line in panel.lines} for panel in figure.axes)
    assert len(head) == 2
    assert len(call) == 4
    assert set(call.values()) == {2}


def test_a_suite_takes_each_axis_in_turn_and_product_all_combinations(tmp_path: Path) -> None:
    axes = ["--outputs", "224,1024,2048", "--words", "1,20", "--batch", "1,8"]
    alone = {(cell.output, cell.words, cell.batch) for cell in latency.cells(options(tmp_path, *axes))}
    assert alone == {(224, 20, 1), (1024, 20, 1), (2048, 20, 1), (224, 1, 1), (1024, 1, 1), (224, 20, 8)}
    every = latency.cells(options(tmp_path, *axes, "--product"))
    assert len(every) == len(set(every)) == 12
    pictures = latency.cells(options(tmp_path, "--outputs", "224", "--pictures", "512"))
    assert {(cell.picture, cell.output) for cell in pictures} == {(512, 224)}


def timed(candidate: str, ms: float, output: int = 224) -> dict[str, Any]:
    return {"what": "latency", "candidate": candidate, "model": "vits", "precision": "fp32", "picture": output, "device": "cpu",
            "output": output, "words": 20, "batch": 1, "p50_ms": ms}  # fmt: skip


CELL = "vits fp32, 224² from 224², 20 words, batch 1"


def test_the_gate_fails_below_the_stored_ratio_and_where_a_cell_was_not_measured() -> None:
    rows = [timed("eager", 30), timed("ort", 1), timed("ours", 10), timed("eager", 90, 512), timed("ours", 10, 512)]
    assert latency_report.gate(rows, {"least": {CELL: 2.9}})[1]
    lines, met = latency_report.gate(rows, {"least": {CELL: 3.1}})
    assert not met
    assert lines == [f"FAIL eager over ours, {CELL}: 3.00×, at least 3.1×"]
    assert not latency_report.gate(rows[:2], {"least": {CELL: 2.9}})[1]
    assert "not measured" in latency_report.gate(rows[:2], {"least": {CELL: 2.9}})[0][0]


def test_what_is_stored_for_the_gate_leaves_a_margin_and_passes_with_the_same_rows() -> None:
    rows = [timed("eager", 30), timed("ours", 10), timed("eager", 90, 512), timed("ours", 10, 512), timed("ort", 1, 97)]
    stored = latency_report.stored(rows)
    assert stored["least"] == {CELL: 1.8, CELL.replace("224", "512"): 5.4}
    assert latency_report.gate(rows, stored)[1]
    assert not latency_report.gate([timed("eager", 17), timed("ours", 10), *rows[2:]], stored)[1]


def test_the_gate_decides_the_exit_status(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell, *_), stored = latency_report.ratios(command.read(record, "latency")), tmp_path / "gate.json"
    monkeypatch.setattr(latency_report, "GATE", stored)
    for least, status in ((1e-6, 0), (1e6, 1)):
        stored.write_text(json.dumps({"least": {cell: least}}))
        assert latency.main(["--from", str(record), "--gate"]) == status
        assert latency.main(["--from", str(record)]) == 0


def test_the_stored_gate_asks_for_cells_that_the_smoke_suite_measures() -> None:
    stored = json.loads(latency_report.GATE.read_text())["least"]
    given = latency.options(["--suite", "smoke", "--busy"])
    measured = {
        latency_report.described((cell.model, cell.precision, cell.picture, cell.output, cell.words, cell.batch, "cpu"))
        for cell in latency.cells(given)
    }
    assert set(stored) == measured


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--outputs", "224,x"], "'x' is not a whole number from 1"),
        (["--words", "0"], "'0' is not a whole number from 1"),
        (["--words", "151"], "150 names are listed at most"),
        (["--batch", "9"], "8 pictures at most"),
        (["--candidates", "ours,mine"], "'mine' is none of eager,"),
        (["--models", "vitx"], "'vitx' is none of tiny,"),
        (["--cold", "-1"], "--cold"),
        (["--suite", "gpu"], "torch sees no GPU"),
        (["--from", "README.md"], "README.md is no record of this benchmark"),
        (["--busy", "--json", "README.md/rows.jsonl"], "cannot be written"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = latency.main(arguments)
    except SystemExit as left:
        status = int(left.code or 0)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 or "written" in told
    assert told in last


def test_a_busy_machine_is_refused(work: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            assert latency.main(["--suite", "smoke", "--models", "tiny", "--work", str(work)]) == 92
        finally:
            neighbour.kill()


def test_what_own_processes_spend_is_not_others_work() -> None:
    spent: list[float] = [0.0]
    others = machine.OtherWork(lambda: spent[0])
    with subprocess.Popen([sys.executable, "-c", "import time\nend = time.time() + 0.6\nwhile time.time() < end: pass\ninput()"],
                          stdin=subprocess.PIPE) as child:  # fmt: skip
        import time

        time.sleep(1.2)
        spent[0] = machine.processor_seconds(child.pid)
        assert 0.1 < spent[0] < 1.0
        without = others.cores()
        spent[0] = 0.0
        assert others.cores() >= without + 0.05
        assert child.stdin
        child.stdin.close()


def test_a_process_that_dies_is_told_with_its_status(work: Path) -> None:
    with latency.Process(job(work)) as process:
        process._process.kill()
        with pytest.raises(latency.Failed, match="ended with status -9"):
            process.ask("open")


def measured(work: Path, monkeypatch: pytest.MonkeyPatch, dies: str = "", at: str = "", **changed: Any) -> Any:
    """Rows of ours and eager by name, and the commands each process was sent; the worker of `dies` is killed before `at`."""
    sent: list[tuple[str, str]] = []

    class Mortal(latency.Process):
        def __init__(self, one: Job) -> None:
            super().__init__(one)
            self.name = one.candidate

        def ask(self, *words: Any) -> dict[str, Any]:
            name = "truth" if words[0] in ("open_truth", "check") else self.name
            sent.append((name, words[0]))
            if (name, words[0]) == (dies, at) and (at != "call" or sent.count((name, at)) == 4):
                self._process.kill()
            return super().ask(*words)

    monkeypatch.setattr(latency, "Process", Mortal)
    given = options(work, "--candidates", "eager,ours", "--outputs", str(EDGE), "--words", "5")
    vars(given).update(changed)
    (cell,) = latency.cells(given)
    with latency.tqdm(disable=True) as bar:
        return {row["candidate"]: row for row in latency.measure(cell, given, bar)}, sent


@pytest.mark.parametrize(
    "at", ["call", *(pytest.param(at, marks=pytest.mark.slow) for at in ("open", "first", "peak"))]
)
def test_a_candidate_that_dies_at_any_moment_is_a_row_and_the_others_are_measured(
    work: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    rows, _ = measured(work, monkeypatch, "ours", at)
    assert "ended with status -9" in rows["ours"]["skipped"]
    assert "p50_ms" not in rows["ours"]
    assert rows["eager"]["repeats"] == 3
    assert "skipped" not in rows["eager"]


@pytest.mark.parametrize("at", ["open_truth", pytest.param("check", marks=pytest.mark.slow)])
def test_without_the_truth_no_candidate_is_measured(work: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    rows, _ = measured(work, monkeypatch, "truth", at)
    for row in rows.values():
        assert "float64 arithmetic failed: its process ended with status -9" in row["skipped"]
        assert "p50_ms" not in row


@pytest.mark.parametrize(
    ("changed", "slow", "calls"),
    [
        ({"seconds": 0.0}, 0.0, 1),
        pytest.param({"seconds": 0.5, "repeats": 500}, 1e6, 2, marks=pytest.mark.slow),
    ],
)
def test_all_candidates_of_a_cell_take_as_many_turns_and_are_warmed_up_alike(
    work: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], slow: float, calls: int
) -> None:
    monkeypatch.setattr(latency, "SLOW_MS", slow)
    rows, sent = measured(work, monkeypatch, **{"repeats": 30, **changed})
    turns = rows["eager"]["repeats"]
    assert rows["ours"]["repeats"] == turns
    assert turns == latency.MIN_REPEATS if slow == 0 else latency.MIN_REPEATS < turns < 500
    asked = {name: sent.count((name, "call")) for name in rows}
    assert asked["ours"] == calls * turns + (slow == 0)  # one more tells whether it is slow
    assert asked["eager"] == calls * turns


def test_the_99th_percentile_is_told_of_twenty_calls_and_not_of_fewer(record: Path) -> None:
    rows = [row | {"p99_ms": 1234.5} for row in rows_of(record)]
    assert "1234.5" not in latency_report.table(rows)
    text = latency_report.table([row | {"repeats": 20} for row in rows])
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in cells} == {15}
    repeats, tails = cells[0].index("n"), cells[0].index("p99 ms")
    assert [row[repeats] for row in cells].count("20") == [row[tails] for row in cells].count("1234.5") == 5


def test_what_a_model_takes_on_disk_is_its_own_and_not_another_candidates(record: Path) -> None:
    warm = {row["candidate"]: row["bytes_on_disk"] for row in rows_of(record) if "p50_ms" in row}
    cold = {row["candidate"]: row["bytes_on_disk"] for row in rows_of(record, "cold") if "skipped" not in row}
    assert all(warm[name] == cold[name] for name in set(warm) & set(cold))
    assert warm["eager"] != warm["ort"] != warm["ours"]


def test_a_record_without_rows_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows to draw"):
        latency_report.plot([], tmp_path / "plot.png")
