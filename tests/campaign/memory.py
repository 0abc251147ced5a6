"""Memory: a limit on the process, of any size; the right result or an error, and the right result once it is lifted."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fusioner_rt import Session, to_coco
from fusioner_rt.errors import FusionerError

from .cases import Bench, Case
from .reference import WORDS, fingerprint, pictures, quick

MOST = 1 << 30  # bytes beyond what the process has: enough for all of it


def case(number: int, random: Random, bench: Bench) -> Case:
    import onnxruntime  # noqa: F401  # what is imported before a child is forked, it need not import
    import tokenizers  # noqa: F401

    large = bench.once("picture", lambda: _large(bench.folder.parent / "memory.large.png"))
    bytes_more = int(MOST * random.random() ** 2)
    what = random.choice(("open", "segment", "segment", "large", "results", "encode", "command"))
    if what == "command":
        return Case(
            lambda: _command(bench, bytes_more, large), f"the command line with {bytes_more >> 20} MiB more", 60, 120
        )
    right = bench.once(f"right {what}", lambda: _in_child(what, None, quick(bench), large)["right"])
    return Case(
        lambda: _judged(_in_child(what, bytes_more, quick(bench), large), right),
        f"{what} with {bytes_more >> 20} MiB more",
        60,
        120,
    )


def _large(file: Path) -> Path:
    pixels = np.tile(pictures()[3], (10, 8, 1))
    Image.fromarray(pixels).save(file)
    return file


def _judged(said: dict[str, Any], right: str) -> str | None:
    if "escaped" in said:
        return f"an exception escaped: {said['escaped']}"
    if "died" in said:
        return f"the process died: {said['died']}"
    if "first" in said and said["first"] != right:
        return "another result under the limit"
    if said.get("second", right) != right:
        return f"once the limit is lifted: {said['second']}"
    return None


def _in_child(what: str, bytes_more: int | None, bundle: Path, large: Path) -> dict[str, Any]:
    """A forked child does it once under the limit and once without. Returns what it said; None for no limit: `right`."""
    read, write = os.pipe()
    if not (child := os.fork()):
        said: dict[str, Any] = {}
        try:
            said = _work(what, bytes_more, bundle, large)
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
            where = [
                f"{Path(frame.filename).name}:{frame.lineno}"
                for frame in traceback.extract_tb(error.__traceback__)[-5:]
            ]
            said = {"escaped": f"{type(error).__name__}: {str(error)[:300]} ({' > '.join(where)})"}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said_text = stream.read()  # until it ends; where it hangs, so does the case
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not said_text:
        return {"died": signal.Signals(-code).name if code < 0 else f"exit code {code}"}
    return dict(json.loads(said_text))


def _work(what: str, bytes_more: int | None, bundle: Path, large: Path) -> dict[str, Any]:
    if what == "open":
        return _twice(lambda: _opened_and_closed(bundle), lambda said: "open", bytes_more)
    with _session(bundle) as session:
        calls: dict[str, Callable[[], Any]] = {
            "segment": lambda: session.segment(pictures()[3], WORDS, probabilities=True),
            "large": lambda: session.segment(str(large), WORDS[:2]),
            "encode": lambda: session.segment(session.encode(str(large)), WORDS[:2]),
            "results": lambda: _results(session, large),
        }
        return _twice(calls[what], _digest, bytes_more)


def _twice(call: Callable[[], Any], digest: Callable[[Any], str], bytes_more: int | None) -> dict[str, Any]:
    """first: what the call gave under the limit. second: without. No limit: `right` alone."""
    if bytes_more is None:
        return {"right": digest(call())}
    said, result = {}, None
    with _limit(bytes_more):
        try:
            result = call()
        except FusionerError as error:
            said["error"] = type(error).__name__
    if "error" not in said:
        said["first"] = digest(result)  # of no limit: what is here is not what is tried
    return {**said, "second": digest(call())}


def _opened_and_closed(bundle: Path) -> None:
    _session(bundle).close()


def _digest(made: Any) -> str:
    result, overlay, document = made if isinstance(made, tuple) else (made, None, None)
    crc = zlib.crc32(overlay.tobytes()) if overlay is not None else 0
    return f"{fingerprint(result)} {crc} {len(json.dumps(document))}"


def _session(bundle: Path) -> Session:
    return Session(bundle, cache=False, threads=1, backend="onnxruntime-cpu")


def _results(session: Session, large: Path) -> tuple[Any, Any, Any]:
    result = session.segment(str(large), WORDS[:2])
    return result, result.overlay(), to_coco([result])


class _limit:  # noqa: N801  # a context, like contextlib's
    """The process may grow by so many bytes of addresses."""

    def __init__(self, bytes_more: int | None) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        self._bytes = bytes_more

    def __enter__(self) -> None:
        if self._bytes is not None:
            with open("/proc/self/statm") as stream:
                now = int(stream.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + self._bytes, self._before[1]))

    def __exit__(self, *_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def _command(bench: Bench, bytes_more: int, large: Path) -> str | None:
    """A picture that fits and one that may not: each is one line, the JSON holds those that worked."""
    small = bench.folder / "small.png"
    Image.fromarray(pictures()[0]).save(small)
    masks = bench.folder / "masks.json"
    limit = (400 << 20) + bytes_more  # the interpreter and its libraries have some already
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fusioner_rt", "segment", str(large), str(small), "--words", "cat", "--engine", str(quick(bench)),
         "--backend", "onnxruntime-cpu", "--threads", "1", "--out", str(bench.folder / "out"), "--json", str(masks)],
        capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    told = f"{time.monotonic() - started:.0f} s, {limit >> 20} MiB in all: {' '.join(done.stderr.split())[-400:]}"
    if done.returncode < 0:
        return f"the command died of {signal.Signals(-done.returncode).name}, {told}"
    if "Traceback" in done.stderr:
        # before the command line's own code runs, Python itself says that memory is short
        return (
            None if "fusioner_rt/cli.py" not in done.stderr and "MemoryError" in done.stderr else f"a traceback, {told}"
        )
    if done.returncode and not done.stderr.startswith("fusioner-rt: "):
        return f"exit code {done.returncode} without a line, {told}"
    if done.stdout.strip() and not masks.is_file():
        return f"a picture worked, and there is no JSON, {told}"
    return None
