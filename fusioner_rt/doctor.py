"""The findings of `fusioner-rt doctor`: the machine, the backends that work, and what each other backend lacks.

Each part is examined by itself, so that a failure hides nothing else. A backend works if it could be opened.
"""

import contextlib
import os
import platform
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, TypeVar

from . import __version__, hardware
from .bundle import Bundle, find_bundle
from .errors import BackendUnavailable, FusionerError, UsageError, one_line
from .gpu.driver import Device, Driver
from .ladder import LADDER
from .memory_shortage import OF_A_SESSION, is_shortage, memory_short
from .open_backend import open_rung
from .plans import FLAVOURS
from .printable_text import printable
from .words.cache import default_folder

_T = TypeVar("_T")
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "cuda-core")
_CUDA_SUFFIXES = ("", "-cu13", "-cu12")  # of TensorRT's package for one version of CUDA
_NAME_WIDTH, _LINE_WIDTH = 20, 118  # characters


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process sees."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        memory = f"{self.free_bytes / 2**30:.1f} of {self.total_bytes / 2**30:.1f} GiB free"
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}, {memory}"


@dataclass(frozen=True)
class NvidiaDriver:
    """version: of the driver, or None. cuda: the newest CUDA it supports, or None. problem: why it does not work, or None."""

    version: str | None
    cuda: str | None
    problem: FusionerError | None

    def __str__(self) -> str:
        support = f"serves CUDA up to {self.cuda}" if self.cuda else None
        return ", ".join(part for part in (self.version, support, self.problem and self.problem.what) if part)


@dataclass(frozen=True)
class Rung:
    """One backend. what: description of the open backend, or "". lacks: what it lacks, each with its cure.

    exit_code: of a command with this backend; 0 where it works.
    """

    name: str
    works: bool
    what: str
    lacks: tuple[FusionerError, ...]
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "works": self.works, "what": self.what, "lacks": [str(lack) for lack in self.lacks],
            "exit_code": self.exit_code,
        }  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """packages: versions by name, None if not installed. problem: why there is no bundle, or None.

    rungs: the ladder, best first. warnings: other problems, with their cures.
    """

    system: str
    driver: NvidiaDriver
    gpus: list[Gpu]
    packages: dict[str, str | None]
    bundle: Bundle | None
    problem: FusionerError | None
    rungs: list[Rung]

    @property
    def auto(self) -> str | None:
        """The backend of a session with backend=auto."""
        return next((rung.name for rung in self.rungs if rung.works), None)

    @property
    def exit_code(self) -> int:
        """0 where a backend works, else that of the last one."""
        return 0 if self.auto else self.rungs[-1].exit_code

    @property
    def warnings(self) -> list[FusionerError]:
        warnings: list[FusionerError] = []
        if self.packages["onnxruntime"] and self.packages["onnxruntime-gpu"]:
            warnings.append(
                UsageError(
                    "onnxruntime and onnxruntime-gpu are both installed: they share a folder and break each other",
                    "keep one: pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
                )
            )
        if self.gpus and self.auto == LADDER[-1]:
            warnings.append(UsageError("the GPU does nothing", "cure one of the backends above onnxruntime-cpu"))
        return warnings

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": {
                "system": self.system,
                "fusioner-rt": __version__,
                "driver": {**asdict(self.driver), "problem": _text(self.driver.problem)},
            },
            "gpus": [{**asdict(gpu), "capability": ".".join(map(str, gpu.capability))} for gpu in self.gpus],
            "packages": self.packages,
            "bundle": _described(self.bundle)
            if self.bundle
            else {"problem": _text(self.problem), "exit_code": self.problem.exit_code if self.problem else 1},
            "backends": [rung.to_json() for rung in self.rungs],
            "auto": self.auto,
            "warnings": [str(warning) for warning in self.warnings],
        }


