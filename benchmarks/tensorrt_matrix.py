"""Builds TensorRT-RTX plans of models from the demonstration's size to the paper's, for every precision and GPU named,
and records what came of it. Needs no GPU.

    python -m benchmarks.tensorrt_matrix --json docs/records/tensorrt.jsonl
    python -m benchmarks.tensorrt_matrix --models vit-b-16 --precisions fp16 --gpus sm_89
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from benchmarks.command import exit_status, names
from export.onnx import half_precision, model_graphs
from export.tensorrt import build_plans, profiles, report
from export.tensorrt.build_plans import Network, Target
from fusioner_rt.atomic_files import write_atomically
from fusioner_rt.command_parser import CommandParser
from training.model import LONGEST_EDGE, Fusioner, FusionerConfig

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("demo", "vit-b-16", "vit-l-14")
"""demo: the demonstration's checkpoint. The others: the paper's (section 4.1), both towers CLIP's, random weights."""
GRAPHS: dict[str, Callable[[Fusioner], onnx.ModelProto]] = {
    "text": model_graphs.text_graph,
    "image_fusion": model_graphs.image_fusion_graph,
}
PRECISIONS = ("fp32", "fp16", "bf16")
GPUS = ("sm_80", "sm_89", "sm_120")
KNOWN = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")

Record = dict[str, Any]


def model(name: str) -> Fusioner:
    """One of MODELS."""
    from training import checkpoint

    if name == "demo":
        return checkpoint.load(ROOT / "models/demo/checkpoint")
    tower = {"vit-b-16": "open_clip:ViT-B-16:random", "vit-l-14": "open_clip:ViT-L-14:random"}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that random weights segment nothing
        return checkpoint.build(FusionerConfig(image_encoder=tower, text_encoder=tower)).eval()


def manifest(made: Fusioner) -> dict[str, Any]:
    """What profiles are made of: 1 to 256 words, 1 to 8 pictures, edges to 1024 pixels."""
    multiple, side = made.image_encoder.multiple, made.image_encoder.side
    return {
        "templates": list(made.config.templates),
        "tokenizer": {"max_tokens": made.text_encoder.max_tokens},
        "preprocessing": {"multiple": multiple},
        "profiles": {
            "words": {"min": 1, "opt": 20, "max": 256},
            "batch": {"min": 1, "opt": 1, "max": 8},
            "size": {"min": multiple, "opt": side, "max": LONGEST_EDGE // multiple * multiple},
        },
    }


def measure(
    name: str, of_graphs: Sequence[str], precisions: Sequence[str], targets: Sequence[Target]
) -> Iterator[Record]:
    """A record for every plan of one model: each graph is traced once, and parsed once for every precision.

    Every parsed network is held against its graph's names, types and shapes and against the precision it claims.
    Raises what refuses a plan: TensorRTRefused, NetworkNotDescribed, PrecisionNotReached, TensorRTMissing.
    """
    trt = build_plans.load("tensorrt-rtx")
    made: Fusioner | None = model(name)
    assert made is not None
    about = manifest(made)
    traced = {}
    for graph in of_graphs:
        start = time.perf_counter()
        traced[graph] = GRAPHS[graph](made), time.perf_counter() - start
    made = None  # as large as a graph
    for graph in of_graphs:
        whole, trace_seconds = traced.pop(graph)
        described = model_graphs.described(graph, whole)
        shapes = profiles.shapes("any-size", about, whole)
        for kind in precisions:
            half = half_precision.HALVES.get(kind)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{graph}.onnx"
                onnx.save_model(half_precision.to_half(whole, half) if half else whole, file)
                start = time.perf_counter()
                network = Network(trt, file)
                parse_seconds = time.perf_counter() - start
            report.compare(network.definition, described, f"{name}, {graph} in {kind}")
            network.prove(kind)
            for target in targets:
                start = time.perf_counter()
                plan = network.build([shapes], target)
                yield {
                    "what": "tensorrt plan", "model": name, "graph": graph, "precision": kind, "target": target.label,
                    "bytes": len(plan), "trace_seconds": round(trace_seconds, 1),
                    "parse_seconds": round(parse_seconds, 2), "build_seconds": round(time.perf_counter() - start, 1),
                    "profile": shapes, "layers": report.count(network.layers),
                    "load": round(os.getloadavg()[0], 1),
                }  # fmt: skip


def _where() -> Record:
    import tensorrt_rtx
    import torch

    return {
        "tensorrt_rtx": tensorrt_rtx.__version__, "torch": torch.__version__.partition("+")[0],
        "onnx": onnx.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("tensorrt_matrix.py", lambda: run(arguments), "nothing was kept")


def run(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(
        "python -m benchmarks.tensorrt_matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    add = parser.add_argument
    add("--models", type=names(*MODELS), default=list(MODELS), metavar="NAME,...", help=", ".join(MODELS))
    add("--graphs", type=names(*GRAPHS), default=list(GRAPHS), metavar="NAME,...", help="both")
    add(
        "--precisions",
        type=names(*PRECISIONS),
        default=list(PRECISIONS),
        metavar="NAME,...",
        help=", ".join(PRECISIONS),
    )
    add("--gpus", type=names(*KNOWN), default=list(GPUS), metavar="SM,...",
        help=f"one plan each (default: {','.join(GPUS)}); a portable plan, for those from sm_80 on, is always built")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the records there, one a line")
    options = parser.parse_args(arguments)
    asked = build_plans.PlanOptions("tensorrt-rtx", ",".join(options.gpus))
    build_plans.check(asked)
    targets = [*build_plans.targets(asked), Target("8.0+")]
    records, where = [], _where()
    print(f"{'model':<9} {'graph':<13} {'precision':<9} {'GPU':>5} {'MB':>8} {'parse s':>8} {'build s':>8}")
    for name in options.models:
        for record in measure(name, options.graphs, options.precisions, targets):
            records.append({**record, **where})
            print(
                f"{name:<9} {record['graph']:<13} {record['precision']:<9} {record['target']:>5} "
                f"{record['bytes'] / 1e6:>8.1f} {record['parse_seconds']:>8.2f} {record['build_seconds']:>8.1f}",
                flush=True,
            )
    if options.json:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(options.json, lambda stream: stream.write(lines.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
