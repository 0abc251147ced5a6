"""The parser of every command here: what is wrong with a command line is one line, as all other errors are."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """argparse, without its paragraph of usage before an error. Exit code 2, as argparse has it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")
