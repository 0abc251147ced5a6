"""Ray Data with the demonstration's bundle: a real Ray, real actors, and real kills."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet as pq
from pycocotools import mask as coco_masks

import fusioner_rt.ray
from fusioner_rt import Session
from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.cli import main
from fusioner_rt.commands import fleet
from fusioner_rt.commands.segment import add_to
from fusioner_rt.errors import ClusterFailed, TooManyWords, UsageError, WordsInvalid
from fusioner_rt.ray.cluster import told_by_ray
from fusioner_rt.ray.data import actor_pool
from fusioner_rt.ray.parts import begin, names_of
from fusioner_rt.ray.sources import _unlisted, find_sources, read_groups, without_secrets

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"
PICTURES = sorted((ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "cat, person|man, cup, zebra"
COPIES = 16
COUNT = COPIES * len(PICTURES)
PATIENCE = 240.0  # seconds, on a machine that does much else
EACH = 4  # pictures of a part of so small a run
SEGMENT = ["--ray", "--words", WORDS, "--engine", str(BUNDLE)]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Results of one session, by a picture's stem."""
    with Session(BUNDLE, backend="onnxruntime-cpu", threads=1) as session:
        return {picture.stem: session.segment(picture, WORDS) for picture in PICTURES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every photograph in some copies, one of which is no picture any more."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COPIES):
        for picture in PICTURES:
            shutil.copy(picture, folder / f"{picture.stem}-{number}.jpg")
    broken = folder / f"{PICTURES[0].stem}-3.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    return folder


def labels_of(row: dict[str, Any]) -> np.ndarray:
    """The label map that a row's masks make, as COCO's own tools read them."""
    labels = np.zeros(row["size"], np.uint16)
    for number, counts in enumerate(row["rle"], start=1):
        labels[coco_masks.decode({"size": row["size"], "counts": counts}).astype(bool)] = number
    return labels


def check(row: dict[str, Any], result: Any) -> None:
    assert row["error"] is None
    assert row["code"] == 0
    assert np.array_equal(labels_of(row), result.labels)
    assert tuple(row["words"]) == result.words
    assert np.array_equal(np.array(row["scores"], np.float32), result.scores)
    assert np.array_equal(row["shares"], result.shares)
    boxes = {entry["category_id"]: entry["bbox"] for entry in result.to_coco()}
    assert [list(box) for box in row["boxes"]] == [
        boxes.get(number, [0] * 4) for number in range(1, len(result.words) + 1)
    ]


def taken(dataset: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(
        dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    ).to_pylist()
    return rows


# The dataset


def test_files_that_ray_reads_have_the_labels_of_a_session(expected: dict[str, Any]) -> None:
    pictures = ray.data.read_binary_files([str(picture) for picture in PICTURES], include_paths=True)
    rows = taken(fusioner_rt.ray.segment(pictures, BUNDLE, WORDS, labels=True, actors=1))
    assert {Path(row["path"]).stem for row in rows} == expected.keys()
    assert "bytes" not in rows[0]
    for row in rows:
        result = expected[Path(row["path"]).stem]
        check(row, result)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["labels"]))), result.labels)


def test_pixels_and_paths_are_pictures_too_and_other_columns_stay(expected: dict[str, Any]) -> None:
    pixels = [
        {"stem": one.stem, "number": index, "image": np.asarray(Image.open(one))} for index, one in enumerate(PICTURES)
    ]
    paths = [{"stem": one.stem, "number": index, "file": str(one)} for index, one in enumerate(PICTURES)]
    for rows in (
        taken(fusioner_rt.ray.segment(ray.data.from_items(pixels), BUNDLE, WORDS, actors=1)),
        taken(fusioner_rt.ray.segment(ray.data.from_items(paths), BUNDLE, WORDS, actors=1, picture="file")),
    ):
        assert sorted(row["number"] for row in rows) == [0, 1, 2]
        for row in rows:
            check(row, expected[row["stem"]])
            assert PICTURES[row["number"]].stem == row["stem"]


def test_a_picture_that_fails_is_a_row(expected: dict[str, Any]) -> None:
    whole = PICTURES[0].read_bytes()
    rows = taken(
        fusioner_rt.ray.segment(
            ray.data.from_arrow(pa.table({"path": ["good", "cut", "text", "none"], "bytes": [whole, whole[:500], b"no picture", None]})),
            BUNDLE, WORDS, actors=1,
        )
    )  # fmt: skip
    good, cut, text, none = rows
    check(good, expected[PICTURES[0].stem])
    assert [row["code"] for row in rows] == [0, 11, 11, 13]
    for row in (cut, text, none):
        assert row["error"].startswith(f"{row['path']}: ")
        assert row["rle"] is row["words"] is row["size"] is None


