"""The pictures that a command line names: files, folders, patterns, stdin."""

import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from .errors import UsageError
from .missing_pictures import is_pattern
from .picture_formats import SUFFIXES, suffixes
from .regular_files import is_shells_pipe

_log = logging.getLogger("fusioner_rt")


class NamedPicture(NamedTuple):
    """name: the path as it was given, or stdin. picture: what `Session.segment` takes."""

    name: str
    picture: str | IO[bytes]


def names_a_picture(argument: str) -> bool:
    """Whether an argument names pictures that are there."""
    argument = _at_home(argument)
    return argument == "-" or os.path.exists(argument) or (is_pattern(argument) and bool(_matches(argument)))


def named_pictures(names: Sequence[str], out: Path) -> list[NamedPicture]:
    """The files named, all pictures below the folders named, and what patterns name, sorted. `-` is stdin.

    Of folders, hidden files and results of earlier runs are skipped. Results are told by their names, below `out` alone.
    Raises UsageError where a folder or a pattern names nothing, or stdin is no picture.
    """
    if names.count("-") + names.count("/dev/stdin") > 1:
        raise UsageError("stdin is named twice", "name it once: it holds one picture", subject="-")
    return [picture for name in names for picture in _named(name, out.resolve())]


def unique_names(stems: Sequence[str]) -> list[str]:
    """A name of its own for each picture's results, whatever becomes of the others."""
    names: dict[str, str] = {}  # by how file systems without capitals see them
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in names:
            number += 1
            name = f"{stem}-{number}"
        names[name.casefold()] = name
    return list(names.values())


def _named(name: str, out: Path) -> Iterator[NamedPicture]:
    name = _at_home(name)
    if name in ("-", "/dev/stdin"):
        yield NamedPicture("stdin", _stdin())
    elif is_shells_pipe(name):
        yield NamedPicture(name, open(name, "rb"))  # noqa: SIM115  # a shell's <(COMMAND), which writes to it
    elif os.path.isdir(name):
        yield from _of(_below(Path(name), out))
    elif is_pattern(name) and not os.path.lexists(name):
        yield from _of(_named_by(name, out))
    else:
        yield NamedPicture(name, name)


def _of(files: Sequence[Path]) -> Iterator[NamedPicture]:
    return (NamedPicture(str(file), str(file)) for file in files)


def _stdin() -> IO[bytes]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "nothing is piped into stdin", "pipe a picture: cat photo.jpg | fusioner-rt segment - ...", subject="-"
        )
    return sys.stdin.buffer


def _below(folder: Path, out: Path) -> list[Path]:
    from .video.sources import SUFFIXES as VIDEOS

    endings = suffixes()
    found = [file for file in _walk(folder) if not _is_result(file, out)]
    files = [file for file in found if file.suffix.lower() in endings]
    videos = sorted(file.suffix.lower() for file in found if file.suffix.lower() in VIDEOS)
    pattern = f"'{folder}/**/*{videos[0]}'" if videos else ""
    if not files:
        raise UsageError(
            f"no pictures in this folder{', but videos' * bool(videos)}",
            f"name these by a pattern: {pattern}" if videos else f"name one that holds {', '.join(sorted(SUFFIXES))}",
            subject=folder,
        )
    if videos:
        count = f"{len(videos)} video{'s are' if len(videos) > 1 else ' is'}"
        _log.warning("%s: %s left out; a command of their own names them: %s", folder, count, pattern)
    return sorted(files)


def _walk(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        _log.warning("%s: its pictures are left out, the folder cannot be read (%s)", error.filename, error.strerror)

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root, name) for name in files if not name.startswith("."))
        yield from (
            path for path in paths if path.is_file() or not path.exists()
        )  # a link to nothing has its own error


def _named_by(pattern: str, out: Path) -> list[Path]:
    """The files that a pattern names, and the pictures below the folders that it names.

    Where it says no suffix, only files that their own suffix calls pictures.
    """
    endings = suffixes()
    suffix = Path(pattern).suffix
    any_suffix = bool(suffix) and not is_pattern(suffix)
    files: list[Path] = []
    for path in map(Path, _matches(pattern)):
        if path.is_dir():
            files += [file for file in _walk(path) if file.suffix.lower() in endings]
        elif any_suffix or path.suffix.lower() in endings:
            files.append(path)
    files = sorted({file for file in files if not _is_result(file, out)})
    if not files:
        raise UsageError("no picture has such a name", f"check the pattern (relative to {Path.cwd()})", subject=pattern)
    return files


def _at_home(name: str) -> str:
    """A name whose ~ is the home folder: a shell leaves it where it stands in quotes."""
    return os.path.expanduser(name) if name.startswith("~") and not os.path.lexists(name) else name


def _matches(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)


def _is_result(path: Path, out: Path) -> bool:
    ending = "".join(path.suffixes[-2:])
    return (".overlay." in ending or ending == ".labels.png") and path.resolve().is_relative_to(out)