def examine(folder: str | os.PathLike[str] | None = None) -> Findings:
    """Examine machine, packages and bundle, and try every backend. Errors are findings and are not raised.

    folder: the bundle's, by default that of `find_bundle`.
    """
    driver, problem = _attempt(Driver)
    gpus: list[Gpu] = []
    lacks: list[FusionerError] = []
    if driver is not None:
        gpus, problem = _gpus(driver)
    else:
        if _attempt(_bindings)[1]:
            lacks += [problem] if problem else []
        problem = _without_driver() or problem
    if problem and not gpus and problem not in lacks:
        lacks.append(problem)
    bundle, no_bundle = _attempt(lambda: Bundle.open(find_bundle(folder)))
    return Findings(
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        driver=_driver(driver, problem),
        gpus=gpus,
        packages={name: _version(name) for name in _PACKAGES},
        bundle=bundle,
        problem=no_bundle,
        rungs=[_examine(name, bundle, no_bundle, gpus, lacks) for name in LADDER],
    )


def report(findings: Findings) -> str:
    """The findings as text for a terminal."""
    lines = [f"fusioner-rt {__version__}"]

    def add(name: str, text: object, mark: str = " ", cure: str = "") -> None:
        """Append wrapped lines; the cure is one unbroken line, to be copied."""
        start, empty = f"{mark if name else ' '} {name:<{_NAME_WIDTH - 3}} ", " " * _NAME_WIDTH
        lines.extend(
            textwrap.wrap(
                printable(str(text)), _LINE_WIDTH, initial_indent=start, subsequent_indent=empty, break_long_words=False,
                break_on_hyphens=False,
            )
        )  # fmt: skip
        if cure:
            lines.append(f"{empty}→ {printable(cure)}")

    lines.append("machine")
    add("system", findings.system)
    driver = findings.driver
    add("NVIDIA driver", driver, *(("✗", driver.problem.cure) if driver.problem else ()))
    for ordinal, gpu in enumerate(findings.gpus):
        add(f"GPU {ordinal}", gpu)
    lines.append("packages")
    for package, version in findings.packages.items():
        add(package, version or "not installed")
    lines.append("bundle")
    if bundle := findings.bundle:
        add("folder", bundle.folder)
        add("precision", bundle.precision)
        add("GPU kernels", ", ".join(_kernels(bundle)) or "none")
        for index, plan in enumerate(bundle.plans or ("none",)):
            add("" if index else "plans", plan)
    elif findings.problem:
        add("none to run", findings.problem.what, "✗", findings.problem.cure)
    lines.append("backends, best first")
    shown = {driver.problem: "no GPU to run on, see above", findings.problem: "no bundle to run, see above"}
    for rung in findings.rungs:
        if rung.works:
            add(rung.name, f"works: {rung.what}", "✓")
        for index, lack in enumerate(rung.lacks):
            what, cure = (shown[lack], "") if lack in shown else (lack.what, lack.cure)
            add("" if index else rung.name, what, "✗", cure)
    for warning in findings.warnings:
        add("warning", warning.what, "!", warning.cure)
    lines.append(
        f"--backend auto runs {findings.auto}"
        if findings.auto
        else f"no backend works; {LADDER[-1]} takes least to be cured"
    )
    return "\n".join(lines)


