"""TensorRT-RTX builds plans of the real graphs, to the paper's sizes, with no GPU.

Every model, precision and GPU by itself is in docs/records/tensorrt.jsonl, which `python -m benchmarks.tensorrt_matrix` writes.
Here the demonstration's text is built into one plan for all three GPUs; its pictures, each GPU by itself, and the paper's
sizes, ViT-L/14 without its text tower, are minutes of the same, behind `make slow`.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import tensorrt_matrix
from export.tensorrt import build_plans
from export.tensorrt.build_plans import PlanOptions, Target
from fusioner_rt.tensorrt import versions

ROOT = Path(__file__).resolve().parents[2]
GPUS = build_plans.targets(PlanOptions("tensorrt-rtx", ",".join(tensorrt_matrix.GPUS)))
TOGETHER = [Target("8.0 8.9 12.0", tuple(target.label for target in GPUS))]


@pytest.fixture(autouse=True)
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


@pytest.mark.parametrize(
    ("model", "graphs", "targets"),
    [
        ("demo", ["text"], TOGETHER),
        pytest.param("demo", ["image_fusion"], TOGETHER, marks=pytest.mark.slow),
        pytest.param("demo", ["text", "image_fusion"], GPUS, marks=pytest.mark.slow),
        pytest.param("vit-b-16", ["text", "image_fusion"], TOGETHER, marks=pytest.mark.slow),
        pytest.param("vit-l-14", ["image_fusion"], TOGETHER, marks=pytest.mark.slow),
    ],
)
def test_plans_are_built_in_both_precisions_for_up_to_8_pictures_256_words_and_1024_pixels(model, graphs, targets):
    records = list(tensorrt_matrix.measure(model, graphs, ["fp32", "fp16"], targets))
    assert len(records) == 2 * len(graphs) * len(targets)
    size = {(r["graph"], r["precision"]): r["bytes"] for r in records}
    for graph in graphs:
        assert size[graph, "fp16"] < 0.65 * size[graph, "fp32"]
    for record in records:
        products = Counter()
        for kind in ("matrix_multiply", "convolution"):
            products.update(record["layers"].get(kind, {}))
        assert set(products) == {"float16" if record["precision"] == "fp16" else "float32"}
        assert set(record["layers"]["normalization"]) == set(record["layers"]["softmax"]) == {"float32"}
        if record["graph"] == "image_fusion":
            least, _, most = record["profile"]["pixels"]
            assert least[0] == 1
            assert most[0] == 8
            assert min(most[2:]) >= 1022
            assert [shape[:2] for shape in record["profile"]["words"]][::2] == [(1, 1), (8, 256)]


def test_the_record_holds_every_model_graph_precision_and_gpu():
    lines = (ROOT / "docs/records/tensorrt.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = {(r["model"], r["graph"], r["precision"], r["target"]) for r in records}
    assert found == {
        (model, graph, precision, target)
        for model in tensorrt_matrix.MODELS
        for graph in tensorrt_matrix.GRAPHS
        for precision in tensorrt_matrix.PRECISIONS
        for target in (*(gpu.label for gpu in GPUS), "8.0+")
    }
    assert len(records) == len(found)


def test_the_command_names_what_it_knows(trt, capsys):
    for wrong in (["--models", "vit-h"], ["--precisions", "int8"], ["--gpus", "sm_99"], ["--gpus", ""]):
        with pytest.raises(SystemExit):
            tensorrt_matrix.main(wrong)
        assert "is none of" in capsys.readouterr().err
    known = [f"sm_{capability.replace('.', '')}" for capability in versions.known_capabilities(trt)]
    assert list(tensorrt_matrix.KNOWN) == known
