"""The output of transformers' image-segmentation pipelines, against such a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from made_results import result_of
from PIL import Image

from fusioner_rt.interfaces.huggingface import to_pipeline_output
from training.encoders.open_clip import define_torchvision_operators


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
