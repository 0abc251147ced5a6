"""Packs benchmarks/gpu_check.py with all it needs into a file of at most 24 MB, for a GPU machine without internet.

  python benchmarks/gpu_kit.py                            # build/gpu-kit.tar.xz, and the folder it holds
  python benchmarks/gpu_kit.py --library --python 3.12    # TensorRT-RTX for that Python, in parts of under 60 MB

The kit holds the runtime, the check, photographs and a bundle without the text model's large file: the vectors of the
words that the check asks for are stored instead. Where TensorRT-RTX is installed here its plan for compute capability 8.0
and later is built into it. On the GPU machine: unpack, `python gpu_check.py`; with the parts beside,
`python gpu_check.py --library DIR`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_steps  # noqa: E402
from export import add_plans  # noqa: E402
from fusioner_rt.atomic_files import check_replaceable, unwritable  # noqa: E402
from fusioner_rt.bundle import Bundle, write_manifest  # noqa: E402
from fusioner_rt.command_end import run_command  # noqa: E402
from fusioner_rt.command_parser import CommandParser  # noqa: E402
from fusioner_rt.errors import UsageError  # noqa: E402
from fusioner_rt.manifest import MANIFEST  # noqa: E402
from fusioner_rt.onnx.runtime import OnnxRuntime  # noqa: E402
from fusioner_rt.replaced_bundles import check_files  # noqa: E402
from fusioner_rt.whole_folders import replace_folder, unfinished_folder  # noqa: E402
from fusioner_rt.words.cache import TextCache  # noqa: E402
from fusioner_rt.words.encoder import TextEncoder  # noqa: E402
from fusioner_rt.words.parse import parse_words  # noqa: E402

MAX_BYTES = 24_000_000
PART_BYTES = 58_000_000
BENCHMARKS = ("gpu_check", "gpu_steps", "gpu_proofs", "gpu_timing", "stand_in_engine")
FILES = "files.txt"
"""The names of a kit's own files, a line each."""
LEFT_OUT = "The text model is left out of this kit; vectors of the words it asks for are in `words`.\n"
START = """\
\"\"\"Runs the check that lies in `benchmarks`; `python gpu_check.py --help` teaches.\"\"\"

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parent / "benchmarks" / "gpu_check.py"), run_name="__main__")
"""
README = """\
# GPU check of fusioner-rt
Everything that an NVIDIA GPU can answer about the project, in under eight minutes, without internet.

    python gpu_check.py                  # needs Python 3.11 or later, numpy, pillow, tokenizers, onnxruntime,
                                         # cuda-core, cuda-bindings and NVIDIA's driver
    python gpu_check.py --list           # the steps
    python gpu_check.py --library DIR    # with TensorRT-RTX, whose parts gpu_kit.py --library made

It prints a JSON line a step, a table at the end, and keeps the lines in gpu-NAME-DATE.jsonl, which is what to send back.
"""


def build(bundle: Path, out: Path) -> int:
    """Write the kit; returns the bytes of the packed one. bundle: a built one. Raises FusionerError, OSError."""
    out = Path(os.path.realpath(out))
    _check_place(out)
    Bundle.open(bundle)
    with unfinished_folder(out) as scratch:
        kit = scratch / "kit"
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "fusioner_rt", kit / "fusioner_rt", ignore=skip)
        (kit / "benchmarks").mkdir()
        for name in BENCHMARKS:
            shutil.copy(ROOT / "benchmarks" / f"{name}.py", kit / "benchmarks")
        (kit / "pictures").mkdir()
        for picture in (ROOT / "docs" / "pictures").glob("*.jpg"):
            shutil.copy(picture, kit / "pictures")
        (kit / "gpu_check.py").write_text(START)
        (kit / "README.md").write_text(README)
        shutil.copy(ROOT / "LICENSE", kit)
        _lean_bundle(bundle, kit / "bundle", kit / "words", scratch)
        files = sorted(path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file())
        (kit / FILES).write_text("".join(f"{name}\n" for name in [FILES, *files]))
        packed = scratch / "kit.tar.xz"
        with tarfile.open(packed, "w:xz") as archive:
            archive.add(kit, arcname=out.name)
        size = packed.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"the kit of {bundle} takes {size / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} travel",
                "build the bundle with fewer --kernels",
            )
        _check_place(out)
        replace_folder(kit, out)
        packed.replace(out.with_name(f"{out.name}.tar.xz"))
    return size


