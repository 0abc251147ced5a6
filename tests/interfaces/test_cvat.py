"""The function for CVAT: loaded by cvat-cli, checked and decoded by cvat-sdk."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cvat_cli._internal.agent_driver_detection import AgentDetectionFunctionDriver
from cvat_cli._internal.common import configure_function_implementation_arguments
from cvat_sdk import masks, models
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from PIL import Image

from fusioner_rt import Segmentation, Session
from fusioner_rt.errors import UsageError, WordsInvalid

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "demo" / "bundle"
COFFEE = ROOT / "docs" / "pictures" / "coffee.jpg"
ASTRONAUT = ROOT / "docs" / "pictures" / "astronaut.jpg"
TASK = {"table": 31, "spoon": 47}
EXAMPLE = ROOT / "examples" / "cvat_function.py"


def loaded(*parameters: str, function: tuple[str, str] = ("--function-module", "fusioner_rt.interfaces.cvat")) -> Any:
    """The function of a command line, by cvat-cli's own parser and loader."""
    parser = argparse.ArgumentParser()
    functions: list[Any] = []
    parser.set_defaults(_executor=lambda client, function_loader: functions.append(function_loader.load()))
    configure_function_implementation_arguments(parser)
    options = vars(parser.parse_args([*function, *parameters]))
    options.pop("_executor")(None, **options)
    return functions[0]


@pytest.fixture(scope="module")
def function() -> Any:
    return loaded("-p", "words=str:spoon, table", "-p", f"bundle=str:{BUNDLE}", "-p", "backend=str:onnxruntime-cpu")


@pytest.fixture(scope="module")
def seen() -> Segmentation:
    with Session(BUNDLE) as session:
        return session.segment(COFFEE, "spoon, table")