def test_what_is_wrong_with_all_pictures_is_an_error() -> None:
    pictures = ray.data.from_items([{"bytes": PICTURES[0].read_bytes()}])
    for error, words, more in (
        (WordsInvalid, "cat, cat", {}), (TooManyWords, [f"word {number}" for number in range(300)], {}),
        (UsageError, "cat", {"threshold": {"dog": 0.5}}), (UsageError, "cat", {"mode": "both"}),
        (UsageError, "cat", {"actors": 0}), (UsageError, "cat", {"threads": 0}), (UsageError, "cat", {"gpus": -1}),
        (UsageError, "cat", {"gpus": 1}),
    ):  # fmt: skip
        with pytest.raises(error):
            fusioner_rt.ray.segment(pictures, BUNDLE, words, **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a dataset was given as list"):
        fusioner_rt.ray.segment([], BUNDLE, "cat")
    for columns, found in (({"other": ["x"]}, "none called bytes or image or path"), ({"path": ["x"], "code": [1]}, "columns called code already")):  # fmt: skip
        with pytest.raises(Exception, match=found) as ended:
            taken(fusioner_rt.ray.segment(ray.data.from_arrow(pa.table(columns)), BUNDLE, "cat", actors=1))
        assert isinstance(told_by_ray(ended.value), UsageError)


MACHINES = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 8)), min_size=1, max_size=9)


@given(MACHINES, st.none() | st.integers(1, 500), st.integers(1, 16), st.sampled_from([None, 0, 0.25, 0.5, 1]))
def test_a_pool_leaves_a_core_to_the_tasks_that_read(
    machines: list[tuple[int, int]], actors: int | None, threads: int, gpus: float | None
) -> None:
    try:
        pool = actor_pool(machines, actors, threads, gpus)
    except UsageError:
        assert gpus
        assert not any(count for _, count in machines)
        return
    assert pool.actors >= 1
    assert actors in (None, pool.actors)
    assert pool.cpus <= threads
    assert pool.cpus == int(pool.cpus) or pool.cpus < 1  # as Ray takes them
    assert pool.actors * pool.cpus <= sum(cores - 1 for cores, _ in machines) + 1e-6
    if actors is None:
        assert pool.actors * pool.gpus <= sum(count for _, count in machines)


# The command


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "masks").to_pylist()
    return rows


def check_run(out: Path, folder: Path, expected: dict[str, Any]) -> None:
    """Every picture once, one of them failed, and nothing left behind."""
    rows = rows_of(out)
    assert sorted(row["path"] for row in rows) == sorted(map(str, folder.glob("*.jpg")))
    for row in rows:
        if row["path"].endswith(f"{PICTURES[0].stem}-3.jpg"):
            assert row["code"] == 11
        else:
            check(row, expected[Path(row["path"]).stem.rpartition("-")[0]])
    assert not list(out.rglob(f"{TEMPORARY}*"))


