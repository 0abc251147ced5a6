"""Adds TensorRT plans to an engine bundle, from the ONNX graphs in it: no checkpoint and no PyTorch are needed.

For the machine that serves, where plans of the machine that built do not load: another GPU, another TensorRT.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from export.tensorrt import command_line as plan_arguments  # noqa: E402
from fusioner_rt.command_end import run_command, say  # noqa: E402
from fusioner_rt.command_parser import CommandParser, path_argument  # noqa: E402
from fusioner_rt.errors import FusionerError, UsageError  # noqa: E402

if TYPE_CHECKING:
    from export.tensorrt.build_plans import PlanOptions
    from fusioner_rt.bundle import Bundle
    from fusioner_rt.plans import Plan

EXAMPLES = """
examples:
  python export/add_plans.py engines/demo --backend tensorrt-rtx
      one TensorRT-RTX plan a graph for compute capability 8.0, 8.6, 8.9, 12.0 and 12.1; no GPU is needed here
  python export/add_plans.py engines/demo --backend tensorrt --profiles latency,any-size
      TensorRT plans for the GPU of this machine, proved on it

needs: pip install -c constraints.txt -e '.[cpu,tensorrt-rtx]' onnx tqdm     (or tensorrt in place of tensorrt-rtx)
The bundle is changed whole or not at all. Plans of the same backend and GPU are replaced, as are damaged ones; all others
stay.
"""
Record = dict[str, Any]

LEAST_AGREEMENT = 0.99
"""Of the labels with those of ONNX Runtime on the CPU: two roundings of one graph differ at the edges of masks alone."""


class PlansDisagree(FusionerError):
    """On this GPU the new plans give other masks than the graphs they were built from."""

    exit_code = 94
    is_input = False


class BundleChanged(FusionerError):
    """The bundle is no longer the one that plans were built for."""

    exit_code = 95
    is_input = False


def add(folder: Path, backend: str, pictures: Path | None, shown: bool = True, **options: Any) -> dict[str, Any]:
    """Build plans into the bundle in `folder`; returns its new manifest.

    backend: tensorrt or tensorrt-rtx. pictures: a folder to compare masks on where a GPU here runs the plans. options:
    as export.tensorrt.build_plans.PlanOptions. Raises the bundle's errors, TensorRTMissing, TensorRTRefused, PrecisionNotReached,
    PlansDisagree, UsageError, OutputUnwritable, and what loading or running a plan raises on a GPU that it is for.
    """
    from export.tensorrt import build_plans
    from fusioner_rt.atomic_files import check_replaceable, unwritable
    from fusioner_rt.bundle import Bundle
    from fusioner_rt.errors import BundleMissing
    from fusioner_rt.manifest import MANIFEST
    from fusioner_rt.replaced_bundles import check_nothing_is_lost
    from fusioner_rt.whole_folders import clear_left, replace_folder, unfinished_folder

    out = Path(os.path.realpath(folder))  # a link to a bundle stays one
    clear_left(out, _say)
    if not (folder / MANIFEST).is_file():
        found = "holds no engine bundle" if folder.is_dir() else "is no folder"
        raise BundleMissing(found, "name a bundle's folder, such as engines/demo", subject=folder)
    check_nothing_is_lost(folder)
    check_replaceable(folder)
    before = (folder / MANIFEST).read_bytes()
    bundle = Bundle.open(folder, plans=False)
    _refuse_bf16(bundle, backend)
    if pictures is not None and not pictures.is_dir():
        raise UsageError(
            "is no folder", "name one that holds pictures, to compare masks on", subject=f"--pictures {pictures}"
        )
    asked = build_plans.PlanOptions(backend, precision=bundle.precision, **options)
    build_plans.check(asked, needed=True)
    try:
        with unfinished_folder(out, _say) as unfinished:
            manifest = _add_into(unfinished, bundle, json.loads(before), asked, pictures, shown)
            Bundle.open(unfinished)
            unfinished.chmod(0o755)
            if (folder / MANIFEST).read_bytes() != before:
                raise BundleChanged("was changed by another build while this one ran", "run it again", subject=folder)
            check_nothing_is_lost(folder)
            replace_folder(unfinished, out)
    except OSError as error:
        raise unwritable(out, error) from None
    return manifest


def _say(text: str) -> None:
    print(f"add_plans: note: {text}", file=sys.stderr)


def _refuse_bf16(bundle: Bundle, backend: str) -> None:
    from fusioner_rt.cures import build_command

    if any(plan.precision == "bf16" for plan in bundle.plans):
        raise UsageError(
            "its plans are bf16, which is proved beside PyTorch",
            f"build the bundle again: {build_command(bundle.folder, backend=backend)}",
            subject=bundle.folder,
        )


def _add_into(
    folder: Path, bundle: Bundle, old: Record, asked: PlanOptions, pictures: Path | None, shown: bool
) -> Record:
    """The bundle in another folder, with the new plans in the place of those they replace. Returns its manifest."""
    from export.tensorrt import build_plans
    from fusioner_rt.bundle import write_manifest

    whole = [_is_whole(bundle, plan) for plan in bundle.plans]
    left_out = {file for plan, kept in zip(bundle.plans, whole, strict=True) if not kept for file in plan.files}
    _copy(bundle.folder, folder, [file.relative_to(bundle.folder) for file in bundle.files if file not in left_out])
    manifest = old | {"engines": [], "built_with": dict(old["built_with"])}
    build_plans.add_plans(folder, manifest, asked, shown=shown)
    proofs = _prove(folder, manifest, asked.flavour, pictures)

    held = [entry for entry, kept in zip(old["engines"], whole, strict=True) if kept]
    replaced = {entry["file"] for entry in manifest["engines"]}
    manifest["engines"] = [entry for entry in held if entry["file"] not in replaced] + manifest["engines"]
    held_files = {entry["file"] for entry in held}
    older = {file: proof for file, proof in old["gates"].get("plans", {}).items() if file in held_files}
    return write_manifest(folder, manifest | {"gates": old["gates"] | {"plans": older | proofs}})


def _is_whole(bundle: Bundle, plan: Plan) -> bool:
    """Whether a plan's files are those of the manifest: one that was damaged or lost is left out."""
    from fusioner_rt.bundle import verify_files

    try:
        verify_files({file: bundle.files[file] for file in plan.files}, str)
    except FusionerError:
        return False
    return True


