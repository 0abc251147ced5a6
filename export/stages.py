"""The stages of a build: timed, and announced to who watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from fusioner_rt.interrupts import raise_if_interrupted

Step = tuple[str, Callable[[], None]]


class Stages:
    """A bar over the stages, and a line for each that is done. seconds: by stage."""

    def __init__(self, shown: bool = True) -> None:
        """shown: somebody may watch. A log file gets the lines alone."""
        from tqdm import tqdm

        self.shown, self.seconds = shown, dict[str, float]()
        self._total = self._done = 0
        look = "{desc:<34} {bar:24} {n}/{total} {elapsed}"
        self._bar = tqdm(total=0, bar_format=look, disable=None if shown else True, leave=False)

    def run(self, steps: Sequence[Step]) -> None:
        """Run named steps in their order, each as a stage."""
        self._expect(self._done + len(steps))
        for name, step in steps:
            with self(name):
                step()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One stage."""
        self._expect(self._done + 1)
        start = time.perf_counter()
        self._bar.set_description_str(name)
        yield
        raise_if_interrupted()  # a library may have swallowed it, in a callback of its own
        self.seconds[name] = time.perf_counter() - start
        if self.shown:
            self._bar.write(f"  {name:<34} {self.seconds[name]:6.1f} s", file=sys.stderr)
        self._done += 1
        self._bar.update()

    def _expect(self, total: int) -> None:
        self._total = self._bar.total = max(self._total, total)

    def say(self, text: str) -> None:
        """What the stage is at now, in place of its name."""
        self._bar.set_description_str(text)

    def close(self) -> None:
        self._bar.close()
