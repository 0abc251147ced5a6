"""Builds an engine bundle from a checkpoint: the one command that leads from training to serving (docs/bundle.md)."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(ROOT)

from export.options import Options, named  # noqa: E402
from export.stages import Stages  # noqa: E402
from export.tensorrt import command_line as plan_arguments  # noqa: E402
from fusioner_rt.argument_checks import shown  # noqa: E402
from fusioner_rt.command_end import run_command, say_lines, tell  # noqa: E402
from fusioner_rt.command_parser import CommandParser, count, path_argument  # noqa: E402
from fusioner_rt.cures import CLIP_MODELS, INSTALL_TRAINING  # noqa: E402
from fusioner_rt.errors import FusionerError, UsageError  # noqa: E402

if TYPE_CHECKING:
    from export.summary_table import Row

NOT_OFFERED = ("fp8", "int8")
EXAMPLES = """
examples:
  python export/build_engine.py --fp16
      the demonstration checkpoint, in half precision, to engines/demo
  python export/build_engine.py --checkpoint runs/mine/checkpoint --out engines/mine --pictures photos/
      your own, proved on your own pictures
  python export/build_engine.py --model clip-b16 --download --fp16
      CLIP ViT-B/16 without a checkpoint or training, OpenAI's weights downloaded once, to engines/clip-b16
  python export/build_engine.py --model clip-b16 --weights ViT-B-16.pt --fp16
      the same from a file; a tag of open_clip's works too, and "random" to try the way without weights
  python export/build_engine.py --fp16 --max-words 1000 --sizes 256,512,1536 --max-batch 1
      up to 1000 words, inputs of about 512 x 512 pixels, no edge longer than 1536
  python export/build_engine.py --fp16 --backend tensorrt-rtx
      with TensorRT-RTX plans for compute capability 8.0, 8.6, 8.9, 12.0 and 12.1; no GPU is needed to build them
  python export/build_engine.py --fp16 --backend tensorrt-rtx --for sm_89,sm_120
      with one plan each for two kinds of GPU instead
  python export/build_engine.py --fp16 --backend tensorrt --profiles latency,any-size --timing-cache timings.cache
      with TensorRT plans for the GPU that is here, tuned for one picture at a time, and measured kernels kept
  python export/build_engine.py --fp16 --kernels sm_86,sm_89
      kernels compiled for two kinds of GPU alone; --kernels none for a bundle that only serves on CPUs
  python export/build_engine.py --fp16 --kernels all,float16,masks,probabilities
      with the kernels that no session launches, for an application that calls them itself

