"""The command line: `fusioner-rt segment | info | doctor | words | fetch`."""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .argument_checks import shown
from .command_parser import CommandParser, count, path_argument, unforeseen
from .errors import (
    ArchiveInvalid,
    BackendUnavailable,
    BundleFileAltered,
    FetchFailed,
    FusionerError,
    ManifestInvalid,
    OutputUnwritable,
    OverlayTooLarge,
    PicturesFailed,
    Spelled,
    UsageError,
    as_command,
)

if TYPE_CHECKING:
    from .preprocess import Preprocessing
    from .results.segmentation import Segmentation
    from .session import Session

_EXAMPLES = """\
examples:
  fusioner-rt segment photo.jpg --words "cat, sofa"            one picture, overlay in output/
  fusioner-rt segment photos/ --words "cat, sofa" --out seen   every picture of a folder
  fusioner-rt segment a.png --words dog --json dog.json        masks as COCO annotations
  fusioner-rt info                                             what runs this bundle here, and why
  fusioner-rt doctor                                           what each backend lacks, and what cures it
  fusioner-rt words                                            which words are cached
  fusioner-rt fetch https://HOST/demo.tar.gz                   a bundle by its URL, verified
"""

_SEGMENT_EXAMPLES = """\
examples:
  fusioner-rt segment photo.jpg --words "cat, sofa"
      one line per picture: the words found, their share of the pixels, and where the overlay lies
  fusioner-rt segment photos/ more.png --words "red car, bus stop" --out seen --labels
      a folder and a picture; besides the overlays, label maps as grey PNG (pixel value n = word n)
  fusioner-rt segment 'photos/**/*.png' --words dog
      what a pattern names, ** being folders of any depth; docs/pictures.md tells what is read
  curl -s https://example.org/photo.jpg | fusioner-rt segment - --words dog
      a picture from stdin; its results are called stdin
  fusioner-rt segment photos/ --words "cat, sofa" --json masks.json --polygons 1 --instances
      COCO with a polygon around each cat, off by a pixel at most or so (pip install scipy shapely)
  fusioner-rt segment photos/ --words "cat, sofa" --out data --yolo
      data/labels/NAME.txt and data/data.yaml; with the pictures in data/images, what ultralytics trains on
  fusioner-rt segment photo.jpg --words "cat, dog" --mode independent --threshold 0.6
      judge every word alone, and only paint pixels above 60%
  fusioner-rt segment photo.jpg --words "cat, sofa|couch" --background common
      sofa and couch are one, called sofa; walls, sky and the like take their pixels and are not painted (docs/words.md)

Where a GPU or a plan of the bundle goes unused, one line on stderr says so; --backend NAME makes that an error.

exit code: 0 when every picture was done; otherwise the rest is still done, each failure is one line on stderr,
and the code is that of the failure's kind (60 where kinds differ). docs: fusioner_rt/errors.py lists the codes.
"""


_BACKENDS = """\
backends, best first; auto takes the first that works, a named one never falls back to another:
  tensorrt            plans of NVIDIA's TensorRT        pip install tensorrt cuda-bindings cuda-core
  tensorrt-rtx        plans of TensorRT-RTX             pip install tensorrt-rtx cuda-bindings cuda-core
  onnxruntime-cuda    the bundle's graphs on a GPU      pip install 'onnxruntime-gpu[cuda,cudnn]'
  onnxruntime-cpu     the bundle's graphs on the CPU    pip install onnxruntime
  onnxruntime         the better of the last two
"""

_DOCTOR_EXAMPLES = f"""\
examples:
  fusioner-rt doctor                          for the bundle that a session would find
  fusioner-rt doctor --engine engines/mine    for this one
  fusioner-rt doctor --json | jq .auto        which backend would run

{_BACKENDS}
exit code: 0 when some backend works; otherwise that of the error that onnxruntime-cpu, the last, ends with.
"""


