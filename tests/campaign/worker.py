"""Runs the cases of one kind: python -m tests.campaign.worker KIND SEED BUNDLE, started by runner.py.

stdin: a line of JSON a case, its number and its folder. stdout: two lines each, what it is, before it runs, and how it went.
"""

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from random import Random
from typing import Any

from .cases import Bench, Case

MOST_MEMORY = 12 << 30


def module_of(kind: str) -> str:
    """The module of a kind: of this package, or where it has a dot, any."""
    return kind if "." in kind else f"{__package__}.{kind}"


def main(kind: str, seed: str, bundle: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what cases print is no answer
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))  # a fault that eats all memory stops here
    make = importlib.import_module(module_of(kind)).case
    bench = Bench(Path(bundle), Path())
    for line in sys.stdin:
        asked = json.loads(line)
        number, bench.folder = asked["number"], Path(asked["folder"])
        try:
            case = make(number, Random(f"{kind}-{seed}-{number}"), bench)
        except BaseException:
            print(json.dumps({"what": "making the case", "hangs": 60}), file=answers, flush=True)
            answer: dict[str, Any] = {"found": f"no case could be made: {_told()}", "seconds": 0.0, "resident": 0}
        else:
            print(json.dumps({"what": case.what, "hangs": case.hangs}), file=answers, flush=True)
            answer = _outcome(case)
        print(json.dumps(answer), file=answers, flush=True)


def _outcome(case: Case) -> dict[str, Any]:
    """found: what is wrong, or None. seconds: of CPU. resident: bytes that remain in memory."""
    before = _released()
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the peak is counted from here
    start = _cpu_seconds()
    try:
        found = case.run()
    except BaseException:
        found = f"an exception escaped: {_told()}"
    seconds, grown = _cpu_seconds() - start, _status("VmHWM") - before
    if found is None and seconds > case.seconds:
        found = f"took {seconds:.1f} s of CPU, at most {case.seconds:g} s are allowed"
    if found is None and grown > case.memory:
        found = f"took {grown >> 20} MiB of memory, at most {case.memory >> 20} MiB are allowed"
    return {"found": found, "seconds": seconds, "resident": _released()}


def _released() -> int:
    """Bytes in memory, once the allocator has given back what it holds unused."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith(f"{name}:"))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _told() -> str:
    """The exception being handled: its line, and where it was raised."""
    kind, error, trace = sys.exc_info()
    where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(trace)[-4:]]
    return f"{kind.__name__ if kind else ''}: {str(error)[:500]} ({' > '.join(where)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
