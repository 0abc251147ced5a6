"""The parser of every command here: what is wrong with a command line is one line, as all other errors are."""

import argparse
from pathlib import Path
from typing import NoReturn

from .argument_checks import shown
from .errors import UsageError
from .printable_text import printable

_LONGEST = 400  # characters of a message


class CommandParser(argparse.ArgumentParser):
    """argparse, without its paragraph of usage before an error. Exit code 2, as argparse has it."""

    def error(self, message: str) -> NoReturn:
        message = printable(" ".join(message.splitlines()))
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")


def path_argument(text: str) -> Path:
    """A path of a command line."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no path, the path of a file or folder was expected")
    return Path(text)


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number of 1 or more")
    return int(text)


def unforeseen(error: OSError) -> UsageError:
    """What the system says of a path that no check foresaw, such as one that is too long."""
    text = "" if error.filename is None else str(error.filename)
    subject = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return UsageError(error.strerror or str(error), "check the path and its permissions", subject=subject or None)
