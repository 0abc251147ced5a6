"""The parser of every command here: what is wrong with a command line is one line, as all other errors are."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .argument_checks import shown
from .command_end import say_lines
from .printable_text import printable

_LONGEST = 400  # characters of a message


class CommandParser(argparse.ArgumentParser):
    """argparse, without its paragraph of usage before an error. Exit code 2, as argparse has it."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version by way of `say_lines`: argparse hides that stdout is full."""
        if message and file is not None and file is sys.stdout:
            say_lines(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse has the program refuse what a command of it does not know: so that command does, whose help explains."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            folder = next(filter(os.path.isdir, unknown), None)
            named = folder is not None and "--engine" in self._option_string_actions
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}{f'; name a bundle as --engine {folder}' if named else ''}"
            )
        return found, unknown

    def error(self, message: str) -> NoReturn:
        message = printable(" ".join(message.splitlines()))
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")


def path_argument(text: str) -> Path:
    """A path of a command line."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no path, the path of a file or folder was expected")
    return Path(text)


def up_to(most: int) -> Callable[[str], int]:
    """Reads a whole number of 1 to `most`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
            raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number of 1 or more, at most {most}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is too large, at most {most} is taken")
        return int(text)

    return read


count = up_to(999_999_999)
