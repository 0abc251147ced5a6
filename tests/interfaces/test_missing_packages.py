"""Without a tool's package its adapter says which, and what to type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
from made_results import result_of

from fusioner_rt.errors import PackageMissing, UsageError
from fusioner_rt.interfaces import cvat, huggingface, label_studio, pycocotools, supervision, trackers

RESULT = result_of(np.ones((3, 4)))


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("supervision", "supervision", lambda: supervision.to_detections(RESULT)),
        ("pycocotools.coco", "pycocotools", lambda: pycocotools.to_index([RESULT])),
        ("cvat_sdk.auto_annotation", "cvat-sdk", lambda: cvat.create("cat")),
        ("trackers", "trackers", trackers.Tracker),
        ("fiftyone", "fiftyone", lambda: import_module("fusioner_rt.interfaces.fiftyone")),
        (
            "label_studio_sdk._extensions.label_studio_tools.core.utils.io",
            "label-studio-sdk",
            lambda: label_studio.local_pictures(studio="http://127.0.0.1:1")({}, "/data/upload/1/a.jpg"),
        ),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    module: str, package: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # Python's own sign of a module that cannot be imported
    monkeypatch.delitem(sys.modules, "fusioner_rt.interfaces.fiftyone", raising=False)
    with pytest.raises(PackageMissing) as caught:
        call()
    assert caught.value.cure == f"pip install {package}"


@pytest.mark.parametrize("adapter", [supervision.to_detections, huggingface.to_pipeline_output])
@pytest.mark.parametrize("given", [[RESULT], RESULT.labels, None])
def test_what_is_no_result_is_refused(adapter: Callable[[object], object], given: object) -> None:
    with pytest.raises(UsageError, match=r"session\.segment"):
        adapter(given)
