"""Word vectors as one file: the same bytes for the same words, an error for what is none, and replicas that start warm."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusioner_rt import Session
from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.cli import main
from fusioner_rt.errors import FusionerError, OutputUnwritable, UsageError, WordVectorsInvalid
from fusioner_rt.words.cache import SUFFIX, TextCache, cache_key, make_entry
from fusioner_rt.words.vectors_file import _MAGIC, LARGEST, read_vectors, write_vectors

WORDS = ["cat", "red sofa", "tree", "bird"]
GRAPH = "f" * 64
keys = st.binary(min_size=32, max_size=32).map(bytes.hex)
files = st.dictionaries(keys, st.binary(max_size=200), max_size=6)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def vector(seed: int, width: int = 24) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=width)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def key_of(number: int) -> str:
    return cache_key([[number]], GRAPH, "fp16")


def entry(number: int, array: np.ndarray | None = None, graph: str = GRAPH) -> bytes:
    return make_entry(vector(number) if array is None else array, f"word {number}", 2, graph, "fp16")


def put(cache: TextCache, number: int, graph: str = GRAPH) -> None:
    cache.put(key_of(number), vector(number), f"word {number}", 2, graph, "fp16")


def signed(body: bytes, magic: bytes = _MAGIC) -> bytes:
    return magic + body + hashlib.sha256(magic + body).digest()


def refused(path: Path, says: str = ":") -> None:
    with pytest.raises(WordVectorsInvalid, match=says) as told:
        read_vectors(path)
    assert told.value.subject == path
    assert told.value.cure


@given(files, st.randoms())
@shared_folder
def test_a_file_reads_back_and_equal_words_make_equal_bytes(tmp_path: Path, entries: dict[str, bytes], random) -> None:  # type: ignore[no-untyped-def]
    one, other = tmp_path / "one.vectors", tmp_path / "other.vectors"
    write_vectors(one, entries)
    mixed = list(entries.items())
    random.shuffle(mixed)
    write_vectors(other, dict(mixed))
    assert read_vectors(one) == entries
    assert one.read_bytes() == other.read_bytes()


@given(files, st.data())
@shared_folder
def test_any_bit_flipped_and_any_byte_missing_or_added_is_an_error(
    tmp_path: Path, entries: dict[str, bytes], data: st.DataObject
) -> None:
    path = tmp_path / "fleet.vectors"
    write_vectors(path, entries)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "remove", "insert", "append"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "remove":
            del content[place]
        case "insert":
            content.insert(place, data.draw(st.integers(0, 255)))
        case "append":
            content += data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    refused(path)


@given(st.binary(max_size=300))
@shared_folder
def test_what_a_hostile_author_signs_is_an_error_or_words_in_order(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "fleet.vectors"
    path.write_bytes(signed(body))
    try:
        entries = read_vectors(path)
    except WordVectorsInvalid:
        return
    again = tmp_path / "again.vectors"
    write_vectors(again, entries)
    assert again.read_bytes() == path.read_bytes()


def record(key: bytes, content: bytes, length: int | None = None) -> bytes:
    return key * 32 + struct.pack("<I", len(content) if length is None else length) + content


HOSTILE = {
    "no number of words": b"\0\0",
    "fewer words than it says": struct.pack("<I", 2) + record(b"a", b"x"),
    "more words than it says": struct.pack("<I", 1) + record(b"a", b"x") + record(b"b", b"y"),
    "billions of words": struct.pack("<I", 2**32 - 1),
    "an entry of gigabytes": struct.pack("<I", 1) + record(b"a", b"x", 2**32 - 1),
    "a word twice": struct.pack("<I", 2) + record(b"a", b"x") * 2,
    "another order": struct.pack("<I", 2) + record(b"b", b"x") + record(b"a", b"y"),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_words_that_do_not_lie_as_they_should(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "fleet.vectors"
    path.write_bytes(signed(body))
    refused(path, "do not lie as they should")


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 34)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "there is no such file"),
    "an empty file": (lambda path: path.write_bytes(b""), "is none"),
    "a list of words": (lambda path: path.write_text("cat\nsofa\n"), "is none"),
    "JSON": (lambda path: path.write_text(json.dumps({"cat": [0.1] * 384})), "is none"),
    "one word's file": (lambda path: path.write_bytes(entry(1)), "is none"),
    "a later version": (lambda path: path.write_bytes(signed(b"", b"fusioner-rt vectors 2\n")), "another version"),
    "its first line alone": (lambda path: path.write_bytes(_MAGIC), "cut short or altered"),
    "16 GB": (sparse, f"more than the {LARGEST} bytes"),
    "a pipe": (os.mkfifo, "it is a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
}


@pytest.mark.parametrize(("make", "says"), OTHERS.values(), ids=OTHERS.keys())
def test_another_kind_of_file_is_called_what_it_is_in_one_line(
    make: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.vectors"
    make(path)
    refused(path, says)
    assert main(["words", "--import", str(path)]) == WordVectorsInvalid.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: " in line
    assert says in line
    assert "fusioner-rt words --export FILE" in line


def test_a_cache_that_is_no_file_of_vectors_is_refused_before_anything_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat\n")
    with pytest.raises(WordVectorsInvalid, match=r"words\.txt: is none"):
        Session(tiny_bundle, cache=tmp_path / "words.txt")
    with pytest.raises(WordVectorsInvalid, match="there is no such file") as told:
        Session(tiny_bundle, cache=tmp_path / "not-mounted.vectors")
    assert "export_words" in str(told.value)
    assert "--" not in str(told.value)
    assert not (tmp_path / "not-mounted.vectors").exists()


NO_VECTORS = {
    "NaN": np.full(24, np.nan, np.float32),
    "infinity": np.full(24, np.inf, np.float32),
    "zeros": np.zeros(24, np.float32),
    "another length": vector(1) * np.float32(2),
    "nothing": np.zeros(0, np.float32),
}


@pytest.mark.parametrize("array", NO_VECTORS.values(), ids=NO_VECTORS.keys())
def test_what_is_no_words_vector_is_never_used_and_never_added(
    array: np.ndarray, tmp_path: Path, own_cache: Path
) -> None:
    path = tmp_path / "fleet.vectors"
    write_vectors(path, {key_of(0): entry(0), key_of(1): entry(1, array)})
    cache = TextCache(path)
    assert cache.get(key_of(0)) is not None
    assert cache.get(key_of(1)) is None
    with pytest.raises(WordVectorsInvalid, match="an entry in it is no word's vector"):
        TextCache(own_cache).take(path)
    assert list(own_cache.iterdir()) == []
    assert [word.word for word in TextCache(path).export(tmp_path / "again.vectors")] == ["word 0"]


@pytest.mark.parametrize("content", [b"", b"x" * 500, entry(1)[:-1], entry(1)[:-1] + b"x"])
def test_an_entry_that_is_none_is_none(content: bytes, tmp_path: Path) -> None:
    write_vectors(tmp_path / "fleet.vectors", {key_of(1): content})
    cache = TextCache(tmp_path / "fleet.vectors")
    assert cache.get(key_of(1)) is None
    assert cache.words() == []


def test_a_vector_of_another_width_is_encoded_again(tiny_bundle: Path, tmp_path: Path, picture: np.ndarray) -> None:
    with Session(tiny_bundle, cache=False) as session:
        session.export_words(tmp_path / "right.vectors", "cat, sofa")
        right = session.segment(picture, "cat, sofa")
    wrong = {key: make_entry(vector(0, 7), "cat", 2, GRAPH, "fp32") for key in read_vectors(tmp_path / "right.vectors")}
    write_vectors(tmp_path / "wrong.vectors", wrong)
    with Session(tiny_bundle, cache=tmp_path / "wrong.vectors") as session:
        np.testing.assert_array_equal(session.segment(picture, "cat, sofa").confidence, right.confidence)
        assert session.text_encoder_calls == 2


def test_what_is_exported_is_what_the_folder_holds_and_damaged_entries_stay_behind(
    tmp_path: Path, own_cache: Path
) -> None:
    cache = TextCache(own_cache)
    for number in (3, 1, 2):
        put(cache, number)
    (own_cache / f"{'0' * 64}{SUFFIX}").write_bytes(b"torn")
    shutil.copy(own_cache / f"{key_of(1)}{SUFFIX}", own_cache / f"not-a-key{SUFFIX}")
    words = cache.export(tmp_path / "fleet.vectors")
    assert [word.word for word in words] == ["word 1", "word 2", "word 3"]
    read = TextCache(tmp_path / "fleet.vectors")
    assert [word.word for word in read.words()] == ["word 1", "word 2", "word 3"]
    for number in (1, 2, 3):
        got = read.get(key_of(number))
        assert got is not None
        assert got.tobytes() == vector(number).tobytes()
        assert not got.flags.writeable


def test_what_is_there_stays_and_the_rest_is_added_while_there_is_room(tmp_path: Path, own_cache: Path) -> None:
    given, own = TextCache(tmp_path / "given"), TextCache(own_cache)
    for number in range(5):
        put(given, number)
    given.export(tmp_path / "fleet.vectors")
    own.put(key_of(1), vector(77), "mine", 2, GRAPH, "fp16")
    (own_cache / f"{key_of(2)}{SUFFIX}").write_bytes(b"torn")
    taken = own.take(tmp_path / "fleet.vectors")
    assert (taken.added, taken.there, taken.left) == (4, 1, 0)
    assert [word.word for word in taken.words] == [f"word {number}" for number in range(5)]
    again = TextCache(own_cache)
    np.testing.assert_array_equal(again.get(key_of(1)), vector(77))
    np.testing.assert_array_equal(again.get(key_of(2)), vector(2))
    assert again.take(tmp_path / "fleet.vectors").there == 5

    small = TextCache(tmp_path / "small", disk_bytes=3 * len(entry(0)))
    put(small, 9)
    taken = small.take(tmp_path / "fleet.vectors")
    assert (taken.added, taken.there, taken.left) == (2, 0, 3)
    assert small.get(key_of(9)) is not None, "nothing goes to make room"


def test_a_file_too_large_to_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusioner_rt.words.vectors_file.LARGEST", 500)
    with pytest.raises(UsageError, match="at most 500"):
        write_vectors(tmp_path / "fleet.vectors", {key_of(number): entry(number) for number in range(9)})
    write_vectors(tmp_path / "fleet.vectors", {key_of(0): entry(0)})
    assert len(read_vectors(tmp_path / "fleet.vectors")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.vectors"]


WARM = """
import json, sys, time
import numpy as np
from fusioner_rt import Session
bundle, file, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
picture = np.random.default_rng(0).integers(0, 256, (61, 93, 3), np.uint8)
with Session(bundle, cache=file, threads=1) as session:
    print("open", flush=True)
    sys.stdin.readline()  # both have it open
    result = session.segment(picture, words)
    session.segment(picture, ["a new word", *words])
    print(json.dumps({"calls": session.text_encoder_calls, "sum": float(result.confidence.sum(dtype=float)), "notes": session.notes}))