_FETCH_EXAMPLES = f"""\
examples:
  fusioner-rt fetch https://HOST/demo.tar.gz#sha256=HEX          into the user's data folder, by the bundle's name
  fusioner-rt fetch https://HOST/demo.zip --out engines/demo     into this folder
  fusioner-rt fetch demo.tar.gz                                  a file

The archive, .tar.gz, .tgz, .tar or .zip, holds a bundle's files, or one folder of them. Only what its manifest lists is
written, and only once all of it is verified. A URL of http needs a sha256. Then --engine NAME is the bundle. Proxies:
HTTPS_PROXY, HTTP_PROXY. To pack one: tar czf demo.tar.gz -C models/demo bundle && sha256sum demo.tar.gz

exit code: {FetchFailed.exit_code} where nothing could be downloaded, {ArchiveInvalid.exit_code} where it is no archive of a \
bundle or another than was expected, {ManifestInvalid.exit_code} to
{BundleFileAltered.exit_code} where the bundle in it is not whole, {OutputUnwritable.exit_code} where it cannot be written.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code; messages go to stderr, results to stdout."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    # The runtime has its own, stricter limit for huge pictures.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        with _told(getattr(options, "verbose", 0)):
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except FusionerError as error:
        return _print_error(error)
    except BrokenPipeError:  # the reader of stdout closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _print_error(unforeseen(error))
    except KeyboardInterrupt:
        print("fusioner-rt: interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _told(verbose: int) -> Iterator[None]:
    """Show the log on stderr, but for the notes, which are printed anyway. verbose: how often -v was given."""
    logger = logging.getLogger("fusioner_rt")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("fusioner-rt: %(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    if verbose:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _given(text: str) -> str:
    """A picture or folder, as it was given."""
    path_argument(text)
    return text


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="fusioner-rt",
        description="Open-vocabulary segmentation: a picture and words in, a mask per word out.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"fusioner-rt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="segment | info | doctor | words | fetch")

    segment = commands.add_parser(
        "segment", help="find words in pictures", description="Find words in pictures.", epilog=_SEGMENT_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    segment.add_argument(
        "pictures",
        nargs="*",
        type=_given,
        metavar="PICTURE",
        help="picture files, folders of them, patterns in quotes, or - for stdin",
    )
    asked = segment.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--words", nargs="+", metavar="WORD",
        help='what to look for: "cat, red sofa", "cat, sofa|couch" where two words mean one thing',
    )  # fmt: skip
    asked.add_argument("--words-file", type=path_argument, metavar="FILE", help="what to look for, a word per line")
    segment.add_argument(
        "--background", nargs="+", metavar="WORD",
        help='words whose pixels belong to nothing, for example "wall, sky", or common for a list of them',
    )  # fmt: skip
    segment.add_argument(
        "--out",
        type=path_argument,
        default=Path("output"),
        metavar="DIR",
        help="folder for results, made where it is missing (output)",
    )
    segment.add_argument(
        "--json", type=path_argument, metavar="FILE", help="also write all masks as one COCO file; its folder is made"
    )
    segment.add_argument(
        "--legend", choices=("below", "right", "none"), default="below",
        help="where the overlay has its legend; with none it has the masks' size (below)",
    )  # fmt: skip
    segment.add_argument("--alpha", type=float, default=0.5, metavar="A", help="how much masks cover, 0 to 1 (0.5)")
    segment.add_argument("--outlines", action="store_true", help="draw the masks' outlines alone")
    segment.add_argument(
        "--polygons", nargs="?", type=float, const=0.0, metavar="TOLERANCE",
        help="masks of --json as polygons, exact, or off by TOLERANCE pixels to have fewer points; so also those of "
        "--labelme and --yolo",
    )  # fmt: skip
    segment.add_argument("--instances", action="store_true", help="in --json, each connected part of a word by itself")
    segment.add_argument(
        "--labels",
        action="store_true",
        help="also write each label map as a grey PNG, NAME.labels.png, value n = word n",
    )
    segment.add_argument("--labelme", action="store_true", help="also write polygons for LabelMe, NAME.labelme.json")
    segment.add_argument(
        "--yolo", action="store_true",
        help="also write YOLO's labels for segmentation, labels/NAME.txt, and data.yaml with the words",
    )  # fmt: skip
    segment.add_argument(
        "--threshold",
        metavar="P",
        help='least probability of a mask, or of some: "cat=0.7, sofa=0.4" (the bundle\'s)',
    )
    segment.add_argument(
        "--mode", choices=("joint", "independent"), default="joint",
        help="words may influence each other, or each is judged alone, a pass per word (joint)",
    )  # fmt: skip
    segment.add_argument(
        "--window", choices=("whole", "sliding"), default="whole",
        help="show the network the whole picture, or overlapping windows, for small things, a pass per window; of "
        "bundles that have windows, such as CLIP's (whole)",
    )  # fmt: skip
    segment.add_argument("--size", metavar="HxW", help="size of the masks (each picture's own)")
    _add_session_options(segment)
    segment.set_defaults(run=_segment)

    info = commands.add_parser(
        "info", help="what runs this bundle here, and why",
        description="Machine, bundle, its profiles, which backend runs it, and why each better one does not.",
        epilog=_BACKENDS, formatter_class=raw,
    )  # fmt: skip
    _add_session_options(info)
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(run=_info)

    doctor = commands.add_parser(
        "doctor", help="what each backend lacks here, and what cures it",
        description="Looks at driver, GPUs, packages and bundle, tries every backend, and says for each whether it "
        "works, else all that it lacks and what to do. Needs no bundle, GPU or backend to be there.",
        epilog=_DOCTOR_EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    _add_engine_option(doctor)
    doctor.add_argument("--json", action="store_true", help="as one JSON object")
    doctor.set_defaults(run=_doctor)

    words = commands.add_parser(
        "words", help="list or clear the cached words",
        description="List the words whose vectors are cached on disk; they are not encoded again.",
    )  # fmt: skip
    words.add_argument(
        "--cache", type=path_argument, metavar="DIR", help="cache folder (FUSIONER_CACHE, or the user's)"
    )
    words.add_argument("--clear", action="store_true", help="remove them all")
    words.set_defaults(run=_words)

    fetch = commands.add_parser(
        "fetch", help="download a bundle by its URL, and verify it",
        description="Download a bundle, verify it, and put it where --engine NAME finds it.",
        epilog=_FETCH_EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    fetch.add_argument("url", metavar="URL", help="of http, https or a file, or a path; may end in #sha256=HEX")
    fetch.add_argument("--sha256", metavar="HEX", help="the archive's, which is then compared")
    fetch.add_argument(
        "--out", type=path_argument, metavar="DIR", help="the bundle's folder (the user's data folder, by its name)"
    )
    fetch.add_argument("--force", action="store_true", help="replace the bundle that lies there, and no other file")
    fetch.set_defaults(run=_fetch)
    return parser


def _add_engine_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        type=path_argument,
        metavar="DIR",
        help="engine bundle, or the name of an installed or fetched one (FUSIONER_ENGINE, engines/demo, models/demo/bundle, "
        "or what is installed)",
    )


def _add_session_options(parser: argparse.ArgumentParser) -> None:
    _add_engine_option(parser)
    parser.add_argument(
        "--backend", default="auto", metavar="NAME",
        help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or onnxruntime for either of the last two (auto)",
    )  # fmt: skip
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads (one per core)")
    parser.add_argument(
        "--input-size", type=count, metavar="N",
        help="side in pixels of what the network sees (the bundle's own); a smaller one is faster and loses small things",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=path_argument, metavar="DIR", help="cache folder (FUSIONER_CACHE, or the user's)"
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say on stderr what is opened; twice: how long each step takes",
    )


def _open(options: argparse.Namespace) -> "Session":
    from .session import Session

    return Session(
        options.engine, backend=options.backend, cache=options.cache, threads=options.threads,
        input_size=options.input_size,
    )  # fmt: skip


def _segment(options: argparse.Namespace) -> int:
    from .atomic_files import writable_folder, writable_place
    from .named_pictures import named_pictures, names_a_picture
    from .results.overlay import check_options
    from .words.arguments import join_words, parse_threshold, read_words, take_pictures
    from .words.parse import parse_words

    overlay = {
        "legend": False if options.legend == "none" else options.legend, "alpha": options.alpha,
        "outlines": options.outlines,
    }  # fmt: skip
    check_options(**overlay)
    size = _parse_size(options.size)
    threshold = parse_threshold(options.threshold)
    if options.words and not options.pictures:
        options.words, options.pictures = take_pictures(options.words, names_a_picture)
    if not options.pictures:
        raise UsageError("no pictures were given", "name files, folders or patterns of them before --words")
    words = read_words(options.words_file) if options.words_file else join_words(options.words)
    background = join_words(options.background) if options.background else None
    parse_words(words, background)
    if options.json and options.json.is_dir():
        raise UsageError(
            f"--json {options.json} is a folder", f"name a file in it, for example {options.json / 'masks.json'}"
        )
    _check_shapes(options)
    out = writable_folder(options.out)
    failures: list[FusionerError] = []
    with _notes_on_stderr(), contextlib.ExitStack() as opened:
        pictures = named_pictures(options.pictures, out)
        _check_outputs(options, [name for name, _ in pictures])
        if options.json:
            writable_place(options.json)
        if options.yolo:
            writable_folder(out / "labels")
        report = _Report(out, overlay, options)
        session = opened.enter_context(_open(options))
        session.set_vocabulary(words, background=background)
        bar = _Bar(len(pictures))
        for name, picture in pictures:
            try:
                result = session.segment(
                    picture, size=size, threshold=threshold, mode=options.mode, window=options.window
                )
                line = report.add(Path(name), result)
            except (OutputUnwritable, UsageError):
                bar.clear()
                raise  # the next picture would fail too
            except FusionerError as error:
                bar.clear()
                failures.append(error)
                _print_error(error)
            else:
                bar.clear()
                print(line, flush=True)
            bar.step()
        bar.clear()
        if len(failures) < len(pictures):  # a run without results keeps earlier files
            report.finish(session.words)
    if not failures:
        return 0
    if len(pictures) > 1:
        print(f"fusioner-rt: {len(failures)} of {len(pictures)} pictures failed, see above", file=sys.stderr)
    codes = {failure.exit_code for failure in failures}
    return codes.pop() if len(codes) == 1 else PicturesFailed.exit_code


def _check_shapes(options: argparse.Namespace) -> None:
    """Check the options of polygons and instances, and that their packages are there, before any work."""
    from .optional_packages import optional

    files = options.labelme or options.yolo
    if options.polygons is not None:
        from .results.polygons import check_tolerance

        check_tolerance(options.polygons)
        if not (options.json or files):
            raise UsageError("--polygons says how masks are written", "add --json FILE, --labelme or --yolo")
    if options.instances and not options.json:
        raise UsageError("--instances says what --json holds", "add --json FILE")
    if files or options.polygons is not None:
        optional("shapely", "shapely", "polygons")
    if files or options.instances:
        optional("scipy.ndimage", "scipy", "instances")


def _check_outputs(options: argparse.Namespace, pictures: Sequence[str]) -> None:
    """Check that no result would replace what is not one. Raises UsageError, OutputUnwritable."""
    from .results.yolo import is_ours

    if options.json and any(os.path.realpath(options.json) == os.path.realpath(name) for name in pictures):
        raise UsageError(f"--json {options.json} is one of the pictures", "name another file for the masks")
    if options.labelme and "-" in options.pictures:
        raise UsageError("--labelme names the picture's file, and stdin has none", "save the picture, and name it")
    if options.yolo and not is_ours(options.out):
        raise OutputUnwritable(
            "holds labels or a data.yaml that --yolo did not write", "choose another folder with --out", options.out
        )


class _Report:
    """Writes each picture's files under a unique name and collects all annotations."""

    def __init__(self, out: Path, overlay: dict[str, Any], options: argparse.Namespace) -> None:
        from .results.coco_document import Document

        self._out, self._overlay, self._options = out, overlay, options
        self._names: set[str] = set()
        self._tolerance = options.polygons or 0.0
        polygons = options.polygons is not None
        self._document = Document(polygons, self._tolerance, options.instances)

    def add(self, path: Path, result: "Segmentation") -> str:
        """Write the files of a picture. Returns the line to print."""
        from .results.legend import percent

        result = replace(result, source=str(path))  # of stdin its name, not that of the file behind it
        name = self._unique(path.stem)
        try:
            overlay = result.save(self._out / f"{name}.overlay.jpg", **self._overlay)
        except OverlayTooLarge:
            overlay = result.save(self._out / f"{name}.overlay.png", **self._overlay)
        saved = [overlay]
        if self._options.labels:
            saved.append(result.save(self._out / f"{name}.labels.png"))
        for wanted, file in (
            (self._options.labelme, f"{name}.labelme.json"),
            (self._options.yolo, f"labels/{name}.txt"),
        ):
            if wanted:
                saved.append(result.save(self._out / file, tolerance=self._tolerance))
        if self._options.json:
            self._document.add(result)
        shares = sorted(zip(result.shares, result.words, strict=True), reverse=True)
        found = ", ".join(f"{word} {percent(share)}" for share, word in shares if share) or "none of the words"
        return f"{path}: {found} -> {', '.join(map(str, saved))}"

    def finish(self, words: Sequence[str]) -> None:
        """Write the files of all pictures."""
        from .atomic_files import write_json, write_result
        from .results.yolo import data_file

        if self._options.json:
            write_json(self._options.json, self._document.content())
        if self._options.yolo:
            text = data_file(words).encode()
            write_result(self._out / "data.yaml", lambda stream: stream.write(text))

    def _unique(self, stem: str) -> str:
        name, number = stem, 1
        while name.casefold() in self._names:  # some file systems know no capitals
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.casefold())
        return name


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    size = re.fullmatch(r"0*([1-9][0-9]{0,8})[xX]0*([1-9][0-9]{0,8})", text.strip())
    if not size:
        raise UsageError(
            "expected height x width in pixels, at least 1 each",
            "give for example 480x640",
            subject=f"--size {shown(text)}",
        )
    return int(size[1]), int(size[2])


