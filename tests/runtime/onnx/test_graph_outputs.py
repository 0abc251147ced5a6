"""A graph whose outputs have other names than the runtime reads, or mean nothing, is an error that names it."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_pictures import scene

from fusioner_rt import Session
from fusioner_rt.bundle import write_manifest
from fusioner_rt.errors import GraphUnusable
from fusioner_rt.manifest import MANIFEST


@pytest.mark.parametrize(
    "name", ["text", "image", "fusion", "decoder_first", "decoder_scores", "mask_tiles", "mask_probabilities"]
)
def test_outputs_of_other_names_are_told(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = onnx.load(folder / f"{name}.onnx", load_external_data=False)
    for output in graph.graph.output:
        graph.graph.node.append(onnx.helper.make_node("Identity", [output.name], [f"{output.name}_2"]))
        output.name += "_2"
    onnx.save(graph, folder / f"{name}.onnx")
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(GraphUnusable, match=rf"{name}.onnx: .*rebuild the bundle"), Session(folder) as session:
        session.segment(scene(61, 93), "cat, dog", probabilities=True)


@pytest.mark.parametrize("name", ["mask_tiles", "mask_probabilities"])
@pytest.mark.parametrize(("operator", "value"), [("Add", 2.0), ("Mul", -3.0), ("Div", 0.0), ("Mul", float("nan"))])
def test_what_is_no_probability_is_told(
    tiny_bundle: Path, tmp_path: Path, name: str, operator: str, value: float
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = onnx.load(folder / f"{name}.onnx")
    wanted = "confidence" if name == "mask_tiles" else "probabilities"
    for node in graph.graph.node:
        node.output[:] = [f"{given}_before" if given == wanted else given for given in node.output]
        node.input[:] = [f"{given}_before" if given == wanted else given for given in node.input]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), "altered_by"))
    graph.graph.node.append(onnx.helper.make_node(operator, [f"{wanted}_before", "altered_by"], [wanted]))
    onnx.save(graph, folder / f"{name}.onnx")
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(GraphUnusable, match=f"{name}.onnx: gave what is no probability"), Session(folder) as session:
        session.segment(scene(61, 93), "cat, dog", probabilities=True)
