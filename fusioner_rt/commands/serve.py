"""`fusioner-rt serve`: the command line of the service."""

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..argument_checks import shown
from ..command_parser import count, path_argument, up_to
from ..errors import UsageError
from ..optional_packages import optional
from ..serve.settings import Settings
from .session_options import add_cache_option, pixels

if TYPE_CHECKING:
    from ..command_parser import CommandParser

_EXAMPLES = """\
examples:
  fusioner-rt serve                                       http://127.0.0.1:8080, and the page there
  fusioner-rt serve --engine a=engines/a --engine b=demo  two bundles, by name; a is the default
  FUSIONER_TOKEN=secret fusioner-rt serve --host 0.0.0.0  for other machines, which send the token

SIGHUP loads the bundles that have changed; SIGTERM lets what runs finish and ends with exit code 0. docs/serve.md
"""
_BYTES = 1 << 40  # the most that an option takes


def add_to(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    """Add the command to a command line."""
    own = Settings()
    parser = commands.add_parser(
        "serve", help="an HTTP service, and a page to try it",
        description="Serve bundles over HTTP, with a page at /.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--engine",
        action="append",
        metavar="[NAME=]DIR",
        help="engine bundle, its folder or name; may be repeated with names",
    )
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    add("--port", type=_port, default=8080, metavar="N", help="port to listen on, 0 for a free one (8080)")
    add(
        "--token-file",
        type=path_argument,
        metavar="FILE",
        help="file with the token that requests must bear (FUSIONER_TOKEN)",
    )
    add(
        "--cors",
        type=_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose pages may ask, or '*'; may be repeated (none)",
    )
    add("--workers", type=count, default=own.workers, metavar="N", help="processes (1)")
    add("--concurrency", type=count, metavar="N", help="calls at once in each process (one per core, at most 4)")
    add(
        "--max-batch",
        type=count,
        metavar="N",
        help="most pictures of a call, 1 for no batches (the bundle's; on CPUs 1)",
    )
    add("--max-wait", type=_milliseconds, default=own.max_wait, metavar="MS",
        help=f"longest wait for other pictures to share a batch, 0 for none ({own.max_wait:g})")  # fmt: skip
    add(
        "--queue",
        type=count,
        default=own.queue,
        metavar="N",
        help=f"pictures that may wait, in each process ({own.queue})",
    )
    add(
        "--deadline", type=_seconds, default=own.deadline, metavar="S", help=f"seconds for a request ({own.deadline:g})"
    )
    add("--max-bytes", type=up_to(_BYTES), default=own.max_bytes, metavar="N", help=f"largest body ({own.max_bytes})")
    add("--max-pixels", type=pixels, default=own.max_pixels, metavar="N", help=f"largest picture ({own.max_pixels})")
    add(
        "--max-words", type=count, default=own.max_words, metavar="N", help=f"most words of a request ({own.max_words})"
    )
    add(
        "--handles",
        type=count,
        default=own.handles,
        metavar="N",
        help=f"most encoded pictures that are kept ({own.handles})",
    )
    add(
        "--handle-bytes",
        type=up_to(_BYTES),
        default=own.handle_bytes,
        metavar="N",
        help=f"their bytes ({own.handle_bytes})",
    )
    add("--handle-age", type=_seconds, default=own.handle_age, metavar="S",
        help=f"seconds that one is kept after its last use ({own.handle_age:g})")  # fmt: skip
    add("--backend", default="auto", metavar="NAME", help="as for segment (auto)")
    add("--threads", type=count, metavar="N", help="CPU threads of a call (the cores by the calls at once)")
    add("--input-size", type=count, metavar="N", help="side in pixels of what the network sees (the bundle's own)")
    add_cache_option(parser)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    settings = Settings(
        engines=_engines(options.engine),
        backend=options.backend,
        cache=None if options.cache is None else str(options.cache),
        input_size=options.input_size,
        threads=options.threads,
        concurrency=options.concurrency,
        max_batch=options.max_batch,
        max_wait=options.max_wait,
        queue=options.queue,
        deadline=options.deadline,
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        max_words=options.max_words,
        handles=options.handles,
        handle_bytes=options.handle_bytes,
        handle_age=options.handle_age,
        token=_token(options.token_file),
        cors=tuple(options.cors),
        workers=options.workers,
    )
    for package in ("starlette", "uvicorn", "python-multipart", "prometheus-client"):
        optional(package.replace("-", "_"), package, "HTTP services", "'fusioner-rt[serve]'")
    return _listen(settings, options.host, options.port)


def _listen(settings: Settings, host: str, port: int) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    from ..serve import listening, workers

    listener = listening.listen(host, port)
    address = listening.address_of(listener)
    settings = replace(settings, loopback=listening.is_loopback(listener))

    def ready() -> None:
        if not settings.loopback and not settings.token:
            print(
                "fusioner-rt: warning: other machines may use it, as it has no token; set FUSIONER_TOKEN or give --token-file",
                file=sys.stderr,
            )
        print(f"fusioner-rt: serving on {address}", file=sys.stderr, flush=True)

    if settings.workers > 1:
        return workers.supervise(settings, listener, ready)
    listening.run(settings, listener, ready)
    return 0


def _engines(given: list[str] | None) -> dict[str, str | None]:
    """Bundles by name. Raises UsageError."""
    if not given:
        return Settings().engines
    engines: dict[str, str | None] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign or not re.fullmatch(r"[\w.-]+", name):  # a path may hold the sign
            name, folder = Path(text).name if len(given) > 1 else "default", text
        if name in engines:
            raise UsageError(
                f"two bundles are called {name}", "give each a name: --engine a=DIR --engine b=DIR", "--engine"
            )
        if not folder:
            raise UsageError(f"{shown(text)} names no bundle", "give NAME=DIR", "--engine")
        engines[name] = folder
    return engines


def _token(file: Path | None) -> str:
    """The token, or "". Raises UsageError."""
    if file is None:
        token = os.environ.get("FUSIONER_TOKEN", "")
        if "FUSIONER_TOKEN" in os.environ and not token.strip():
            raise UsageError("holds no token", "set it to one, or unset it to serve without", "FUSIONER_TOKEN")
    else:
        try:
            token = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            said = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
            raise UsageError(f"cannot be read ({said})", "give a file that holds the token alone", file) from None
        if not token.strip():
            raise UsageError("holds no token", "write one into it, or leave --token-file out", file)
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token holds spaces or signs beyond ASCII", "take letters, digits and signs of ASCII")
    return token


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no port, a number of 0 to 65535 was expected")
    return int(text)


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no origin as browsers send it, such as https://example.org or http://localhost:3000 (no path)"
        )
    return text


def _number(text: str, least: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of {least:g} to 86400")
    return number


def _milliseconds(text: str) -> float:
    return _number(text, 0)


def _seconds(text: str) -> float:
    return _number(text, 0.001)
