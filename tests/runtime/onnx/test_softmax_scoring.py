"""Softmax over the words of a picture, by the ONNX graphs: its laws, and its definition in kernels/reference.py."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.onnx import mask_head_graphs
from fusioner_rt.onnx import mask_tiles
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.runtime import Graph, OnnxRuntime
from kernels import reference

CHANNELS = 24
TEMPERATURE = 1 / 40
EPS = float(np.finfo(np.float32).eps)
KINDS = ("random", "smooth", "zeros", "zero", "opposite", "tied", "huge", "tiny")


@functools.cache
def graph(kind: str, threads: int, *arguments: Any) -> Graph:
    made = getattr(mask_head_graphs, f"{kind}_graph")(*arguments)
    return OnnxRuntime("onnxruntime-cpu", threads).load(Path(f"mask_{kind}.onnx"), made.SerializeToString())


def head(temperature: float = TEMPERATURE, threads: int = 1) -> MaskHead:
    scoring = temperature, "softmax"
    return MaskHead(
        graph("scores", 1, CHANNELS), graph("tiles", 1, *scoring), graph("probabilities", 1, *scoring), threads,
        scoring="softmax",
    )  # fmt: skip


def drawn(seed: int, words: int, low: tuple[int, int], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (1, h, w, d) and words (1, K, d), float32."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(1, *low, CHANNELS)).astype(np.float32)
    refined = random.normal(size=(1, words, CHANNELS)).astype(np.float32)
    if kind == "smooth":
        rows, columns = np.mgrid[: low[0], : low[1]] // 4
        features = refined[:, (3 * rows + columns) % words] + np.float32(0.3) * features
    elif kind == "zeros":
        features[random.random((1, *low)) < 0.4] = 0
    elif kind == "zero":
        features[:] = 0
    elif kind == "opposite":
        features[:, :, 1::2] = -features[:, :, : low[1] // 2 * 2 : 2]
    elif kind == "tied":
        refined[:, 1::2] = refined[:, : words // 2 * 2 : 2]
    elif kind in ("huge", "tiny"):
        features *= np.float32(1e30 if kind == "huge" else 1e-30)
    return features, refined


def exact(
    features: np.ndarray, refined: np.ndarray, size: tuple[int, int], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """(K, H, W) in float64, and (H, W) what float32 may be off."""
    pixels, words = (torch.from_numpy(value).double() for value in (features, refined))
    true = reference.naive_probabilities(pixels, words, size, temperature, "softmax")[0].numpy()
    pixels = pixels / pixels.abs().amax().clamp(min=1e-300)
    upsampled = reference.upsample(pixels.movedim(-1, 1), size).square().sum(1)
    itself = reference.upsample(pixels.square().sum(-1)[:, None], size)[:, 0]
    # A cosine errs by some roundings of its d products, more where neighbours cancel; it is divided by the temperature,
    # and of a logit's error at most a half reaches a softmax where the other logits err the other way.
    excess = (itself / upsampled.clamp(min=1e-300)).clamp(min=1)[0].numpy()
    return true, np.minimum((8 + CHANNELS**0.5) * EPS / (2 * temperature) * excess, 1)


def in_turn(function: Callable[[Any], None], tasks: list[Any]) -> None:
    for task in tasks:
        function(task)


cases = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1),
    "words": st.one_of(st.integers(1, 5), st.integers(1, 70)),
    "low": st.tuples(st.integers(1, 17), st.integers(1, 17)),
    "kind": st.sampled_from(KINDS),
})  # fmt: skip
sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


@given(cases, sizes, st.sampled_from([1 / 40, 1 / 100, 0.07, 1.0]))
@example({"seed": 1, "words": 70, "low": (5, 123), "kind": "smooth"}, (123, 37), 1 / 40)
@example({"seed": 2, "words": 20, "low": (90, 61), "kind": "zeros"}, (7, 3), 1 / 40)
@example({"seed": 3, "words": 12, "low": (1, 1), "kind": "tied"}, (70, 1), 1 / 40)
@example({"seed": 4, "words": 1, "low": (3, 2), "kind": "huge"}, (1, 1), 1 / 100)
@settings(deadline=None, max_examples=60)
def test_probabilities_labels_and_confidence_are_those_of_upsample_normalise_multiply(
    case: dict[str, Any], size: tuple[int, int], temperature: float
) -> None:
    features, refined = drawn(**case)
    true, allowed = exact(features, refined, size, temperature)
    ours = head(temperature)
    maps = ours.maps(features, refined)
    probabilities = ours.probabilities(*maps, size)[0]
    assert (np.abs(probabilities - true) <= allowed).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    labels, confidence = ours.labels(*maps, size, 0.0)
    assert (np.abs(confidence - true.max(axis=0)) <= allowed).all()
    assert (confidence >= (1 - 1e-5) / case["words"]).all()
    own = np.take_along_axis(true, labels[None].astype(int) - 1, axis=0)[0]
    assert (own >= true.max(axis=0) - 2 * allowed).all()
    threshold = float(np.median(confidence))
    np.testing.assert_array_equal(
        ours.labels(*maps, size, threshold)[0], np.where(confidence > np.float32(threshold), labels, 0)
    )


@given(cases, sizes, st.tuples(st.integers(2, 80), st.integers(2, 80)))
@settings(deadline=None, max_examples=40)
def test_tiling_threads_and_known_winners_change_no_bit(
    case: dict[str, Any], size: tuple[int, int], edges: tuple[int, int]
) -> None:
    ours = head()
    scores, gram = ours.maps(*drawn(**case))
    labels, confidence = ours.labels(scores, gram, size, 0.1)
    tiles = graph("tiles", 1, TEMPERATURE, "softmax")
    with ThreadPoolExecutor(3) as pool:
        cut = mask_tiles.resolve(
            tiles, scores[0], gram[0], size, 0.1, lambda f, tasks: list(pool.map(f, tasks)) and None, edges,
            scoring="softmax",
        )  # fmt: skip
    sought = mask_tiles.resolve(tiles, scores[0], gram[0], size, 0.1, in_turn, prune=False, scoring="softmax")
    for found in (cut, sought):
        np.testing.assert_array_equal(found[0], labels)
        np.testing.assert_array_equal(found[1], confidence)


@given(cases, sizes)
@settings(deadline=None, max_examples=40)
def test_mask_labels_gives_what_mask_tiles_gives(case: dict[str, Any], size: tuple[int, int]) -> None:
    features, refined = drawn(**case)
    ours = head()
    scores, gram = ours.maps(features, refined)
    labels, confidence = ours.labels(scores, gram, size, 0.1)
    whole = graph("labels", 1, TEMPERATURE, "softmax")({
        "scores": scores, "gram": gram, "size": np.array(size), "rows": np.array((0, size[0])),
        "threshold": np.array(0.1, np.float32),
    })  # fmt: skip
    true, allowed = exact(features, refined, size, TEMPERATURE)
    assert (np.abs(whole["confidence"][0] - confidence) <= 2 * allowed).all()
    best = np.sort(true, axis=0)[::-1]
    second = best[1] if len(best) > 1 else 0
    clear = (best[0] - second > 4 * allowed) & (np.abs(best[0] - 0.1) > 4 * allowed)
    np.testing.assert_array_equal(whole["labels"][0][clear], labels[clear])


@given(cases, sizes, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_words_in_another_order_give_the_same_masks(case: dict[str, Any], size: tuple[int, int], seed: int) -> None:
    ours = head()
    scores, gram = ours.maps(*drawn(**{**case, "kind": "random"}))
    order = np.random.default_rng(seed).permutation(case["words"])
    labels, confidence = ours.labels(scores, gram, size, 0.1)
    turned, other = ours.labels(scores[:, order], gram, size, 0.1)
    np.testing.assert_allclose(other, confidence, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([[0], order + 1])[turned][turned > 0], labels[turned > 0])


def test_a_tie_goes_to_the_word_named_first_and_shares_the_probability() -> None:
    ours = head()
    maps = ours.maps(*drawn(5, 12, (9, 11), "tied"))
    labels, confidence = ours.labels(*maps, (101, 83), 0.0)
    assert (labels % 2 == 1).all()
    assert (confidence <= 0.5 + 1e-6).all()
    labels, confidence = ours.labels(*ours.maps(*drawn(5, 12, (9, 11), "zero")), (101, 83), 0.0)
    assert (labels == 1).all()
    np.testing.assert_allclose(confidence, 1 / 12, rtol=1e-6)


def test_where_a_tile_has_one_winner_no_other_word_is_looked_for() -> None:
    ours, asked = head(), {1: 0, 8: 0}
    features, refined = drawn(6, 8, (17, 17), "random")
    features[:, :, :9], features[:, :, 9:] = refined[:, None, 2:3], refined[:, None, 5:6]
    scores, gram = ours.maps(features, refined)

    def counting(inputs: Any) -> Any:
        asked[inputs["words"].shape[1]] += len(inputs["words"])
        return graph("tiles", 1, TEMPERATURE, "softmax")(inputs)

    mask_tiles.resolve(counting, scores[0], gram[0], (680, 680), 0.1, in_turn, scoring="softmax")
    assert asked[1] > asked[8] > 0