"""


def test_two_processes_read_one_file_on_a_read_only_file_system_and_start_warm(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with Session(tiny_bundle, cache=False) as session:
        assert session.export_words(shared / "fleet.vectors", WORDS) == len(WORDS)
        assert session.text_encoder_calls == len(WORDS)
    mounted = f"mount --bind {shared} {shared} && mount -o remount,bind,ro {shared} && ! touch {shared}/x 2>/dev/null && exec "
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mounted} "$@"', "sh", sys.executable, "-c", WARM]
    running = [
        subprocess.Popen(
            [*command, str(tiny_bundle), str(shared / "fleet.vectors"), json.dumps(WORDS)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", process.communicate()[1]
    told = [json.loads(process.communicate("go\n", timeout=60)[0]) for process in running]
    assert told[0] == told[1]
    assert told[0]["calls"] == 1  # of the new word alone
    assert told[0]["notes"] == []
    assert [path.name for path in shared.iterdir()] == ["fleet.vectors"]


def test_a_session_that_reads_a_file_needs_no_text_encoder_and_gives_the_same_masks(
    tiny_bundle: Path, tmp_path: Path, picture: np.ndarray, own_cache: Path
) -> None:
    with Session(tiny_bundle) as session:
        cold = session.segment(picture, WORDS, background="common")
        session.export_words(tmp_path / "fleet.vectors", WORDS, background="common")
    TextCache(own_cache).export(tmp_path / "folder.vectors")
    assert (tmp_path / "fleet.vectors").read_bytes() == (tmp_path / "folder.vectors").read_bytes()
    with Session(tiny_bundle, cache=tmp_path / "fleet.vectors") as session:
        warm = session.segment(picture, WORDS, background="common")
        assert session.text_encoder_calls == 0
        assert "text" not in session._executor._graphs.graphs
        assert (session.cache_folder, session.cache_file) == (None, tmp_path / "fleet.vectors")
    np.testing.assert_array_equal(warm.labels, cold.labels)
    np.testing.assert_array_equal(warm.confidence, cold.confidence)


def test_a_file_holds_more_words_than_a_call_takes_and_the_folder_of_another_bundle_never_hits(
    tiny_bundle: Path, tiny_bundle_fp16: Path, tmp_path: Path
) -> None:
    many = [f"word number {number}" for number in range(70)]
    with Session(tiny_bundle, cache=False) as session:
        assert session.export_words(tmp_path / "fleet.vectors", many) == 70 > session.bundle.words.max
    with Session(tiny_bundle_fp16, cache=tmp_path / "fleet.vectors") as session:
        session.set_vocabulary(many[:3])
        assert session.text_encoder_calls == 3


def test_an_export_that_cannot_be_written_is_told_before_words_are_encoded(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Session(tiny_bundle, cache=False) as session:
        with pytest.raises(OutputUnwritable):
            session.export_words(tmp_path / "file" / "fleet.vectors", WORDS)
        for words in ("", "cat, cat"):
            with pytest.raises(FusionerError):
                session.export_words(tmp_path / "fleet.vectors", words)
        assert session.text_encoder_calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_encodes_exports_imports_and_says_whose_words_they_are(
    tiny_bundle: Path, tiny_bundle_fp16: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, other, both = (str(tmp_path / f"{name}.vectors") for name in ("fleet", "other", "both"))

    def run(*arguments: str, code: int = 0) -> list[str]:
        assert main(["words", *arguments]) == code
        said = capsys.readouterr()
        assert bool(said.err) == bool(code)
        return (said.err if code else said.out).splitlines()

    monkeypatch.setenv("FUSIONER_ENGINE", str(tiny_bundle))
    total, fits = run("--encode", "cat, sofa|couch", "--background", "wall", "--export", file)
    assert re.fullmatch(rf"4 words, \d+\.\d kB in {re.escape(file)}", total)
    assert re.fullmatch(rf"  4 of encoder [0-9a-f]{{8}}, fp32: {re.escape(str(tiny_bundle))}", fits)
    (tmp_path / "list.txt").write_text("cat\nbird\n")
    run("--words-file", str(tmp_path / "list.txt"), "--export", other, "--engine", str(tiny_bundle_fp16))
    assert len(run()) == 1 + 6  # what was encoded is cached

    total, *fits = run("--export", both)
    assert total.startswith("6 words")
    assert sorted(line.split(":")[1] for line in fits) == sorted(
        [f" {tiny_bundle}", " of no bundle that is found here"]
    )
    assert [line.split()[0] for line in fits] in (["2", "4"], ["4", "2"])
    assert run("--export", both, "--engine", str(tiny_bundle_fp16))[0].startswith("2 words")
    assert Path(both).read_bytes() == Path(other).read_bytes()

    assert run("--clear")[0].startswith("6 cached words")
    said = run("--import", file)
    assert said[0] == f"4 words added to {own_cache}, 0 were there"
    assert said[1].startswith("  4 of encoder")
    assert run("--import", file)[0] == f"0 words added to {own_cache}, 4 were there"

    listed = run("--cache", file)
    assert [line.split("  (")[0] for line in listed[:4]] == ["cat", "couch", "sofa", "wall"]
    assert "used" not in listed[0]
    assert listed[4].endswith(f"in {file}")
    before = Path(file).read_bytes()
    for refused in ("--clear", f"--import={other}"):
        (line,) = run(refused, "--cache", file, code=2)
        assert "which is read only" in line
    assert Path(file).read_bytes() == before
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--encode", "cat"], "add --export FILE"),
        (["--background", "wall", "--export", "x.vectors"], "add --encode WORDS"),
        (["--export", "x.vectors", "--clear"], "not allowed with"),
        (["--encode", "cat", "--words-file", "list.txt", "--export", "x.vectors"], "not allowed with"),
    ],
)
def test_options_that_do_not_go_together(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["words", *given])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_has_the_vectors_of_a_file_that_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "fleet.vectors"
    write_vectors(place, {key_of(1): entry(1)})
    cache = TextCache(place)
    place.unlink()
    child = cache.of_the_same_place()
    assert np.array_equal(child.get(key_of(1)), cache.get(key_of(1)))
    put(child, 2)
    assert child.file == place
    assert child.folder is None
    assert cache.get(key_of(2)) is None