The bundle is written whole or not at all: a build that fails or is interrupted leaves an older bundle as it was.
"""


class OutputNotABundle(FusionerError):
    """The output folder holds something else."""

    exit_code = 86
    is_input = True


class LibraryMissing(FusionerError):
    """A library the build needs is not installed; the runtime alone does not bring it."""

    exit_code = 90
    is_input = False


class InputUnreadable(FusionerError):
    """A file the build reads, other than those with errors of their own, cannot be read."""

    exit_code = 89
    is_input = True


def build(options: Options, shown: bool = True) -> list[Row]:
    """Build, prove and write a bundle to options.out, whole or not at all; returns the closing table's rows.

    Raises what the stages raise, all of it FusionerError: CheckpointError, WeightsNotFound, UsageError,
    PrecisionNotReached, ParityFailed, BatchFailed, WordsFailed, KernelsNotCompiled, TensorRTMissing and others.
    """
    from fusioner_rt.atomic_files import left_where_filled

    with left_where_filled(options.out):
        return _build(options, shown)


def _build(options: Options, shown: bool) -> list[Row]:
    from fusioner_rt.atomic_files import check_replaceable, unwritable
    from fusioner_rt.replaced_bundles import check_nothing_is_lost, holds_a_bundle
    from fusioner_rt.whole_folders import unfinished_folder

    out = Path(os.path.realpath(options.out))  # a link to a bundle stays one
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not holds_a_bundle(out)):
        raise OutputNotABundle(
            f"{options.out} holds something other than an engine bundle", "name another with --out DIR"
        )
    check_nothing_is_lost(out)
    check_replaceable(out)
    try:
        with unfinished_folder(out, warnings.warn) as unfinished:
            return _fill(unfinished, out, options, shown)
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            f"the Python package {error.name} is not installed, and building needs more than the runtime",
            INSTALL_TRAINING,
        ) from None
    except OSError as error:
        if error.filename and not Path(error.filename).absolute().is_relative_to(out.parent):
            raise InputUnreadable(
                f"cannot be read ({error.strerror})", "check the path and its permissions", subject=error.filename
            ) from None
        raise unwritable(out, error) from None


def _fill(unfinished: Path, out: Path, options: Options, shown: bool) -> list[Row]:
    """Build in a folder beside `out`, and put it there."""
    from fusioner_rt.replaced_bundles import check_nothing_is_lost
    from fusioner_rt.whole_folders import replace_folder

    with contextlib.closing(Stages(shown)) as stages:
        with stages("loading the libraries"):
            from export.build_bundle import Build

            made = Build(unfinished, options, stages)
            made.prepare()
        rows = made.run()
        unfinished.chmod(0o755)
        check_nothing_is_lost(out, unfinished)
        replace_folder(unfinished, out)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="build_engine.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=path_argument,
        help="folder with config.json and weights.safetensors (default: the demonstration model)",
    )
    add(
        "--image-weights",
        type=path_argument,
        metavar="FILE",
        help="where the image encoder's weights lie now, if not where the "
        "checkpoint says; known again by their sha256. Of an encoder pair in one file, one flag is enough",
    )
    add("--text-weights", type=path_argument, metavar="FILE_OR_FOLDER", help="likewise, the text encoder's")
    add(
        "--model",
        choices=CLIP_MODELS,
        help="instead of a checkpoint: CLIP's own patches and words, without training (docs/clip.md)",
    )
    add(
        "--weights",
        metavar="FILE",
        help="of --model: a file of CLIP's weights, a tag of open_clip's, TAG:FILE (openai:FILE where a file in float16 is "
        "OpenAI's), or random (default: OpenAI's release, from the cache of downloads)",
    )
    add("--download", action="store_true", help="fetch weights that are not on this machine")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--fp16", action="store_true", help="half precision, put into the graphs and proved")
    half.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 in the TensorRT plans of image_fusion alone, proved; the ONNX graphs stay fp32, as no CPU backend runs "
        "them in bf16",
    )
    add(
        "--small-text",
        action="store_true",
        help="the text encoder's weights in 8 bits and its table of tokens in 4: a bundle of half the size; words keep "
        "their vectors but for a cosine that is measured and bounded",
    )
    for offered_nowhere in NOT_OFFERED:
        add(f"--{offered_nowhere}", action="store_true", help=argparse.SUPPRESS)
    add("--out", type=path_argument, help="folder to write (default: engines/NAME, as in models/NAME/checkpoint)")
    add("--max-words", type=count, default=256, metavar="N", help="longest vocabulary (default: 256)")
    add(
        "--max-batch",
        type=count,
        default=8,
        metavar="N",
        help="most pictures, or independent words, at once (default: 8)",
    )
    add(
        "--sizes",
        type=_three,
        metavar="MIN,OPT,MAX",
        help="input edges in pixels: smallest, usual, longest (default: the image encoder's)",
    )
    add(
        "--backend",
        choices=("auto", "onnxruntime", "tensorrt", "tensorrt-rtx"),
        default="auto",
        help="auto: TensorRT where it is installed and a GPU is visible, else ONNX Runtime alone",
    )
    plan_arguments.add_to(parser)
    add(
        "--kernels",
        default="all",
        metavar="SM,...",
        help="GPUs to compile the kernels for: all, none, or some of them, such as sm_80,sm_90; no GPU is "
        "needed. With sm_80 comes a portable form, which a GPU newer than all of them compiles when it loads it. In the same list, kernels "
        "that no session launches: float16 (features in half precision), masks, probabilities (default: all)",
    )
    add("--pictures", type=path_argument, metavar="DIR", help="photographs the gates run on (default: docs/pictures)")
    return parser


def parse(arguments: Sequence[str] | None = None) -> Options:
    found = _parser().parse_args(arguments)
    for name in NOT_OFFERED:
        if vars(found).pop(name):
            raise UsageError(
                "8 bits need scales measured on pictures like yours, which no checkpoint brings, and "
                "gates of their own",
                "use --fp16 or --bf16",
                subject=f"--{name} is not offered",
            )
    if found.model and found.checkpoint:
        raise UsageError("a bundle is of one model", "give --model or --checkpoint", subject="--model and --checkpoint")
    if found.weights and not found.model:
        raise UsageError(
            "a checkpoint names the weights of its encoders",
            f"give --weights with --model {' or '.join(CLIP_MODELS)}",
            subject=f"--weights {found.weights}",
        )
    chosen = found.checkpoint is not None or found.model is not None
    found.checkpoint = found.checkpoint or ROOT / "models/demo/checkpoint"
    if found.out is None:
        found.out = Path("engines") / (found.model or named(found.checkpoint, "checkpoint"))
    if found.model and (found.image_weights or found.text_weights):
        raise UsageError("--image-weights and --text-weights are of a checkpoint", "give --weights", subject="--model")
    again = shlex.join(sys.argv[1:] if arguments is None else arguments)
    return Options(**vars(found), chosen=chosen, command=f"python export/build_engine.py {again}".strip())


def _three(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not MIN,OPT,MAX in pixels, such as 256,512,1024")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _note(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """What a build warns of, without a line of its source."""
    tell(f"build_engine: note: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    options: Options | None = None

    def run() -> int:
        nonlocal options
        start = time.perf_counter()
        options = parse(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _note
            rows = build(options)
        from export.summary_table import table

        precision, seconds = "fp16" if options.fp16 else "fp32", time.perf_counter() - start
        say_lines(f"\n{options.out}  ({precision}, {seconds:.0f} s)\n{table(rows)}")
        return 0

    return run_command("build_engine", run, lambda: f"{options.out if options else 'the bundle'} is as it was")


if __name__ == "__main__":
    sys.exit(main())
