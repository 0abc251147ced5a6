"""Laws of the Triton kernels. Run by test_kernels.py in a process of its own: on a GPU where there is one, else by
Triton's interpreter, which is chosen when Triton is imported.

Every bound compares with `kernels.reference.naive_probabilities` in float64: upsample, normalise, multiply.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fusioner_rt.gpu.kernel_contract import FEW_WORDS
from kernels import mask_head, reference
from kernels.variants import variant

# interpreted, a case takes a second, and shrinking one that fails would take many minutes
settings.register_profile("laws", deadline=None, phases=(Phase.explicit, Phase.generate))
settings.load_profile("laws")
DIVISOR = int(os.environ.get("LAWS_DIVISOR", "1"))  # of drawn examples: interpreted kernels take seconds each
ALL = DIVISOR == 1  # else examples are smaller, too


def drawn(examples):
    return settings(max_examples=-(-examples // DIVISOR))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEMPERATURE = 0.07
EPS = float(np.finfo(np.float32).eps)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
HUGE = {torch.float16: 1e4, torch.bfloat16: 1e30, torch.float32: 1e30}
TINY = {torch.float16: 1e-5, torch.bfloat16: 1e-30, torch.float32: 1e-30}
SCORINGS = ["sigmoid", "softmax"]
NAN, INFINITE = float("nan"), float("inf")
KINDS = ["random", "zeros", "huge", "tiny", "constant", "opposite", "alike"]


def case(seed, pictures, words, low, channels, dtype, kind="random"):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(pictures, *low, channels, generator=generator)
    vectors = torch.randn(pictures, words, channels, generator=generator)
    if kind == "zeros":
        features[torch.rand(pictures, *low, generator=generator) < 0.4] = 0
        vectors[:, ::3] = 0
    elif kind == "huge":
        features, vectors = features * HUGE[dtype], vectors * HUGE[dtype]
    elif kind == "tiny":
        features, vectors = features * TINY[dtype], vectors * TINY[dtype]
    elif kind == "constant":
        features[:] = features[:, :1, :1]
    elif kind == "opposite":
        features[:, :, 1::2] = -features[:, :, :1]
    elif kind == "alike":
        features = 0.01 * features + torch.randn(channels, generator=generator)
    return features.to(dtype).to(DEVICE), vectors.to(dtype).to(DEVICE)


def exactly(features, words, size, scoring="sigmoid", temperature=TEMPERATURE):
    """Probabilities in float64, and what rounding a squared length of float32 terms may cost at every pixel."""
    features, words = features.double().cpu(), words.double().cpu()
    exact = reference.naive_probabilities(features, words, size, temperature, scoring)
    features = features / features.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-300)
    upsampled = reference.upsample(features.movedim(-1, 1), size).square().sum(1)
    itself = reference.upsample(features.square().sum(-1)[:, None], size)[:, 0]
    # Products and sums of d terms err by some roundings each; where neighbours cancel, the length is a small difference
    # of large terms, and its relative error grows as they exceed it. sigmoid(·/τ) passes on at most 1/(4τ) of it.
    excess = itself / upsampled.clamp(min=1e-300)
    allowed = (8 + features.shape[-1] ** 0.5) * EPS / (4 * temperature) * excess.clamp(min=1)
    if scoring == "softmax":  # passes on twice as much; and sums K powers, each rounded, as each sum is
        allowed = 2 * allowed + words.shape[1] * EPS
    return exact, allowed.clamp(max=1)[:, None]


def some(names, every, chosen):
    """Parametrizes with all combinations, of which only the chosen are not slow."""
    marked = (one if one in chosen else pytest.param(*one, marks=pytest.mark.slow) for one in itertools.product(*every))
    return pytest.mark.parametrize(names, list(marked))


cases = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1),
    "pictures": st.integers(1, 2),
    "words": st.sampled_from([1, 2, 3, 7, 20, 33, 40] if ALL else [1, 2, 7, 33]),
    "low": st.tuples(st.integers(1, 4 if ALL else 2), st.integers(1, 9)),
    "channels": st.sampled_from([16, 33, 64, 130]),
    "dtype": st.sampled_from(DTYPES),
    "kind": st.sampled_from(KINDS),
})  # fmt: skip
sizes = st.tuples(st.integers(1, 20 if ALL else 7), st.one_of(st.integers(1, 60), st.integers(250, 300)))
odd = example(
    {
        "seed": 0,
        "pictures": 1,
        "words": 5,
        "low": (3 if ALL else 1, 13),
        "channels": 37,
        "dtype": torch.float16,
        "kind": "random",
    },
    (37 if ALL else 13, 123),
)
single = example(
    {"seed": 0, "pictures": 2, "words": 1, "low": (1, 1), "channels": 16, "dtype": torch.float32, "kind": "zeros"},
    (1, 1),
)
shrunk = example(
    {
        "seed": 1,
        "pictures": 2,
        "words": 3,
        "low": (7, 19),
        "channels": 16,
        "dtype": torch.bfloat16,
        "kind": "huge",
    },
    (3, 2),
)


def laws(examples):
    def wrap(test):
        test = odd(single(given(cases, sizes)(test)))
        return drawn(examples)(shrunk(test) if ALL else test)

    return wrap


@pytest.mark.parametrize("scoring", SCORINGS)
@laws(14)
def test_probabilities_are_those_of_upsample_normalise_multiply(scoring, shape, size):
    features, words = case(**shape)
    exact, allowed = exactly(features, words, size, scoring)
    maps = mask_head.score_maps(features, words)
    ours = mask_head.probabilities(*maps, size, TEMPERATURE, scoring=scoring).cpu()
    assert ours.shape == exact.shape
    assert ((ours - exact).abs() <= allowed).all()


@pytest.mark.parametrize("scoring", SCORINGS)
@laws(14)
def test_labels_are_the_best_word_over_the_threshold_wherever_float32_can_tell(scoring, shape, size):
    features, words = case(**shape)
    exact, allowed = exactly(features, words, size, scoring)
    allowed = allowed[:, 0]
    threshold = 0.5 + (shape["seed"] % 5) / 10
    maps = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(*maps, size, TEMPERATURE, threshold, scoring=scoring)
    labels, confidence = labels.cpu().long(), confidence.cpu()
    best = exact.amax(dim=1)
    own = exact.gather(1, (labels - 1).clamp(min=0)[:, None])[:, 0]
    found = labels > 0
    assert labels.max() <= shape["words"]
    assert ((confidence - best).abs() <= allowed).all()
    assert (own[found] >= (best - allowed)[found]).all()
    assert (own[found] > (threshold - allowed)[found]).all()
    assert (best[~found] <= (threshold + allowed)[~found]).all()


@pytest.mark.parametrize("scoring", SCORINGS)
@laws(8)
def test_packed_masks_are_the_probabilities_over_the_threshold(scoring, shape, size):
    features, words = case(**shape)
    exact, allowed = exactly(features, words, size, scoring)
    threshold = 0.3 + (shape["seed"] % 5) / 10
    maps = mask_head.score_maps(features, words)
    packed = mask_head.masks(*maps, size, TEMPERATURE, threshold, scoring=scoring).cpu()
    clear = (exact - threshold).abs() > 2 * allowed
    assert torch.equal(reference.unpack(packed, size[1])[clear], (exact > threshold)[clear])
    assert not reference.unpack(packed, 32 * packed.shape[-1])[..., size[1] :].any()


@given(cases, sizes, st.integers(1, 40))
@drawn(6)
def test_words_that_are_nowhere_ahead_change_nothing(shape, size, more):
    """Bit for bit: whichever words are left out of a tile, the others are computed alike."""
    scores, gram = mask_head.score_maps(*case(**{**shape, "kind": "random"}))
    behind = scores[:, torch.arange(more) % scores.shape[1]] - 0.25 * scores.abs().amax()
    alone = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.5)
    crowd = mask_head.resolve(torch.cat([scores, behind, scores], dim=1), gram, size, TEMPERATURE, 0.5)
    assert torch.equal(alone[0].cpu(), crowd[0].cpu())  # repeated words tie with the first of their name, which wins
    assert torch.equal(alone[1], crowd[1])


@given(cases, sizes, st.integers(1, 40))
@drawn(3)
def test_words_that_are_nowhere_ahead_change_the_softmax_as_their_exponentials_say_and_no_label(shape, size, more):
    features, words = case(**{**shape, "kind": "random"})
    scores, gram = mask_head.score_maps(features, words)
    behind = scores[:, torch.arange(more) % scores.shape[1]] - 0.1 * scores.abs().amax()
    alone = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.0, scoring="softmax")
    crowd = mask_head.resolve(torch.cat([scores, behind], dim=1), gram, size, TEMPERATURE, 0.0, scoring="softmax")
    assert torch.equal(alone[0].cpu(), crowd[0].cpu())
    _, allowed = exactly(features, torch.cat([words, words[:, :1].expand(-1, more, -1)], dim=1), size, "softmax")
    behind, best = (reference.upsample(maps.double().cpu(), size) for maps in (behind, scores))
    length = reference.squared_length(gram.double().cpu(), size).sqrt()[:, None]
    added = ((behind - best.amax(dim=1, keepdim=True)) / TEMPERATURE / length).exp().sum(dim=1)
    expected = 1 / (1 / alone[1].double().cpu() + added)
    assert ((crowd[1].cpu() - expected).abs() <= 2 * allowed[:, 0]).all()  # both confidences are rounded


@given(cases, sizes)
@drawn(3)
def test_the_softmax_of_a_pixel_sums_to_one_and_confidence_is_the_winners(shape, size):
    features, words = case(**shape)
    maps = mask_head.score_maps(features, words)
    every = mask_head.probabilities(*maps, size, TEMPERATURE, scoring="softmax").cpu()
    labels, confidence = mask_head.resolve(*maps, size, TEMPERATURE, 0.0, scoring="softmax")
    # K sums, a reciprocal and a product are rounded; the exponentials are the same in the sum and out of it
    assert ((every.double().sum(dim=1) - 1).abs() <= shape["words"] * EPS).all()
    own = every.gather(1, labels.cpu().long()[:, None] - 1)[:, 0]
    allowed = 2 * exactly(features, words, size, "softmax")[1][:, 0]  # two kernels round, each in its way
    assert ((confidence.cpu() - own).abs() <= allowed).all()
    assert (own >= every.amax(dim=1) - allowed).all()


def test_the_softmax_of_a_word_alone_is_one_everywhere():
    pictures, low, size = (2, (3, 7), (11, 37)) if ALL else (1, (1, 7), (3, 37))
    for kind in KINDS:
        maps = mask_head.score_maps(*case(3, pictures, 1, low, 33, torch.float32, kind))
        labels, confidence = mask_head.resolve(*maps, size, TEMPERATURE, 0.999, scoring="softmax")
        assert (confidence == 1).all()
        assert (labels.cpu().long() == 1).all()
        assert (mask_head.probabilities(*maps, size, TEMPERATURE, scoring="softmax") == 1).all()
        packed = mask_head.masks(*maps, size, TEMPERATURE, 0.999, scoring="softmax").cpu()
        assert reference.unpack(packed, 37).all()


@some(
    ("kind", "dtype"),
    (["random", "huge", "opposite"], DTYPES),
    [("random", torch.float16), ("huge", torch.float32), ("opposite", torch.bfloat16)],
)
def test_no_softmax_overflows_at_a_temperature_of_a_hundredth(dtype, kind):
    count, low, size = (40, (3, 7), (11, 37)) if ALL else (9, (1, 7), (3, 37))
    features, words = case(11, 1, count, low, 64, dtype, kind)
    exact, allowed = exactly(features, words, size, "softmax", 0.01)
    maps = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(*maps, size, 0.01, 0.0, scoring="softmax")
    every = mask_head.probabilities(*maps, size, 0.01, scoring="softmax").cpu()
    assert ((every - exact).abs() <= allowed).all()
    assert ((confidence.cpu() - exact.amax(dim=1)).abs() <= allowed[:, 0]).all()
    assert (labels.cpu().long() > 0).all()


@given(cases, sizes)
@drawn(2)
def test_tiles_do_not_change_a_softmax(shape, size):
    """Bit for bit: many words' tiles are four rows tall and few words' sixteen, of 512 or 256 columns."""
    maps = mask_head.score_maps(*case(**shape))
    expected = mask_head.resolve(*maps, size, TEMPERATURE, 0.3, scoring="softmax")
    for form, index in [("many", 0), ("many", 1), ("few", 1)]:
        if form == "few" and shape["words"] > FEW_WORDS:
            continue
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(mask_head, "few_or_many", lambda _, form=form: form)
            patched.setattr(mask_head, "_tiling", lambda name, _, i=index: (80, variant(name, 80).tilings[i]))
            labels, confidence = mask_head.resolve(*maps, size, TEMPERATURE, 0.3, scoring="softmax")
        assert torch.equal(labels.cpu(), expected[0].cpu())
        np.testing.assert_array_equal(confidence.cpu(), expected[1].cpu())


@given(cases, sizes)
@drawn(3)
def test_reversed_words_give_reversed_labels_by_softmax(shape, size):
    """Of every winner, and sums of the same terms in another order."""
    scores, gram = mask_head.score_maps(*case(**{**shape, "kind": "random"}))
    forth = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.0, scoring="softmax")
    back = mask_head.resolve(scores.flip(1), gram, size, TEMPERATURE, 0.0, scoring="softmax")
    assert torch.equal(back[0].cpu().long(), scores.shape[1] + 1 - forth[0].cpu().long())
    assert ((forth[1] - back[1]).abs() <= shape["words"] * EPS).all()


@given(cases, sizes)
@drawn(5)
def test_reversed_words_give_reversed_labels(shape, size):
    scores, gram = mask_head.score_maps(*case(**{**shape, "kind": "random"}))
    forth = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.5)
    back = mask_head.resolve(scores.flip(1), gram, size, TEMPERATURE, 0.5)
    one, other = forth[0].cpu().long(), back[0].cpu().long()
    assert torch.equal(other, torch.where(one > 0, scores.shape[1] + 1 - one, 0))
    assert torch.equal(forth[1], back[1])


@pytest.mark.parametrize("scoring", SCORINGS)
@given(cases, sizes)
@drawn(5)
def test_a_picture_is_resolved_alike_in_any_batch(scoring, shape, size):
    features, words = case(**{**shape, "pictures": 2})
    scores, gram = mask_head.score_maps(features, words)
    together = mask_head.resolve(scores, gram, size, TEMPERATURE, 0.5, scoring=scoring)
    for index in range(2):
        apart = mask_head.score_maps(features[index : index + 1], words[index : index + 1])
        assert torch.equal(apart[0][0], scores[index])
        assert torch.equal(apart[1][0], gram[index])
        labels, confidence = mask_head.resolve(*apart, size, TEMPERATURE, 0.5, scoring=scoring)
        assert torch.equal(labels[0].cpu(), together[0][index].cpu())
        assert torch.equal(confidence[0], together[1][index])


def test_a_word_ahead_at_one_point_only_is_found_wherever_the_point_lies():
    """40 points under tiles of 256 pixels: more than one chunk of them, and a point that two tiles share."""
    points = [0, 15, 16, 33, 34, 39]
    scores = torch.ones(len(points), 2, 1, 40)
    scores[:, 1] = 0
    scores[range(len(points)), 1, 0, points] = 3
    gram = torch.full((len(points), 5, 1, 40), 100.0)
    expected, _ = reference.resolve(scores, gram, (1, 300), TEMPERATURE, 0.5)
    assert (expected == 2).any(dim=(1, 2)).all()
    labels, _ = mask_head.resolve(scores.to(DEVICE), gram.to(DEVICE), (1, 300), TEMPERATURE, 0.5)
    assert torch.equal(labels.cpu().long(), expected)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_probability_that_is_the_threshold_does_not_exceed_it(scoring):
    maps = mask_head.score_maps(*(torch.zeros_like(one) for one in case(13, 1, 2, (2, 3), 16, torch.float32)))
    labels, confidence = mask_head.resolve(*maps, (5, 7), TEMPERATURE, 0.5, scoring=scoring)
    assert (confidence == 0.5).all()
    assert (labels.cpu().long() == 0).all()
    assert not mask_head.masks(*maps, (5, 7), TEMPERATURE, 0.5, scoring=scoring).any()


def test_neighbours_that_cancel_fade_to_one_half_as_the_definition_does():
    features, words = case(14, 1, 3, (4, 2), 64, torch.float32)
    turns = torch.tensor([0.0, 1e-5, 1e-4, 2e-4], device=DEVICE)
    features[0, :, 1] = turns[:, None] * features[0, :, 1] - features[0, :, 0]
    size = (4, 41)  # the pixels in the middle are half of each
    ours = mask_head.probabilities(*mask_head.score_maps(features, words), size, TEMPERATURE).cpu()
    defined = reference.probabilities(*reference.score_maps(features.cpu(), words.cpu()), size, TEMPERATURE)
    # the numerator's rounding, over the least length that a cosine is divided by; sigmoid(·/τ) multiplies it by 1/(4τ)
    assert (ours - defined).abs().max() <= 8 * EPS / reference.CANCELLED**0.5 / (4 * TEMPERATURE)


@pytest.mark.slow
def test_a_thousand_words_are_all_considered():
    features, words = case(5, 1, 1024, (3, 5), 64, torch.float16)
    exact, allowed = exactly(features, words, (11, 21))
    labels, confidence = mask_head.resolve(*mask_head.score_maps(features, words), (11, 21), TEMPERATURE, 0.5)
    own = exact.gather(1, labels.cpu().long()[:, None] - 1)[:, 0]
    assert labels.cpu().long().max() > 900
    assert ((confidence.cpu() - exact.amax(1)).abs() <= allowed[:, 0]).all()
    assert (own >= exact.amax(1) - allowed[:, 0]).all()


@pytest.mark.parametrize("count", [70, pytest.param(300, marks=pytest.mark.slow)])
def test_many_words_all_enter_a_softmax(count):
    features, words = case(5, 1, count, (1, 5), 64, torch.float16)
    exact, allowed = exactly(features, words, (1, 21), "softmax")
    maps = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(*maps, (1, 21), TEMPERATURE, 0.0, scoring="softmax")
    own = exact.gather(1, labels.cpu().long()[:, None] - 1)[:, 0]
    assert ((confidence.cpu() - exact.amax(1)).abs() <= allowed[:, 0]).all()
    assert (own >= exact.amax(1) - allowed[:, 0]).all()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_confidence_in_half_precision_is_that_of_float32_rounded_and_labels_do_not_change(scoring):
    maps = mask_head.score_maps(*case(6, 1, 4, (4 if ALL else 1, 6), 32, torch.float16))
    size = (21 if ALL else 5, 33)
    labels, confidence = mask_head.resolve(*maps, size, TEMPERATURE, 0.7, scoring=scoring)
    again, half = mask_head.resolve(*maps, size, TEMPERATURE, 0.7, torch.float16, scoring)
    assert torch.equal(labels.cpu(), again.cpu())
    assert torch.equal(confidence.half(), half)
    full = mask_head.probabilities(*maps, size, TEMPERATURE, scoring=scoring)
    assert torch.equal(full.half(), mask_head.probabilities(*maps, size, TEMPERATURE, torch.float16, scoring))


@some(
    ("scoring", "dtype", "value"),
    (SCORINGS, DTYPES, [NAN, INFINITE, -INFINITE]),
    [("sigmoid", torch.float16, NAN), ("softmax", torch.float32, INFINITE)],
)
def test_what_a_feature_that_is_no_number_enters_is_background_without_confidence(scoring, dtype, value):
    ask = {"size": (15, 28), "temperature": TEMPERATURE, "threshold": 0.0, "scoring": scoring}
    features, words = case(7, 2, 3, (5, 7), 32, dtype)
    clean = mask_head.resolve(*mask_head.score_maps(features, words), **ask)
    assert (clean[0].cpu().long() > 0).all()
    features[0, 2, 3, 11] = value
    labels, confidence = mask_head.resolve(*mask_head.score_maps(features, words), **ask)
    labels, confidence = labels.cpu().long(), confidence.cpu()
    # a pixel's four neighbours enter it, those of weight zero too; what is not float16 is scaled by the largest feature
    touched = neighbours_of((2, 3), (5, 7), (15, 28)) if dtype == torch.float16 else torch.ones(15, 28).bool()
    assert torch.equal(confidence[0].isnan(), touched)
    assert (labels[0][touched] == 0).all()
    sound = ~confidence[0].isnan()
    assert torch.equal(labels[0][sound], clean[0][0].cpu().long()[sound])
    assert torch.equal(labels[1], clean[0][1].cpu().long())
    assert torch.equal(confidence[1], clean[1][1].cpu())


def neighbours_of(point, low, size):
    """(H, W) bool: the pixels that are interpolated from a low-resolution point, with whatever weight."""
    near = []
    for index, edge, out in zip(point, low, size, strict=True):
        first = reference.interpolation_taps(edge, out).first
        near.append((first == index) | ((first + 1).clamp(max=edge - 1) == index))
    return near[0][:, None] & near[1]


@some(("scoring", "value"), (SCORINGS, [NAN, INFINITE, -INFINITE]), [("sigmoid", INFINITE), ("softmax", NAN)])
def test_scores_that_are_no_numbers_touch_only_the_pixels_between_them(value, scoring):
    scores, gram = mask_head.score_maps(*case(12, 1, 3, (5, 7), 32, torch.float16))
    clean = mask_head.resolve(scores, gram, (15, 28), TEMPERATURE, 0.0, scoring=scoring)
    scores[:, :, 2, 3] = value
    labels, confidence = mask_head.resolve(scores, gram, (15, 28), TEMPERATURE, 0.0, scoring=scoring)
    labels, confidence = labels.cpu().long(), confidence.cpu()
    touched = neighbours_of((2, 3), (5, 7), (15, 28))
    assert torch.equal(labels[0][~touched], clean[0][0].cpu().long()[~touched])
    assert torch.equal(confidence[0][~touched], clean[1][0].cpu()[~touched])
    assert labels.max() <= 3
    if value != float("inf") or scoring == "softmax":  # a word infinitely sure has its mask, among others none has
        assert (labels[0][touched] == 0).all()
    if value != value or scoring == "softmax":
        assert confidence[0][touched].isnan().all()


@some(("words", "value"), ([3, 40], [-INFINITE, NAN]), [(3, NAN)])
def test_where_no_word_has_a_score_nothing_else_is_taken_for_one(words, value):
    """Of the words beyond the last none may be the one that the others are compared with."""
    scores, gram = mask_head.score_maps(*case(14, 2, words, (5, 7), 32, torch.float16))
    scores[0] = value
    labels, confidence = mask_head.resolve(scores, gram, (15, 28), TEMPERATURE, 0.0)
    assert (labels[0].cpu().long() == 0).all()
    assert not (confidence[0].cpu() > 0).any()
    clean = mask_head.resolve(scores[1:], gram[1:], (15, 28), TEMPERATURE, 0.0)
    assert torch.equal(labels[1].cpu().long(), clean[0][0].cpu().long())


@some(("dtype",), (DTYPES,), [(torch.float16,)])
def test_a_word_that_is_no_number_leaves_its_picture_without_masks(dtype):
    features, words = case(8, 2, 3, (5, 7), 32, dtype)
    words[0, 1, 0] = float("nan")
    scores, gram = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(scores, gram, (15, 28), TEMPERATURE, 0.0)
    assert confidence[0].isnan().all()
    assert (labels[0].cpu().long() == 0).all()
    assert (labels[1].cpu().long() > 0).all()
    every = mask_head.probabilities(scores, gram, (15, 28), TEMPERATURE)
    assert every[0, 1].isnan().all()
    assert every[0, 0].isfinite().all()


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: races show where programs run at once")
def test_two_hundred_repeats_are_equal_bit_for_bit(scoring):
    features, words = case(9, 2, 20, (61, 83), 256, torch.float16)
    maps = mask_head.score_maps(features, words)
    first = mask_head.resolve(*maps, (517, 773), TEMPERATURE, 0.5, scoring=scoring)
    packed = mask_head.masks(*maps, (517, 773), TEMPERATURE, 0.5, scoring=scoring)
    for _ in range(200):
        again = mask_head.score_maps(features, words)
        assert torch.equal(maps[0], again[0])
        assert torch.equal(maps[1], again[1])
        labels, confidence = mask_head.resolve(*again, (517, 773), TEMPERATURE, 0.5, scoring=scoring)
        assert torch.equal(labels.int(), first[0].int())
        assert torch.equal(confidence, first[1])
        assert torch.equal(mask_head.masks(*again, (517, 773), TEMPERATURE, 0.5, scoring=scoring), packed)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: the interpreter's products are float32 whatever the dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [256, 512, 768])
def test_at_real_sizes_errors_are_at_most_twice_those_of_pytorch_in_the_same_precision(scoring, dtype, channels):
    features, words = case(10, 1, 150, (40, 57), channels, dtype)
    size = (256, 300)
    doubles = features.double().cpu(), words.double().cpu()
    exact = reference.naive_probabilities(*doubles, size, TEMPERATURE, scoring).cuda()
    up = torch.nn.functional.interpolate(features.movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
    up, unit = torch.nn.functional.normalize(up, dim=1), torch.nn.functional.normalize(words, dim=-1)
    theirs = reference.scored(torch.einsum("bdhw,bkd->bkhw", up, unit) / TEMPERATURE, scoring)
    allowed = 2 * (theirs - exact).abs().max() + EPS
    ours = mask_head.probabilities(*mask_head.score_maps(features, words), size, TEMPERATURE, scoring=scoring)
    assert (ours - exact).abs().max() <= allowed


@some(
    ("where", "value", "dtype"),
    (["feature", "word", "nowhere"], [NAN, INFINITE, -INFINITE], DTYPES),
    [("feature", NAN, torch.float16), ("word", INFINITE, torch.float32), ("nowhere", NAN, torch.bfloat16)],
)
def test_the_flag_of_a_picture_tells_whether_all_its_maps_are_finite(dtype, value, where, monkeypatch):
    features, words = case(9, 3, 40, (5, 7), 32, dtype)
    if where == "feature":
        features[1, 4, 6, 31] = value  # the last one
    elif where == "word":
        words[1, 39, 31] = value
    flags = []
    launch = mask_head._launch

    def kept(name, pictures, size, arguments, **constants):
        launch(name, pictures, size, arguments, **constants)
        flags[:] = [argument for argument in arguments if getattr(argument, "shape", ()) == (3,)]

    monkeypatch.setattr(mask_head, "_launch", kept)
    maps = mask_head.score_maps(features, words)
    finite = [all(bool(part[index].isfinite().all()) for part in maps) for index in range(3)]
    assert finite == [True, where == "nowhere", True]
    assert [bool(flag) for flag in flags[0].cpu()] == finite