def test_a_folder_becomes_parquet_files_and_label_maps(
    folder: Path, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--labels"]) == 11
    said = capsys.readouterr()
    assert said.out == f"{COUNT} pictures, 1 failed -> {out / 'masks'}\n"
    (failure,) = said.err.splitlines()
    assert failure.startswith(f"fusioner-rt: {folder / PICTURES[0].stem}-3.jpg: ")
    check_run(out, folder, expected)
    for row in rows_of(out):
        if row["code"]:
            assert row["labels"] is None
        else:
            assert np.array_equal(np.asarray(Image.open(out / row["labels"])), labels_of(row))
            assert Path(row["labels"]).name == f"{Path(row['path']).stem}.labels.png"
    assert find_sources([str(folder)], out, None).pictures == COUNT
    first = {file: file.read_bytes() for file in (out / "masks").iterdir()}

    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--labels"]) == 2
    assert "add --resume to go on with it" in capsys.readouterr().err
    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--resume"]) == 2
    assert "had other --labels" in capsys.readouterr().err
    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--labels", "--resume"]) == 11
    assert f"{COUNT} of {COUNT} pictures are done already" in capsys.readouterr().err

    # What is not whole is done again, to the same bytes.
    lost, cut, *others = sorted(first)
    lost.unlink()
    cut.write_bytes(first[cut][:-20])
    kept = {file: file.stat().st_mtime_ns for file in others}
    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--labels", "--resume"]) == 11
    assert f"{COUNT - 2 * EACH} of {COUNT} pictures are done already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (out / "masks").iterdir()} == first
    assert {file: file.stat().st_mtime_ns for file in others} == kept


def test_a_pattern_and_a_url_name_the_same_pictures(
    folder: Path, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate((f"{folder}/*.jpg", folder.as_uri(), f"{folder.as_uri()}/*-1.jpg")):
        out = tmp_path / str(number)
        assert main(["segment", name, *SEGMENT, "--out", str(out), "--actors", "1"]) == (0 if number == 2 else 11)
        rows = rows_of(out)
        assert len(rows) == (3 if number == 2 else COUNT)
        for row in rows:
            assert row["path"].startswith(str(folder) if number == 0 else folder.as_uri())
            if not row["code"]:
                check(row, expected[Path(row["path"]).stem.rpartition("-")[0]])


def test_rows_of_parquet_files_are_pictures(
    expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [picture.read_bytes() for picture in PICTURES]
    stems = [picture.stem for picture in PICTURES]
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(pa.table({"path": stems, "bytes": files}), source / "a.parquet", row_group_size=2)
    nested = pa.array([{"bytes": content, "path": None} for content in files])
    pq.write_table(pa.table({"image": nested, "caption": stems}), tmp_path / "b.parquet", row_group_size=2)

    assert main(["segment", str(source / "*.parquet"), *SEGMENT, "--out", str(tmp_path / "a"), "--actors", "1"]) == 0
    rows = rows_of(tmp_path / "a")
    assert [row["path"] for row in rows] == stems
    for row in rows:
        check(row, expected[row["path"]])

    nested_out = ["--out", str(tmp_path / "b"), "--actors", "1"]
    assert main(["segment", str(tmp_path / "b.parquet"), *SEGMENT, *nested_out]) == 0
    rows = rows_of(tmp_path / "b")
    assert [row["path"] for row in rows] == [f"{tmp_path / 'b.parquet'}#{number}" for number in range(3)]
    for row, stem in zip(rows, stems, strict=True):
        check(row, expected[stem])
    assert len(list((tmp_path / "b/masks").iterdir())) == 2

    capsys.readouterr()
    assert main(["segment", str(source / "a.parquet"), *SEGMENT, "--out", str(tmp_path / "c"), "--column", "path"]) == 2
    assert (
        "has no column path of bytes, but path, bytes; name the column of pictures with --column"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--json", "x.json"], "--json was given with --ray"), (["--yolo"], "--yolo was given with --ray"), (["--alpha", "0.3"], "--alpha was"),
        (["--legend", "right"], "--legend was"), (["--outlines"], "--outlines was"), (["--polygons"], "--polygons was"),
        (["--instances"], "--instances was"), (["--labelme"], "--labelme was"), (["--column", "bytes"], "no Parquet file was named"),
        (["--threshold", "dog=0.5"], "none of the words"), (["--input-size", "5"], "--input-size is 5"), (["--window", "sliding"], "leave --window out"),
    ],
)  # fmt: skip
def test_what_a_run_on_ray_does_not_have_is_refused(
    given: list[str], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(PICTURES[0]), *SEGMENT, "--out", str(out), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert found in line
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["-"], "stdin was named"), (["nothing/*.jpg"], "no picture has such a name"), (["file:///nowhere/at/all"], "there is nothing in the store"),
        (["nonsense://somewhere/x"], "cannot be listed"), (["file:///tmp/a.jpg", str(PICTURES[0])], "in another store than the first"),
    ],
)  # fmt: skip
def test_sources_that_are_none_are_refused(
    names: list[str], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", *names, *SEGMENT, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert found in line


def test_the_plain_command_has_none_of_rays_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--actors", "2"], ["--column", "x"]):
        assert main(["segment", str(PICTURES[0]), "--words", "cat", "--out", str(tmp_path), *options]) == 2
        assert "add --ray, or leave it out" in capsys.readouterr().err


def test_the_options_that_are_refused_have_the_defaults_of_the_command() -> None:
    import argparse

    commands = argparse.ArgumentParser().add_subparsers()
    add_to(commands)
    parser = commands.choices["segment"]
    assert {name: parser.get_default(name) for name in fleet._ALONE} == fleet._ALONE


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("masks/mine.parquet", "run.json", "sources.parquet"):
        out = tmp_path / place.partition("/")[0].partition(".")[0]
        (out / place).parent.mkdir(parents=True)
        (out / place).write_text("{}")
        assert main(["segment", str(PICTURES[0]), *SEGMENT, "--out", str(out)]) == 50
        assert "choose another folder" in capsys.readouterr().err
        assert (out / place).read_text() == "{}"


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:1/a.jpg?X-Amz-Signature=SECRET", "https://me:SECRET@127.0.0.1:1/a.jpg", "https://SECRET@127.0.0.1:1/a.jpg",
        "memory://photos/a.jpg?sig=SECRET", "nonsense://me:SECRET@there/a.jpg?sig=SECRET",
    ],
)  # fmt: skip
def test_secrets_of_urls_are_neither_told_nor_kept(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", url, *SEGMENT, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fusioner-rt: {without_secrets(url)}: ")
    assert "SECRET" not in line
    assert not list(tmp_path.iterdir())


