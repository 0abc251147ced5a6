"""The mask head's benchmark: its rows, its honesty about wrong candidates and full memory, and its report."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from benchmarks import machine, mask_head, mask_head_candidates, mask_head_report
from benchmarks.mask_head_candidates import Case, candidate, sizes

ROOT = Path(__file__).parents[2]
TINY = Case("random", 61, 24, 5, 12, "float32", "cpu")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "benchmarks/mask_head.py", *map(str, arguments)]


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke suite's rows; other tests may be running, hence --busy."""
    file = tmp_path_factory.mktemp("benchmark") / "rows.jsonl"
    done = called("--suite", "smoke", "--busy", "--threads", 1, "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("maps ")
    return file


def rows_of(record: Path) -> list[dict]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_every_cell_has_a_row_for_every_candidate(record):
    suite = mask_head.SUITES["smoke"]
    cells = [(row["maps"], row["size"], row["channels"], row["words"], row["candidate"]) for row in rows_of(record)]
    wanted = {
        (maps, size, d, k, name)
        for maps in ("random", "smooth") for size in suite["sizes"] for d in suite["channels"]
        for k in suite["words"] for name in suite["candidates"]
    }  # fmt: skip
    assert len(cells) == len(wanted)
    assert set(cells) == wanted


def test_a_row_tells_time_memory_bytes_error_and_where_it_was_measured(record):
    for row in rows_of(record):
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["processor_p50_ms"] > 0
        assert row["repeats"] == mask_head.SUITES["smoke"]["repeats"]
        assert row["peak_bytes"] >= 0
        assert row["bytes_moved"] >= row["bytes_must"] > row["output_bytes"] == 6 * row["size"] ** 2
        assert 0 < row["error_mean"] <= row["error_max"]
        assert row["error_max"] < (1 if row["candidate"] == "lowres" else 1e-4)
        assert {"machine", "commit", "torch", "onnxruntime", "date", "load", "threads"} <= set(row)
        assert row["busy"] is True
        assert ("stages_p50_ms" in row) == (row["candidate"] == "ours")


def test_from_prints_the_table_of_the_record_and_draws_it(record, tmp_path):
    done = called("--from", record, "--plot", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(mask_head_report.table(rows_of(record)))
    assert done.stdout.count("busy machine") == len(rows_of(record))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def darker(labels, confidence):
    return labels, confidence * 0.99


def shifted_labels(labels, confidence):
    return labels % TINY.words + 1, confidence


def all_background(labels, confidence):
    return labels * 0, confidence


def not_a_number(labels, confidence):
    confidence[0, 0] = float("nan")
    return labels, confidence


@pytest.mark.parametrize("wrong", [darker, shifted_labels, all_background, not_a_number])
@pytest.mark.parametrize("name", ["naive", "onnx", "ours"])
def test_a_candidate_that_is_wrong_is_an_error_and_no_row(wrong, name):
    right = candidate(name, TINY, TINY.inputs(), threads=1)
    assert mask_head.checked(right, TINY, 0.0)["error_max"] < 1e-5
    planted = dataclasses.replace(right, stages={**right.stages, "planted": wrong})
    with pytest.raises(mask_head.Disagreement, match="computes something else"):
        mask_head.checked(planted, TINY, 0.0)


def test_the_approximation_may_err_and_its_error_is_told():
    found = mask_head.checked(candidate("lowres", TINY, TINY.inputs(), threads=1), TINY, 0.0)
    assert found["error_max"] > 0.01
    assert found["labels_otherwise"] > 0.01


@pytest.mark.slow
def test_torch_compile_is_measured_compiled():
    one = candidate("compile", TINY, TINY.inputs(), threads=1)
    assert mask_head.checked(one, TINY, 0.0)["error_max"] < 1e-5


@pytest.mark.parametrize("name", ["naive", "lowres", "onnx", "ours"])
def test_peak_memory_is_what_was_computed_before_running(name):
    case = Case("smooth", 384, 256, 12, 40, "float32", "cpu")
    measured = mask_head.checked(candidate(name, case, case.inputs(), threads=1), case, 0.0)["peak_bytes"]
    promised = sizes(name, case)["needs_bytes"]
    assert measured < 1.1 * promised + 16e6  # the promise decides what is run at all; an allocator's arenas come on top
    if name in ("naive", "onnx"):
        assert measured > 0.9 * promised  # nothing is kept from running that would fit


def test_what_does_not_fit_is_a_row_that_says_what_it_needs():
    given = mask_head.options(
        ["--suite", "smoke", "--candidates", "naive,ours", "--memory-limit", "0.1", "--threads", "1"]
    )
    case = dataclasses.replace(TINY, size=256, channels=512)
    naive, ours = mask_head.measure(case, given, tqdm(disable=True))
    assert naive["skipped"] == "needs 0.3 GB, 0.1 GB allowed"
    assert "p50_ms" not in naive
    assert ours["p50_ms"] > 0
    assert "needs 0.3 GB" in mask_head_report.table([{**naive, "busy": False}])


def faster(maps: str, size: int, times: float) -> list[dict]:
    cell = {"maps": maps, "size": size, "channels": 512, "words": 20, "device": "cpu"}
    return [{**cell, "candidate": "naive", "p50_ms": 10.0 * times}, {**cell, "candidate": "ours", "p50_ms": 10.0}]


def test_the_gate_asks_for_10_times_at_1024_and_3_at_512_on_every_kind_of_maps():
    met = faster("smooth", 1024, 10.1) + faster("smooth", 512, 3.1)
    lines, passed = mask_head_report.speedups(met)
    assert passed
    assert "ours against naive torch, smooth maps, 1024², d=512, K=20: 10.1×, at least 10× asked for" in lines
    assert not mask_head_report.speedups(faster("smooth", 1024, 9.9) + faster("smooth", 512, 3.1))[1]
    assert not mask_head_report.speedups(faster("smooth", 1024, 10.1) + faster("smooth", 512, 2.9))[1]
    assert not mask_head_report.speedups(met + faster("random", 1024, 9.9) + faster("random", 512, 3.1))[1]
    assert not mask_head_report.speedups(faster("smooth", 1024, 10.1))[1]  # 512² was not measured
    assert not mask_head_report.speedups([])[1]


def test_the_gate_decides_the_exit_status(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {
        "what": "mask_head", "busy": False, "p20_ms": 1, "p80_ms": 1, "processor_p50_ms": 1, "peak_bytes": 1,
        "bytes_moved": 1, "bytes_must": 1, "error_max": 0, "error_mean": 0, "labels_otherwise": 0,
    }  # fmt: skip
    for times, status in ((11, 0), (2, 1)):
        rows = [{**row, **one} for size in (512, 1024) for one in faster("smooth", size, times)]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        assert mask_head.main(["--from", str(file), "--gate"]) == status
        assert mask_head.main(["--from", str(file)]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sizes", "224,x"], "'x' is not a whole number from 1"),
        (["--words", "0"], "'0' is not a whole number from 1"),
        (["--candidates", "ours,mine"], "'mine' is none of naive, compile, lowres, onnx, ours"),
        (["--maps", "real"], "'real' is none of random, smooth"),
        (["--dtype", "float16"], "--device cuda"),
        (["--from", "README.md"], "README.md is no record of this benchmark"),
        (["--json", "README.md/rows.jsonl"], "cannot be written"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, told, capsys):
    try:
        status = mask_head.main(arguments)
    except SystemExit as left:
        status = left.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 or "written" in told
    assert told in last


def test_a_busy_machine_is_refused():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            with pytest.raises(machine.MachineBusy, match="pass --busy"):
                machine.check_idle(busy=False)
            machine.check_idle(busy=True)
        finally:
            neighbour.kill()


def hearing():
    """A background job's children ignore interrupts unless told otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_an_interrupt_leaves_the_cells_measured_so_far(tmp_path):
    file = tmp_path / "rows.jsonl"
    arguments = command("--suite", "smoke", "--busy", "--threads", 1, "--repeats", 1000, "--candidates", "ours,lowres")
    with subprocess.Popen(
        [*arguments, "--seconds", "1", "--json", str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hearing,
    ) as process:
        signal_after = time.monotonic() + 60
        while not (file.exists() and file.read_text().count("\n") >= 2) and time.monotonic() < signal_after:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().endswith("finished so far stand")
    assert {row["candidate"] for row in rows_of(file)} == {"ours", "lowres"}
    assert len(rows_of(file)) < 2 * 2 * 2 * 2
    assert printed.count("busy machine") == len(rows_of(file))


def test_smooth_maps_have_few_words_that_can_win_and_random_ones_have_all():
    from kernels import reference

    winners = {}
    for maps in ("smooth", "random"):
        features, words = Case(maps, 512, 128, 20, 40, "float32", "cpu").inputs()
        scores, _ = reference.score_maps(features, words)
        winners[maps] = len(scores.argmax(1).unique())
    assert winners["smooth"] <= 8 < winners["random"]
    assert mask_head_candidates.THRESHOLD == 0.5
