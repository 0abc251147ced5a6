"""Text that is safe to show: names of files, words and texts of others may hold what moves a terminal's cursor."""

import logging
import unicodedata

_KEPT = "\u200c\u200d"  # joiners: words of Persian and Hindi are misspelt without them
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (text that runs backwards), lone surrogates, line ends


def printable(text: str) -> str:
    r"""A text as one line, with control characters and the like as \n, \x1b, \u202e. Most texts come back as they are."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """`printable`, but for line ends."""
    return "\n".join(map(printable, text.split("\n")))


class PrintableRecords(logging.Filter):
    """Makes what a record of the log names printable. Texts that are so already keep their types."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            shown = ((given, str(given)) for given in record.args)
            record.args = tuple(given if printable(text) == text else printable(text) for given, text in shown)
        return True


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _KEPT:
        return character
    return ascii(character)[1:-1]
