"""What a build prints when it is done: a line for every file of the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import gates, make_known_answer
from export.onnx import shared_weights
from export.tensorrt.report import summary

Record = dict[str, Any]


@dataclass
class Row:
    """One line of the table. note: said behind it. layers: of a plan, by kind and type."""

    file: str
    bytes: int
    precision: str = ""
    error: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    note: str = ""
    layers: str = ""


def rows(folder: Path, manifest: Record, seconds: Mapping[str, float]) -> list[Row]:
    """manifest: of the finished bundle. seconds: by stage, and by file of a plan."""
    return [
        *_graphs(folder, manifest, seconds),
        Row(shared_weights.FILE, _size(folder, shared_weights.FILE)),
        _answer(folder, manifest["known_answer"], seconds),
        *(_plan(folder, manifest, entry, seconds) for entry in manifest["engines"]),
        *_kernels(folder, manifest, seconds),
    ]


def _size(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


def _graphs(folder: Path, manifest: Record, seconds: Mapping[str, float]) -> Iterator[Row]:
    parity = manifest["gates"]["parity"]
    # the parts are compared by what the last of them gives
    last_part = "decoder_scores" if "decoder_scores" in manifest["graphs"] else "fusion"
    errors = {
        "text": parity["embeddings"]["error"],
        "image_fusion": max(parity[name]["error"] for name in ("features", "refined")),
        "mask_labels": parity["mask_head_error"],
        last_part: max(found["error"] for name, found in parity.items() if name.endswith(gates.IN_PARTS)),
    }
    for name, graph in manifest["graphs"].items():
        share = graph["fp16_weight_share"]
        of_mask_head = name.startswith("mask")
        yield Row(
            graph["file"],
            _size(folder, graph["file"]),
            f"fp16 {int(share * 1000) / 10}%" if share else "fp32",
            errors.get(name),
            parity["mask_agreement"] if name == "mask_labels" else None,
            seconds.get(f"{name} graph", seconds["mask head graphs"] / 4 if of_mask_head else None),
            f"its weights are in {graph['weights']}" if "weights" in graph else "",
        )


def _answer(folder: Path, entry: Record, seconds: Mapping[str, float]) -> Row:
    weakness = make_known_answer.weakness(entry)
    return Row(entry["file"], _size(folder, entry["file"]), seconds=seconds["known answer"], note=weakness)


def _plan(folder: Path, manifest: Record, entry: Record, seconds: Mapping[str, float]) -> Row:
    file = entry["file"]
    proof = manifest["gates"]["plans"].get(file, {})
    parity, note = proof.get("parity"), "" if proof.get("run", True) else "not run: no such GPU here"
    if "kernels" not in manifest:
        note = "no session runs it: the bundle has no kernels"
    return Row(
        file,
        _size(folder, file),
        entry["precision"],
        max(parity[name]["error"] for name in ("features", "refined")) if parity else None,
        parity["mask_agreement"] if parity else None,
        seconds[file],
        note,
        summary(entry["layers"]),
    )


def _kernels(folder: Path, manifest: Record, seconds: Mapping[str, float]) -> Iterator[Row]:
    if kernels := manifest.get("kernels"):
        sizes = [path.stat().st_size for path in (folder / kernels["abi"]).parent.rglob("*") if path.is_file()]
        precision = "fp16, fp32" if "float16" in kernels["features"] else "fp32"
        taken, targets = seconds["kernels for GPUs"], ", ".join(kernels["targets"])
        yield Row(f"kernels/ ({len(sizes)} files)", sum(sizes), precision, seconds=taken, note=targets)


def table(rows: Sequence[Row]) -> str:
    """The lines. Errors are relative to the largest value of a graph's output; a mask head's are of 0..1."""
    width = max(len(row.file) for row in rows)
    lines = [
        f"{'file':<{width}} {'size':>9}  {'precision':<11} {'largest error':>13} {'mask agreement':>15} {'seconds':>8}"
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        agreement = "" if row.agreement is None else f"{row.agreement:.2%}"
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        megabytes = f"{row.bytes / 1e6:.2f} MB"
        lines.append(
            f"{row.file:<{width}} {megabytes:>9}  {row.precision:<11} {error:>13} {agreement:>15} {seconds:>8}  "
            f"{row.note}".rstrip()
        )
    if layers := {row.file.partition(".")[0]: row.layers for row in rows if row.layers}:
        lines += ["layers of the plans by kind and type:", *(f"  {graph}: {said}" for graph, said in layers.items())]
    return "\n".join(lines)
