"""What the commands show on a terminal: errors, notes and a progress bar, all on stderr."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from .. import command_end
from ..command_end import tell
from ..errors import FusionerError, Spelled, as_command

CLEAR = "\r\033[K"


class Bar:
    """A progress bar on stderr, drawn for several pictures and on a terminal only."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._shown = total > 1 and sys.stderr.isatty()
        self._start = time.monotonic()
        self._draw()

    def step(self, count: int = 1) -> None:
        self._done += count
        self._draw()

    def clear(self) -> None:
        if self._shown:
            tell("", start=CLEAR, end="")

    def _draw(self) -> None:
        if not self._shown:
            return
        filled = 30 * self._done // self._total
        text = f"[{'#' * filled}{'.' * (30 - filled)}] {self._done}/{self._total}"
        if self._done:
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            text += f"  {left:.0f} s left"
        tell(text, start=CLEAR, end="")


class _Notes(logging.Handler):
    """What the runtime warns of, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        spelled = (as_command(given) for given in record.args or () if isinstance(given, Spelled))
        text = " ".join(next(spelled, record.getMessage()).split())
        tell(f"fusioner-rt: note: {text}", start=CLEAR if sys.stderr.isatty() else "")  # over a progress bar


@contextlib.contextmanager
def notes_on_stderr() -> Iterator[None]:
    logger, notes = logging.getLogger("fusioner_rt"), _Notes(logging.WARNING)
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)


def print_error(error: FusionerError) -> int:
    """Print an error as one line on stderr. Returns its exit code."""
    return command_end.print_error("fusioner-rt", error)