def _check_place(out: Path) -> None:
    """Check that a kit may be put there: in place of another, and of nothing else. Raises OutputUnwritable, UsageError."""
    check_replaceable(out)
    packed = out.with_name(f"{out.name}.tar.xz")
    if (out / FILES).is_file():
        compiled = {path.relative_to(out).as_posix() for path in out.rglob("__pycache__/*.pyc")}
        check_files(out, {*(out / FILES).read_text(errors="replace").splitlines(), *compiled}, "no kit has")
    elif packed.exists() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(
            f"{packed if packed.exists() else out} holds something other than a kit", "name another folder with --out"
        )


def _lean_bundle(bundle: Path, out: Path, words: Path, scratch: Path) -> None:
    """A copy with a plan, where one can be built, and word vectors in the text graph's place."""
    whole = scratch / "whole"
    shutil.copytree(bundle, whole)
    plans = {plan.flavour for plan in Bundle.open(whole, plans=False).plans}
    if "tensorrt-rtx" not in plans and importlib.util.find_spec("tensorrt_rtx"):
        add_plans.add(whole, "tensorrt-rtx", None, shown=sys.stderr.isatty(), profiles=("any-size",))
    manifest = json.loads((whole / MANIFEST).read_text())
    shutil.copytree(whole, out)
    text = manifest["graphs"]["text"]
    (out / text["file"]).write_text(LEFT_OUT)
    for entry in [entry for entry in manifest["engines"] if entry["graph"] == "text"]:
        manifest["engines"].remove(entry)
        for name in (entry["file"], entry.get("report")):
            if name:
                (out / name).unlink()
    write_manifest(out, manifest)
    opened, graph = Bundle.open(out), OnnxRuntime("onnxruntime-cpu").load(bundle / text["file"])
    encoder = TextEncoder(opened, lambda: graph, TextCache(words))
    encoder.encode_words(parse_words(gpu_steps.WORDS), opened.templates)


def split_library(python: str, out: Path) -> list[Path]:
    """TensorRT-RTX for a Python such as "3.12" as parts of one .tar.xz; returns them. Raises UsageError, OSError."""
    found = importlib.util.find_spec("tensorrt_rtx")
    if found is None or found.origin is None:
        raise UsageError("TensorRT-RTX is not installed here", "pip install tensorrt-rtx")
    import tensorrt_rtx

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        wheels, tree = Path(scratch) / "wheels", Path(scratch) / "tree"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
        bindings = f"tensorrt-rtx-cu13-bindings=={tensorrt_rtx.__version__}"
        if subprocess.run([*command, "--python-version", python, bindings]).returncode:
            raise UsageError(f"pip finds no {bindings} for Python {python}", "name another with --python")
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(tree)
        beside = Path(found.origin).parents[1]
        for name in ("tensorrt_rtx", "tensorrt_rtx_libs"):
            if (beside / name).is_dir() and not (tree / name).is_dir():
                shutil.copytree(beside / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        print("packing some 230 MB, which takes minutes", file=sys.stderr)
        with _Parts(out / "tensorrt-rtx.tar.xz") as parts:
            with lzma.open(parts, "wb", preset=6) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
                for path in sorted(tree.iterdir()):
                    archive.add(path, arcname=path.name)
            return parts.written


class _Parts:
    """A stream whose bytes go to FILE.part00, FILE.part01 and so on."""

    def __init__(self, file: Path) -> None:
        self._file, self._left = file, 0
        self._stream: IO[bytes] | None = None
        self.written: list[Path] = []

    def write(self, content: Any) -> int:
        view = memoryview(content)
        while view:
            if self._stream is None or not self._left:
                self.close()
                self.written.append(self._file.with_name(f"{self._file.name}.part{len(self.written):02}"))
                self._stream, self._left = self.written[-1].open("wb"), PART_BYTES
            taken = view[: self._left]
            self._stream.write(taken)
            self._left -= len(taken)
            view = view[len(taken) :]
        return len(content)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("gpu_kit", lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(prog="gpu_kit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--bundle", type=Path, default=ROOT / "models/demo/bundle", metavar="DIR", help="(default: the demonstration's)"
    )
    add("--out", type=Path, default=ROOT / "build/gpu-kit", metavar="DIR", help="(default: build/gpu-kit)")
    add("--library", action="store_true", help="write TensorRT-RTX in parts beside the kit instead of the kit")
    add("--python", default=f"3.{sys.version_info.minor}", metavar="3.X", help="of the GPU machine, for --library")
    given = parser.parse_args(arguments)
    try:
        if given.library:
            for part in split_library(given.python, given.out.with_name("gpu-library")):
                print(f"{part}: {part.stat().st_size / 1e6:.1f} MB")
            return 0
        size = build(given.bundle, given.out)
    except OSError as error:
        raise unwritable(Path(error.filename or given.out), error) from None
    folder = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(f"{given.out}.tar.xz: {size / 1e6:.1f} MB; {given.out}: {folder / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
