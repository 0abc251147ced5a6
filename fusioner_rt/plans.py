"""The TensorRT plans of a bundle, and which of them this machine can load: told before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PlanForAnotherGpu, PlanForAnotherVersion, PlanMissing

if TYPE_CHECKING:
    from .bundle import Bundle

FLAVOURS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""What the flavours are called in a sentence."""


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

    def loads_with(self, version: str) -> bool:
        if not self.version_compatible:
            return version == self.version
        ours, theirs = _numbers(self.version), _numbers(version)
        return ours[:1] == theirs[:1] and theirs >= ours


def read_plans(folder: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[Plan, ...]:
    """A manifest's `engines`. Raises KeyError, TypeError, ValueError for malformed ones."""
    plans = []
    for entry in entries:
        plan = Plan(
            folder / str(entry["file"]), str(entry["graph"]), str(entry["flavour"]), str(entry["version"]),
            str(entry["compute_capability"]), bool(entry.get("version_compatible", False)),
        )  # fmt: skip
        plan.runs_on((0, 0))
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
        built = ", ".join(sorted({plan.capability for plan in plans}))
        raise PlanForAnotherGpu(
            f"{bundle.folder}: its {name} plans of {graph} were built for compute capability {built}, and {gpu} has "
            f"{capability[0]}.{capability[1]}; {_rebuild(bundle, flavour)}, on a machine with this GPU"
            + (" or with --for none at all for a portable plan" if flavour == "tensorrt-rtx" else "")
        )
    loaded = [plan for plan in here if plan.loads_with(version)]
    if not loaded:
        built = ", ".join(sorted({plan.version for plan in here}))
        raise PlanForAnotherVersion(
            f"{bundle.folder}: its {name} plans of {graph} were built with version {built}, and {version} is installed; "
            f"install the other, or {_rebuild(bundle, flavour)}"
        )
    return min(loaded, key=lambda plan: (plan.capability.endswith("+"), -_numbers(plan.capability.rstrip("+"))[0]))


def of_flavour(bundle: "Bundle", flavour: str, graph: str) -> list[Plan]:
    """Every plan of a graph. Raises PlanMissing where there is none."""
    plans = [plan for plan in bundle.plans if plan.flavour == flavour and plan.graph == graph]
    if not plans:
        held = ", ".join(
            sorted({f"{FLAVOURS.get(plan.flavour, plan.flavour)} for {plan.capability}" for plan in bundle.plans})
        )
        raise PlanMissing(
            f"{bundle.folder}: holds no {FLAVOURS[flavour]} plan of {graph} (plans: {held or 'none'}); build them: "
            f"{bundle.build_command(backend=flavour)}"
        )
    return plans


def _rebuild(bundle: "Bundle", flavour: str) -> str:
    return f"rebuild it: {bundle.build_command(backend=flavour)}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
