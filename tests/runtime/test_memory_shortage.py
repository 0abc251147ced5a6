"""Short of memory, by limits of the operating system: a right result or MemoryShort, and the session goes on."""

from __future__ import annotations

import ast
import errno
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import scene
from PIL import Image

from fusioner_rt.errors import CudaFailed, GpuMemoryShort, MemoryShort, PictureUnreadable
from fusioner_rt.memory_shortage import OF_A_PICTURE, check_room, is_shortage, tells_shortage
from fusioner_rt.onnx.runtime import CPU, CUDA, Graph

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models/demo/bundle"

LIMITED = """
import ctypes, json, resource, sys
from pathlib import Path
import onnxruntime, scipy.ndimage, shapely
from fusioner_rt import Session, errors, to_coco

BUNDLE, PICTURE, WORDS = sys.argv[1], sys.argv[2], "cat, sofa, red helmet"
OUT = Path(sys.argv[3])

def limit(mebibytes):
    ctypes.CDLL(None).malloc_trim(0)
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    more = resource.RLIM_INFINITY if mebibytes is None else mapped + int(mebibytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (more, resource.RLIM_INFINITY))

def bits(result):
    return result.labels.tobytes() + result.confidence.tobytes()

def attempt(told, name, call):
    try:
        value = call()
        told[name] = "done"
        return value
    except errors.MemoryShort as error:
        told[name] = "short"
        assert len(str(error).splitlines()) == 1 and error.cure, error
    except BaseException as error:
        told[name] = f"{type(error).__name__}: {error}"
"""
EVERY_STEP = """
def session_of(number):
    return Session(BUNDLE, "onnxruntime-cpu", cache=OUT / str(number), threads=2)

with session_of("right") as session:
    right = bits(session.segment(PICTURE, WORDS))
for number, mebibytes in enumerate(json.loads(sys.argv[4])):
    told = {}
    session = None if sys.argv[5] == "opened short" else session_of(number)
    limit(mebibytes)
    session = session or attempt(told, "open", lambda: session_of(number))
    if session:
        attempt(told, "set_vocabulary", lambda: session.set_vocabulary(WORDS))
        attempt(told, "encode", lambda: session.encode(PICTURE))
        result = attempt(told, "segment", lambda: session.segment(PICTURE, WORDS))
        if result is not None:
            for name in ("overlay", "to_coco", "polygons", "instances"):
                attempt(told, name, getattr(result, name))
            for name in ("a.png", "a.jpg", "a.json", "a.npz"):
                attempt(told, name, lambda: result.save(OUT / name))
            attempt(told, "to_coco of all", lambda: to_coco([result]))
    limit(None)
    session = session or session_of(number)
    told["afterwards"] = "done" if bits(session.segment(PICTURE, WORDS)) == right else "other bits"
    told["result"] = "done" if result is None or bits(result) == right else "other bits"
    session.close()
    session = result = None
    print(json.dumps(told))
"""


