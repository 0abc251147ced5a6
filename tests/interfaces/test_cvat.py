"""The function for CVAT: loaded by cvat-cli, checked and decoded by cvat-sdk."""

from __future__ import annotations

import argparse
import logging
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


def loaded(*parameters: str) -> Any:
    """The function of a command line, by cvat-cli's own parser and loader."""
    parser = argparse.ArgumentParser()
    functions: list[Any] = []
    parser.set_defaults(_executor=lambda client, function_loader: functions.append(function_loader.load()))
    configure_function_implementation_arguments(parser)
    options = vars(parser.parse_args(["--function-module", "fusioner_rt.interfaces.cvat", *parameters]))
    options.pop("_executor")(None, **options)
    return functions[0]


@pytest.fixture(scope="module")
def function() -> Any:
    return loaded("-p", "words=str:spoon, table", "-p", f"bundle=str:{BUNDLE}", "-p", "backend=str:onnxruntime-cpu")


@pytest.fixture(scope="module")
def seen() -> Segmentation:
    with Session(BUNDLE) as session:
        return session.segment(COFFEE, "spoon, table")


def shapes(function: Any, polygons: bool = False, least: float | None = None) -> list[Any]:
    """What the driver would send to a task whose labels have numbers of their own, after its checks."""
    labels = [models.Label(name=word, id=id, attributes=[], type="any", sublabels=[]) for word, id in TASK.items()]
    mapper = _AnnotationMapper(
        logging.getLogger("cvat"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    context = _DetectionFunctionContextImpl(frame_name="coffee.jpg", conf_threshold=least, conv_mask_to_poly=polygons)
    tags, shapes = mapper.validate_and_remap(function.detect(context, Image.open(COFFEE)), 5)
    assert not tags
    return shapes


TASK = {"table": 31, "spoon": 47}


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
    with pytest.raises(WordsInvalid):
        loaded("-p", "words=str:", "-p", f"bundle=str:{BUNDLE}")
    with pytest.raises(UsageError):
        loaded("-p", "words=str:cat", "-p", f"bundle=str:{BUNDLE}", "-p", "threads=int:0")
