"""The mask head's ONNX graphs against upsample-normalise-multiply in float64, written here a second time in numpy."""

import functools
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.onnx import mask_head_graphs
from fusioner_rt.onnx import mask_tiles

TEMPERATURE = 0.07


@functools.cache
def session(kind, *arguments):
    graph = getattr(mask_head_graphs, f"{kind}_graph")(*arguments)
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def maps(features, words):
    run = session("scores", features.shape[-1]).run
    return dict(zip(("scores", "gram"), run(None, {"features": features, "refined": words}), strict=True))


def probabilities(low, size, rows=None):
    feed = {**low, "size": np.array(size), "rows": np.array(rows or (0, size[0]))}
    return session("probabilities", TEMPERATURE).run(None, feed)[0]


def labels(low, size, rows=None, threshold=0.5):
    feed = {**low, "size": np.array(size), "rows": np.array(rows or (0, size[0]))}
    return session("labels", TEMPERATURE).run(None, {**feed, "threshold": np.array(threshold, np.float32)})


def tiled(low, size, threshold=0.5):
    """As `labels`, through mask_tiles."""
    names, run = ("word", "confidence"), session("tiles", TEMPERATURE).run

    def graph(inputs):
        return dict(zip(names, run(names, dict(inputs)), strict=True))

    def in_turn(function, tasks):
        for task in tasks:
            function(task)

    pictures = zip(low["scores"], low["gram"], strict=True)
    made = [mask_tiles.resolve(graph, *maps, size, threshold, in_turn) for maps in pictures]
    return [np.stack(maps) for maps in zip(*made, strict=True)]


def two_taps(size_in, size_out, outputs):
    position = np.clip((outputs + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size_in)))


def naive(features, words, size, rows=None):
    """(B, K, len(rows), W) float64."""
    rows = np.arange(size[0]) if rows is None else np.asarray(rows)
    down = two_taps(features.shape[1], size[0], rows)
    across = two_taps(features.shape[2], size[1], np.arange(size[1]))
    pixels = np.einsum("yi,bijd,xj->byxd", down, features.astype(np.float64), across, optimize=True)
    words = words.astype(np.float64)
    # a zero vector has cosine 0 with everything
    pixels /= np.maximum(np.linalg.norm(pixels, axis=-1, keepdims=True), 1e-300)
    words /= np.maximum(np.linalg.norm(words, axis=-1, keepdims=True), 1e-300)
    cosine = np.einsum("byxd,bkd->bkyx", pixels, words, optimize=True)
    return 1 / (1 + np.exp(-cosine / TEMPERATURE))


def case(seed, pictures, words, low, channels, kind="random"):
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((pictures, *low, channels), np.float32)
    if kind == "zeros":
        features[generator.random((pictures, *low)) < 0.3] = 0
    elif kind == "huge":
        features *= np.float32(1e30)
    elif kind == "tiny":
        features *= np.float32(1e-30)
    elif kind == "alike":
        features = features * np.float32(0.01) + generator.standard_normal(channels).astype(np.float32)
    return features, generator.standard_normal((pictures, words, channels), np.float32)


shapes = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1),
    "pictures": st.integers(1, 3),
    "words": st.one_of(st.integers(1, 4), st.integers(1, 300)),
    "low": st.tuples(st.integers(1, 13), st.integers(1, 13)),
    "channels": st.sampled_from([16, 24, 57]),
    "kind": st.sampled_from(["random", "zeros", "huge", "tiny", "alike"]),
})  # fmt: skip
sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(shapes, sizes)
@example({"seed": 0, "pictures": 1, "words": 300, "low": (5, 123), "channels": 16, "kind": "random"}, (123, 37))
@example({"seed": 0, "pictures": 1, "words": 1, "low": (1, 1), "channels": 16, "kind": "random"}, (1, 1))
@example({"seed": 0, "pictures": 2, "words": 2, "low": (90, 61), "channels": 16, "kind": "zeros"}, (7, 3))
@example({"seed": 1, "pictures": 1, "words": 20, "low": (13, 17), "channels": 192, "kind": "random"}, (101, 67))
@example({"seed": 1, "pictures": 1, "words": 20, "low": (13, 17), "channels": 512, "kind": "random"}, (67, 101))
@settings(max_examples=60, deadline=None)
def test_probabilities_are_within_1e_5_of_upsample_normalise_multiply(shape, size):
    features, words = case(**shape)
    exact = naive(features, words, size)
    assert np.abs(probabilities(maps(features, words), size) - exact).max() < 1e-5


