"""The mask head's peak memory, told by the system for a process of its own."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from export.onnx.mask_head_graphs import probabilities_graph, scores_graph, tiles_graph

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.runtime import OnnxRuntime

kind, folder, scoring, words, low, edge = sys.argv[1], Path(sys.argv[2]), sys.argv[3], 150, 80, 4096
runtime = OnnxRuntime("onnxruntime-cpu", 2)
scores, probabilities = (runtime.load(folder / f"mask_{name}.onnx") for name in ("scores", "probabilities"))
head = MaskHead(scores, runtime.load(folder / "mask_tiles.onnx", threads=1), probabilities, threads=2, scoring=scoring)
random = np.random.default_rng(0)
scores, gram = random.normal(size=(1, words, low, low)).astype(np.float32), np.ones((1, 5, low, low), np.float32)
if kind == "smooth":
    rows, columns = np.mgrid[:low, :low] // 9
    scores = (scores / 9 + (np.arange(words)[:, None, None] == (rows * 9 + columns) % words)).astype(np.float32)
head.labels(scores, gram, (200, 200), 0.5)

def memory(entry):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(entry))

Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
labels, confidence = head.labels(scores, gram, (edge, edge), 0.5)
print(memory("VmHWM") - before - labels.nbytes - confidence.nbytes)
assert labels.shape == confidence.shape == (edge, edge) and len(np.unique(labels)) > 50
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process its peak")
@pytest.mark.parametrize(
    ("kind", "scoring"),
    [
        ("smooth", "sigmoid"),
        pytest.param("random", "sigmoid", marks=pytest.mark.slow),
        pytest.param("smooth", "softmax", marks=pytest.mark.slow),
    ],
)
def test_150_words_at_4096_squared_need_less_than_300_mb_beside_the_result(
    tiny_bundle: Path, tmp_path: Path, kind: str, scoring: str
) -> None:
    folder = tiny_bundle
    if scoring == "softmax":
        folder = tmp_path
        made = {"scores": scores_graph(32), "tiles": tiles_graph(1 / 40, scoring)}
        for name, graph in (made | {"probabilities": probabilities_graph(1 / 40, scoring)}).items():
            onnx.save_model(graph, folder / f"mask_{name}.onnx")
    command = [sys.executable, "-c", PROGRAM, kind, str(folder), scoring]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6
