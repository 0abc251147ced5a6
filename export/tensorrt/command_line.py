"""What the command line says of TensorRT plans, wherever they are built."""

from __future__ import annotations

import argparse
import re

from fusioner_rt.command_parser import path_argument


def add_to(parser: argparse.ArgumentParser) -> None:
    """--for, --profiles, --timing-cache, --hardware-compatible and --version-compatible."""
    add = parser.add_argument
    add(
        "--for",
        dest="build_for",
        type=_capabilities,
        metavar="SM,...",
        help="with tensorrt-rtx: one plan each for these GPUs, such as sm_86,sm_89; sm_75 in fp16 alone (default: "
        "one for sm_80, sm_86, sm_89, sm_120 and sm_121)",
    )
    add(
        "--profiles",
        type=_profiles,
        default=(),
        metavar="NAME,...",
        help="shapes the plans are tuned for, in the order they are tried: latency (one picture), throughput (the most "
        "pictures at once), any-size (all that the bundle takes; the default)",
    )
    add(
        "--timing-cache",
        type=path_argument,
        metavar="FILE",
        help="with tensorrt: what it measured of kernels, read if it is there and written after",
    )
    add(
        "--hardware-compatible",
        action="store_true",
        help="with tensorrt: plans for every GPU of sm_80 and later, which may be slower than those for this one alone",
    )
    add(
        "--version-compatible",
        action="store_true",
        help="with tensorrt: plans that later versions of the same major number load too; they bring code of their own",
    )


def _profiles(text: str) -> tuple[str, ...]:
    from export.tensorrt.profiles import NAMES

    names = tuple(text.split(","))
    if not set(names) <= set(NAMES) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} does not name profiles, each once, of {', '.join(NAMES)}")
    return names


def _capabilities(text: str) -> str:
    if not re.fullmatch(r"sm_\d{2,3}(,sm_\d{2,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} does not name GPUs as in sm_86,sm_89")
    return text