@pytest.mark.parametrize("resolve", [labels, tiled])
@given(shapes, sizes, st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=60, deadline=None)
def test_labels_are_the_best_word_over_the_threshold_wherever_float32_can_tell(resolve, shape, size, threshold):
    features, words = case(**shape)
    exact = naive(features, words, size)
    found, confidence = resolve(maps(features, words), size, threshold=threshold)
    best = exact.max(axis=1)
    assert found.dtype == np.uint16
    assert np.abs(confidence - best).max() < 1e-5
    # of the label's own word, where there is one: it is the best but for rounding, and over the threshold
    own = np.take_along_axis(exact, np.maximum(found[:, None].astype(int) - 1, 0), axis=1)[:, 0]
    assert (own[found > 0] >= best[found > 0] - 1e-5).all()
    assert (own[found > 0] > threshold - 1e-5).all()
    assert (best[found == 0] <= threshold + 1e-5).all()


@pytest.mark.parametrize(
    ("low", "size", "words"),
    [
        ((128, 128), (2048, 2048), 1),
        ((80, 61), (2047, 1999), 20),
        ((97, 123), (1025, 769), 300),
        ((300, 257), (63, 31), 7),
    ],
)
def test_large_outputs_keep_the_bound(low, size, words):
    features, vectors = case(5, 1, words, low, 16)
    low_maps = maps(features, vectors)
    whole = tiled(low_maps, size)
    for first in np.linspace(0, size[0] - 3, 3, dtype=int):
        exact = naive(features, vectors, size, range(first, first + 3))
        assert np.abs(probabilities(low_maps, size, (first, first + 3)) - exact).max() < 1e-5
        for found, confidence in (
            labels(low_maps, size, (first, first + 3)), (part[:, first : first + 3] for part in whole)
        ):  # fmt: skip
            assert np.abs(confidence - exact.max(axis=1)).max() < 1e-5
            assert ((found == np.where(exact.max(1) > 0.5, exact.argmax(1) + 1, 0)).mean()) > 0.9999


@given(shapes, sizes, st.data())
@settings(max_examples=30, deadline=None)
def test_rows_computed_in_bands_are_the_rows_of_the_whole(shape, size, data):
    low = maps(*case(**shape))
    first = data.draw(st.integers(0, size[0] - 1))
    last = data.draw(st.integers(first + 1, size[0]))
    whole, part = probabilities(low, size), probabilities(low, size, (first, last))
    # the same products, summed by another tiling: a rounding or two of the logit
    np.testing.assert_allclose(part, whole[:, :, first:last], rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        labels(low, size, (first, last))[1], labels(low, size)[1][:, first:last], rtol=0, atol=2e-6
    )