def _copy(source: Path, to: Path, names: Sequence[Path]) -> None:
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, to / name)


def _prove(folder: Path, manifest: Mapping[str, Any], backend: str, named: Path | None) -> dict[str, Record]:
    """What running the plans of `manifest`, all of them new, showed: by the name of each image_fusion plan's file.

    A session takes the best plan of a bundle, so each is run from a manifest that holds it and its text plan alone; the
    last such is left in the folder. Raises PlansDisagree.
    """
    from fusioner_rt.bundle import write_manifest
    from fusioner_rt.gpu.driver import Device
    from fusioner_rt.json_fields import Field
    from fusioner_rt.plans import Plan

    entries, records = manifest["engines"], {}
    files = [entry["file"] for entry in entries if entry["graph"] == "image_fusion"]
    try:
        device = Device()
    except FusionerError as error:
        return {file: _not_run(f"no GPU here: {error}") for file in files}
    gpu, capability = str(device), device.capability
    device.close()
    for entry in entries:
        file, plan = entry["file"], Plan.parse(folder, Field(entry))
        if file not in files:
            continue
        if plan.runs_on(capability):
            pair = [entry for entry in entries if entry["compute_capability"] == plan.capability]
            write_manifest(folder, {**manifest, "engines": pair})
            records[file] = _compare(folder, backend, named, gpu)
        else:
            here = "{}.{}".format(*capability)
            records[file] = _not_run(f"for compute capability {plan.capability}, the GPU here has {here}")
    return records


