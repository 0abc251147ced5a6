"""The gates once more, on TensorRT plans as they run on this machine's GPU (design section 6).

A plan is another program than the ONNX graph it was built from: its kernels, its batches and its rounding are its own. It
can only be proved where it runs, so a bundle's manifest says of every plan whether it was, and if not, why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export import gates
from fusioner_rt.bundle import Bundle
from fusioner_rt.errors import FusionerError, PlanForAnotherGpu, SizeOutsideProfile
from fusioner_rt.gpu.driver import Device
from fusioner_rt.onnx.mask_tiles import Run
from fusioner_rt.plans import Plan
from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.tensorrt.engine import Engine, PlanGraph
from training.model import Fusioner

Record = dict[str, Any]


def prove(
    bundle: Bundle, model: Fusioner, graphs: Mapping[str, Run], how: Preprocessing, pictures: Sequence[np.ndarray]
) -> dict[str, Record]:
    """Every gate on every pair of plans that runs here, by the name of the image_fusion plan's file.

    graphs: those of the bundle, for what has no plan. A record tells {"run": False, "why": ...}, or the gates' own.
    Raises ParityFailed, BatchFailed, WordsFailed, and what loading or running a plan raises on a GPU that it is for.
    """
    records: dict[str, Record] = {}
    pairs = [plan for plan in bundle.plans if plan.graph == "image_fusion"]
    try:
        device = Device()
    except FusionerError as error:
        return {plan.file.name: _not_run(f"no GPU here: {error}") for plan in pairs}
    try:
        for plan in pairs:
            if plan.runs_on(device.capability):
                try:
                    records[plan.file.name] = _prove(bundle, plan, device, model, graphs, how, pictures)
                except PlanForAnotherGpu as error:  # which TensorRT itself says of some GPU that a portable plan names
                    records[plan.file.name] = _not_run(str(error))
            else:
                here = "{}.{}".format(*device.capability)
                records[plan.file.name] = _not_run(f"for compute capability {plan.capability}, the GPU here has {here}")
    finally:
        device.close()
    return records


def _prove(
    bundle: Bundle, plan: Plan, device: Device, model: Fusioner, graphs: Mapping[str, Run], how: Preprocessing,
    pictures: Sequence[np.ndarray],
) -> Record:  # fmt: skip
    text = [
        other
        for other in bundle.plans
        if other.graph == "text" and (other.flavour, other.capability) == (plan.flavour, plan.capability)
    ]
    precision = next(
        str(entry.get("precision", bundle.precision))
        for entry in bundle.manifest["engines"]
        if bundle.folder / entry["file"] == plan.file
    )
    with contextlib.ExitStack() as stack:
        running = dict(graphs)
        for one in (plan, *text):
            engine = Engine(bundle, one, device)
            stack.callback(engine.close)
            running[one.graph] = PlanGraph(engine, device)
        if text:
            running["text"] = _word_by_word(running["text"], len(bundle.templates))
        found = gates.parity(model, running, how, pictures, precision)
        return {
            "run": True, "gpu": str(device), "parity": found.record(),
            "batch": _batch(bundle, running, found, how, pictures),
            "words": gates.words(running, found, how, pictures[0]),
        }  # fmt: skip


def _word_by_word(text: Run, templates: int) -> Run:
    """The text graph given one word's prompts at a time, as sessions do: its profiles need hold no more of them."""

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompts = len(next(iter(inputs.values())))
        parts = [
            text({name: array[start : start + templates] for name, array in inputs.items()})
            for start in range(0, prompts, templates)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def _batch(
    bundle: Bundle, running: Mapping[str, Run], found: gates.Parity, how: Preprocessing, pictures: Sequence[np.ndarray]
) -> Record:
    """The gate of batches, as large as the plan takes them."""
    try:
        return gates.batch(running, found, how, pictures, bundle.batch.max)
    except SizeOutsideProfile as error:
        return _not_run(f"the plan's profiles hold fewer pictures than the bundle: {error}")


def _not_run(why: str) -> Record:
    return {"run": False, "why": why}
