"""What softmax over words costs beside the sigmoid: the mask head's stage 2 on this CPU, both in turns.

  python -m benchmarks.scorings
  python -m benchmarks.scorings --sizes 1024,4096 --words 20,150 --maps random

Maps of 21x21 positions, as training-free CLIP has them of a square picture. The sigmoid interpolates only words that can
win under a tile; to a softmax every word adds at every pixel, and the early exit saves the search for the winner alone.
Medians of interleaved calls; the ratio is the figure. Labels and confidence are
first compared with the definition in kernels/reference.py, at 336 x 336 pixels at most.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import command, machine
from benchmarks.mask_head_candidates import Case
from export.onnx import mask_head_graphs
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import FusionerError
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.runtime import OnnxRuntime
from kernels import reference

LOW, CHANNELS = 21, 512
TEMPERATURES = {"sigmoid": 0.07, "softmax": 1 / 40}
THRESHOLDS = {"sigmoid": 0.5, "softmax": 0.1}
CHECKED = 336
"""Largest edge that is compared with the definition, which holds all words' maps at that size."""
MOST_OTHERWISE = 1e-4
"""Share of pixels that rounding may label otherwise than the definition, and error of a probability."""


class Disagreement(FusionerError):
    """A scoring gives other labels than its definition."""

    exit_code = 122
    is_input = False


def head(scoring: str, threads: int) -> MaskHead:
    runtime, arguments = OnnxRuntime("onnxruntime-cpu", threads), (TEMPERATURES[scoring], scoring)
    graphs = {
        "scores": mask_head_graphs.scores_graph(CHANNELS),
        "tiles": mask_head_graphs.tiles_graph(*arguments),
        "probabilities": mask_head_graphs.probabilities_graph(*arguments),
    }
    loaded = {
        name: runtime.load(Path(f"mask_{name}.onnx"), graph.SerializeToString(), 1 if name == "tiles" else None)
        for name, graph in graphs.items()
    }
    return MaskHead(**loaded, threads=threads, scoring=scoring)


def measure(case: Case, repeats: int, threads: int) -> command.Row:
    """Raises Disagreement."""
    features, words = case.inputs()
    size, checked = (case.size,) * 2, (min(case.size, CHECKED),) * 2
    heads = {scoring: head(scoring, threads) for scoring in TEMPERATURES}
    maps = heads["sigmoid"].maps(features.numpy(), words.numpy())
    for scoring, one in heads.items():
        labels, confidence = one.labels(*maps, checked, THRESHOLDS[scoring])
        tensors = (torch.from_numpy(part) for part in maps)
        expected, sure = reference.resolve(*tensors, checked, TEMPERATURES[scoring], THRESHOLDS[scoring], scoring)
        otherwise, error = (labels != expected[0].numpy()).mean(), np.abs(confidence - sure[0].numpy()).max()
        if max(otherwise, error) > MOST_OTHERWISE:
            raise Disagreement(
                f"{scoring} labels {otherwise:.2%} of the pixels otherwise than its definition and errs by {error:.2g} in "
                f"probability, on {case}",
                "run its tests",
            )
    times: dict[str, list[float]] = {scoring: [] for scoring in heads}
    for _ in range(repeats):
        for scoring, one in heads.items():
            started = time.perf_counter()
            one.labels(*maps, size, THRESHOLDS[scoring])
            times[scoring].append((time.perf_counter() - started) * 1000)
    for one in heads.values():
        one.close()
    return {"what": "scorings", **vars(case), **{f"{name}_ms": float(np.median(t)) for name, t in times.items()}}


def table(rows: list[command.Row]) -> str:
    lines = ["| label map | words | maps | sigmoid, ms | softmax, ms | ratio |", "|---|--:|---|--:|--:|--:|"]
    for row in rows:
        sigmoid, softmax = row["sigmoid_ms"], row["softmax_ms"]
        lines.append(
            f"| {row['size']}² | {row['words']} | {row['maps']} | {sigmoid:.1f} | {softmax:.1f} | {softmax / sigmoid:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=command.counts, default=[336, 1024, 2048], metavar="N,...", help="edges of the label map")
    add("--words", type=command.counts, default=[2, 20, 150], metavar="N,...", help="how many words")
    add("--maps", type=command.names("smooth", "random"), default=["smooth"], help="smooth,random (smooth)")
    add("--repeats", type=command.count, default=15, metavar="N", help="calls of each (15)")
    add("--threads", type=command.count, default=2, metavar="N", help="CPU threads (2)")
    add("--busy", action="store_true", help="measure although something else uses the cores")
    given = parser.parse_args(arguments)
    return command.exit_status("scorings.py", lambda: run(given), "nothing was kept")


def run(given: argparse.Namespace) -> int:
    """Raises MachineBusy, Disagreement."""
    machine.check_idle(given.busy)
    cases = [
        Case(maps, size, CHANNELS, words, LOW, "float32", "cpu")
        for maps in given.maps
        for size in given.sizes
        for words in given.words
    ]
    print(table([measure(case, given.repeats, given.threads) for case in cases]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
