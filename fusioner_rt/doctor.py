"""What `fusioner-rt doctor` tells: what is here, which backends work, and what each of the others lacks.

Every part is asked for by itself, so that one that fails hides nothing of the rest; a backend said to work was opened.
"""

import contextlib
import os
import platform
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, TypeVar

from . import __version__, plans
from . import hardware as nvidia
from .backends import LADDER, open_rung
from .bundle import Bundle, find_bundle
from .errors import BackendUnavailable, FusionerError, UsageError, one_line
from .gpu.driver import Device, Driver
from .words.cache import default_folder

_T = TypeVar("_T")
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "cuda-core")
_CUDA_VERSIONS = ("", "-cu13", "-cu12")  # TensorRT's packages may be installed for one alone
_LEFT, _WIDTH = 20, 118  # columns of a name and of a line


@dataclass(frozen=True)
class Gpu:
    """One that this process sees, by its place."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        memory = f"{self.free_bytes / 2**30:.1f} of {self.total_bytes / 2**30:.1f} GiB free"
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}, {memory}"


@dataclass(frozen=True)
class NvidiaDriver:
    """version: of the driver, cuda: the newest CUDA it serves, each where it can be told. problem: or None."""

    version: str | None
    cuda: str | None
    problem: FusionerError | None

    def __str__(self) -> str:
        serves = f"serves CUDA up to {self.cuda}" if self.cuda else None
        return ", ".join(part for part in (self.version, serves, self.problem and self.problem.what) if part)


@dataclass(frozen=True)
class Rung:
    """One backend. what: it runs on; lacks: what keeps it from running, each with its cure. One of the two is empty.

    exit_code: what a command that asks for this backend ends with; 0 where it works.
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
    """packages: versions by name, None for those that are not installed. problem: why there is no bundle, or None.

    rungs: the ladder, best first. warnings: what else is wrong, with its cure.
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
        """What a session that names no backend runs on."""
        return next((rung.name for rung in self.rungs if rung.works), None)

    @property
    def exit_code(self) -> int:
        """0 where a backend works, else that of the last one's error."""
        return 0 if self.auto else self.rungs[-1].exit_code

    @property
    def warnings(self) -> list[FusionerError]:
        found: list[FusionerError] = []
        if self.packages["onnxruntime"] and self.packages["onnxruntime-gpu"]:
            found.append(
                UsageError(
                    "onnxruntime and onnxruntime-gpu are both installed: they share a folder and break each other",
                    "keep one: pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
                )
            )
        if self.gpus and self.auto == LADDER[-1]:
            found.append(UsageError("the GPU does nothing", "cure one of the backends above onnxruntime-cpu"))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": {
                "system": self.system,
                "fusioner-rt": __version__,
                "driver": {**asdict(self.driver), "problem": _said(self.driver.problem)},
            },
            "gpus": [{**asdict(gpu), "capability": ".".join(map(str, gpu.capability))} for gpu in self.gpus],
            "packages": self.packages,
            "bundle": _described(self.bundle)
            if self.bundle
            else {"problem": _said(self.problem), "exit_code": self.problem.exit_code if self.problem else 1},
            "backends": [rung.to_json() for rung in self.rungs],
            "auto": self.auto,
            "warnings": [str(warning) for warning in self.warnings],
        }


