"""The output of transformers' image-segmentation pipelines, as tests/interfaces/large compares it with a pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from made_results import found, results

from fusioner_rt import Segmentation
from fusioner_rt.interfaces.huggingface import to_pipeline_output


@settings(max_examples=40, deadline=None)
@given(results())
def test_masks_are_those_of_the_words_that_have_pixels(result: Segmentation) -> None:
    output = to_pipeline_output(result)
    assert [entry["label"] for entry in output] == [result.words[k] for k in found(result)]
    for entry, k in zip(output, found(result), strict=True):
        assert np.array_equal(np.asarray(entry["mask"]), result.masks_uint8[k])
        assert entry["score"] == pytest.approx(float(result.scores[k]))
