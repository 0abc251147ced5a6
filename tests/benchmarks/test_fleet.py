"""The benchmark of fleets: docs/scale.md has its tables, its arithmetic is that of the real thing, and its check runs the service."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from documented import blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import command, fleet, fleet_check, fleet_tables, machine
from benchmarks.fleet_tables import ENCODED, met, recent_hits, zipf
from fusioner_rt import Session
from fusioner_rt.errors import PackageMissing
from fusioner_rt.words.cache import TextCache

PAGE = machine.ROOT / "docs/scale.md"
PICTURE = machine.ROOT / "docs/pictures/cat.jpg"


def between(name: str) -> str:
    rest = PAGE.read_text().partition(f"<!-- {name} -->\n")[2]
    return rest.partition(f"<!-- /{name} -->\n")[0].strip()


SIMULATED = ("replicas", "steps", "batches")  # each takes seconds, and changes with the simulation alone
READ = [name for name in fleet.NAMES if name not in SIMULATED]


@pytest.fixture(scope="module")
def make() -> Callable[[str], str]:
    rows = command.read(fleet.RECORD, "fleet")
    tables = fleet_tables.tables(rows, command.read(fleet.LATENCY, "latency"))
    assert list(tables) == list(fleet.NAMES)
    return functools.cache(lambda name: tables[name]())


@pytest.mark.parametrize("name", [*READ, *(pytest.param(name, marks=pytest.mark.slow) for name in SIMULATED)])
def test_the_page_has_the_records_tables(name: str, make: Callable[[str], str]) -> None:
    assert between(name) == make(name)


def test_the_tables_are_written_into_a_page_and_nothing_else_is(make: Callable[[str], str], tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    text = PAGE.read_text()
    made = {name: make(name) for name in READ}
    for table in made.values():
        assert text.count(table) == 1
        text = text.replace(table, "old")
    page.write_text(text)
    fleet.write_page(page, {name: functools.partial(make, name) for name in READ})
    assert page.read_text() == PAGE.read_text()


def test_the_page_names_the_commands_and_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    first, own = blocks_of(PAGE.read_text(), "sh")
    assert "python -m benchmarks.fleet --check --json docs/records/fleet.jsonl --page docs/scale.md" in first
    assert own.count("python -m benchmarks.fleet") == len(own.splitlines())
    for line in own.splitlines():
        arguments = line.split()[3:]
        arguments += ["--for", "20"] if "--for" not in arguments else []
        assert fleet.main(arguments) == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert said.out.count("\n| ") == 1 + len(arguments[1].split(","))
        assert "replica-hours" in said.out


@pytest.mark.parametrize("bundle", ["tiny", "demo"])
def test_an_encoded_picture_has_the_bytes_that_the_table_tells(bundle: str, tiny_bundle: Path) -> None:
    folder = tiny_bundle if bundle == "tiny" else machine.ROOT / "models/demo/bundle"
    told = ENCODED[bundle]
    with Session(folder, "onnxruntime-cpu", cache=False) as session:
        assert session.bundle.preprocessing.side == told.side
        encoded = session.encode(PICTURE)
        assert encoded.encoded.nbytes == told.tokens_bytes(*encoded.input_size)
        square = session.encode(np.zeros((told.side, told.side, 3), np.uint8))
        assert square.encoded.nbytes == told.bytes


@pytest.mark.parametrize(("model", "name"), [("vits", "dino-vits16"), ("vitb", "dino-vitb16")])
def test_the_other_models_tokens_are_their_encoders(model: str, name: str) -> None:
    import torch

    from benchmarks.latency_models import MODELS
    from training.encoders.vision_transformer import VARIANTS, VisionTransformer

    assert MODELS[model].config["image_encoder"].startswith(name)
    with torch.device("meta"):
        encoder = VisionTransformer.of(VARIANTS[name])
    assert ENCODED[model] == fleet_tables.Encoded(encoder.side, encoder.stride, encoder.width)


def test_the_large_models_tokens_are_its_encoders() -> None:
    from benchmarks.latency_models import MODELS
    from training.encoders.open_clip import import_open_clip

    _, architecture, _ = MODELS["vitl"].config["image_encoder"].split(":")
    tower = import_open_clip().get_model_config(architecture)["vision_cfg"]
    assert ENCODED["vitl"] == fleet_tables.Encoded(tower["image_size"], tower["patch_size"], tower["width"])


@given(st.integers(20, 400), st.floats(0.5, 1.5), st.integers(1, 99))
@settings(max_examples=6, deadline=None)
def test_the_arithmetic_of_recent_words_is_the_caches_own(count: int, exponent: float, percent: int) -> None:
    """Che's approximation, which errs most for tiny caches, against the cache that the runtime has."""
    shares, room = zipf(count, exponent), max(5, count * percent // 100)
    cache = TextCache(None, memory_bytes=room * 16)
    asked = np.random.default_rng(0).choice(count, 8000, p=shares).tolist()
    hits = 0
    for number, word in enumerate(asked):
        found = cache.get(str(word)) is not None
        hits += found and number >= 2000
        if not found:
            cache.put(str(word), np.zeros(4, np.float32), "", 1, "", "")
    assert hits / 6000 == pytest.approx(recent_hits(shares, room), abs=0.03)


@given(st.integers(1, 300), st.floats(0, 1.5), st.integers(0, 2000))
@settings(max_examples=20, deadline=None)
def test_the_words_met_are_counted_right(count: int, exponent: float, asked: int) -> None:
    shares = zipf(count, exponent)
    made = np.random.default_rng(1)
    drawn = [len(set(made.choice(count, asked, p=shares).tolist())) for _ in range(40)]
    error = np.std(drawn, ddof=1) / np.sqrt(40)
    assert abs(np.mean(drawn) - met(shares, asked)) <= 5 * error + 0.3


def test_shares_and_hits_have_their_bounds() -> None:
    shares = zipf(1000, 1.0)
    assert shares.sum() == pytest.approx(1)
    hits = [recent_hits(shares, room) for room in (1, 10, 100, 999, 1000, 5000)]
    assert hits == sorted(hits)
    assert hits[-2:] == [1, 1]
    for room, hit in zip((1, 10, 100, 999), hits, strict=False):
        assert hit <= shares[:room].sum(), "no cache hits more than one of the most frequent"
    assert recent_hits(zipf(1000, 0), 300) == pytest.approx(0.3, abs=1e-6)


def test_the_folder_of_words_has_the_room_that_the_table_tells() -> None:
    assert inspect.signature(TextCache).parameters["disk_bytes"].default == fleet_tables.FILES_ON_DISK


def test_a_million_pictures_cost_what_their_core_hours_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet_tables.core_hours(3.6) == 1
    assert fleet.main(["--table", "rates", "--price", "0.5"]) == 0
    head, _, first, *_ = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    place = head.index("cost at 0.5 a core-hour")
    assert float(first[place]) == pytest.approx(float(first[place - 1]) / 2, abs=0.06)


@pytest.mark.slow
def test_the_check_measures_the_real_service_and_writes_its_record(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "fleet.jsonl"
    arguments = ["--check", "--engine", str(tiny_bundle), "--seconds", "2", "--busy", "--json", str(record)]
    assert fleet.main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    start, *closed, words = (row for row in rows if row["case"] != "load")
    assert 0.1 < start["start_s"] < 30
    calls = closed[0]["calls"]
    assert [row["clients"] for row in closed] == sorted({*range(1, calls + 1), 2 * calls, fleet_check.QUEUE})
    for row in closed:
        assert len(row["ms"]) >= 2
        assert row["answers_a_second"] > 0
        assert min(row["ms"]) > 0
        assert row["sent_bytes"] > 10_000 > row["got_bytes"] > 100
    loads = [row for row in rows if row["case"] == "load"]
    assert [row["percent"] for row in loads] == [30, 60, 85, 120]
    for row in loads:
        found, told = row["measured"], row["predicted"]
        assert found["requests"] > 0
        assert found["share_504"] == 0
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        for median, low, high in told.values():
            assert low <= median <= high
        assert f"{row['percent']} %" in printed
    assert loads[0]["measured"]["share_503"] == loads[0]["predicted"]["share_503"][0] == 0
    assert len(words["ms"]) == 12
    assert words["entry_bytes"] > 200
    assert fleet.main(["--from", str(record), "--table", "check"]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_what_cannot_be_told_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("no marks")
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, code, says in (
        (["--from", str(tmp_path / "none.jsonl")], 2, "is no record"),
        (["--from", str(tmp_path / "empty.jsonl"), "--rate", "5"], 2, "make one: --check"),
        (["--from", str(tmp_path / "empty.jsonl"), "--table", "steps"], 2, "make one: --check"),
        (["--page", str(tmp_path / "page.md")], 2, "has no marks for the table rates"),
        (["--rate", "5", "--replicas", "3", "--most", "2"], 2, "give a larger --most"),
    ):
        assert fleet.main(arguments) == code, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert (tmp_path / "page.md").read_text() == "no marks"
    monkeypatch.setitem(sys.modules, "simpy", None)
    assert fleet.main([]) == PackageMissing.exit_code
    assert "pip install 'fusioner-rt[bench]'" in capsys.readouterr().err
