"""A TensorRT build that shows how far it is and can be interrupted.

TensorRT reports progress from C++, which no exception may cross, and Python handles no signal while C++ runs. So the
build has a thread of its own. The caller waits in Python: an interrupt tells the build to stop at its next step.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_BEGINS = 5.0  # seconds that a thread which was told to start takes at most
_LOOK = "{desc:<34} {bar:24} {percentage:3.0f}% {elapsed}, {remaining} left"


class Progress:
    """How much of a build is done, from the phases that TensorRT reports: 0 to 1, never falling. Threads may call it.

    cancelled: whoever wants the build to stop sets it; `step` then tells TensorRT to.
    failure:   what failed in `monitor`'s calls.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._done = 0.0

    @property
    def done(self) -> float:
        return self._done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> bool:
        """False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._advance(name, 0.0)
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            if phase := self._phases.pop(name, None):
                if phase.parent is None:
                    self._done = 1.0
                else:
                    self._advance(phase.parent, 1.0)

    def _advance(self, name: str | None, of_a_step: float) -> None:
        """Carry what is done of a phase up to the whole. of_a_step: how much of its running step its child has done."""
        while name in self._phases:
            phase = self._phases[name]
            of_a_step = min(1.0, (phase.done + of_a_step) / phase.steps)
            name = phase.parent
        if name is None:
            self._done = max(self._done, of_a_step)


class _Phase:
    def __init__(self, parent: str | None, steps: int) -> None:
        self.parent, self.steps, self.done = parent, steps, 0


def monitor(trt: ModuleType, progress: Progress) -> Any:
    """A progress monitor for TensorRT that tells `progress`. An exception in it stops the build and becomes its `failure`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()  # TensorRT refuses a monitor without it

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            _guarded(progress, lambda: progress.start(phase_name, parent_phase or None, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            return bool(_guarded(progress, lambda: progress.step(phase_name, step)))

        def phase_finish(self, phase_name: str) -> None:
            _guarded(progress, lambda: progress.finish(phase_name))

    return Monitor()


def _guarded(progress: Progress, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as failure:
        progress.cancelled, progress.failure = True, failure
        return None


def run(build: Callable[[], T], progress: Progress, title: str, shown: bool) -> T:
    """The result of `build()`, which runs in a thread of its own. shown: with a bar, where somebody watches.

    A KeyboardInterrupt or SystemExit that reaches the waiting caller stops the build at its next step, and is raised once
    the build has ended.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        try:
            outcome.set_result(build())
        except BaseException as failure:
            outcome.set_exception(failure)

    interrupted: BaseException | None = None
    with tqdm(total=1.0, desc=title, bar_format=_LOOK, disable=None if shown else True, leave=False, position=1) as bar:
        try:
            try:
                threading.Thread(target=work, name="tensorrt-build").start()
            except BaseException as failure:  # an interrupt reaches `start` before or after the thread runs
                interrupted, progress.cancelled = failure, True
                if not begun.wait(_BEGINS):
                    raise
            while not outcome.done():
                try:
                    while concurrent.futures.wait([outcome], timeout=0.2).not_done:
                        bar.update(progress.done - bar.n)
                        bar.refresh()
                except BaseException as failure:
                    interrupted, progress.cancelled = failure, True
                    bar.set_description_str("stopping")
        except BaseException:  # an interrupt between these lines; the build must not go on for ever
            progress.cancelled = True
            raise
    if interrupted is not None:
        raise interrupted
    result = outcome.result()
    if progress.failure is not None:
        raise progress.failure
    return result
