"""The gates once more, on TensorRT plans as they run on this machine's GPU (design section 6).

A plan is another program than the ONNX graph it was built from: it has kernels, batches and rounding of its own. It can
only be proved where it runs, so a bundle's manifest says of every plan whether it was proved, and if not, why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export import gates
from export.gates import Record, Run
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import FusionerError, PlanForAnotherGpu, SizeOutsideProfile
from fusioner_rt.gpu.driver import Device
from fusioner_rt.plans import Plan
from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.tensorrt.loaded_plan import Engine, PlanGraph
from training.model import Fusioner


def prove(
    bundle: Bundle,
    model: Fusioner,
    graphs: Mapping[str, Run],
    preprocessing: Preprocessing,
    pictures: Sequence[np.ndarray],
) -> dict[str, Record]:
    """Every gate on every pair of plans that runs here, by the name of the image_fusion plan's file.

    graphs: those of the bundle, for what has no plan. A record is {"run": False, "why": ...}, or what the gates found.
    Raises ParityFailed, BatchFailed, WordsFailed, and what loading or running a plan raises on a GPU that it is for.
    """
    plans = [plan for plan in bundle.plans if plan.graph == "image_fusion"]
    try:
        device = Device()
    except FusionerError as error:
        return {plan.file.name: _not_run(f"no GPU here: {error}") for plan in plans}
    try:
        proof = _Proof(bundle, model, graphs, preprocessing, pictures, device)
        return {plan.file.name: proof.record(plan) for plan in plans}
    finally:
        device.close()


@dataclass(frozen=True)
class _Proof:
    """All that the gates need beside a plan."""

    bundle: Bundle
    model: Fusioner
    graphs: Mapping[str, Run]
    preprocessing: Preprocessing
    pictures: Sequence[np.ndarray]
    device: Device

    def record(self, plan: Plan) -> Record:
        if not plan.runs_on(self.device.capability):
            here = "{}.{}".format(*self.device.capability)
            return _not_run(f"for compute capability {plan.capability}, the GPU here has {here}")
        try:
            with contextlib.ExitStack() as engines:
                return self._through_gates(plan, self._running(plan, engines))
        except PlanForAnotherGpu as error:  # TensorRT itself refuses some GPUs that a portable plan names
            return _not_run(str(error))

    def _running(self, plan: Plan, engines: contextlib.ExitStack) -> dict[str, Run]:
        """The graphs, the image_fusion plan and the text plan beside it in their place. engines: closes theirs."""
        running = dict(self.graphs)
        text = [
            other
            for other in self.bundle.plans
            if other.graph == "text" and (other.flavour, other.capability) == (plan.flavour, plan.capability)
        ]
        for opened in (plan, *text):
            engine = Engine(self.bundle, opened, self.device)
            engines.callback(engine.close)
            running[opened.graph] = PlanGraph(engine, self.device)
        if text:
            running["text"] = _word_by_word(running["text"], len(self.bundle.templates))
        return running

    def _through_gates(self, plan: Plan, running: Mapping[str, Run]) -> Record:
        found = gates.parity(self.model, running, self.preprocessing, self.pictures, plan.precision)
        return {
            "run": True, "gpu": str(self.device), "parity": found.record(),
            "batch": self._batch(running, found),
            "words": gates.words(running, found, self.preprocessing, self.pictures[0]),
        }  # fmt: skip

    def _batch(self, running: Mapping[str, Run], found: gates.Parity) -> Record:
        """The gate of batches, with as many pictures as the bundle takes, where the plan takes them too."""
        try:
            return gates.batch(running, found, self.preprocessing, self.pictures, self.bundle.batch.max)
        except SizeOutsideProfile as error:
            return _not_run(f"the plan's profiles hold fewer pictures than the bundle: {error}")


def _word_by_word(text: Run, templates: int) -> Run:
    """The text graph, called with one word's prompts at a time as sessions do: its profiles may hold no more of them."""

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompts = len(next(iter(inputs.values())))
        parts = [
            text({name: array[start : start + templates] for name, array in inputs.items()})
            for start in range(0, prompts, templates)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def _not_run(why: str) -> Record:
    return {"run": False, "why": why}
