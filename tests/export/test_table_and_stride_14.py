"""A fixed table of names beside a ViT of stride 14, from their files to masks: the whole build, its gates, and a session
that knows those names alone.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import build_engine
from fusioner_rt import Session
from fusioner_rt.bundle import read_manifest
from fusioner_rt.cli import main
from fusioner_rt.errors import WordsInvalid, WordUnreadable
from fusioner_rt.words.templates import PLACE
from training import checkpoint
from training.encoders import table
from training.encoders.vision_transformer import VARIANTS
from training.model import FusionerConfig

NAMES = ["cat", "traffic light", "sofa", "soda", "lamp", "spoon", "rug"]  # of the gates' words, two


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path, traces: None) -> dict[str, Path]:
    """The command line's work, in both precisions; the graphs are traced once, for that takes nearly all the time."""
    folder = tmp_path_factory.mktemp("table")
    rows = [{"name": name, "synonyms": ["couch"] if name == "sofa" else []} for name in NAMES]
    (folder / "names.json").write_text(json.dumps(rows))
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((len(NAMES), 12)).astype(np.float16))
    assert table.main(
        [str(folder / "words.safetensors"), "--names", str(folder / "names.json"), "--vectors", str(folder / "vectors.npy")]
    ) == 0  # fmt: skip
    config = FusionerConfig(
        image_encoder="dinov2-vits14:random", text_encoder=f"table:{folder / 'words.safetensors'}", width=16, layers=1,
        heads=2, decoder=(16, 8),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # weights are random
        small = replace(VARIANTS["dinov2-vits14"], width=32, depth=1, heads=4, side=70)
        patch.setitem(VARIANTS, "dinov2-vits14", small)
        torch.manual_seed(0)
        checkpoint.save(checkpoint.build(config), folder / "checkpoint", {"pictures": 0})
        for precision in ("fp32", "fp16"):
            command = ["--checkpoint", str(folder / "checkpoint"), "--out", str(folder / precision)]
            command += [
                "--pictures",
                str(picture_folder),
                "--backend",
                "onnxruntime",
                "--max-batch",
                "2",
                "--kernels",
                "none",
            ]
            assert build_engine.main([*command, *(["--fp16"] if precision == "fp16" else [])]) == 0
    return {precision: folder / precision for precision in ("fp32", "fp16")}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_table_bundle_is_proved_on_words_it_has_and_segments_by_name(
    bundles: dict[str, Path], photographs: list[np.ndarray], precision: str
) -> None:
    with Session(bundles[precision]) as session:
        manifest = read_manifest(session.bundle.folder)
        gates = manifest["gates"]
        assert manifest["profiles"]["size"] == {"min": 14, "opt": 70, "max": 1022}
        assert manifest["preprocessing"]["multiple"] == 14
        assert manifest["templates"] == [PLACE]
        assert gates["words"]["words"] == len(NAMES)
        for output in ("embeddings", "features", "refined"):
            assert gates["parity"][output]["error"] <= gates["parity"][output]["allowed"] < np.inf
        found = session.segment(photographs[0], ["Couch", "traffic_light"], probabilities=True)
        again = session.segment(photographs[0], ["sofa", "traffic light"], probabilities=True)
    assert found.labels.shape == photographs[0].shape[:2]
    assert found.probabilities is not None
    assert np.isfinite(found.probabilities).all()
    assert (found.probabilities[0] != found.probabilities[1]).any()
    np.testing.assert_array_equal(found.probabilities, again.probabilities)


def test_a_word_that_is_not_in_the_table_is_refused_with_near_names(
    bundles: dict[str, Path], photographs: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = r"cannot read 'sofas': it is a fixed table of 8 names, and this is none of them; near ones are: sofa, soda"
    with Session(bundles["fp32"]) as session:
        with pytest.raises(WordUnreadable, match=said):
            session.segment(photographs[0], ["cat", "sofas"])
        with pytest.raises(WordsInvalid, match="'sofa' and 'couch' are the same tokens"):
            session.segment(photographs[0], ["sofa", "couch"])
        with pytest.raises(WordUnreadable, match="leave the templates at its own"):
            session.set_vocabulary(["sofa"], templates=["a photo of a {category}"])
        assert session.text_encoder_calls == 0
    Image.fromarray(photographs[0]).save(tmp_path / "room.png")
    command = ["segment", "--engine", str(bundles["fp32"]), str(tmp_path / "room.png"), "--words", "cat,sofas"]
    assert main(command) == WordUnreadable.exit_code
    assert "near ones are: sofa, soda" in capsys.readouterr().err
