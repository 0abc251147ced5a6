"""How every command here prints and ends: an error is one line on stderr and the exit code of its kind."""

import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from .atomic_files import DISK_IS_FULL, MAKE_ROOM
from .errors import FusionerError, OutputUnwritable, UsageError
from .interrupts import exit_code, raise_if_interrupted, signals_heard
from .printable_text import printable, printable_lines

BROKEN_PIPE = 141
_LONGEST = 400  # characters of a path in a message
Lacks = Callable[[str | None], str]


def run_command(
    program: str,
    run: Callable[[], int],
    left: Callable[[], str] | str = "",
    lacks: Lacks | None = None,
    lacking: int = 1,
) -> int:
    """Run a command. Returns its exit code.

    left: what an interrupt leaves, told beside it. lacks: what to tell of a Python package that is missing; lacking: the code.
    """
    _open_streams()
    try:
        with signals_heard():
            try:
                return _run(run)
            except FusionerError as error:
                return print_error(program, error)
            except BrokenPipeError:  # the reader of stdout closed it
                _give_up(sys.stdout, 1)
                return BROKEN_PIPE
            except ModuleNotFoundError as error:
                if lacks is None:
                    raise
                tell(f"{program}: {lacks(error.name)}")
                return lacking
            except OSError as error:
                return print_error(program, _unforeseen(error))
            except KeyboardInterrupt as interrupt:
                told = left if isinstance(left, str) else left()
                tell(f"{program}: interrupted{'; ' * bool(told)}{told}")
                return exit_code(interrupt)
    except KeyboardInterrupt as second:
        return exit_code(second)


def _run(run: Callable[[], int]) -> int:
    if sys.stdout is None:
        raise OutputUnwritable("is closed", "send it to a file, or to /dev/null", subject="stdout")
    try:
        code = run()
    except SystemExit:  # argparse has printed its help
        _flush()
        raise
    except Exception as error:
        if isinstance(error, OSError):
            _flush()  # where it is stdout that failed, this says so
        raise_if_interrupted()  # a library may tell of an interrupt in words of its own, as a failed import does
        raise
    _flush()
    return code


def say(line: str) -> None:
    """Print a line on stdout, at once; line ends in it are escaped. Raises OutputUnwritable, BrokenPipeError."""
    say_lines(printable(line))


def say_lines(text: str) -> None:
    """Print lines on stdout, at once. Raises as `say`."""
    try:
        print(printable_lines(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _full(error) from None


def say_json(content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Print JSON on stdout, as `json.dumps` takes it; it holds names as they are. Raises as `say`."""
    say_lines(json.dumps(content, indent=2, default=default).replace("\x7f", r"\u007f"))


def tell(text: str, end: str = "\n", start: str = "") -> None:
    """Print a line on stderr, where that can be written. start, end: as they are, around it."""
    try:
        print(f"{start}{printable(text)}", end=end, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr, 2)


def print_error(program: str, error: FusionerError) -> int:
    """Print an error as one line on stderr. Returns its exit code."""
    tell(f"{program}: {error.as_command()}")
    return error.exit_code


def _open_streams() -> None:
    """Open what the caller closed, or the next file to be written would be taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
            os.set_inheritable(number, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # texts may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Raises OutputUnwritable, BrokenPipeError."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _full(error) from None


def _full(error: OSError) -> OutputUnwritable:
    _give_up(sys.stdout, 1)
    return OutputUnwritable(
        f"cannot be written ({error.strerror})", "send it where there is room, or to /dev/null", subject="stdout"
    )


def _give_up(stream: TextIO, number: int) -> None:
    """Let what a stream still holds go nowhere: Python would try again at its end, and complain."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _unforeseen(error: OSError) -> UsageError:
    """What the system says of a path that no check foresaw, such as one that is too long."""
    text = "" if error.filename is None else str(error.filename)
    subject = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    cure = MAKE_ROOM if error.errno in DISK_IS_FULL else "check the path and its permissions"
    return UsageError(error.strerror or str(error), cure, subject=subject or None)
