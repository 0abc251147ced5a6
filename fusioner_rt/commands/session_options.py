"""The options of commands that open a session."""

import argparse
from typing import TYPE_CHECKING

from ..command_parser import count, path_argument, up_to

if TYPE_CHECKING:
    from ..session import Session

BACKENDS = """\
backends, best first; auto takes the first that works, a named one never falls back to another:
  tensorrt            plans of NVIDIA's TensorRT        pip install tensorrt cuda-bindings cuda-core
  tensorrt-rtx        plans of TensorRT-RTX             pip install tensorrt-rtx cuda-bindings cuda-core
  onnxruntime-cuda    the bundle's graphs on a GPU      pip install 'onnxruntime-gpu[cuda,cudnn]'
  onnxruntime-cpu     the bundle's graphs on the CPU    pip install onnxruntime
  onnxruntime         the better of the last two
"""


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        type=path_argument,
        metavar="DIR",
        help="engine bundle, or the name of an installed or fetched one (FUSIONER_ENGINE, engines/demo, models/demo/bundle, "
        "or what is installed)",
    )


def add_session_options(parser: argparse.ArgumentParser) -> None:
    add_engine_option(parser)
    parser.add_argument(
        "--backend", default="auto", metavar="NAME",
        help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or onnxruntime for either of the last two (auto)",
    )  # fmt: skip
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads (one per core)")
    parser.add_argument(
        "--input-size", type=count, metavar="N",
        help="side in pixels of what the network sees (the bundle's own); a smaller one is faster and loses small things",
    )  # fmt: skip
    add_cache_option(parser)
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say on stderr what is opened; twice: how long each step takes",
    )


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=path_argument, metavar="DIR",
        help="cache folder, or a file of word vectors, which is read only (FUSIONER_CACHE, or the user's)",
    )  # fmt: skip


def pixels(text: str) -> int:
    """A limit on pixels, as `Session` takes it."""
    from ..decode_picture import PIXEL_LIMIT  # NumPy, which --help does not wait for

    return up_to(PIXEL_LIMIT)(text)


def open_session(options: argparse.Namespace, max_pixels: int | None = None) -> "Session":
    from ..session import Session

    return Session(
        options.engine, backend=options.backend, cache=options.cache, threads=options.threads,
        input_size=options.input_size, max_pixels=max_pixels,
    )  # fmt: skip
