"""The output of transformers' image-segmentation pipelines, against those pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from made_results import found, result_of, results
from PIL import Image

from fusioner_rt import Segmentation
from fusioner_rt.interfaces.huggingface import to_pipeline_output
from training.encoders.open_clip import define_torchvision_operators


@settings(max_examples=40, deadline=None)
@given(results())
def test_masks_are_those_of_the_words_that_have_pixels(result: Segmentation) -> None:
    output = to_pipeline_output(result)
    assert [entry["label"] for entry in output] == [result.words[k] for k in found(result)]
    for entry, k in zip(output, found(result), strict=True):
        assert np.array_equal(np.asarray(entry["mask"]), result.masks_uint8[k])
        assert entry["score"] == pytest.approx(float(result.scores[k]))


def test_a_real_pipeline_gives_the_same_masks_labels_and_types_for_the_same_label_map() -> None:
    define_torchvision_operators()
    from transformers import (
        ImageSegmentationPipeline,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    words = ("wall", "cat", "sofa", "dog", "car")
    torch.manual_seed(3)
    small = SegformerConfig(
        hidden_sizes=[4, 4, 4, 4], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        id2label=dict(enumerate(words)),
    )  # fmt: skip
    pipeline = ImageSegmentationPipeline(
        model=SegformerForSemanticSegmentation(small).eval(),
        image_processor=SegformerImageProcessor(size={"height": 64, "width": 64}),
    )
    noise = np.random.default_rng(0).integers(0, 256, (61, 93, 3), np.uint8)
    theirs: list[dict[str, Any]] = pipeline(Image.fromarray(noise))
    labels = np.zeros((61, 93), int)
    for entry in theirs:
        labels[np.asarray(entry["mask"]) > 0] = words.index(entry["label"]) + 1
    ours = to_pipeline_output(result_of(labels, words))

    assert len(theirs) > 1
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        assert our["label"] == their["label"]
        assert (type(our["mask"]), our["mask"].mode, our["mask"].size) == (Image.Image, "L", their["mask"].size)
        assert our["mask"].tobytes() == their["mask"].tobytes()
        assert their["mask"].mode == "L"
        assert isinstance(our["score"], float)
        assert their["score"] is None  # it has none for words; for parts it gives a number