@given(shapes, sizes)
@settings(max_examples=30, deadline=None)
def test_graphs_compute_what_the_reference_defines(shape, size):
    import torch

    from kernels import reference

    features, words = case(**shape)
    low = maps(features, words)
    scores, gram = reference.score_maps(torch.from_numpy(features), torch.from_numpy(words))
    np.testing.assert_allclose(low["scores"], scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(low["gram"], gram, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))
    expected = reference.probabilities(scores, gram, size, TEMPERATURE)
    np.testing.assert_allclose(probabilities(low, size), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("resolve", [labels, tiled])
def test_no_direction_means_one_half_and_background(resolve):
    features, words = np.zeros((1, 3, 4, 16), np.float32), np.ones((1, 2, 16), np.float32)
    found, confidence = resolve(maps(features, words), (7, 9))
    assert (found == 0).all()
    assert (confidence == 0.5).all()


@pytest.mark.parametrize("resolve", [labels, tiled])
def test_opposite_neighbours_cancel_to_one_half_without_nan(resolve):
    features = np.random.default_rng(0).standard_normal((1, 1, 2, 16), np.float32)
    features[:, :, 1] = -features[:, :, 0]
    found, confidence = resolve(maps(features, np.ones((1, 3, 16), np.float32)), (3, 41))
    assert np.isfinite(confidence).all()
    assert (confidence[:, :, 20] == 0.5).all()
    assert (found[:, :, 20] == 0).all()


@pytest.mark.parametrize("resolve", [labels, tiled])
def test_a_tie_goes_to_the_word_named_first(resolve):
    features, words = case(6, 1, 1, (5, 4), 16)
    found, _ = resolve(maps(features, np.repeat(words, 5, axis=1)), (11, 13), threshold=0.0)
    assert (found == 1).all()


@given(shapes, sizes)
@settings(max_examples=30, deadline=None)
def test_the_naive_graph_computes_the_same_within_its_own_rounding(shape, size):
    shape = {**shape, "pictures": 1, "kind": "random"}  # its plain sums of squares leave float32 for huge and tiny
    features, words = case(**shape)
    exact = naive(features, words, size)
    feed = {"features": features, "refined": words, "size": np.array(size), "threshold": np.array(0.5, np.float32)}
    found, confidence = session("naive", features.shape[-1], TEMPERATURE).run(None, feed)
    # Of the logit, a cosine over the temperature: sums over the channels, and Resize's float32 coordinates, which err
    # by the map's side and weigh differences of neighbours; a feature that cancels is rounded before it is divided.
    side, channels = max(shape["low"]), features.shape[-1]
    weakest = np.sqrt(lengths(features, size).min() / (features.astype(np.float64) ** 2).sum(-1).max())
    allowed = (8 + channels**0.5 + 4 * side) * np.finfo(np.float32).eps / (4 * TEMPERATURE) / min(1, weakest)
    assert found.dtype == np.uint16
    assert np.abs(confidence - exact.max(axis=1)).max() <= allowed
    own = np.take_along_axis(exact, np.maximum(found[:, None].astype(int) - 1, 0), axis=1)[:, 0]
    assert (own[found > 0] >= exact.max(axis=1)[found > 0] - 2 * allowed).all()


def lengths(features, size):
    """Squared lengths of the upsampled features, (B, H, W) float64."""
    down, across = (two_taps(features.shape[axis + 1], size[axis], np.arange(size[axis])) for axis in (0, 1))
    pixels = np.einsum("yi,bijd,xj->byxd", down, features.astype(np.float64), across, optimize=True)
    return (pixels**2).sum(axis=-1)


def test_features_at_output_size_are_never_allocated():
    program = """
import resource, sys
import numpy as np, onnxruntime
from export.onnx.mask_head_graphs import labels_graph, scores_graph
d, low, high, words = 512, 64, 2048, 3
load = lambda graph: onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
scores, labels = load(scores_graph(d)), load(labels_graph(0.07))
generator = np.random.default_rng(0)
feed = {"features": generator.standard_normal((1, low, low, d), np.float32),
        "refined": generator.standard_normal((1, words, d), np.float32)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
maps = dict(zip(("scores", "gram"), scores.run(None, feed)))
labels.run(None, {**maps, "size": np.array([high, high]), "rows": np.array([0, high]),
                  "threshold": np.array(0.5, np.float32)})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    import pathlib

    root = pathlib.Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    used, naive_bytes = int(done.stdout), 2048 * 2048 * 512 * 4
    # All 2048 rows at once, a caller would take bands: some twenty float maps of H×W, and copies of h×w×d.
    assert used < 24 * 2048 * 2048 * 4 + 12 * 64 * 64 * 512 * 4 < naive_bytes / 10
