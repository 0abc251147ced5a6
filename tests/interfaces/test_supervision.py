"""`supervision.Detections`, read and drawn by supervision itself."""

from __future__ import annotations

import numpy as np
import supervision as sv
from hypothesis import given, settings
from made_results import found, result_of, results

from fusioner_rt import Segmentation
from fusioner_rt.interfaces.supervision import to_detections


@settings(max_examples=40, deadline=None)
@given(results())
def test_detections_hold_the_masks_of_the_words_that_have_pixels(result: Segmentation) -> None:
    detections = to_detections(result)
    assert isinstance(detections, sv.Detections)
    assert detections.class_id.tolist() == found(result)
    assert np.array_equal(detections.mask, result.masks[found(result)])
    assert [result.words[k] for k in detections.class_id] == detections["class_name"].tolist()
    assert np.allclose(detections.confidence, result.scores[found(result)])
    assert detections.area.tolist() == result.masks.sum(axis=(1, 2))[found(result)].tolist()
    inclusive = sv.mask_to_xyxy(detections.mask)  # names the last pixel, not its far edge
    assert np.array_equal(detections.xyxy - [0, 0, 1, 1], inclusive)


@settings(max_examples=20, deadline=None)
@given(results())
def test_the_parts_of_a_word_make_up_its_mask(result: Segmentation) -> None:
    detections = to_detections(result, instances=True)
    assert len(detections) == len(result.instances())
    for k in found(result):
        of_word = detections[detections.class_id == k]
        assert np.array_equal(of_word.mask.sum(axis=0), result.masks[k])


def test_annotators_paint_the_mask_and_nothing_else() -> None:
    labels = np.zeros((23, 41), int)
    labels[5:11, 7:30] = 2
    scene = np.zeros((23, 41, 3), np.uint8)
    painted = sv.MaskAnnotator(color=sv.Color.WHITE, opacity=1.0).annotate(scene, to_detections(result_of(labels)))
    assert np.array_equal(painted[..., 0] > 0, labels == 2)