def examine(named: str | os.PathLike[str] | None = None) -> Findings:
    """Look at machine, packages and bundle, and try every backend. named: the bundle's folder; by default it is looked
    for as a session does. What is wrong is told, not raised.
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
    bundle, no_bundle = _attempt(lambda: Bundle.open(find_bundle(named)))
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
    """One screen for a person."""
    lines = [f"fusioner-rt {__version__}"]

    def say(name: str, text: object, mark: str = " ", cure: str = "") -> None:
        """The cure gets a line of its own, unbroken, to be copied."""
        start, empty = f"{mark if name else ' '} {name:<{_LEFT - 3}} ", " " * _LEFT
        lines.extend(
            textwrap.wrap(
                str(text), _WIDTH, initial_indent=start, subsequent_indent=empty, break_long_words=False,
                break_on_hyphens=False,
            )
        )  # fmt: skip
        if cure:
            lines.append(f"{empty}→ {cure}")

    lines.append("machine")
    say("system", findings.system)
    driver = findings.driver
    say("NVIDIA driver", driver, *(("✗", driver.problem.cure) if driver.problem else ()))
    for ordinal, gpu in enumerate(findings.gpus):
        say(f"GPU {ordinal}", gpu)
    lines.append("packages")
    for package, version in findings.packages.items():
        say(package, version or "not installed")
    lines.append("bundle")
    if bundle := findings.bundle:
        say("folder", bundle.folder)
        say("precision", bundle.precision)
        say("GPU kernels", ", ".join(_kernels(bundle)) or "none")
        for index, plan in enumerate(bundle.plans or ("none",)):
            say("" if index else "plans", plan)
    elif findings.problem:
        say("none to run", findings.problem.what, "✗", findings.problem.cure)
    lines.append("backends, best first")
    told = {driver.problem: "no GPU to run on, see above", findings.problem: "no bundle to run, see above"}
    for rung in findings.rungs:
        if rung.works:
            say(rung.name, f"works: {rung.what}", "✓")
        for index, lack in enumerate(rung.lacks):
            what, cure = (told[lack], "") if lack in told else (lack.what, lack.cure)
            say("" if index else rung.name, what, "✗", cure)
    for warning in findings.warnings:
        say("warning", warning.what, "!", warning.cure)
    lines.append(
        f"backend=auto runs {findings.auto}"
        if findings.auto
        else f"no backend works; {LADDER[-1]} takes least to be cured"
    )
    return "\n".join(lines)


def _examine(
    name: str, bundle: Bundle | None, no_bundle: FusionerError | None, gpus: list[Gpu], no_gpu: list[FusionerError]
) -> Rung:
    """All that a rung lacks, in the order a session meets it; one that lacks nothing is opened. no_gpu: why there is none."""
    lacks: list[FusionerError] = []

    def need(call: Callable[[], _T]) -> _T | None:
        value, error = _attempt(call)
        if error is not None:
            lacks.append(error)
        return value

    if name in plans.FLAVOURS:
        from .gpu.executor import kernels_folder
        from .tensorrt import versions as tensorrt_library

        held = bundle and need(lambda: plans.of_flavour(bundle, name, "image_fusion"))
        if bundle:
            need(lambda: kernels_folder(bundle))
        module = need(lambda: tensorrt_library.load(name))
        lacks += no_gpu
        if bundle and held and module and gpus:
            version, gpu = str(module.__version__), f"GPU 0 ({gpus[0].name})"
            need(lambda: plans.choose(bundle, name, "image_fusion", version, gpus[0].capability, gpu))
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
    said = tuple(lack.without(f"backend {name}") for lack in lacks)
    return Rung(name, not lacks, what, said, lacks[0].exit_code if lacks else 0)


def _said(error: FusionerError | None) -> str | None:
    return None if error is None else str(error)


def _attempt(call: Callable[[], _T]) -> tuple[_T | None, FusionerError | None]:
    """What it returns, or what is wrong."""
    try:
        return call(), None
    except FusionerError as error:
        return None, error
    except Exception as error:  # a broken installation may raise anything, and it is what the doctor is asked about
        return None, BackendUnavailable(
            f"{one_line(error)}", "reinstall what it comes from", subject=type(error).__name__
        )


def _without_driver() -> BackendUnavailable | None:
    """What to do where there is no driver at all."""
    missing = nvidia.driver_missing()
    if missing is None:
        return None
    if nvidia.gpu_is_there():
        return BackendUnavailable(f"an NVIDIA GPU is here and its driver is not ({missing})", "install the driver")
    return BackendUnavailable(f"no NVIDIA GPU is here, nor a driver ({missing})", "use a machine that has both")


def _bindings() -> None:
    import cuda.bindings.driver  # noqa: F401


def _driver(driver: Driver | None, problem: FusionerError | None) -> NvidiaDriver:
    version, cuda = nvidia.driver_version(), None
    if driver is not None:
        number, _ = _attempt(driver.cuDriverGetVersion)
        cuda = None if number is None else f"{number // 1000}.{number % 1000 // 10}"
    return NvidiaDriver(version, cuda, problem)


def _gpus(driver: Driver) -> tuple[list[Gpu], FusionerError | None]:
    """Every GPU that this process sees; and what is wrong where it sees none or one of them fails."""
    count, error = _attempt(driver.cuDeviceGetCount)
    if error is None and not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        cure = "look at nvidia-smi" if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}, unset it"
        error = BackendUnavailable("this process sees no GPU", cure)
    found: list[Gpu] = []
    for ordinal in range(count or 0):
        gpu, error = _attempt(lambda: _gpu(driver, ordinal))  # noqa: B023, called at once
        if gpu is None:
            break
        found.append(gpu)
    return found, error


def _gpu(driver: Driver, ordinal: int) -> Gpu:
    with contextlib.closing(Device(ordinal, driver)) as device, device.current():
        free, total = (int(number) for number in driver.cuMemGetInfo())
        return Gpu(device.name, (device.capability[0], device.capability[1]), free, total)


def _version(package: str) -> str | None:
    for name in (package + ending for ending in (_CUDA_VERSIONS if package in plans.FLAVOURS else ("",))):
        with contextlib.suppress(Exception):  # not installed, or its record is damaged
            return metadata.version(name)
    return None


def _kernels(bundle: Bundle) -> Iterator[str]:
    yield from bundle.manifest.get("kernels", {}).get("targets", ())


def _described(bundle: Bundle) -> dict[str, Any]:
    return {
        "folder": str(bundle.folder),
        "name": bundle.name,
        "precision": bundle.precision,
        "kernels": list(_kernels(bundle)),
        "plans": [plan.to_json() for plan in bundle.plans],
    }
