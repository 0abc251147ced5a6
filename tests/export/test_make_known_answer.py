"""The known answer that a build writes: it tells what is wrong from what is right, and its bounds have reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import gates, make_known_answer
from export.tensorrt.profiles import NAMES, shapes
from fusioner_rt.bundle import Bundle, read_manifest
from fusioner_rt.known_answer import cosines, errors, read
from fusioner_rt.manifest import MANIFEST
from kernels import reference
from training import checkpoint


@pytest.fixture(params=["fp32", "fp16"])
def built(request: Any, tiny_bundle: Path, tiny_bundle_fp16: Path) -> tuple[str, Bundle]:
    return request.param, Bundle.open({"fp32": tiny_bundle, "fp16": tiny_bundle_fp16}[request.param])


def test_it_tells_pictures_words_and_zeros_apart_within_its_bounds(built: tuple[str, Bundle]) -> None:
    precision, bundle = built
    entry = read_manifest(bundle.folder)["known_answer"]
    assert entry["bounds"].keys() == {precision}
    assert len(entry["words"]) >= 4
    assert make_known_answer.weakness(entry) == ""
    answer = read(bundle)
    allowed = answer.bounds[precision]
    others = {
        "a picture for another": answer.cosines[[1, 2, 0]],
        "a word for another": np.roll(answer.cosines, 1, axis=1),
        "zeros": np.zeros_like(answer.cosines),
    }
    for what, found in others.items():
        for one, right in zip(found, answer.cosines, strict=True):
            assert errors(one, right)["mean"].max() > 2 * allowed["mean"], what
    assert allowed["labels"] < 1
    assert len({labels.tobytes() for labels in answer.labels}) == len(answer.labels)


def test_a_bound_is_twice_what_pytorch_errs_and_the_answers_own_error(
    built: tuple[str, Bundle], tiny_checkpoint: Path
) -> None:
    precision, bundle = built
    answer, model = read(bundle), checkpoint.load(tiny_checkpoint)
    truth, plain = gates.in_pytorch(model, precision)
    for name in ("mean", "largest"):
        found = {"pytorch": 0.0, "own": 0.0}
        for picture, stored in zip(answer.pictures, answer.cosines, strict=True):
            pixels = bundle.preprocessing(picture, answer.input_size)[None]
            maps = [
                cosines(*(maps.numpy() for maps in reference.score_maps(*map(torch.from_numpy, run))))[0]
                for run in (gates.image(side, pixels, answer.vectors) for side in (truth, plain))
            ]
            found["pytorch"] = max(found["pytorch"], errors(maps[1], maps[0])[name].max())
            found["own"] = max(found["own"], errors(stored, maps[0])[name].max())
        told = read_manifest(bundle.folder)["known_answer"]["bounds"][precision]
        derived = 2 * told[f"pytorch_{name}"] + gates.ROUNDINGS + told[f"own_{name}"]
        assert told[name] == max(derived, make_known_answer.FAST_CONVOLUTIONS)
        for side, error in found.items():  # the cosines of this test are rounded to float32
            assert told[f"{side}_{name}"] == pytest.approx(error, rel=0.01, abs=4 * float(np.finfo(np.float32).eps))


def test_what_it_cannot_tell_apart_is_said() -> None:
    same = np.ones((3, 2, 4, 5), np.float32)
    apart = make_known_answer.apart(same)
    assert apart == {"pictures": 0, "words": 0, "nothing": 1}
    entry = {"bounds": {"fp32": {"mean": 1e-6}, "bf16": {"mean": 0.5}}, "apart": apart}
    said = make_known_answer.weakness(entry)
    assert (
        said == "cannot tell apart: pictures in fp32, words in fp32, pictures in bf16, words in bf16, nothing in bf16"
    )
    assert "words" not in make_known_answer.apart(same[:, :1])


@pytest.mark.parametrize("sizes", [(32, 96, 1024), (32, 32, 32), (96, 96, 128), (14, 518, 1036)])
def test_every_set_of_profiles_holds_its_pictures(
    tiny_bundle: Path, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    manifest["profiles"]["size"] = dict(zip(("min", "opt", "max"), sizes, strict=True))
    manifest["preprocessing"]["multiple"] = multiple = 14 if sizes[0] == 14 else 32
    object.__setattr__(bundle, "size", type(bundle.size)(*sizes))
    object.__setattr__(bundle.preprocessing, "multiple", multiple)
    size = make_known_answer._input_size(bundle)
    assert not any(edge % multiple for edge in size)
    model = onnx.load(bundle.graph("image_fusion"), load_external_data=False)
    for name in NAMES:
        least, _, most = shapes(name, manifest, model)["pixels"]
        assert all(low <= edge <= high for low, edge, high in zip(least[2:], size, most[2:], strict=True)), name


def test_its_file_stays_small(built: tuple[str, Bundle]) -> None:
    entry = read_manifest(built[1].folder)["known_answer"]
    assert (built[1].folder / entry["file"]).stat().st_size < 300_000
    assert make_known_answer.MAX_VALUES * 4 < 200_000
