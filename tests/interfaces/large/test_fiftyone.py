"""The model for FiftyOne, applied to a dataset: FiftyOne's own MongoDB stores what it gives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from made_results import WORDS, result_of, results

from fusioner_rt import Segmentation, Session

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "models" / "demo" / "bundle"
PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def fo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FiftyOne, whose MongoDB keeps its files in a temporary folder. On systems without OpenSSL 1.1, which it is linked
    against, it finds that of OpenCV's wheel.
    """
    import cv2

    home = tmp_path_factory.mktemp("fiftyone")
    libraries = Path(cv2.__file__).parents[1] / "opencv_python_headless.libs"
    for name in ("libcrypto", "libssl"):
        for file in libraries.glob(f"{name}-*.so.1.1*"):
            (home / f"{name}.so.1.1").symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "LD_LIBRARY_PATH", os.pathsep.join(filter(None, [str(home), str(libraries), os.getenv("LD_LIBRARY_PATH")]))
        )
        patch.setenv("FIFTYONE_DATABASE_DIR", str(home / "database"))
        patch.setenv("FIFTYONE_DATABASE_VALIDATION", "false")  # it warns of MongoDB 6
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
        patch.setenv("HOME", str(home))
        import fiftyone

        yield fiftyone


@pytest.fixture
def dataset(fo: Any) -> Iterator[Any]:
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=str(PICTURES / name)) for name in ("cat.jpg", "coffee.jpg")])
    yield dataset
    dataset.delete()


def expected(words: str) -> list[Segmentation]:
    with Session(BUNDLE) as session:
        return session.segment([PICTURES / "cat.jpg", PICTURES / "coffee.jpg"], words)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_dataset_holds_the_results_label_maps(dataset: Any, batch_size: int | None) -> None:
    from fusioner_rt.interfaces.fiftyone import FusionerModel

    model = FusionerModel(BUNDLE, "cat, spoon, table")
    dataset.apply_model(model, "masks", batch_size=batch_size, skip_failures=False)
    dataset.mask_targets["masks"] = model.mask_targets
    dataset.save()
    dataset.reload()
    assert dataset.mask_targets["masks"] == {1: "cat", 2: "spoon", 3: "table"}
    for sample, result in zip(dataset, expected("cat, spoon, table"), strict=True):
        assert sample.masks.mask.dtype == np.uint16
        assert np.array_equal(sample.masks.mask, result.labels)


def test_a_dataset_holds_the_parts_and_filters_them_by_confidence(dataset: Any) -> None:
    from fusioner_rt.interfaces.fiftyone import FusionerModel

    model = FusionerModel(BUNDLE, "cat, spoon, table", instances=True)
    dataset.apply_model(model, "parts", confidence_thresh=0.6, skip_failures=False)
    for sample, result in zip(dataset, expected("cat, spoon, table"), strict=True):
        kept = [one for one in result.instances() if one.score >= 0.6]
        assert [one.label for one in sample.parts.detections] == [one.word for one in kept]
        assert all(np.array_equal(one.mask, part.crop) for one, part in zip(sample.parts.detections, kept, strict=True))


def test_a_model_gives_detections_per_word(fo: Any) -> None:
    from fusioner_rt.interfaces.fiftyone import FusionerModel

    model = FusionerModel(BUNDLE, "cat, spoon, table", detections=True)
    (result, _) = expected("cat, spoon, table")
    found = model.predict(result.picture).detections
    areas = {word: result[word].sum() for word in result.words if result[word].any()}
    assert [(one.label, one.mask.sum()) for one in found] == list(areas.items())


@settings(max_examples=30, deadline=None)
@given(result=results())
def test_fiftyone_paints_detections_back_into_the_label_map(fo: Any, result: Segmentation) -> None:
    from fusioner_rt.interfaces.fiftyone import to_detections

    height, width = result.labels.shape
    for instances in (True, False):
        painted = to_detections(result, instances).to_segmentation(
            frame_size=(width, height), mask_targets=dict(enumerate(WORDS, start=1))
        )
        assert np.array_equal(painted.mask, result.labels)


def test_a_label_map_of_no_word_is_background(fo: Any) -> None:
    from fusioner_rt.interfaces.fiftyone import to_segmentation

    assert not to_segmentation(result_of(np.zeros((3, 5)))).mask.any()


def test_the_pages_block_runs(fo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "interfaces.md").read_text()
    (block,) = [
        one for one in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "fiftyone" in one
    ]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FUSIONER_ENGINE", str(ROOT / "models/demo/bundle"))
    names: dict[str, Any] = {}
    exec(compile(block, "docs/interfaces.md", "exec"), names)
    assert len(names["dataset"]) == 3
    for sample in names["dataset"]:
        assert sample.masks.mask.any()
        assert sample.parts.detections