def _info(options: argparse.Namespace) -> int:
    from .bundle import locate_bundle

    with _open(options) as session:
        facts = _facts(session, locate_bundle(options.engine).why)
    if options.json:
        print(json.dumps(facts, indent=2, default=lambda plan: plan.to_json()))
        return 0
    for group, entries in facts.items():
        print(group)
        for name, value in entries.items():
            for index, line in enumerate(_lines(value)):
                print(f"  {'' if index else name.replace('_', ' '):<12} {line}")
    return 0


def _lines(value: Any) -> list[str]:
    """A fact as lines of text."""
    if isinstance(value, dict):
        return [f"{name}: {reason}" for name, reason in value.items()] or ["none"]
    if isinstance(value, list):
        return [str(entry) for entry in value] or ["none"]
    return [str(value)]


def _facts(session: "Session", found: str) -> dict[str, dict[str, Any]]:
    import platform

    from .cpu_cores import cores
    from .words.cache import TextCache

    cache = TextCache(session.cache_folder)
    cache.check_writable()
    bundle, backend = session.bundle, session.backend
    preprocessing, kernels = bundle.preprocessing, bundle.kernels
    megabytes = sum(entry.bytes for entry in bundle.files.values()) / 1e6
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "cores": cores(),
            **_onnxruntime(),
            "fusioner-rt": __version__,
        },
        "backend": {
            "requested": backend.requested,
            "effective": backend.effective,
            "why": backend.why,
            "passed_over": dict(backend.passed_over),
        },
        "bundle": {
            "folder": str(bundle.folder),
            "found": found,
            "name": bundle.name,
            "created": bundle.created,
            "precision": bundle.precision,
            "size": f"{megabytes:.1f} MB in {len(bundle.files)} files, all verified",
            "input": f"{_input(preprocessing)}, edges multiples of {preprocessing.multiple} up to {preprocessing.longest}",
            "windows": f"{bundle.windows.side} pixels, {bundle.windows.stride} apart" if bundle.windows else "none",
            "scoring": f"{bundle.scoring}, temperature {bundle.temperature:g}, threshold {bundle.threshold:g}",
            "templates": len(bundle.templates),
            "words": f"{bundle.words.min} to {bundle.words.max} at once",
            "batch": f"{bundle.batch.min} to {bundle.batch.max} pictures",
            "edges": f"{bundle.size.min} to {bundle.size.max} pixels",
            "kernels": f"{', '.join(kernels.targets)} ({', '.join(kernels.features)})" if kernels else "none",
            "plans": list(bundle.plans),
            "encoders": ", ".join(bundle.encoders) or "not said",
            "weights": f"random: {', '.join(bundle.random_weights)}" if bundle.random_weights else "trained",
        },
        "cache": {"folder": str(session.cache_folder), "notes": as_command(cache.note or "none")},
    }


