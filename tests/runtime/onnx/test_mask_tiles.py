"""Labels by tiles: what is left out, how the output is cut and who computes it may not change a bit of the result."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fusioner_rt.bundle import Bundle
from fusioner_rt.decode_picture import PIXEL_LIMIT
from fusioner_rt.errors import GraphUnusable, UsageError
from fusioner_rt.onnx import mask_tiles
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.runtime import Graph, OnnxRuntime
from kernels import reference

EPS = float(np.finfo(np.float32).eps)
ALLOWED = 0.25 / 0.07 * 48 * EPS  # as in test_mask_bands.py
KINDS = (
    "random",
    "smooth",
    "zeros",
    "zero",
    "constant",
    "opposite",
    "tied",
    "all but tied",
    "just below",
    "huge",
    "tiny",
)


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, Graph]:
    bundle, runtime = Bundle.open(tiny_bundle), OnnxRuntime("onnxruntime-cpu", threads=1)
    return {name: runtime.load(bundle.graph(f"mask_{name}")) for name in ("scores", "tiles", "probabilities")}


@pytest.fixture(scope="module")
def threaded(tiny_bundle: Path) -> Graph:
    """mask_tiles, its own work divided among three threads."""
    return OnnxRuntime("onnxruntime-cpu").load(Bundle.open(tiny_bundle).graph("mask_tiles"), threads=3)


@pytest.fixture(scope="module")
def channels(tiny_bundle: Path) -> int:
    return int(Bundle.open(tiny_bundle).graphs["mask_scores"].inputs["features"].shape[3])


@pytest.fixture(scope="module")
def head(graphs: dict[str, Graph]) -> MaskHead:
    return MaskHead(**graphs)


def maps(head: MaskHead, channels: int, seed: int, words: int, low: tuple[int, int], kind: str) -> Any:
    """Scores (1, K, h, w) and gram (1, 5, h, w) of one picture."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(1, *low, channels)).astype(np.float32)
    refined = random.normal(size=(1, words, channels)).astype(np.float32)
    if kind == "smooth":
        rows, columns = np.mgrid[: low[0], : low[1]] // 4
        features = refined[:, (3 * rows + columns) % words] + np.float32(0.3) * features
    elif kind == "zeros":
        features[random.random((1, *low)) < 0.4] = 0
    elif kind == "zero":
        features[:] = 0
    elif kind == "constant":
        features[:] = features[:, :1, :1]
    elif kind == "opposite":
        features[:, :, 1::2] = -features[:, :, : low[1] // 2 * 2 : 2]
    elif kind in ("tied", "all but tied", "just below"):
        refined[:, 1::2] = refined[:, : words // 2 * 2 : 2]
    elif kind in ("huge", "tiny"):
        features *= np.float32(1e30 if kind == "huge" else 1e-30)
    scores, gram = head.maps(features, refined)
    if kind == "just below":  # interpolated, the earlier of two words sometimes ties with the later, higher one
        scores[:, ::2] = np.nextafter(scores[:, ::2], np.float32(-np.inf))
    elif kind == "all but tied":  # by a unit in the last place, either way
        scores = np.nextafter(scores, np.where(random.random(scores.shape) < 0.5, np.inf, -np.inf).astype(np.float32))
    return scores, gram


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
fixed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(cases, sizes, st.sampled_from([0.0, 0.5, 0.9]))
@example({"seed": 1, "words": 70, "low": (5, 123), "kind": "smooth"}, (123, 37), 0.5)
@example({"seed": 2, "words": 20, "low": (90, 61), "kind": "zeros"}, (7, 3), 0.5)
@example({"seed": 3, "words": 12, "low": (1, 1), "kind": "tied"}, (70, 1), 0.0)
@example({"seed": 4, "words": 9, "low": (17, 15), "kind": "smooth"}, (401, 307), 0.5)
@settings(fixed, max_examples=150)
def test_leaving_out_words_that_cannot_win_changes_no_bit(
    head: MaskHead, graphs: dict[str, Graph], channels: int, case: dict[str, Any], size: tuple[int, int], least: float
) -> None:
    scores, gram = maps(head, channels, **case)
    labels, confidence = mask_tiles.resolve(graphs["tiles"], scores[0], gram[0], size, least, in_turn)
    every = mask_tiles.resolve(graphs["tiles"], scores[0], gram[0], size, least, in_turn, prune=False)
    np.testing.assert_array_equal(labels, every[0])
    np.testing.assert_array_equal(confidence, every[1])


@given(cases, sizes, st.tuples(st.integers(2, 80), st.integers(2, 80)))
@settings(fixed, max_examples=60)
def test_the_tiling_and_the_threads_change_no_bit(
    head: MaskHead,
    threaded: Graph,
    channels: int,
    case: dict[str, Any],
    size: tuple[int, int],
    edges: tuple[int, int],
) -> None:
    scores, gram = maps(head, channels, **case)
    labels, confidence = head.labels(scores, gram, size, 0.5)
    with ThreadPoolExecutor(3) as pool:
        cut = mask_tiles.resolve(
            threaded, scores[0], gram[0], size, 0.5, lambda f, tasks: list(pool.map(f, tasks)) and None, edges
        )
    np.testing.assert_array_equal(cut[0], labels)
    np.testing.assert_array_equal(cut[1], confidence)


@given(cases, sizes)
@example({"seed": 0, "words": 1, "low": (1, 7), "kind": "opposite"}, (1, 137))
@settings(fixed, max_examples=60)
def test_tiles_give_the_best_of_the_probabilities(
    head: MaskHead, channels: int, case: dict[str, Any], size: tuple[int, int]
) -> None:
    scores, gram = maps(head, channels, **case)
    labels, confidence = head.labels(scores, gram, size, 0.5)
    probabilities = head.probabilities(scores, gram, size)[0]
    assert labels.dtype == np.uint16
    assert confidence.dtype == np.float32
    allowed = ALLOWED * shortened(gram, size)
    assert (np.abs(confidence - probabilities.max(axis=0)) <= allowed).all()
    own = np.take_along_axis(probabilities, np.maximum(labels[None].astype(int) - 1, 0), axis=0)[0]
    assert (own >= probabilities.max(axis=0) - allowed)[labels > 0].all()
    np.testing.assert_array_equal(labels > 0, confidence > np.float32(0.5))


def shortened(gram: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W), 1 or more: how many times longer than an upsampled feature its neighbours are.

    Where they cancel each other, numerator and length keep the rounding of what was cancelled, and it weighs as many
    times more in their quotient.
    """
    maps = torch.from_numpy(gram.astype(np.float64))
    ratio = reference.upsample(maps[:, 0], size) / reference.squared_length(maps, size)
    return np.maximum(1, ratio[0].sqrt().numpy())


@pytest.mark.parametrize("kind", ["tied", "zero", "constant"])
def test_a_tie_goes_to_the_word_named_first(head: MaskHead, channels: int, kind: str) -> None:
    scores, gram = maps(head, channels, 5, 12, (9, 11), kind)
    labels, confidence = head.labels(scores, gram, (101, 83), 0.0)
    if kind == "tied":
        assert (labels % 2 == 1).all()
    elif kind == "zero":
        assert (labels == 1).all()
        assert (confidence == 0.5).all()
    else:
        assert len(np.unique(labels)) == 1


def computed(graphs: dict[str, Graph], scores: np.ndarray, gram: np.ndarray, size: tuple[int, int]) -> int:
    """How many scores at output pixels mask_tiles is asked for."""
    asked = 0

    def counting(inputs: Any) -> Any:
        nonlocal asked
        asked += inputs["scores"].shape[2] * inputs["down"][:, :, 0].size * inputs["across"].shape[2]
        return graphs["tiles"](inputs)

    mask_tiles.resolve(counting, scores[0], gram[0], size, 0.5, in_turn)
    return asked


def test_words_that_win_nowhere_cost_nothing(head: MaskHead, graphs: dict[str, Graph], channels: int) -> None:
    scores, gram = maps(head, channels, 6, 8, (17, 17), "smooth")
    size = (340, 340)
    hopeless = np.repeat(scores.min(axis=1, keepdims=True) - scores.max() / 100, 300, axis=1)
    among = np.concatenate([hopeless, scores], axis=1)
    found, alone = (head.labels(maps, gram, size, 0.5)[0] for maps in (among, scores))
    np.testing.assert_array_equal(found, np.where(alone > 0, alone + 300, 0))
    spent = computed(graphs, scores, gram, size)
    assert computed(graphs, among, gram, size) == spent
    assert 40 * spent < among.shape[1] * size[0] * size[1]


def test_arrays_of_any_strides_are_accepted(head: MaskHead, channels: int) -> None:
    scores, gram = maps(head, channels, 7, 5, (9, 11), "random")
    size = (64, 57)
    for bent in (
        lambda array: np.asfortranarray(array),
        lambda array: np.repeat(array, 2, axis=3)[..., ::2],
        lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    ):
        assert not bent(scores).flags.c_contiguous
        for name in ("labels", "probabilities"):
            arguments = (size, 0.5) if name == "labels" else (size,)
            expected = getattr(head, name)(scores, gram, *arguments)
            np.testing.assert_array_equal(getattr(head, name)(bent(scores), bent(gram), *arguments), expected)


DENSE, LARGE = (70, 60), (420, 400)
"""Maps and output with more tiles of competing words than one thread takes at once."""


def pool_threads() -> int:
    return sum(thread.name.startswith("mask-head") for thread in threading.enumerate())


def test_the_threads_of_one_head_may_be_shared_by_callers(graphs: dict[str, Graph], channels: int) -> None:
    head, before = MaskHead(**graphs, threads=2), pool_threads()
    asked = [maps(head, channels, seed, 9, DENSE, "random") for seed in range(4)]
    expected = [MaskHead(**graphs).labels(*one, LARGE, 0.5) for one in asked]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(lambda one: head.labels(*one, LARGE, 0.5), asked), expected, strict=True):
                np.testing.assert_array_equal(found[0], wanted[0])
                np.testing.assert_array_equal(found[1], wanted[1])
    assert pool_threads() == before + 2
    head.close()


def test_closing_ends_the_threads_and_a_later_call_starts_others(graphs: dict[str, Graph], channels: int) -> None:
    head, before = MaskHead(**graphs, threads=2), pool_threads()
    scores, gram = maps(head, channels, 3, 9, DENSE, "random")
    expected = head.labels(scores, gram, LARGE, 0.5)
    assert pool_threads() > before
    for _ in range(2):
        head.close()
        assert pool_threads() == before
    for found, wanted in zip(head.labels(scores, gram, LARGE, 0.5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    head.close()


FORKED = """
import os, sys
from pathlib import Path
import numpy as np
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.runtime import OnnxRuntime

folder, runtime = Path(sys.argv[1]), OnnxRuntime("onnxruntime-cpu", 1)
names = "scores", "tiles", "probabilities"
head = MaskHead(*(runtime.load(folder / f"mask_{name}.onnx") for name in names), threads=2)
random = np.random.default_rng(0)
scores, gram = random.normal(size=(1, 9, 70, 60)).astype(np.float32), np.ones((1, 5, 70, 60), np.float32)
expected = head.labels(scores, gram, (420, 400), 0.5)[0]
assert head.workers._pool
child = os.fork()
same = np.array_equal(head.labels(scores, gram, (420, 400), 0.5)[0], expected)
head.close()
if child == 0:
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0 and same
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_has_threads_of_its_own(tiny_bundle: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tiny_bundle)]
    process = subprocess.Popen(command, start_new_session=True)  # a group, for a child that waits forever
    try:
        assert process.wait(60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_error_in_a_thread_reaches_the_caller(graphs: dict[str, Graph], channels: int) -> None:
    def failing(inputs: Any) -> Any:
        raise GraphUnusable("mask_tiles.onnx: failed")

    head = MaskHead(**{**graphs, "tiles": failing}, threads=2)
    with pytest.raises(GraphUnusable, match="failed"):
        head.labels(*maps(head, channels, 8, 9, DENSE, "random"), LARGE, 0.5)
    assert head.workers._pool
    head.close()


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[array.size // 2] = value
    return array


@pytest.mark.parametrize(
    ("error", "says", "call"),
    [
        (UsageError, "scores is float64", lambda s, g: (s.astype(np.float64), g, (8, 8))),
        (UsageError, "gram is float16", lambda s, g: (s, g.astype(np.float16), (8, 8))),
        (UsageError, "scores is list", lambda s, g: (s.tolist(), g, (8, 8))),
        (UsageError, "float32 \\(1, 0, 9, 11\\)", lambda s, g: (s[:, :0], g, (8, 8))),
        (UsageError, "float32 \\(5, 9, 11\\)", lambda s, g: (s[0], g, (8, 8))),
        (UsageError, "beside gram", lambda s, g: (s, g[:, :4], (8, 8))),
        (UsageError, "beside gram", lambda s, g: (s[..., 1:], g, (8, 8))),
        (UsageError, "beside gram", lambda s, g: (np.repeat(s, 2, 0), g, (8, 8))),
        (UsageError, "65536 maps", lambda s, g: (np.ones((1, 65536, 1, 1), np.float32), g[..., :1, :1], (8, 8))),
        (UsageError, "the size is \\(0, 8\\)", lambda s, g: (s, g, (0, 8))),
        (UsageError, "the size is \\(8, -1\\)", lambda s, g: (s, g, (8, -1))),
        (UsageError, "the size is \\(8.5, 8\\)", lambda s, g: (s, g, (8.5, 8))),
        (UsageError, "the size is 8", lambda s, g: (s, g, 8)),
        (UsageError, "at least 1 each and", lambda s, g: (s, g, (PIXEL_LIMIT, 2))),
        (GraphUnusable, "scores holds values", lambda s, g: (with_value(s, np.nan), g, (8, 8))),
        (GraphUnusable, "scores holds values", lambda s, g: (with_value(s, -np.inf), g, (8, 8))),
        (GraphUnusable, "gram holds values", lambda s, g: (s, with_value(g, np.inf), (8, 8))),
        (GraphUnusable, "or over 1e\\+30", lambda s, g: (with_value(s, 3e38), g, (8, 8))),  # divided by 0.07: infinite
    ],
)  # fmt: skip
def test_a_bad_call_is_refused_in_one_line(
    head: MaskHead, channels: int, error: type[Exception], says: str, call: Any
) -> None:
    arguments = call(*maps(head, channels, 9, 5, (9, 11), "random"))
    for method in (lambda: head.labels(*arguments, 0.5), lambda: head.probabilities(*arguments)):
        with pytest.raises(error, match=says) as refused:
            method()
        assert "\n" not in str(refused.value)


def test_a_threshold_that_is_no_number_is_refused(head: MaskHead, channels: int) -> None:
    with pytest.raises(UsageError, match="threshold is nan"):
        head.labels(*maps(head, channels, 9, 5, (9, 11), "random"), (8, 8), float("nan"))
    with pytest.raises(UsageError, match="threshold is nan"):
        head.independent_labels(*maps(head, channels, 9, 1, (9, 11), "random"), (8, 8), float("nan"))


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("features is float16", lambda f, r: (f.astype(np.float16), r)),
        ("refined is float64", lambda f, r: (f, r.astype(np.float64))),
        ("refined is float32 \\(1, 0, ", lambda f, r: (f, r[:, :0])),
        ("refined has the shape", lambda f, r: (f, r[..., 1:])),
        ("refined has the shape", lambda f, r: (f, np.repeat(r, 2, axis=0))),
    ],
)
def test_bad_features_are_refused_in_one_line(head: MaskHead, channels: int, says: str, call: Any) -> None:
    features, refined = np.ones((1, 3, 4, channels), np.float32), np.ones((1, 2, channels), np.float32)
    with pytest.raises(UsageError, match=says) as refused:
        head.maps(*call(features, refined))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_never_become_a_mask(head: MaskHead, channels: int, value: float) -> None:
    features, refined = np.ones((1, 3, 4, channels), np.float32), np.ones((1, 2, channels), np.float32)
    features[0, 1, 2, 3] = value
    with pytest.raises(GraphUnusable, match="not finite"):
        head.labels(*head.maps(features, refined), (8, 8), 0.5)
