"""The GPU kernels in a bundle, for mask head and preprocessing: which, and whether this platform compiles them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusioner_rt.errors import FusionerError, UsageError
from fusioner_rt.gpu.kernel_contract import EXTRAS

FOLDER = "kernels"


class KernelsNotCompiled(FusionerError):
    """Triton or its assembler gives no usable kernel."""

    exit_code = 93
    is_input = False


@dataclass(frozen=True)
class Choice:
    """What `--kernels` asks for. targets: compute capabilities times ten. extras: names of `kernel_contract.EXTRAS`."""

    targets: tuple[int, ...]
    extras: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The dtypes of features that the kernels take. Engines give float32."""
        return ("float16", "float32") if "float16" in self.extras else ("float32",)


def without(asked: str) -> str | None:
    """Why no kernels can be compiled on this platform; None where they can, or where none are asked for.

    asked: as in `choice`. Raises UsageError, and ModuleNotFoundError where Triton could be installed and is not.
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
    choice(asked)
    return None


def choice(asked: str) -> Choice:
    """asked: "none", or GPUs and extras in one list: "all", "sm_80,sm_90", "all,float16", "sm_80,masks". A list without
    a GPU is for all of them. Raises UsageError.
    """
    if asked == "none":
        return Choice(())
    from kernels.variants import TARGETS

    gpus = {f"sm_{target}": target for target in TARGETS}
    named = set(asked.split(","))
    if not named <= {"all", *gpus, *EXTRAS}:
        raise UsageError(
            f"expected all, none, or some of {','.join(gpus)}, and beside them any of {','.join(EXTRAS)}",
            "name some of these with commas between them, such as --kernels sm_80,sm_90",
            subject=f"--kernels {asked!r}",
        )
    some = () if "all" in named else tuple(target for name, target in gpus.items() if name in named)
    return Choice(some or TARGETS, tuple(extra for extra in EXTRAS if extra in named))


def unfit(width: int) -> str | None:
    """Why a model's width rules the kernels out: they load 16 channels at a time. width: of all that is compared."""
    return f"the model's width {width} is not a multiple of 16, which they need" if width % 16 else None


def add(
    folder: Path,
    asked: str,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    scoring: str = "sigmoid",
) -> dict[str, Any]:
    """Compile into the bundle's `kernels/`; returns the manifest's entry.

    scoring: the bundle's. progress: called with how many are done and of how many. Raises KernelsNotCompiled and OSError.
    """
    from triton import knobs
    from triton.errors import TritonError

    from kernels import compile as compiler
    from kernels import variants

    chosen = choice(asked)
    kernels = variants.shipped(chosen.extras, scoring)
    total = len(compiler.jobs(kernels, chosen.targets))
    done = -1

    def step(_: str) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    out = folder / FOLDER
    try:
        compiler.write(out, kernels, chosen.targets, step)
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
        "abi": f"{FOLDER}/{compiler.RECORD}", "features": list(chosen.features),
        "targets": [f"sm_{target}" for target in chosen.targets],
    }  # fmt: skip


def _triton_version() -> str:
    import triton

    return str(triton.__version__)
