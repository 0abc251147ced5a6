"""The ladder of backends: `auto` takes the first that works and records why each better one does not.

    tensorrt → tensorrt-rtx → onnxruntime-cuda → onnxruntime-cpu

A backend works when its libraries load and the bundle's engine has run here. A backend that is requested by name never
falls back to another.
"""

from dataclasses import dataclass
from pathlib import Path

from .argument_checks import shown
from .bundle import Bundle
from .errors import BackendUnknown, FusionerError, one_line
from .executor_interface import Executor
from .memory_shortage import is_shortage
from .open_backend import open_rung

LADDER = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
CHOICES = {"auto": LADDER, "onnxruntime": LADDER[2:]} | {name: (name,) for name in LADDER}
"""Accepted names, and the rungs that each tries in order."""


@dataclass(frozen=True)
class Backend:
    """requested: the name given. effective: the backend that runs. why: one sentence on the choice.

    passed_over: better backends that do not work here, each with its error and cure.
    note: a warning where a better backend was expected, or None. One is expected where the bundle has plans for it and
    there is an NVIDIA GPU, or where onnxruntime-gpu is installed.
    unproved: why the backend was not compared with the bundle's known answer, or None.
    """

    requested: str
    effective: str
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()
    note: str | None = None
    unproved: str | None = None


def check_requested(requested: str) -> None:
    """Raises BackendUnknown for a name outside CHOICES."""
    if not isinstance(requested, str) or requested not in CHOICES:
        raise BackendUnknown(f"backend {shown(requested)} is unknown", f"choose one of {', '.join(CHOICES)}")


def open_executor(
    bundle: Bundle, requested: str, threads: int | None, cache: Path | None = None
) -> tuple[Executor, Backend]:
    """Open the best rung of `requested` that works. cache: folder for compiled kernels, or None.

    Raises BackendUnknown, or the error of the last rung with the expected better rungs added to its cure.
    """
    check_requested(requested)
    rungs = CHOICES[requested]
    passed_over: list[tuple[str, str]] = []
    for name in rungs:
        try:
            executor, description, unproved = open_rung(bundle, name, threads, cache)
        except FusionerError as error:
            if name != rungs[-1]:
                passed_over.append((name, str(error.without(f"backend {name}"))))
                continue
            if expected := _expected(bundle, passed_over):
                better = f"better backends: {_listed(expected)}"
                cure = (
                    f"{error.cure}; {better}" if error.cure else better
                )  # no cure of a backend is spelled in two ways
                raise type(error)(error.found, cure, error.subject) from None
            raise
        except Exception as error:  # an unforeseen error of a library also rules the rung out
            if name == rungs[-1] or is_shortage(error):
                raise
            passed_over.append((name, f"{type(error).__name__}: {one_line(error)}; please report this"))
            continue
        why = "it was asked for" if len(rungs) == 1 else "it is the best that works here"
        note = None
        if expected := _expected(bundle, passed_over):
            note = f"{name} runs, not a better backend; {_listed(expected)}"
        elif requested == "auto" and name == LADDER[-1] and _gpu_is_offered():
            note = f"{name} runs, the NVIDIA GPU of this machine does nothing; ask fusioner-rt doctor what it takes"
        return executor, Backend(requested, name, f"{why}: {description}", tuple(passed_over), note, unproved)
    raise AssertionError("the ladder is empty")


def _expected(bundle: Bundle, passed_over: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The passed-over rungs that this machine and this bundle are prepared for."""
    if not passed_over:
        return []
    from .onnx.runtime import built_with_cuda

    prepared = {plan.flavour for plan in bundle.plans} if _gpu_is_offered() else set()
    if built_with_cuda():
        prepared.add("onnxruntime-cuda")
    return [(name, reason) for name, reason in passed_over if name in prepared]


def _gpu_is_offered() -> bool:
    from .hardware import all_hidden, gpu_is_there

    return gpu_is_there() and not all_hidden()


def _listed(reasons: list[tuple[str, str]]) -> str:
    return " | ".join(f"{name}: {reason}" for name, reason in reasons)