def _not_run(why: str) -> Record:
    return {"run": False, "why": why}


def _compare(folder: Path, backend: str, named: Path | None, gpu: str) -> Record:
    """Masks of a bundle's only plans of `backend` beside ONNX Runtime's. gpu: that of this machine. Raises PlansDisagree."""
    from fusioner_rt import Session
    from fusioner_rt.decode_picture import SUFFIXES
    from fusioner_rt.errors import AnswerWrong, PlanForAnotherGpu

    try:
        session = Session(folder, backend=backend, cache=False)
    except PlanForAnotherGpu as error:
        return _not_run(str(error))
    except AnswerWrong as error:
        raise PlansDisagree(
            f"on {gpu} the new plans do not give the bundle's known answer ({error.what})",
            f"build the bundle without --fp16, or use another version of {backend}",
        ) from None
    place = named or ROOT / "docs" / "pictures"
    pictures = sorted(path for path in place.glob("*") if path.suffix.lower() in SUFFIXES)[:8]
    if not pictures:
        raise UsageError(
            "no pictures in this folder", "name one that holds some, to compare masks on", subject=f"--pictures {place}"
        )
    words = ["person", "cat", "sofa", "tree", "car"][: session.bundle.words.max]
    with session, Session(folder, backend="onnxruntime-cpu", cache=False) as cpu:
        agreed = [
            float((session.segment(path, words).labels == cpu.segment(path, words).labels).mean()) for path in pictures
        ]
        notes = session.notes
    if not min(agreed) >= LEAST_AGREEMENT:
        raise PlansDisagree(
            f"on {gpu} the new plans label {min(agreed):.2%} of "
            f"{pictures[int(np.argmin(agreed))].name} as ONNX Runtime does, {LEAST_AGREEMENT:.0%} are "
            "needed",
            f"build the bundle without --fp16, or use another version of {backend}",
        )
    record: Record = {
        "run": True,
        "gpu": gpu,
        "mask_agreement_with_onnxruntime": min(agreed),
        "pictures": len(pictures),
    }
    return record | ({"notes": notes} if notes else {})


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="add_plans.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=path_argument, metavar="BUNDLE", help="the bundle's folder, such as engines/demo"
    )
    parser.add_argument("--backend", choices=("tensorrt", "tensorrt-rtx"), required=True, help="what runs the plans")
    plan_arguments.add_to(parser)
    parser.add_argument(
        "--pictures", type=path_argument, metavar="DIR", help="photographs to compare masks on (default: docs/pictures)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    folder: Path | None = None

    def run() -> int:
        nonlocal folder
        given = vars(parse(arguments))
        folder = given.pop("folder")
        start = time.perf_counter()
        manifest = add(folder, **given)
        say(f"{folder}  ({time.perf_counter() - start:.0f} s)")
        _say_plans(folder, manifest)
        return 0

    return run_command("add_plans", run, lambda: f"{folder or 'the bundle'} is as it was", _lacks, 90)


def _lacks(package: str | None) -> str:
    return f"the Python package {package} is not installed; pip install {package}"


def _say_plans(folder: Path, manifest: Record) -> None:
    proofs = manifest["gates"]["plans"]
    run = {
        (entry["flavour"], entry["compute_capability"]): proofs.get(entry["file"], {"run": True})["run"]
        for entry in manifest["engines"]
        if entry["graph"] == "image_fusion"
    }
    for entry in manifest["engines"]:
        size = os.stat(folder / entry["file"]).st_size / 1e6
        said = "" if run.get((entry["flavour"], entry["compute_capability"]), True) else "  not run here"
        say(f"  {entry['file']:<48} {size:8.1f} MB  {entry.get('precision', manifest['precision'])}{said}")


if __name__ == "__main__":
    sys.exit(main())