def limited(script: str, *arguments: Any) -> list[dict[str, str]]:
    command = [sys.executable, "-c", f"result = None\n{LIMITED}{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 1.5 million pixels that lies on its side, as its EXIF says: not to turn it would be another result."""
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(scene(200, 300)).resize((1500, 1000)).save(path, exif=turned)
    return path


@pytest.mark.parametrize(
    ("what", "limits"),
    [
        ("opened short", [1, 40, 2000]),
        ("run short", [1, 12, 2000]),
        pytest.param("opened short", [1, 20, 40, 90, 200, 2000], marks=pytest.mark.slow),
        pytest.param("run short", [1, 6, 12, 20, 30, 70, 2000], marks=pytest.mark.slow),
    ],
)
def test_every_limit_gives_the_right_result_or_memory_short(
    large: Path, tmp_path: Path, what: str, limits: list[int]
) -> None:
    rows = limited(EVERY_STEP, BUNDLE, large, tmp_path, json.dumps(limits), what)
    assert len(rows) == len(limits)
    for mebibytes, row in zip(limits, rows, strict=True):
        assert set(row.values()) <= {"done", "short"}, (mebibytes, row)
    assert "short" in rows[0].values()
    assert set(rows[-1].values()) == {"done"}
    assert sum("short" in row.values() for row in rows) > 1


COMMAND = """
import sys
from fusioner_rt.cli import main

with Session(BUNDLE, "onnxruntime-cpu", cache=OUT / "words") as session:
    session.segment(PICTURE, WORDS).overlay()
limit(200)
sys.exit(main(["segment", *sys.argv[4:], "--words", WORDS, "--engine", BUNDLE, "--backend", "onnxruntime-cpu",
               "--cache", str(OUT / "words"), "--out", str(OUT), "--json", str(OUT / "masks.json")]))
"""


def test_the_command_goes_on_after_a_picture_that_memory_is_too_short_for(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.png", "huge.png", "b.png")]
    for name in names:
        Image.fromarray(scene(60, 80)).save(name)
    Image.new("L", (11000, 11000), 90).save(names[1])
    command = [sys.executable, "-c", LIMITED + COMMAND, str(BUNDLE), names[0], str(tmp_path), *names]
    command += ["--max-pixels", "121000000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == MemoryShort.exit_code, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 2, said
    assert said[0].startswith(f"fusioner-rt: {names[1]}: needs more memory than is free here")
    assert "--size HxW" in said[0]
    assert said[1] == "fusioner-rt: 1 of 3 pictures failed, see above"
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [names[0], names[2]]
    images = json.loads((tmp_path / "masks.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["a.png", "b.png"]


WITHOUT_THREADS = """
from fusioner_rt.workers import Workers

workers, ran = Workers(4, "test"), []
limit(1)
try:
    workers.run_all(ran.append, [1, 2, 3])
except RuntimeError as error:
    assert errors and "new thread" in str(error)
limit(None)
workers.run_all(ran.append, [4, 5, 6])
print(json.dumps({"ran": sorted(ran)}))
"""


def test_a_pool_that_could_start_no_thread_works_once_it_can(tmp_path: Path) -> None:
    (row,) = limited(WITHOUT_THREADS, BUNDLE, "", tmp_path)
    assert set(row["ran"]) >= {4, 5, 6}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("out of memory error when reading image file"),
        RuntimeError("can't start new thread"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
        RuntimeError("env.cc:327 PosixThread pthread_create failed, error code: 11 error msg: Resource temporarily"),
        RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1228800"),
        ImportError("tokenizers.abi3.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_what_libraries_say_of_a_shortage_is_understood(error: Exception) -> None:
    assert is_shortage(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "out of memory.jpg"),
        PictureUnreadable("broken (out of memory error)"),
        ValueError("broken"),
        ImportError("No module named 'shapely'"),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_a_shortage(error: Exception) -> None:
    assert not is_shortage(error)


@pytest.mark.parametrize("inner", [MemoryError("9 PiB"), MemoryShort("needs 9 PiB", "shrink it", "a.jpg")], ids=repr)
def test_who_keeps_the_error_keeps_no_array(inner: Exception) -> None:
    held = []

    @tells_shortage(OF_A_PICTURE, of=lambda name: name)
    def call(name: str) -> None:
        array = np.zeros(9)
        held.append(weakref.ref(array))
        failed = inner  # the frame and its error hold each other, as those of a pool's thread do
        raise failed

    with pytest.raises(MemoryShort, match=r"a\.jpg: needs .*9 PiB") as kept:
        call("a.jpg")
    assert kept.value.__context__ is None
    assert held[0]() is None


def test_what_numpy_asked_for_is_told() -> None:
    @tells_shortage(OF_A_PICTURE)
    def call() -> None:
        np.empty((1 << 28, 1 << 28), np.float32)

    with pytest.raises(
        MemoryShort, match=r"^needs more memory than is free here \(Unable to allocate .* PiB .*; give a"
    ):
        call()


class FailingSession:
    """ONNX Runtime's, of a graph that finds no memory."""

    def __init__(self, *providers: str) -> None:
        self._providers = providers

    def get_providers(self) -> tuple[str, ...]:
        return self._providers

    def get_outputs(self) -> list[Any]:
        return []

    def run(self, *_: Any) -> None:
        raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 1228800")


def test_a_graph_tells_the_memory_of_the_gpu_from_the_machines() -> None:
    with pytest.raises(MemoryError, match=r"image\.onnx: BFCArena"):
        Graph(FailingSession(CPU), Path("image.onnx"), None)({})
    with pytest.raises(GpuMemoryShort, match=r"this GPU has free.*nvidia-smi") as short:
        Graph(FailingSession(CUDA, CPU), Path("image.onnx"), None)({})
    assert isinstance(short.value, MemoryShort)
    assert isinstance(short.value, CudaFailed)


def test_room_is_looked_for_and_not_kept() -> None:
    check_room(1 << 20)
    with pytest.raises(MemoryError, match=r"\d+ MiB at once"):
        check_room(1 << 62)


def test_the_runtime_calls_no_blas() -> None:
    """numpy's ends the process where it finds no memory for its buffers."""
    called = []
    for file in (ROOT / "fusioner_rt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                called.append(f"{file.name}:{node.lineno}")
            if isinstance(node, ast.Attribute) and node.attr in ("dot", "matmul", "tensordot", "inner", "vdot", "lstsq", "solve"):  # fmt: skip
                called.append(f"{file.name}:{node.lineno}")
    assert not called
