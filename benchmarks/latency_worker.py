"""A process that holds one candidate of benchmarks/latency.py and does what it is told: a line in, a line of JSON out.

  open         load the candidate                         {"open_ms", "versions", "note", "parameter_bytes"}
  first FILE   the first call; FILE gets its result       {"ms", "since_start_ms", "peak_bytes", "device_bytes"}
  call         one call more                              {"ms", "processor_ms", "stages"}
  peak         the most memory so far                     {"peak_bytes"}
  open_truth   compute the cell in float64                {}
  check FILE   compare a result with it                   what Truth.compare returns
  prepare      make the files of the cell's model         {}

So every candidate has its libraries, threads and memory to itself, and slows no other. Whatever fails is an answer too:
{"error"}.
"""

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])


class Worker:
    """Answers one command a method."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._candidate: Any = None
        self._pictures: list[Any] = []
        self._truth: Any = None
        self._free: int | None = None

    def open(self) -> dict[str, Any]:
        from benchmarks.latency_candidates import open_candidate

        self._pictures = self._job.pictures()
        self._free = free_on_device(self._job.device)
        before = time.perf_counter()
        self._candidate = open_candidate(self._job)
        return {
            "open_ms": (time.perf_counter() - before) * 1000, "versions": self._candidate.versions,
            "note": self._candidate.note, "parameter_bytes": self._candidate.parameter_bytes,
        }  # fmt: skip

    def first(self, result: str = "") -> dict[str, Any]:
        start = time.perf_counter()
        labels, confidence = self._candidate.call(self._pictures)
        now = time.perf_counter()
        if result:
            import numpy as np

            np.savez(result, labels=labels.astype(np.uint16), confidence=confidence)
        left = free_on_device(self._job.device)
        return {
            "ms": (now - start) * 1000, "since_start_ms": (now - STARTED) * 1000, **self.peak(),
            "device_bytes": None if left is None or self._free is None else self._free - left,
        }  # fmt: skip

    def call(self) -> dict[str, Any]:
        spent, start = time.process_time(), time.perf_counter()
        self._candidate.call(self._pictures)
        ms, processor = (time.perf_counter() - start) * 1000, (time.process_time() - spent) * 1000
        return {"ms": ms, "processor_ms": processor, "stages": dict(self._candidate.stages)}

    def peak(self) -> dict[str, Any]:
        from benchmarks.machine import peak_resident

        return {"peak_bytes": peak_resident()}

    def open_truth(self) -> dict[str, Any]:
        from benchmarks.truth import Truth

        self._truth = Truth(self._job)
        return {}

    def check(self, result: str) -> dict[str, Any]:
        import numpy as np

        with np.load(result) as arrays:
            found: dict[str, Any] = self._truth.compare(arrays["labels"], arrays["confidence"])
        return found

    def prepare(self, precisions: list[str]) -> dict[str, Any]:
        from benchmarks.latency_models import prepare

        prepare(self._job.files, precisions, self._job.words)
        return {}


def free_on_device(device: str) -> int | None:
    """Free bytes of a GPU. Their decrease is what this process takes, its libraries' caches included."""
    if device != "cuda":
        return None
    from benchmarks.machine import free_gpu_bytes

    return free_gpu_bytes()


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from benchmarks.latency_candidates import Job

    worker = Worker(Job(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
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
