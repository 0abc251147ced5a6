"""The command line: `fusioner-rt segment | info | doctor | words | fetch | serve`."""

import argparse
import contextlib
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import __version__
from .command_end import run_command, say, say_json, say_lines, tell
from .command_parser import CommandParser, path_argument
from .commands import segment, serve, words
from .commands.session_options import BACKENDS, add_engine_option, add_session_options, open_session
from .commands.terminal import CLEAR
from .errors import (
    ArchiveInvalid,
    BackendUnavailable,
    BundleFileAltered,
    FetchFailed,
    ManifestInvalid,
    OutputUnwritable,
    as_command,
)
from .memory_shortage import OF_A_SESSION, tells_shortage
from .printable_text import printable

if TYPE_CHECKING:
    from .preprocess import Preprocessing
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
  fusioner-rt serve                                            an HTTP service, and a page to try it
"""

_DOCTOR_EXAMPLES = f"""\
examples:
  fusioner-rt doctor                          for the bundle that a session would find
  fusioner-rt doctor --engine engines/mine    for this one
  fusioner-rt doctor --json | jq .auto        which backend would run

{BACKENDS}
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
    return run_command("fusioner-rt", lambda: _run(arguments))


@tells_shortage(OF_A_SESSION)
def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    # The runtime has its own, stricter limit for huge pictures.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    with _told(getattr(options, "verbose", 0)):
        code: int = options.run(options)
    return code


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


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="fusioner-rt",
        description="Open-vocabulary segmentation: a picture and words in, a mask per word out.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"fusioner-rt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="segment | info | doctor | words | fetch | serve")

    segment.add_to(commands)

    info = commands.add_parser(
        "info", help="what runs this bundle here, and why",
        description="Machine, bundle, its profiles, which backend runs it, and why each better one does not.",
        epilog=BACKENDS, formatter_class=raw,
    )  # fmt: skip
    add_session_options(info)
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(run=_info)

    doctor = commands.add_parser(
        "doctor", help="what each backend lacks here, and what cures it",
        description="Looks at driver, GPUs, packages and bundle, tries every backend, and says for each whether it "
        "works, else all that it lacks and what to do. Needs no bundle, GPU or backend to be there.",
        epilog=_DOCTOR_EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    add_engine_option(doctor)
    doctor.add_argument("--json", action="store_true", help="as one JSON object")
    doctor.set_defaults(run=_doctor)

    words.add_to(commands)

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
    serve.add_to(commands)
    return parser


def _info(options: argparse.Namespace) -> int:
    from .bundle import locate_bundle

    with open_session(options) as session:
        facts = _facts(session, locate_bundle(options.engine).why)
    if options.json:
        say_json(facts, lambda plan: plan.to_json())
        return 0
    for group, entries in facts.items():
        say(group)
        for name, value in entries.items():
            for index, line in enumerate(_lines(value)):
                say(f"  {'' if index else name.replace('_', ' '):<12} {line}")
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

    cache = TextCache(session.cache_file or session.cache_folder)
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
        "cache": {
            "folder": str(session.cache_folder),
            "file": str(session.cache_file or "none"),
            "notes": as_command(cache.note or "none"),
        },
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
    if options.json:
        say_json(findings.to_json())
    else:
        say_lines(report(findings))
    return findings.exit_code


def _fetch(options: argparse.Namespace) -> int:
    from .fetch_bundle import fetch

    shown, last = sys.stderr.isatty(), 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        if shown and (time.monotonic() > last + 0.1 or done == total):
            last = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            tell(f"{done / 1e6:.1f}{of} MB", start=CLEAR, end="")

    try:
        fetched = fetch(options.url, options.sha256, options.out, options.force, progress)
    finally:
        if shown:
            tell("", start=CLEAR, end="")
    checked = "as expected" if fetched.checked else "not compared; --sha256 compares it"
    say(f"sha256 of the archive: {fetched.sha256} ({checked})")
    say(
        printable(
            f"{fetched.folder}: {fetched.name}, all files verified{', was there already' if fetched.unchanged else ''}"
        )
    )
    engine = shlex.quote(fetched.engine)
    say(f'use it: fusioner-rt segment photo.jpg --words "cat, sofa" --engine {engine}')
    return 0
