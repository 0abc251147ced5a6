"""Chooses the TensorRT plan of a bundle for this machine, before anything is loaded."""

from collections.abc import Sequence

from ..bundle import Bundle
from ..cures import plans_command, plans_for_this_gpu
from ..errors import PlanForAnotherGpu, PlanForAnotherVersion, PlanMissing
from ..plans import FLAVOURS, Plan, version_numbers


def choose(bundle: Bundle, flavour: str, graph: str, version: str, capability: Sequence[int], gpu: str) -> Plan:
    """The best plan of a graph that the installed TensorRT loads on a GPU. A plan for its capability precedes portable ones.

    version: installed. capability: (major, minor) of the GPU. gpu: its name, for messages. Raises PlanMissing,
    PlanForAnotherGpu, PlanForAnotherVersion.
    """
    plans = of_flavour(bundle, flavour, graph)
    name = FLAVOURS[flavour]
    runnable = [plan for plan in plans if plan.runs_on(capability)]
    if not runnable:
        built = ", ".join(sorted({plan.gpus for plan in plans}))
        raise PlanForAnotherGpu(
            f"its {name} plans of {graph} were built for compute capability {built}, and {gpu} has "
            f"{capability[0]}.{capability[1]}",
            plans_for_this_gpu(bundle.folder, bundle.precision, flavour, capability),
            subject=bundle.folder,
        )
    loadable = [plan for plan in runnable if plan.loads_with(version)]
    if not loadable:
        newest = max(runnable, key=lambda plan: version_numbers(plan.version))
        built = ", ".join(sorted({plan.version for plan in runnable}, key=version_numbers))
        raise PlanForAnotherVersion(
            f"its {name} plans of {graph} were built with version {built}, and {version} is installed",
            f"install theirs (pip install {flavour}=={newest.version}), or build plans with yours: "
            f"{plans_command(bundle.folder, flavour)}",
            subject=bundle.folder,
        )
    return max(loadable, key=_preference)


def of_flavour(bundle: Bundle, flavour: str, graph: str) -> list[Plan]:
    """All plans of a graph and flavour. Raises PlanMissing where there is none."""
    plans = [plan for plan in bundle.plans if plan.flavour == flavour and plan.graph == graph]
    if not plans:
        others = sorted({f"{FLAVOURS.get(plan.flavour, plan.flavour)} for {plan.gpus}" for plan in bundle.plans})
        raise PlanMissing(
            f"holds no {FLAVOURS[flavour]} plan of {graph} (plans: {', '.join(others) or 'none'})",
            f"build them: {plans_command(bundle.folder, flavour)}",
            subject=bundle.folder,
        )
    return plans


def _preference(plan: Plan) -> tuple[bool, tuple[int, ...], bool, tuple[int, ...]]:
    """Sort key, larger is better: for one capability, a later one, bound to its version, a later version."""
    portable = plan.capability.endswith("+")
    return (
        not portable,
        version_numbers(plan.capability.rstrip("+")),
        not plan.version_compatible,
        version_numbers(plan.version),
    )
