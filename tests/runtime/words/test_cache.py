import errno
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusioner_rt.atomic_files import TEMPORARY
from fusioner_rt.words.cache import SUFFIX, TextCache, cache_key, decode_entry, default_folder, encode_entry

vectors = hnp.arrays(np.float32, st.integers(0, 64))
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def put(cache: TextCache, key: str, vector: np.ndarray, word: str = "cat") -> None:
    cache.put(key, vector, word, prompts=32, graph="f" * 64, precision="fp16")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))


@given(vectors, st.text())
def test_an_entry_reads_back(vector: np.ndarray, word: str) -> None:
    header, again = decode_entry(encode_entry({"word": word, "shape": list(vector.shape)}, vector))
    assert header["word"] == word
    assert again.tobytes() == vector.tobytes()


@given(vectors, st.data())
def test_an_entry_with_any_bit_flipped_or_byte_missing_is_damaged(vector: np.ndarray, data: st.DataObject) -> None:
    content = bytearray(encode_entry({"word": "cat", "shape": list(vector.shape)}, vector))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    with pytest.raises(ValueError, match="damaged"):
        decode_entry(bytes(content))


@given(vector=vectors, key=st.integers(0, 9).map(str))
@shared_folder
def test_what_was_put_is_what_another_cache_gets(own_cache: Path, vector: np.ndarray, key: str) -> None:
    put(TextCache(own_cache), key, vector)
    got = TextCache(own_cache).get(key)
    assert got is not None
    assert got.tobytes() == vector.tobytes()


def test_a_key_depends_on_tokens_graph_and_precision() -> None:
    base = ([[1, 2], [3]], "graph", "fp16")
    others = [([[1, 2, 3]], *base[1:]), ([[3], [1, 2]], *base[1:]), (base[0], "other", "fp16"), (*base[:2], "fp32")]
    assert len({cache_key(*case) for case in (base, *others)}) == 5
    assert cache_key([np.array([1, 2]), (3,)], "graph", "fp16") == cache_key(*base)  # type: ignore[list-item]


def test_a_damaged_file_is_removed_and_can_be_written_again(own_cache: Path) -> None:
    vector = np.arange(5, dtype=np.float32)
    put(TextCache(own_cache), "k", vector)
    (path,) = files(own_cache)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    fresh = TextCache(own_cache)
    assert fresh.get("k") is None
    assert not files(own_cache)
    put(fresh, "k", vector)
    np.testing.assert_array_equal(TextCache(own_cache).get("k"), vector)


def test_the_disk_bound_holds_and_the_least_recently_used_go_first(own_cache: Path) -> None:
    vector = np.zeros(64, np.float32)
    put(TextCache(own_cache), "probe", vector)
    entry = files(own_cache)[0].stat().st_size
    files(own_cache)[0].unlink()

    cache = TextCache(own_cache, memory_bytes=0, disk_bytes=10 * entry)
    for number in range(10):
        put(cache, f"{number:05}", vector)
        os.utime(own_cache / f"{number:05}{SUFFIX}", (number, number))
    assert cache.get("00000") is not None  # now the most recently used
    put(cache, "probe", vector)
    kept = [path.name.removesuffix(SUFFIX) for path in files(own_cache)]
    assert sum(path.stat().st_size for path in files(own_cache)) <= 10 * entry
    assert "00000" in kept
    assert "probe" in kept
    assert "00001" not in kept


def test_the_memory_bound_holds() -> None:
    cache = TextCache(None, memory_bytes=4 * 400)
    for number in range(10):
        put(cache, str(number), np.zeros(100, np.float32))
        cache.get("0")
    known = [number for number in range(10) if cache.get(str(number)) is not None]
    assert known == [0, 7, 8, 9]


def test_a_folder_that_cannot_be_written_leaves_memory_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TextCache(tmp_path / "file" / "cache")
    put(cache, "k", np.ones(3, np.float32))
    assert cache.get("k") is not None
    assert cache.note
    assert "FUSIONER_CACHE" in cache.note
    assert cache.words() == []
    assert cache.clear() == 0


def failing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fusioner_rt.words.cache.write_atomically", fail)


@pytest.mark.parametrize(
    ("code", "again"),
    [(errno.ENOSPC, True), (errno.EIO, True), (errno.EMFILE, True), (errno.EACCES, False), (errno.EROFS, False)],
)
def test_a_passing_failure_costs_one_write_and_a_refusal_all(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, again: bool
) -> None:
    cache = TextCache(own_cache)
    with monkeypatch.context() as patch:
        failing(patch, code)
        put(cache, "first", np.ones(3, np.float32))
    assert cache.note
    assert os.strerror(code) in cache.note
    put(cache, "second", np.ones(3, np.float32))
    assert [path.name for path in files(own_cache)] == ([f"second{SUFFIX}"] if again else [])
    assert (cache.note is None) == again


def test_a_folder_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    cache = TextCache(tmp_path / "cache")
    for key in ("first", "lost", "third"):
        put(cache, key, np.ones(3, np.float32))
        if key == "first":
            shutil.rmtree(tmp_path / "cache")
    assert [path.name for path in files(tmp_path / "cache")] == [f"third{SUFFIX}"]


