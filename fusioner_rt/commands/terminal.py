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

    def __init__(self, total: int | None, unit: str = "") -> None:
        """total: None where nobody knows. unit: of what comes fast, "frames": the bar tells how many a second, and is drawn ten times
        a second at most.
        """
        self._done, self._total, self._unit, self._note = 0, total, unit, ""
        self._shown = total != 0 and total != 1 and sys.stderr.isatty()
        self._start = time.monotonic()
        self._drawn = 0.0
        self._draw()

    def step(self, count: int = 1, note: str = "") -> None:
        """note: what else to tell."""
        self._done, self._note = self._done + count, note
        self._draw()

    def clear(self) -> None:
        if self._shown:
            tell("", start=CLEAR, end="")

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._shown or (self._unit and now < self._drawn + 0.1):
            return
        self._drawn, spent = now, now - self._start
        text = str(self._done)
        if self._total is not None:
            filled = min(30, 30 * self._done // self._total)
            text = f"[{'#' * filled}{'.' * (30 - filled)}] {text}/{self._total}"
        if self._unit:
            text += f" {self._unit}, {self._done / spent if spent else 0:.1f} a second"
        if self._done and self._total is not None:
            text += f"  {spent / self._done * max(0, self._total - self._done):.0f} s left"
        tell(f"{text}{'  ' * bool(self._note)}{self._note}", start=CLEAR, end="")


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