def _examine(
    name: str, bundle: Bundle | None, no_bundle: FusionerError | None, gpus: list[Gpu], no_gpu: list[FusionerError]
) -> Rung:
    """Collect what a rung lacks, in the order a session finds it, and open a rung that lacks nothing. no_gpu: why there is no
    GPU.
    """
    lacks: list[FusionerError] = []

    def need(call: Callable[[], _T]) -> _T | None:
        value, error = _attempt(call)
        if error is not None:
            lacks.append(error)
        return value

    if name in FLAVOURS:
        from .tensorrt import preflight, versions

        plans = bundle and need(lambda: preflight.of_flavour(bundle, name, "image_fusion"))
        if bundle:
            need(lambda: bundle.kernels_folder)
        module = need(lambda: versions.load(name))
        lacks += no_gpu
        if bundle and plans and module and gpus:
            version, gpu = str(module.__version__), f"GPU 0 ({gpus[0].name})"
            need(lambda: preflight.choose(bundle, name, "image_fusion", version, gpus[0].capability, gpu))
    else:
        from .onnx.runtime import OnnxRuntime

        need(lambda: OnnxRuntime(name))
    if no_bundle is not None:
        lacks.append(no_bundle)
    what = ""
    if bundle and not lacks and (opened := need(lambda: open_rung(bundle, name, None, default_folder()))):
        executor, what, unproved = opened
        what += f"; {unproved}" if unproved else ""
        _attempt(executor.close)
    shown = tuple(lack.without(f"backend {name}") for lack in lacks)
    return Rung(name, not lacks, what, shown, lacks[0].exit_code if lacks else 0)


def _text(error: FusionerError | None) -> str | None:
    return None if error is None else str(error)


def _attempt(call: Callable[[], _T]) -> tuple[_T | None, FusionerError | None]:
    """The result of the call and None, or None and its error."""
    try:
        return call(), None
    except FusionerError as error:
        return None, error.as_command()  # without the traceback, which keeps alive what failed
    except Exception as error:  # a broken installation raises anything
        if is_shortage(error):
            return None, memory_short(error, OF_A_SESSION).as_command()
        return None, BackendUnavailable(one_line(error), "reinstall what it comes from", subject=type(error).__name__)


def _without_driver() -> BackendUnavailable | None:
    """The error of a missing driver, or None."""
    missing = hardware.driver_missing()
    if missing is None:
        return None
    if hardware.gpu_is_there():
        return BackendUnavailable(f"an NVIDIA GPU is here and its driver is not ({missing})", "install the driver")
    return BackendUnavailable(f"no NVIDIA GPU is here, nor a driver ({missing})", "use a machine that has both")


def _bindings() -> None:
    import cuda.bindings.driver  # noqa: F401


def _driver(driver: Driver | None, problem: FusionerError | None) -> NvidiaDriver:
    version, cuda = hardware.driver_version(), None
    if driver is not None:
        number, _ = _attempt(driver.cuDriverGetVersion)
        cuda = None if number is None else f"{number // 1000}.{number % 1000 // 10}"
    return NvidiaDriver(version, cuda, problem)


def _gpus(driver: Driver) -> tuple[list[Gpu], FusionerError | None]:
    """The GPUs that this process sees, and an error where there is none or one fails."""
    count, error = _attempt(driver.cuDeviceGetCount)
    if error is None and not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        cure = "look at nvidia-smi" if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}, unset it"
        error = BackendUnavailable("this process sees no GPU", cure)
    gpus: list[Gpu] = []
    for ordinal in range(count or 0):
        gpu, error = _attempt(lambda: _gpu(driver, ordinal))  # noqa: B023, called at once
        if gpu is None:
            break
        gpus.append(gpu)
    return gpus, error


def _gpu(driver: Driver, ordinal: int) -> Gpu:
    with contextlib.closing(Device(ordinal, driver)) as device, device.current():
        free, total = (int(number) for number in driver.cuMemGetInfo())
        return Gpu(device.name, (device.capability[0], device.capability[1]), free, total)


def _version(package: str) -> str | None:
    for name in (package + suffix for suffix in (_CUDA_SUFFIXES if package in FLAVOURS else ("",))):
        with contextlib.suppress(Exception):  # not installed, or its record is damaged
            return metadata.version(name)
    return None


def _kernels(bundle: Bundle) -> tuple[str, ...]:
    return bundle.kernels.targets if bundle.kernels else ()


def _described(bundle: Bundle) -> dict[str, Any]:
    return {
        "folder": str(bundle.folder),
        "name": bundle.name,
        "precision": bundle.precision,
        "kernels": list(_kernels(bundle)),
        "plans": [plan.to_json() for plan in bundle.plans],
    }