def test_a_store_s_own_error_is_told_without_secrets() -> None:
    url = "memory://me:SECRET@there/a.jpg?sig=HIDDEN"
    told = str(_unlisted(url, OSError(f"no {url}")))
    assert told.startswith("memory://there/a.jpg: cannot be listed (no memory://…@there/a.jpg?…)")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:SECRET@bucket/a?region=x#y", "s3://bucket/a"), ("abfs://photos@account.dfs.core.windows.net/a", None),
        ("abfss://photos:SECRET@account/a?sig=SECRET", "abfss://photos@account/a"), ("az://photos/a", None), ("a@b?c.jpg", None),
    ],
)  # fmt: skip
def test_a_url_without_secrets_names_the_same_place(url: str, shown: str | None) -> None:
    assert without_secrets(url) == (shown or url)


def parquet_of(file: Path, rows: int) -> None:
    pq.write_table(pa.table({"path": [f"{row}.jpg" for row in range(rows)], "bytes": [b"x"] * rows}), file)


@pytest.mark.parametrize("rows", [1, 2, 4, 40])
def test_a_parquet_file_that_is_another_by_now_ends_the_run(rows: int, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet_of(file, 3)
    (tmp_path / "out").mkdir()
    parts = begin(tmp_path / "out", {}, find_sources([str(file)], tmp_path / "out", None))
    assert pa.concat_tables(read_groups(parts.sources(0), None, "bytes"))["row"].to_pylist() == [0, 1, 2]
    parquet_of(file, rows)
    with pytest.raises(UsageError, match=r"a\.parquet: has other rows than when the run began; begin anew"):
        list(read_groups(parts.sources(0), None, "bytes"))

    def masks_of(dataset: Any) -> Any:
        more = {"filesystem": None, "column": "bytes"}
        return dataset.map_batches(read_groups, batch_format="pyarrow", batch_size=None, fn_kwargs=more)

    assert fleet._run(parts, masks_of, False) == UsageError.exit_code


@pytest.mark.parametrize(("rows", "found"), [(2, "without the rows of 3 pictures"), (4, "part 0 came with other rows")])
def test_rows_that_are_lost_or_too_many_end_the_run(
    rows: int, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "out").mkdir()
    parts = begin(tmp_path / "out", {}, find_sources([str(tmp_path)], tmp_path / "out", None))

    def results(_: pa.Table) -> pa.Table:
        numbers = pa.array(range(rows), pa.int32())
        return pa.table({
            "part": pa.array([0] * rows, pa.int32()), "row": numbers, "path": numbers.cast(pa.string()),
            "code": pa.array([0] * rows, pa.int32()), "error": pa.nulls(rows, pa.string()),
        })  # fmt: skip

    def masks_of(dataset: Any) -> Any:
        return dataset.map_batches(results, batch_format="pyarrow", batch_size=None)

    assert fleet._run(parts, masks_of, False) == ClusterFailed.exit_code
    error, left = capsys.readouterr().err.splitlines()
    assert found in error
    assert left.startswith("fusioner-rt: 0 of 3 pictures are done in ")


@given(st.lists(st.text(max_size=8).map(lambda text: f"a/{text}.jpg"), max_size=6))
def test_label_maps_have_names_of_their_own(paths: list[str]) -> None:
    names = names_of(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all("/" not in name and "\0" not in name and len(name) < 220 for name in names)


# Kills: runs in processes of their own, which start a Ray of their own.


def started(folder: Path, out: Path, *more: str, address: str | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "fusioner_rt",
        "segment",
        str(folder),
        *SEGMENT,
        "--actors",
        "2",
        "--out",
        str(out),
    ]
    environment = {name: value for name, value in os.environ.items() if address or not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": address} if address else {}
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below this one."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):  # no process, or gone
            continue

    def below(one: int) -> bool:
        while one := parents.get(one, 0):
            if one == pid:
                return True
        return False

    return {one: lines[one] for one in parents if below(one)}


def wait_for(found: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (seen := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return seen


def parts_in(out: Path) -> Sequence[Path]:
    return sorted((out / "masks").glob("part-*.parquet"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = started(folder, tmp_path / "out")
    yield process
    below = descendants(process.pid)
    process.kill()
    process.communicate()
    for pid in below:  # after a kill, agents of Ray look for their raylet for a minute
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def test_an_actor_that_is_killed_is_replaced_and_every_row_is_there_once(
    run: subprocess.Popen[str], folder: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    wait_for(lambda: parts_in(tmp_path / "out"))
    actors = {pid for pid, line in descendants(run.pid).items() if "Segmenter" in line}
    assert len(actors) == 2
    os.kill(max(actors), signal.SIGKILL)
    said, told = run.communicate(timeout=PATIENCE)
    assert run.returncode == 11, told
    assert said.startswith(f"{COUNT} pictures, 1 failed")
    assert "Traceback" not in told
    check_run(tmp_path / "out", folder, expected)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_run_that_is_ended_goes_on_and_every_row_is_there_once(
    run: subprocess.Popen[str], folder: Path, expected: dict[str, Any], tmp_path: Path, sent: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    wait_for(lambda: parts_in(out))
    below = descendants(run.pid)
    actors = [pid for pid, line in below.items() if "Segmenter" in line]
    assert len(actors) == 2
    run.send_signal(sent)
    _, told = run.communicate(timeout=PATIENCE)
    assert run.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (actors if sent == signal.SIGKILL else below)))
    done = parts_in(out)
    assert 1 <= len(done) < COUNT // EACH
    if sent != signal.SIGKILL:
        assert "Traceback" not in told, told
        assert told.splitlines()[-1].startswith(
            f"fusioner-rt: interrupted; {EACH * len(done)} of {COUNT} pictures are done in "
        )
        assert not list(out.rglob(f"{TEMPORARY}*"))
    kept = {file: file.stat().st_mtime_ns for file in done}
    for left in out.rglob(f"{TEMPORARY}*"):  # of a kill in the middle of a write; the next run removes it in an hour
        left.unlink()
    assert main(["segment", str(folder), *SEGMENT, "--out", str(out), "--resume"]) == 11
    assert f"{EACH * len(done)} of {COUNT} pictures are done already" in capsys.readouterr().err
    check_run(out, folder, expected)
    assert {file: file.stat().st_mtime_ns for file in done} == kept


def test_two_runs_do_not_share_a_folder(run: subprocess.Popen[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wait_for(lambda: (out / "run.json").exists())
    with started(folder, out, "--resume") as second:
        _, told = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    assert "another run writes into this folder; wait for it, or choose another with --out" in told


def test_a_run_takes_the_cluster_of_the_environment(folder: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    with started(folder, tmp_path / "out", address=address) as process:
        wait_for(lambda: (tmp_path / "out/run.json").exists())
        assert not any("gcs_server" in line for line in descendants(process.pid).values())
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 11, told
    check_run(tmp_path / "out", folder, expected)


def test_a_cluster_that_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    with started(folder, tmp_path / "out", address="127.0.0.1:1") as process:
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == ClusterFailed.exit_code
    first, second = told.splitlines()
    assert first.startswith("fusioner-rt: no cluster answers at 127.0.0.1:1 (Connection refused); check RAY_ADDRESS")
    assert (
        second
        == f"fusioner-rt: 0 of {COUNT} pictures are done in {tmp_path / 'out'}; the same command with --resume goes on"
    )


# What Ray would send


@pytest.mark.parametrize(("before", "after"), [(None, False), ("1", True)])
def test_ray_reports_nothing_unless_it_is_asked_to(before: str | None, after: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_USAGE_STATS_ENABLED"}
    code = "import fusioner_rt.ray, json; from ray._common.usage import usage_lib; print(json.dumps(usage_lib.usage_stats_enabled()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=environment | ({} if before is None else {"RAY_USAGE_STATS_ENABLED": before}),
    )  # fmt: skip
    assert json.loads(done.stdout) is after, done.stderr
