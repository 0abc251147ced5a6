"""The GPU kernels in a bundle, for mask head and preprocessing: which, and whether this platform compiles them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusioner_rt.errors import FusionerError, UsageError

FOLDER = "kernels"


class KernelsNotCompiled(FusionerError):
    """Triton or its assembler gives no usable kernel."""

    exit_code = 93


def features(fp16: bool) -> tuple[str, ...]:
    """The dtypes features and words have in a bundle: an fp16 engine may give either."""
    return ("float16", "float32") if fp16 else ("float32",)


def without(asked: str) -> str | None:
    """Why no kernels can be compiled on this platform; None where they can, or where none are asked for.

    asked: as in `targets`. Raises UsageError, and ModuleNotFoundError where Triton could be installed and is not.
    """
    if asked == "none":
        return None
    if sys.platform != "linux" and importlib.util.find_spec("triton") is None:
        return f"Triton is not available on {sys.platform}; build on Linux, with or without a GPU"
    from triton import knobs

    if knobs.runtime.interpret:
        raise UsageError(
            "TRITON_INTERPRET is set: kernels imported under Triton's interpreter cannot be compiled",
            "unset it, or build with --kernels none",
        )
    targets(asked)
    return None


def targets(asked: str) -> tuple[int, ...]:
    """Compute capabilities times ten. asked: "all", "none" or "sm_80,sm_90". Raises UsageError."""
    if asked == "none":
        return ()
    from kernels.variants import TARGETS

    choices = [f"sm_{target}" for target in TARGETS]
    named = choices if asked == "all" else list(dict.fromkeys(asked.split(",")))
    for name in named:
        if name not in choices:
            raise UsageError(f"expected all, none, or some of {','.join(choices)}", subject=f"--kernels {asked}")
    return tuple(target for target in TARGETS if f"sm_{target}" in named)


def unfit(width: int) -> str | None:
    """Why a model's width d rules the kernels out: they load 16 channels at a time, and are promised it."""
    return f"the model's width {width} is not a multiple of 16, which they need" if width % 16 else None


def add(
    folder: Path, asked: str, fp16: bool, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> dict[str, Any]:
    """Compile into the bundle's `kernels/`; returns the manifest's entry.

    progress: called with how many are done and of how many. Raises KernelsNotCompiled and OSError.
    """
    from triton import knobs
    from triton.errors import TritonError

    from kernels import compile as compiler

    chosen, dtypes = targets(asked), features(fp16)
    total = len(compiler.jobs(dtypes, chosen))
    done = -1

    def step(_: str) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    out = folder / FOLDER
    try:
        compiler.write(out, dtypes, chosen, step)
    except OSError as error:
        if error.filename and Path(error.filename).absolute().is_relative_to(out.absolute()):
            raise
        raise KernelsNotCompiled(
            f"Triton could not run or keep what it compiles ({error})",
            f"it works in {knobs.cache.dir}, choose a writable folder with TRITON_CACHE_DIR, or build "
            "with --kernels none",
        ) from None
    except (RuntimeError, TritonError) as error:
        raise KernelsNotCompiled(
            f"Triton {_triton_version()} does not compile the kernels ({' '.join(str(error).split())[:300]})",
            "install the pinned one: pip install -c constraints.txt triton, or build with --kernels none",
        ) from None
    return {
        "abi": f"{FOLDER}/{compiler.RECORD}", "features": list(dtypes), "targets": [f"sm_{target}" for target in chosen],
    }  # fmt: skip


def _triton_version() -> str:
    import triton

    return str(triton.__version__)