def test_whether_a_folder_can_be_written_can_be_asked_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, fine in ((None, True), (tmp_path / "new" / "cache", True), (tmp_path / "file" / "cache", False)):
        cache = TextCache(folder)
        cache.check_writable()
        assert (cache.note is None) == fine
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_vectors_cannot_be_changed_by_who_gets_them(own_cache: Path) -> None:
    source = np.ones(3, np.float32)
    cache = TextCache(own_cache)
    put(cache, "k", source)
    source[:] = 7
    for again in (cache.get("k"), TextCache(own_cache).get("k")):
        assert again is not None
        assert (again == 1).all()
        with pytest.raises(ValueError, match="read-only"):
            again[0] = 5


def test_words_can_be_listed_and_cleared(own_cache: Path) -> None:
    cache = TextCache(own_cache)
    for number, word in enumerate(["sofa", "Katze 猫", "cat"]):
        put(cache, str(number), np.ones(3, np.float32), word)
    (own_cache / f"torn{SUFFIX}").write_bytes(b"half")
    (own_cache / "stranger.txt").write_text("not ours")
    assert [(entry.word, entry.prompts) for entry in cache.words()] == [("cat", 32), ("Katze 猫", 32), ("sofa", 32)]
    assert cache.clear() == 4
    assert cache.get("0") is None
    assert [path.name for path in own_cache.iterdir()] == ["stranger.txt"]


def test_what_a_killed_process_left_behind_is_swept(own_cache: Path) -> None:
    old, new = own_cache / f"{TEMPORARY}old", own_cache / f"{TEMPORARY}new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    put(TextCache(own_cache), "k", np.ones(3, np.float32))
    assert not old.exists()
    assert new.exists()


def test_what_is_dated_in_the_future_is_swept_too_and_clear_sweeps(own_cache: Path) -> None:
    for sweep in (lambda: put(TextCache(own_cache), "k", np.ones(3, np.float32)), TextCache(own_cache).clear):
        old, new, ahead = (own_cache / f"{TEMPORARY}{name}" for name in ("old", "new", "ahead"))
        for path, age in ((old, 7200), (new, 0), (ahead, -7200)):
            path.write_bytes(b"half")
            os.utime(path, (time.time() - age,) * 2)
        sweep()
        assert [path.exists() for path in (old, new, ahead)] == [False, True, False]


STRANGERS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
}
LINKS = {"/dev/zero": "/dev/zero", "a pipe": "fifo", "a folder": ".", "itself": f"k{SUFFIX}", "nothing": "nowhere"}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS.keys())
def test_what_is_no_file_is_no_entry_and_stays(
    make: Callable[[Path], object], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_cache)  # a socket's path is short
    make(own_cache / f"k{SUFFIX}")
    cache = TextCache(own_cache, memory_bytes=0, disk_bytes=1500)
    assert cache.get("k") is None
    for number in range(10):  # evicted, again and again
        put(cache, str(number), np.ones(99, np.float32))
        assert cache.note is None
    assert len(cache.words()) == 2
    assert cache.clear() == 2
    assert [path.name for path in own_cache.iterdir()] == [f"k{SUFFIX}"]


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS.keys())
def test_a_link_to_no_file_is_no_entry_and_is_removed_alone(target: str, own_cache: Path) -> None:
    os.mkfifo(own_cache / "fifo")
    (own_cache / f"k{SUFFIX}").symlink_to(target)
    cache = TextCache(own_cache)
    assert cache.get("k") is None
    assert cache.words() == []
    vector = np.ones(9, np.float32)
    put(cache, "k", vector)
    assert not (own_cache / f"k{SUFFIX}").is_symlink(), "the word takes its place"
    (own_cache / f"l{SUFFIX}").symlink_to(target)
    assert cache.clear() == 2
    assert [path.name for path in own_cache.iterdir()] == ["fifo"]


def test_a_link_to_an_entry_and_a_file_of_gigabytes(own_cache: Path, tmp_path: Path) -> None:
    put(TextCache(tmp_path), "k", np.ones(9, np.float32))
    (own_cache / f"k{SUFFIX}").symlink_to(tmp_path / f"k{SUFFIX}")
    with open(own_cache / f"large{SUFFIX}", "wb") as stream:
        stream.truncate(1 << 34)
    cache = TextCache(own_cache)
    assert cache.get("k") is not None
    assert cache.get("large") is None
    assert [entry.word for entry in cache.words()] == ["cat"]
    assert cache.clear() == 2
    assert TextCache(tmp_path).get("k") is not None


def test_an_entry_that_cannot_be_removed_keeps_no_other(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TextCache(own_cache)
    for key in "abc":
        put(cache, key, np.ones(3, np.float32))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("b"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        cache.clear()
    assert [path.name for path in own_cache.iterdir()] == [f"b{SUFFIX}"]


def _hammer(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(300):
        number = int(random.integers(20))
        # A fresh cache each time, so that nothing comes from memory; its bound makes the processes evict each other's.
        cache = TextCache(folder, disk_bytes=15 * 700)
        got = cache.get(str(number))
        assert got is None or (got == number).all()
        put(cache, str(number), np.full(100, number, np.float32))
        assert cache.note is None


def test_processes_may_write_read_and_evict_at_once(own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(own_cache, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for path in own_cache.iterdir():
        assert path.name.endswith(SUFFIX)
        assert (decode_entry(path.read_bytes())[1] == int(path.name.removesuffix(SUFFIX))).all()


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSIONER_CACHE", "/a/b")
    assert default_folder() == Path("/a/b")
    monkeypatch.delenv("FUSIONER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/fusioner-rt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/fusioner-rt")
