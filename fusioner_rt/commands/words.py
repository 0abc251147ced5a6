"""`fusioner-rt words`: the cached words, and word vectors as one file that a fleet shares."""

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_end import say
from ..command_parser import path_argument
from ..errors import FusionerError, OutputUnwritable, UsageError
from .session_options import add_cache_option, add_engine_option

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..command_parser import CommandParser
    from ..words.cache import CachedWord, TextCache

_EXAMPLES = """\
examples:
  fusioner-rt words                                               which words are cached
  fusioner-rt words --encode "cat, sofa" --export fleet.vectors   the vectors of these words, as one file
  fusioner-rt words --words-file list.txt --export fleet.vectors  of a word per line
  fusioner-rt words --export fleet.vectors                        all that is cached
  fusioner-rt serve --cache fleet.vectors                         starts with them; the file is read and never written
  fusioner-rt words --import fleet.vectors                        into the cache folder; what is there stays
  fusioner-rt words --cache fleet.vectors                         what the file holds

Equal words of one bundle make equal files. Words of other text encoders in a file are never used: docs/words.md
"""


def add_to(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    """Add the command to a command line."""
    parser = commands.add_parser(
        "words", help="list, export, import or clear the cached words",
        description="List the words whose vectors are cached on disk; they are not encoded again. Or write them as one file, "
        "which processes on many machines start with.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_cache_option(parser)
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--clear", action="store_true", help="remove them all")
    does.add_argument(
        "--export", type=path_argument, metavar="FILE",
        help="write the vectors as one file: those of --encode or --words-file, or else all that are cached, of --engine "
        "where it is given",
    )  # fmt: skip
    does.add_argument(
        "--import", type=path_argument, dest="taken", metavar="FILE",
        help="add a file's vectors to the cache folder, where what is there stays",
    )  # fmt: skip
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--encode", nargs="+", metavar="WORD", help='words to encode for --export: "cat, sofa|couch"')
    asked.add_argument("--words-file", type=path_argument, metavar="FILE", help="the same, a word per line")
    parser.add_argument(
        "--background", nargs="+", metavar="WORD", help="background words to encode beside them, or common for a list"
    )
    add_engine_option(parser)
    parser.set_defaults(run=_words)


def _words(options: argparse.Namespace) -> int:
    from ..words.cache import TextCache, default_folder

    encodes = options.encode or options.words_file
    if (encodes or options.background) and not options.export:
        raise UsageError("words are encoded for a file", "add --export FILE")
    if options.background and not encodes:
        raise UsageError("background words stand beside others", "add --encode WORDS", subject="--background")
    if encodes:
        _encode(options)
        options.cache = options.export
    bundle = None if options.engine is None else _bundle(options.engine)
    cache = TextCache(options.cache or default_folder())
    if options.clear or options.taken:
        if cache.folder is None:
            raise UsageError(
                "is a file of word vectors, which is read only", "name a folder with --cache DIR", subject=cache.file
            )
        _clear(cache, cache.folder) if options.clear else _take(cache, cache.folder, options.taken, bundle)
        return 0
    try:
        if encodes or not options.export:
            entries = cache.words()
        else:
            entries = cache.export(options.export, (bundle.text_sha256, bundle.precision) if bundle else None)
    except OSError as error:
        raise UsageError(
            f"the cache folder cannot be read ({error.strerror})",
            "check its permissions or name another with --cache DIR",
            subject=cache.folder,
        ) from None
    if not options.export:
        for entry in entries:
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.written))
            used = f", used {written}" if cache.folder else ""
            say(f"{entry.word}  ({entry.prompts} prompts, {entry.precision}, encoder {entry.graph[:8]}{used})")
    _say_total(entries, f"in {options.export or cache.file or cache.folder}")
    if options.export:
        _say_bundles(entries, bundle)
    return 0


def _encode(options: argparse.Namespace) -> None:
    from ..session import Session
    from ..words.arguments import join_words, read_words

    words = read_words(options.words_file) if options.words_file else join_words(options.encode)
    background = join_words(options.background) if options.background else None
    # By one backend, so that whoever runs it gets the same bytes; a vector is of use to all of them.
    with Session(options.engine, backend="onnxruntime-cpu", cache=options.cache) as session:
        session.export_words(options.export, words, background)
        options.engine = session.bundle.folder


def _clear(cache: "TextCache", folder: Path) -> None:
    try:
        removed = cache.clear()
    except OSError as error:
        raise OutputUnwritable(
            f"cannot be cleared ({error.strerror})", "check its permissions", subject=folder
        ) from None
    say(f"{removed} cached words removed from {folder}")


def _take(cache: "TextCache", folder: Path, file: Path, bundle: "Bundle | None") -> None:
    from ..atomic_files import unwritable

    try:
        taken = cache.take(file)
    except OSError as error:
        raise unwritable(folder, error) from None
    say(f"{taken.added} words added to {folder}, {taken.there} were there")
    if taken.left:
        say(f"{taken.left} words found no room in the folder: --cache {file} reads them where they are")
    _say_bundles(taken.words, bundle)


def _say_total(entries: list["CachedWord"], place: str) -> None:
    say(f"{len(entries)} words, {sum(entry.bytes for entry in entries) / 1000:.1f} kB {place}")


def _say_bundles(entries: Iterable["CachedWord"], bundle: "Bundle | None") -> None:
    """How many words are of which text encoder, and whose that is of the bundles that can be found here."""
    known = [bundle] if bundle else list(_bundles())
    for (graph, precision), count in sorted(Counter((entry.graph, entry.precision) for entry in entries).items()):
        of = {str(one.folder): None for one in known if (one.text_sha256, one.precision) == (graph, precision)}
        say(f"  {count} of encoder {graph[:8]}, {precision}: {', '.join(of) or 'of no bundle that is found here'}")


def _bundles() -> Iterable["Bundle"]:
    """The bundle that a session would find, and those that have a name."""
    from ..bundle import find_bundle
    from ..bundle_places import named_bundles

    for given in (None, *named_bundles()):
        try:
            yield _bundle(find_bundle(given))
        except FusionerError:  # that concerns who opens it
            continue


def _bundle(given: Path) -> "Bundle":
    """A bundle's manifest; its files are not read."""
    from ..bundle import Bundle, find_bundle, read_manifest

    folder = find_bundle(given)
    return Bundle.of(folder, read_manifest(folder))
