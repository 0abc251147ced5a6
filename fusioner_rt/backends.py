"""The ladder of backends: `auto` takes the best that really works here and keeps why each better one was passed over.

    tensorrt → tensorrt-rtx → onnxruntime-cuda → onnxruntime-cpu

A rung works when its libraries load, the machine can run them, and the bundle's engine is loaded and ready: nothing is
believed because it is installed. A backend asked for by name is that one or an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import known_answer
from .bundle import Bundle, rebuild
from .errors import BackendUnavailable, FusionerError, GraphUnusable, SizeOutsideProfile, one_line
from .executor import Executor, RecordingExecutor, Request, Waiting, untimed
from .plans import of_flavour

LADDER = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
CHOICES = {"auto": LADDER, "onnxruntime": LADDER[2:]} | {name: (name,) for name in LADDER}
"""What may be asked for, and the rungs that are then tried in turn."""


@dataclass(frozen=True)
class Backend:
    """requested: what the caller named; effective: what runs; why: one sentence that leads from one to the other.

    passed_over: rungs that would have been preferred, with what kept each from being taken and what cures it.
    note: a sentence for the user where one of them was to be expected here, or None: the bundle has plans for it and
    there is an NVIDIA GPU, or the GPU's ONNX Runtime was installed.
    unproved: why it was not compared with the bundle's known answer, or None.
    """

    requested: str
    effective: str
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()
    note: str | None = None
    unproved: str | None = None


def check_requested(requested: str) -> None:
    """Raises BackendUnavailable for a name that is none of CHOICES."""
    if requested not in CHOICES:
        raise BackendUnavailable(f"backend {requested!r} is unknown", f"choose one of {', '.join(CHOICES)}")


def open_executor(
    bundle: Bundle, requested: str, threads: int | None, cache: Path | None = None
) -> tuple[Executor, Backend]:
    """The best rung of `requested` that works. cache: folder for what a backend compiles here, or None.

    Raises BackendUnavailable, and what the last rung raised, with what was to be expected of better ones.
    """
    check_requested(requested)
    rungs = CHOICES[requested]
    passed_over: list[tuple[str, str]] = []
    for name in rungs:
        try:
            executor, what, unproved = open_rung(bundle, name, threads, cache)
        except FusionerError as error:
            if name != rungs[-1]:
                passed_over.append((name, str(error.without(f"backend {name}"))))
                continue
            if expected := _expected(bundle, passed_over):
                better = f"better backends: {_listed(expected)}"
                cure = f"{error.cure}; {better}" if error.cure else better
                raise type(error)(error.found, cure, error.subject) from None
            raise
        except Exception as error:  # a library that fails in a way nobody foresaw is a rung that does not work
            if name == rungs[-1]:
                raise
            passed_over.append((name, f"{type(error).__name__}: {one_line(error)}; please report this"))
            continue
        why = "it was asked for" if len(rungs) == 1 else "it is the best that works here"
        note = None
        if expected := _expected(bundle, passed_over):
            note = f"{name} runs, not a better backend; {_listed(expected)}"
        elif requested == "auto" and name == LADDER[-1] and _gpu_is_offered():
            note = f"{name} runs, the NVIDIA GPU of this machine does nothing; ask fusioner-rt doctor what it takes"
        return executor, Backend(requested, name, f"{why}: {what}", tuple(passed_over), note, unproved)
    raise AssertionError("a ladder has rungs")


def open_rung(
    bundle: Bundle, name: str, threads: int | None, cache: Path | None = None
) -> tuple[Executor, str, str | None]:
    """The executor of one rung of LADDER, ready to run; what it runs on; and why it was not compared with the bundle's
    known answer, if it was not. Raises what keeps it from running, and AnswerWrong.
    """
    if name == "onnxruntime-cpu":
        from .onnx.executor import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor(bundle, name, threads), "ONNX Runtime, CPU", None
    executor: Executor
    if name == "onnxruntime-cuda":
        from .gpu.onnx_engine import open_graphs

        executor, what = open_graphs(bundle, threads)
    else:
        of_flavour(bundle, name, "image_fusion")  # before anything is imported for it
        from .tensorrt.opening import open_plans

        executor, what = open_plans(bundle, name, threads, cache)
    return executor, what, _prove(bundle, name, executor)


def _prove(bundle: Bundle, name: str, executor: Executor) -> str | None:
    """Run the pictures of the known answer and compare: that a backend loads does not say that it has kernels for this GPU,
    or memory, or that they compute what they should. Where there is no answer, or the plan's profiles do not hold it,
    made pictures are run, and a sentence returned that says so.

    Raises AnswerWrong and what the pictures raised, the executor closed.
    """
    try:
        answer = known_answer.read(bundle)
        why = "" if answer else f"the bundle is of an earlier version; {rebuild(bundle.folder)}"
        if answer:
            try:
                _run(executor, answer.waiting(executor), answer.request)
                known_answer.compare(bundle, answer, executor, name)
            except SizeOutsideProfile as error:
                why = str(error)
        if why:
            _run(executor, *_made(bundle, executor))
        if isinstance(executor, RecordingExecutor):
            executor.forget()
        return f"{name} was not compared with a known answer: {why}" if why else None
    except GraphUnusable as error:  # which says to rebuild the graph, and here the machine may be to blame
        executor.close()
        raise BackendUnavailable(
            f"a first picture failed ({one_line(error)})", "choose another backend", subject=f"backend {name}"
        ) from None
    except BaseException:
        executor.close()
        raise


def _made(bundle: Bundle, executor: Executor) -> tuple[list[Waiting], Request]:
    """Two pictures of noise and one word."""
    side, channels = bundle.size.opt, bundle.manifest["graphs"]["image_fusion"]["inputs"]["words"][1][-1]
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = [Waiting(executor.prepare(rgb, (side, side)), (side, side), (side, side)) for rgb in noise]
    return pictures, Request(np.full((1, channels), channels**-0.5, np.float32), 0.5, "joint", False)


def _run(executor: Executor, pictures: Sequence[Waiting], request: Request) -> None:
    """One picture, or two where there is a recording to be held against its steps."""
    if isinstance(executor, RecordingExecutor):
        executor.prove_recording(pictures[:2], request)
    else:
        executor.run(pictures[:1], request, untimed)


def _expected(bundle: Bundle, passed_over: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the rungs passed over that someone has prepared this machine and this bundle for."""
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
