"""The TensorRT plans of a bundle, and which of them this machine can load: told before anything is loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PlanForAnotherGpu, PlanForAnotherVersion, PlanMissing

if TYPE_CHECKING:
    from .bundle import Bundle

FLAVOURS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""What the flavours are called in a sentence."""
LISTED = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""The compute capabilities that TensorRT-RTX 1.7 lists. On others it is asked all the same: it may have code for them."""
_PORTABLE = (8, 0)  # from here on a build without --for serves every GPU
_CAPABILITY = re.compile(r"[0-9]+\.[0-9]+\+?")


@dataclass(frozen=True)
class Plan:
    """One entry of a manifest's `engines` (docs/bundle.md).

    capability: "8.9", that one alone, or "8.0+", that one and later. version: that built it, and alone loads it unless
    version_compatible: then later ones of the same major version do too.
    """

    file: Path
    graph: str
    flavour: str
    version: str
    capability: str
    version_compatible: bool

    def runs_on(self, capability: Sequence[int]) -> bool:
        least = tuple(int(part) for part in self.capability.removesuffix("+").split("."))
        return tuple(capability) >= least if self.capability.endswith("+") else tuple(capability) == least

    @property
    def gpus(self) -> str:
        """Which GPUs run it, in words: "8.9", or "8.0 and later"; of TensorRT-RTX those of the later that it lists."""
        later = [one for one in LISTED if self.flavour == "tensorrt-rtx" and self.runs_on(_numbers(one))]
        return ", ".join(later) if later else self.capability.replace("+", " and later")

    def to_json(self) -> dict[str, Any]:
        """What a person is told of it."""
        return {
            "file": self.file.name,
            "graph": self.graph,
            "flavour": self.flavour,
            "version": self.version,
            "compute_capability": self.capability,
        }

    def __str__(self) -> str:
        return f"{self.file.name}, {FLAVOURS.get(self.flavour, self.flavour)} {self.version}, for {self.gpus}"

    def loads_with(self, version: str) -> bool:
        ours, theirs = _numbers(self.version), _numbers(version)
        if not self.version_compatible:
            return ours == theirs
        return ours[:1] == theirs[:1] and theirs >= ours


def read_plans(folder: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[Plan, ...]:
    """A manifest's `engines`. Raises KeyError, TypeError, ValueError for malformed ones."""
    plans = []
    for entry in entries:
        plan = Plan(
            folder / str(entry["file"]), str(entry["graph"]), str(entry["flavour"]), str(entry["version"]),
            str(entry["compute_capability"]), bool(entry.get("version_compatible", False)),
        )  # fmt: skip
        if not _CAPABILITY.fullmatch(plan.capability):
            raise ValueError(f"{plan.capability!r} is no compute capability")
        plans.append(plan)
    return tuple(plans)


def choose(bundle: "Bundle", flavour: str, graph: str, version: str, capability: Sequence[int], gpu: str) -> Plan:
    """The plan of a graph that the installed TensorRT loads on a GPU; one for its very capability before a portable one.

    version: installed. capability: (major, minor) of the GPU. gpu: its name, for messages. Raises PlanMissing,
    PlanForAnotherGpu, PlanForAnotherVersion.
    """
    plans = of_flavour(bundle, flavour, graph)
    name = FLAVOURS[flavour]
    here = [plan for plan in plans if plan.runs_on(capability)]
    if not here:
        built = ", ".join(sorted({plan.gpus for plan in plans}))
        raise PlanForAnotherGpu(
            f"its {name} plans of {graph} were built for compute capability {built}, and {gpu} has "
            f"{capability[0]}.{capability[1]}",
            for_this_gpu(bundle, flavour, capability),
            subject=bundle.folder,
        )
    loaded = [plan for plan in here if plan.loads_with(version)]
    if not loaded:
        newest = max(here, key=lambda plan: _numbers(plan.version))
        built = ", ".join(sorted({plan.version for plan in here}, key=_numbers))
        raise PlanForAnotherVersion(
            f"its {name} plans of {graph} were built with version {built}, and {version} is installed",
            f"install theirs (pip install {flavour}=={newest.version}), or build plans with yours: "
            f"{bundle.plans_command(flavour)}",
            subject=bundle.folder,
        )
    return max(loaded, key=_preference)


def of_flavour(bundle: "Bundle", flavour: str, graph: str) -> list[Plan]:
    """Every plan of a graph. Raises PlanMissing where there is none."""
    plans = [plan for plan in bundle.plans if plan.flavour == flavour and plan.graph == graph]
    if not plans:
        held = sorted({f"{FLAVOURS.get(plan.flavour, plan.flavour)} for {plan.gpus}" for plan in bundle.plans})
        raise PlanMissing(
            f"holds no {FLAVOURS[flavour]} plan of {graph} (plans: {', '.join(held) or 'none'})",
            f"build them: {bundle.plans_command(flavour)}",
            subject=bundle.folder,
        )
    return plans


def for_this_gpu(bundle: "Bundle", flavour: str, capability: Sequence[int], alone: bool = False) -> str:
    """What to do on a GPU of (major, minor) that no plan is for. alone: nor is one that others share good enough."""
    build, here = bundle.plans_command(flavour), "{}.{}".format(*capability)
    if flavour != "tensorrt-rtx":
        return f"build plans for it on the machine with this GPU: {build}"
    if here not in LISTED:
        return (
            f"TensorRT-RTX lists {', '.join(LISTED)} and not {here}: use full TensorRT, on this machine: pip install "
            f"tensorrt && {bundle.plans_command('tensorrt')}, or choose onnxruntime-cuda"
        )
    if tuple(capability) >= _PORTABLE and not alone:
        return f"build plans for it: {build}"
    named = "--for sm_{}{}".format(*capability)
    if bundle.precision == "fp32" and tuple(capability) < _PORTABLE:
        build = bundle.build_command(precision="fp16", backend=flavour)
        return f"there its fp32 plans give zeros: choose onnxruntime-cuda, or build the bundle in fp16: {build} {named}"
    return f"build plans for it: {build} {named}"


def _preference(plan: Plan) -> tuple[bool, tuple[int, ...], bool, tuple[int, ...]]:
    """Larger is better: made for one kind of GPU, for later ones, bound to its version, of a later one."""
    portable = plan.capability.endswith("+")
    return not portable, _numbers(plan.capability.rstrip("+")), not plan.version_compatible, _numbers(plan.version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