def shapes(
    function: Any,
    polygons: bool = False,
    least: float | None = None,
    picture: Path = COFFEE,
    task: dict[str, int] = TASK,
) -> list[Any]:
    """What the driver would send to a task whose labels have numbers of their own, after its checks."""
    labels = [models.Label(name=word, id=id, attributes=[], type="any", sublabels=[]) for word, id in task.items()]
    mapper = _AnnotationMapper(
        logging.getLogger("cvat"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    context = _DetectionFunctionContextImpl(frame_name=picture.name, conf_threshold=least, conv_mask_to_poly=polygons)
    tags, shapes = mapper.validate_and_remap(function.detect(context, Image.open(picture)), 5)
    assert not tags
    return shapes


def test_masks_that_pass_the_driver_decode_to_the_results(function: Any, seen: Segmentation) -> None:
    height, width = seen.labels.shape
    sent = shapes(function)
    assert [(shape.type.value, shape.frame, shape.label_id) for shape in sent] == [("mask", 5, 47), ("mask", 5, 31)]
    for shape, mask in zip(sent, seen.masks, strict=True):
        assert np.array_equal(masks.decode_mask(shape.points, image_width=width, image_height=height), mask)


def test_parts_decode_to_the_results_instances(seen: Segmentation) -> None:
    function = loaded("-p", "words=str:spoon, table", "-p", f"bundle=str:{BUNDLE}", "-p", "instances=bool:true")
    height, width = seen.labels.shape
    sent = shapes(function)
    assert len(sent) == len(seen.instances())
    for shape, one in zip(sent, seen.instances(), strict=True):
        assert np.array_equal(masks.decode_mask(shape.points, image_width=width, image_height=height), one.mask)


def test_polygons_cover_what_the_masks_cover(function: Any, seen: Segmentation) -> None:
    """Filled at pixels' centres by the even-odd rule."""
    for k, id in enumerate((47, 31)):
        filled = np.zeros(seen.labels.shape, bool)
        for shape in shapes(function, polygons=True):
            assert shape.type.value == "polygon"
            if shape.label_id == id:
                filled ^= at_centres(np.array(shape.points).reshape(-1, 2), seen.labels.shape)
        assert np.array_equal(filled, seen.masks[k])


def at_centres(ring: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Upright edges left of a pixel's centre, counted: odd is inside."""
    crossings = np.zeros((size[0], size[1] + 1), int)
    for (x, y), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y != y2:
            assert x == x2
            crossings[int(min(y, y2)) : int(max(y, y2)), int(x)] += 1
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


def test_a_threshold_leaves_out_what_scores_less(function: Any, seen: Segmentation) -> None:
    between = float(seen.scores.mean())
    kept = [TASK[word] for word, score in zip(seen.words, seen.scores, strict=True) if score >= between]
    assert [shape.label_id for shape in shapes(function, least=between)] == kept
    assert len(kept) == 1


def test_agents_register_a_mask_label_per_word(function: Any) -> None:
    fields = AgentDetectionFunctionDriver.get_remote_function_fields(function.spec)
    assert fields == {"labels_v2": [{"name": word, "attributes": [], "type": "mask"} for word in ("spoon", "table")]}


def test_wrong_parameters_are_one_line_errors() -> None:
    for words in ((), ("-p", "words=str:"), ("-p", "words=int:5")):
        with pytest.raises(WordsInvalid, match=r"^words is .*; give some"):
            loaded(*words, "-p", f"bundle=str:{BUNDLE}")
    with pytest.raises(UsageError, match=r"no parameter 'word'; give words, .* bundle, instances, backend, "):
        loaded("-p", "word=str:cat")
    with pytest.raises(UsageError, match="instances is 'yes'"):
        loaded("-p", "words=str:cat", "-p", f"bundle=str:{BUNDLE}", "-p", "instances=str:yes")
    with pytest.raises(UsageError):
        loaded("-p", "words=str:cat", "-p", f"bundle=str:{BUNDLE}", "-p", "threads=int:0")


@pytest.fixture
def astronaut(monkeypatch: pytest.MonkeyPatch) -> Segmentation:
    """By the bundle that the example finds."""
    monkeypatch.setenv("FUSIONER_ENGINE", str(BUNDLE))
    with Session() as session:
        return session.segment(ASTRONAUT, "face, hair")


def test_the_example_gives_cvat_its_larger_parts(astronaut: Segmentation) -> None:
    function = loaded(
        "-p", "words=str:face, hair", "-p", "least=float:0.01", function=("--function-file", str(EXAMPLE))
    )
    height, width = astronaut.labels.shape
    parts = [one for one in astronaut.instances(min_area=0.01 * height * width) if one.score >= 0.6]
    assert {one.word for one in parts} == {"face", "hair"}
    task = {"face": 7, "hair": 8}
    sent = shapes(function, picture=ASTRONAUT, task=task)
    assert [shape.label_id for shape in sent] == [task[one.word] for one in parts]
    for shape, one in zip(sent, parts, strict=True):
        assert np.array_equal(masks.decode_mask(shape.points, image_width=width, image_height=height), one.mask)
    assert len(shapes(function, least=0.9, picture=ASTRONAUT, task=task)) < len(parts)


def test_a_threshold_of_0_gives_the_example_no_bound(monkeypatch: pytest.MonkeyPatch, seen: Segmentation) -> None:
    monkeypatch.setenv("FUSIONER_ENGINE", str(BUNDLE))
    function = loaded(
        "-p", "words=str:spoon, table", "-p", "least=float:0.003", function=("--function-file", str(EXAMPLE))
    )
    parts = seen.instances(min_area=0.003 * seen.labels.size)
    assert min(one.score for one in parts) < 0.6
    assert len(shapes(function, least=0.0)) == len(parts) > len(shapes(function))


def test_the_example_draws_what_cvat_would_get(
    astronaut: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(ASTRONAUT), "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    parts = astronaut.instances(min_area=0.005 * astronaut.labels.size)
    told = [f"{one.word}: {one.area} pixels" for one in parts if one.score >= 0.6]
    assert capsys.readouterr().out.splitlines() == told
    drawn = np.asarray(Image.open(tmp_path / "cvat_function.jpg"), int)
    changed = np.abs(drawn - np.asarray(Image.open(ASTRONAUT), int)).mean(axis=-1)
    assert changed[astronaut["face"]].mean() > 20 > 5 > changed[astronaut.labels == 0].mean()
