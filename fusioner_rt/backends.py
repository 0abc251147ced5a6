"""The ladder of backends: `auto` takes the best that really works here and keeps why each better one was passed over.

    tensorrt → tensorrt-rtx → onnxruntime-cuda → onnxruntime-cpu

A rung works when its libraries load, the machine can run them, and the bundle's engine is loaded and ready: nothing is
believed because it is installed. A backend asked for by name is that one or an error.
"""

from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle
from .errors import BackendUnavailable, FusionerError
from .executor import Executor
from .plans import of_flavour

LADDER = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
CHOICES = {"auto": LADDER, "onnxruntime": LADDER[2:]} | {name: (name,) for name in LADDER}
"""What may be asked for, and the rungs that are then tried in turn."""


@dataclass(frozen=True)
class Backend:
    """requested: what the caller named; effective: what runs; why: one sentence that leads from one to the other.

    passed_over: rungs that would have been preferred, with what kept each from being taken.
    """

    requested: str
    effective: str
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()


def check_requested(requested: str) -> None:
    """Raises BackendUnavailable for a name that is none of CHOICES."""
    if requested not in CHOICES:
        raise BackendUnavailable(f"backend {requested!r} is unknown; choose one of {', '.join(CHOICES)}")


def open_executor(
    bundle: Bundle, requested: str, threads: int | None, cache: Path | None = None
) -> tuple[Executor, Backend]:
    """The best rung of `requested` that works. cache: folder for what a backend compiles here, or None. Raises BackendUnavailable, and what the last rung raised."""
    check_requested(requested)
    rungs = CHOICES[requested]
    passed_over: list[tuple[str, str]] = []
    for name in rungs:
        try:
            executor, what = _open(bundle, name, threads, cache)
        except FusionerError as error:
            if name == rungs[-1]:
                raise
            passed_over.append((name, str(error)))
        else:
            why = "it was asked for" if len(rungs) == 1 else "it is the best that works here"
            return executor, Backend(requested, name, f"{why}: {what}", tuple(passed_over))
    raise AssertionError("a ladder has rungs")


def _open(bundle: Bundle, name: str, threads: int | None, cache: Path | None) -> tuple[Executor, str]:
    """The rung's executor and what it runs on. Raises FusionerError."""
    if name.startswith("onnxruntime"):
        from .onnxruntime_executor import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor(bundle, name, threads), f"ONNX Runtime, {name.rpartition('-')[2].upper()}"
    of_flavour(bundle, name, "image_fusion")  # before anything is imported for it
    from .tensorrt_executor import TensorRTExecutor

    executor = TensorRTExecutor(bundle, name, threads, cache)
    return executor, executor.description