def _input(preprocessing: "Preprocessing") -> str:
    side = preprocessing.side
    return f"short edge {side} pixels" if preprocessing.fit == "short" else f"about {side}x{side} pixels"


def _onnxruntime() -> dict[str, str]:
    """Version and providers of ONNX Runtime, which TensorRT backends run without."""
    try:
        import onnxruntime

        providers = ", ".join(onnxruntime.get_available_providers())
        return {"onnxruntime": onnxruntime.__version__, "providers": providers}
    except Exception:  # a broken installation raises anything; the doctor says more
        return {"onnxruntime": "cannot be loaded", "providers": "none"}


def _doctor(options: argparse.Namespace) -> int:
    try:
        from .doctor import examine, report
    except ImportError as error:  # of a required package
        raise BackendUnavailable(
            str(error), "install fusioner-rt again, with all that it needs: pip install --force-reinstall fusioner-rt"
        ) from None
    findings = examine(options.engine)
    print(json.dumps(findings.to_json(), indent=2) if options.json else report(findings))
    return findings.exit_code


def _words(options: argparse.Namespace) -> int:
    from .words.cache import TextCache, default_folder

    folder = options.cache or default_folder()
    cache = TextCache(folder)
    if options.clear:
        try:
            removed = cache.clear()
        except OSError as error:
            raise OutputUnwritable(
                f"cannot be cleared ({error.strerror})", "check its permissions", subject=folder
            ) from None
        print(f"{removed} cached words removed from {folder}")
        return 0
    try:
        entries = cache.words()
    except OSError as error:
        raise UsageError(
            f"the cache folder cannot be read ({error.strerror})",
            "check its permissions or name another with --cache DIR",
            subject=folder,
        ) from None
    for entry in entries:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.written))
        print(f"{entry.word}  ({entry.prompts} prompts, {entry.precision}, encoder {entry.graph[:8]}, used {written})")
    total = sum(entry.bytes for entry in entries)
    print(f"{len(entries)} words, {total / 1000:.1f} kB in {folder}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from .fetch_bundle import fetch

    shown, last = sys.stderr.isatty(), 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        if shown and (time.monotonic() > last + 0.1 or done == total):
            last = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            print(f"\r\033[K{done / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True)

    try:
        fetched = fetch(options.url, options.sha256, options.out, options.force, progress)
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    checked = "as expected" if fetched.checked else "not compared; --sha256 compares it"
    print(f"sha256 of the archive: {fetched.sha256} ({checked})")
    print(f"{fetched.folder}: {fetched.name}, all files verified{', was there already' if fetched.unchanged else ''}")
    print(f'use it: fusioner-rt segment photo.jpg --words "cat, sofa" --engine {shlex.quote(fetched.engine)}')
    return 0


class _Bar:
    """A progress bar on stderr, drawn for several pictures and on a terminal only."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._shown = total > 1 and sys.stderr.isatty()
        self._start = time.monotonic()
        self._draw()

    def step(self) -> None:
        self._done += 1
        self._draw()

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if not self._shown:
            return
        filled = 30 * self._done // self._total
        text = f"[{'#' * filled}{'.' * (30 - filled)}] {self._done}/{self._total}"
        if self._done:
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            text += f"  {left:.0f} s left"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """What the runtime warns of, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        spelled = (as_command(given) for given in record.args or () if isinstance(given, Spelled))
        start = "\r\033[K" if sys.stderr.isatty() else ""  # over a progress bar
        text = " ".join(next(spelled, record.getMessage()).split())
        print(f"{start}fusioner-rt: note: {text}", file=sys.stderr)


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    logger, notes = logging.getLogger("fusioner_rt"), _Notes(logging.WARNING)
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)


def _print_error(error: FusionerError) -> int:
    """Print an error as one line on stderr. Returns its exit code."""
    print(f"fusioner-rt: {error.as_command()}", file=sys.stderr)
    return error.exit_code
