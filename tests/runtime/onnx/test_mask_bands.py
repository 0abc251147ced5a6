from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusioner_rt.bundle import Bundle
from fusioner_rt.onnx.mask_head import MaskHead, bands
from fusioner_rt.onnx.runtime import Graph, OnnxRuntime

EPS = float(np.finfo(np.float32).eps)
# Probability errs by at most a quarter of the logit's error; the logit is a cosine over a temperature of 0.07, whose
# few dozen float32 roundings are each relative to at most 1/0.07.
ALLOWED = 0.25 / 0.07 * 48 * EPS


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> tuple[Graph, Graph, Graph]:
    bundle, runtime = Bundle.open(tiny_bundle), OnnxRuntime("onnxruntime-cpu", threads=1)
    scores, tiles, probabilities = (
        runtime.load(bundle.graph(name)) for name in ("mask_scores", "mask_tiles", "mask_probabilities")
    )
    return scores, tiles, probabilities


@pytest.fixture(scope="module")
def channels(tiny_bundle: Path) -> int:
    runtime = OnnxRuntime("onnxruntime-cpu", threads=1)
    bundle = Bundle.open(tiny_bundle)
    words = runtime.load(bundle.graph("text"))(
        {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 3), np.int64)}
    )["embeddings"]
    edge = max(bundle.size.min, bundle.preprocessing.multiple)
    pixels = np.zeros((1, 3, edge, edge), np.float32)
    fused = runtime.load(bundle.graph("image_fusion"))({"pixels": pixels, "words": words[None]})
    return int(fused["features"].shape[3])


def maps(graphs: tuple[Graph, Graph, Graph], channels: int, pictures: int, words: int, seed: int, odd: int = 0):  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    features = random.normal(size=(pictures, 5 + odd % 4, 7 + odd % 3, channels)).astype(np.float32)
    refined = random.normal(size=(pictures, words, channels)).astype(np.float32)
    return MaskHead(*graphs).maps(features, refined)


@given(st.integers(0, 5000), st.integers(0, 10_000), st.integers(1, 100_000))
def test_bands_cover_every_row_once_within_the_budget(height: int, row_bytes: int, budget: int) -> None:
    covered = 0
    cut = list(bands(height, row_bytes, budget))
    assert len(cut) >= min(height, 4) or height in (5, 6, 9)  # rows of two or three come out in three bands
    for first, last in cut:
        assert first == covered
        assert last > first
        assert (last - first) * row_bytes <= budget or last - first == 1
        covered = last
    assert covered == height


@given(st.integers(1, 37), st.integers(1, 53), st.integers(1, 9), st.integers(1, 8000), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bands_of_any_height_give_what_one_band_gives(
    graphs: tuple[Graph, Graph, Graph], channels: int, height: int, width: int, words: int, budget: int, seed: int
) -> None:
    scores, gram = maps(graphs, channels, 1, words, seed, seed)
    whole, banded = MaskHead(*graphs), MaskHead(*graphs, budget=budget)
    size = (height, width)
    probabilities = whole.probabilities(scores, gram, size)
    np.testing.assert_allclose(banded.probabilities(scores, gram, size), probabilities, atol=ALLOWED, rtol=0)
    labels, confidence = whole.labels(scores, gram, size, 0.5)
    labels_again, confidence_again = banded.labels(scores, gram, size, 0.5)
    np.testing.assert_allclose(confidence_again, confidence, atol=ALLOWED, rtol=0)
    different = labels_again != labels
    if different.any():  # only where two words, or a word and the threshold, are equal within rounding
        ranked = np.sort(np.concatenate([probabilities[0], np.full((1, *size), 0.5, np.float32)]), axis=0)
        assert (ranked[-1] - ranked[-2])[different].max() <= 2 * ALLOWED


def assert_best(labels: np.ndarray, confidence: np.ndarray, probabilities: np.ndarray, threshold: float) -> None:
    """labels and confidence (H, W) are the best of probabilities (K, H, W), but for ties within rounding."""
    np.testing.assert_allclose(confidence, probabilities.max(axis=0), atol=ALLOWED, rtol=0)
    clear = np.diff(np.sort(probabilities, axis=0)[-2:], axis=0)[0] > 2 * ALLOWED
    clear &= np.abs(confidence - threshold) > 2 * ALLOWED
    expected = np.where(confidence > threshold, probabilities.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(labels[clear], expected[clear])
    assert clear.mean() > 0.9


def test_labels_and_confidence_are_the_best_of_the_probabilities(
    graphs: tuple[Graph, Graph, Graph], channels: int
) -> None:
    scores, gram = maps(graphs, channels, 1, 6, seed=3)
    head = MaskHead(*graphs)
    labels, confidence = head.labels(scores, gram, (123, 37), 0.6)
    probabilities = head.probabilities(scores, gram, (123, 37))[0]
    assert labels.dtype == np.uint16
    assert labels.shape == (123, 37)
    assert confidence.dtype == np.float32
    assert_best(labels, confidence, probabilities, 0.6)
    assert 0 < (labels > 0).mean() < 1


def test_independent_labels_are_the_best_of_probabilities_with_their_own_norms(
    graphs: tuple[Graph, Graph, Graph], channels: int
) -> None:
    scores, gram = maps(graphs, channels, 5, 1, seed=4)  # five words, each with features of its own
    head = MaskHead(*graphs, budget=2000)
    labels, confidence = head.independent_labels(scores, gram, (31, 29), 0.5)
    probabilities = np.concatenate([head.probabilities(scores[k : k + 1], gram[k : k + 1], (31, 29)) for k in range(5)])
    probabilities = probabilities[:, 0]
    assert_best(labels, confidence, probabilities, 0.5)


def test_independent_words_that_are_all_but_certain_do_not_tie(
    graphs: tuple[Graph, Graph, Graph], channels: int
) -> None:
    """Two words with cosines of 0.999 and 0.9999: both probabilities are 1 - 6e-7, and the surer must still win."""
    features = np.zeros((2, 3, 3, channels), np.float32)
    features[..., 0] = 1
    refined = np.zeros((2, 1, channels), np.float32)
    for k, cosine in enumerate((0.999, 0.9999)):
        refined[k, 0, :2] = cosine, (1 - cosine**2) ** 0.5
    head = MaskHead(*graphs)
    for order in ([0, 1], [1, 0]):
        labels, confidence = head.independent_labels(*head.maps(features, refined[order]), (8, 8), 0.5)
        assert (labels == order.index(1) + 1).all()
        assert (confidence < 1).all()
