"""A process that holds one candidate of benchmarks/latency.py, and does what it is told: a line in, a line of JSON out.

  open    load it                                     {"import_ms", "open_ms", "versions", "note"}
  first   the first call; its result goes to a file   {"ms", "since_start_ms", "peak_bytes", "device_bytes"}
  call    one call more                               {"ms", "processor_ms", "stages"}
  check   truth alone: compare what a file holds
  quit

So each has its libraries, threads and memory to itself, and what one leaves behind slows no other.
"""

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)


class Worker:
    """One answer per command. Whatever fails is an answer too: {"error"}."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.candidate: Any = None
        self.pictures: list[Any] = []
        self.truth: Any = None
        self.free: int | None = None

    def open(self) -> dict[str, Any]:
        from benchmarks.latency_candidates import open_candidate, pictures

        self.pictures = pictures(self.job)
        self.free = free_on_device(self.job.device)
        before = time.perf_counter()
        self.candidate = open_candidate(self.job)
        return {
            "open_ms": (time.perf_counter() - before) * 1000, "versions": self.candidate.versions,
            "note": self.candidate.note, "parameter_bytes": self.candidate.parameter_bytes,
        }  # fmt: skip

    def first(self, result: str = "") -> dict[str, Any]:
        start = time.perf_counter()
        labels, confidence = self.candidate.call(self.pictures)
        now = time.perf_counter()
        if result:
            import numpy as np

            np.savez(result, labels=labels.astype(np.uint16), confidence=confidence)
        left = free_on_device(self.job.device)
        return {
            "ms": (now - start) * 1000, "since_start_ms": (now - STARTED) * 1000, "peak_bytes": peak_bytes(),
            "device_bytes": None if left is None or self.free is None else self.free - left,
        }  # fmt: skip

    def call(self) -> dict[str, Any]:
        spent, start = time.process_time(), time.perf_counter()
        self.candidate.call(self.pictures)
        ms, processor = (time.perf_counter() - start) * 1000, (time.process_time() - spent) * 1000
        return {"ms": ms, "processor_ms": processor, "stages": dict(self.candidate.stages)}

    def peak(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes()}

    def truth_of(self) -> dict[str, Any]:
        from benchmarks.latency_truth import Truth

        self.truth = Truth(self.job)
        return {"words_winning": self.truth.words_winning}

    def check(self, result: str) -> dict[str, Any]:
        import numpy as np

        with np.load(result) as arrays:
            found: dict[str, Any] = self.truth.compare(arrays["labels"], arrays["confidence"])
        return found

    def prepare(self, precisions: list[str]) -> dict[str, Any]:
        from benchmarks.latency_models import prepare

        prepare(self.job.files, precisions, self.job.words)
        return {}


def peak_bytes() -> int:
    """The most memory this process has had resident; not getrusage's, which begins with the parent's."""
    from benchmarks.machine import peak_resident

    return peak_resident()


def free_on_device(device: str) -> int | None:
    """Bytes; what a process holds, its libraries' caches included, is what it takes of them while no other works."""
    if device != "cuda":
        return None
    from fusioner_rt.gpu.driver import Device

    opened = Device()
    free = opened.free_bytes
    opened.close()
    return free


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from benchmarks.latency_candidates import Job

    worker = Worker(Job(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "quit":
            break
        try:
            answer = getattr(worker, command)(*arguments)
        except Exception as error:
            import traceback

            traceback.print_exc()
            said = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {said[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    answers.close()
    os._exit(0)  # some libraries take seconds, or fail, to take themselves down


if __name__ == "__main__":
    sys.exit(main())
