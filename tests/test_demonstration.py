"""The committed demonstration bundle, on a real photograph, as a newcomer meets it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusioner_rt

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "models" / "demo" / "bundle"
PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def session() -> fusioner_rt.Session:
    return fusioner_rt.Session(BUNDLE, cache=False)


def test_the_cat_is_found_where_it_is_and_a_horse_is_not(session: fusioner_rt.Session) -> None:
    cat, horse = (session.segment(PICTURES / "cat.jpg", word) for word in ("cat", "horse"))
    assert cat.shares[0] > 0.3
    assert horse.shares[0] < 0.5 * cat.shares[0]
    assert cat.masks[0, 100:180, 150:300].mean() > 0.9, "the cat's face lies in the middle of the photograph"


def test_a_person_is_told_from_a_dog_that_is_not_there(session: fusioner_rt.Session) -> None:
    result = session.segment(PICTURES / "astronaut.jpg", ["dog", "person"])
    dog, person = result.shares
    assert person > 0.1
    assert person > 5 * dog


def test_words_in_another_order_give_the_same_masks(session: fusioner_rt.Session) -> None:
    one = session.segment(PICTURES / "cat.jpg", ["cat", "sofa", "dog"])
    other = session.segment(PICTURES / "cat.jpg", ["dog", "cat", "sofa"])
    for word in one.words:
        same = one.masks[one.words.index(word)] == other.masks[other.words.index(word)]
        assert same.mean() > 0.999, word


def test_the_bundle_says_it_is_fp16_and_its_weights_are() -> None:
    onnx = pytest.importorskip("onnx")
    manifest = json.loads((BUNDLE / "manifest.json").read_text())
    assert manifest["precision"] == "fp16"
    for name in ("text", "image_fusion"):
        graph = onnx.load(BUNDLE / manifest["graphs"][name]["file"]).graph
        sizes = {True: 0, False: 0}
        for tensor in graph.initializer:
            if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                sizes[tensor.data_type == onnx.TensorProto.FLOAT16] += int(np.prod(tensor.dims))
        share = sizes[True] / (sizes[True] + sizes[False])
        assert share > 0.95
        assert share == pytest.approx(manifest["graphs"][name]["fp16_weight_share"], abs=1e-3)


def test_the_command_line_takes_under_three_seconds_of_process_time(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fusioner_rt",
        "segment",
        str(PICTURES / "cat.jpg"),
        "--words",
        "cat, sofa",
        "--engine",
        str(BUNDLE),
    ]
    environment = {**os.environ, "FUSIONER_CACHE": str(tmp_path / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 3.0, f"{spent:.2f} s of processor time, words encoded afresh"
    assert (tmp_path / "cat.overlay.jpg").is_file()


def test_checkpoint_and_bundle_stay_within_their_size() -> None:
    total = sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file())
    assert total < 80e6
