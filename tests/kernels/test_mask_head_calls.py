"""Bad calls of kernels.mask_head get one line that says what was found and expected; unusual good ones their result."""

import numpy as np
import pytest
import torch

from kernels import mask_head, reference

TAU = 0.07


def a_case(pictures=2, words=3, low=(4, 5), channels=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(pictures, *low, channels, generator=generator)
    return features.to(dtype), torch.randn(pictures, words, channels, generator=generator).to(dtype)


def some_maps(**changes):
    return mask_head.score_maps(*a_case(**changes))


def refused(kind, words, call, *arguments, **named):
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


FEATURES, WORDS = a_case()


@pytest.mark.parametrize(
    ("features", "words", "kind", "found"),
    [
        (FEATURES.double(), WORDS.double(), TypeError, "torch.float64"),
        (FEATURES.int(), WORDS.int(), TypeError, "torch.int32"),
        (FEATURES.half(), WORDS, TypeError, "torch.float16"),
        (FEATURES, WORDS.to("meta"), TypeError, "meta"),
        (FEATURES.to("meta"), WORDS.to("meta"), TypeError, "meta"),
        (FEATURES.to_sparse(), WORDS, TypeError, "sparse"),
        (FEATURES.numpy(), WORDS, TypeError, "ndarray"),
        (FEATURES.tolist(), WORDS, TypeError, "list"),
        (FEATURES, None, TypeError, "NoneType"),
        (FEATURES[0], WORDS, ValueError, "(4, 5, 16)"),
        (torch.tensor(1.0), torch.tensor(1.0), ValueError, "()"),
        (FEATURES, WORDS[0], ValueError, "(3, 16)"),
        (FEATURES[:1], WORDS, ValueError, "(1, 4, 5, 16)"),
        (FEATURES, WORDS[:, :, :8], ValueError, "(2, 3, 8)"),
        (FEATURES, WORDS[:, :0], ValueError, "(2, 0, 16)"),
        (FEATURES[:0], WORDS[:0], ValueError, "(0, 4, 5, 16)"),
        (FEATURES[:, :0], WORDS, ValueError, "(2, 0, 5, 16)"),
        (FEATURES[..., :0], WORDS[..., :0], ValueError, "(2, 4, 5, 0)"),
        (FEATURES.clone().requires_grad_(), WORDS, ValueError, "features requires a gradient"),
        (FEATURES, WORDS.clone().requires_grad_(), ValueError, "words requires a gradient"),
    ],
)
def test_features_and_words_that_do_not_fit_are_named(features, words, kind, found):
    refused(kind, found, mask_head.score_maps, features, words)


@pytest.mark.parametrize(
    ("features", "words", "found"),
    [
        ((1, 2**15, 2**15, 1), (1, 1, 1), "feature values"),
        ((1, 2, 2, 2**15), (1, 2**15, 2**15), "word values"),
        ((1, 2**14, 2**14, 1), (1, 4, 1), "scores of a picture"),
        ((1, 2**14, 2**14, 1), (1, 1, 1), "scores of a picture"),  # five Gram maps are more than one score map
        ((65536, 1, 1, 1), (65536, 1, 1), "65536 pictures"),
    ],
)
def test_more_than_a_kernel_counts_to_is_refused_before_any_work(features, words, found):
    one = torch.zeros(1)  # expanded, so that nothing of this size exists
    refused(ValueError, found, mask_head.score_maps, one.expand(features), one.expand(words))


@pytest.mark.parametrize(
    "size",
    [
        (0, 5), (-1, 5), (5, 65536), (5,), (5, 5, 5), 5, None, "55", (5.0, 5), (True, 5), (5, 5, True), ("5", "5"),
        (torch.tensor([5, 5]), 5), {}, np.array([[5, 5]]),
    ],
)  # fmt: skip
def test_a_size_that_is_not_two_whole_numbers_in_range_is_refused(size):
    scores, gram = some_maps()
    for call in (
        lambda: mask_head.resolve(scores, gram, size, TAU, 0.5),
        lambda: mask_head.probabilities(scores, gram, size, TAU),
        lambda: mask_head.masks(scores, gram, size, TAU, 0.5),
    ):
        refused(ValueError, "size is", call)


@pytest.mark.parametrize("size", [[6, 7], torch.Size([6, 7]), np.array([6, 7]), torch.tensor([6, 7]), (np.int16(6), 7)])
def test_whole_numbers_of_any_kind_are_a_size(size):
    scores, gram = some_maps()
    expected = mask_head.resolve(scores, gram, (6, 7), TAU, 0.5)
    for one, other in zip(mask_head.resolve(scores, gram, size, TAU, 0.5), expected, strict=True):
        assert torch.equal(one, other)
    assert mask_head.masks(scores, gram, size, TAU, 0.5).shape == (2, 3, 6, 1)


@pytest.mark.parametrize("temperature", [0, -0.07, float("nan"), float("inf"), 1e-40, -float("inf")])
def test_a_temperature_float32_cannot_divide_by_is_refused(temperature):
    scores, gram = some_maps()
    refused(ValueError, "temperature is", mask_head.resolve, scores, gram, (6, 7), temperature, 0.5)
    refused(ValueError, "temperature is", mask_head.probabilities, scores, gram, (6, 7), temperature)
    refused(ValueError, "temperature is", mask_head.masks, scores, gram, (6, 7), temperature, 0.5)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    scores, gram = some_maps()
    refused(ValueError, "threshold is", mask_head.resolve, scores, gram, (6, 7), TAU, threshold)
    refused(ValueError, "threshold is", mask_head.masks, scores, gram, (6, 7), TAU, threshold)


@pytest.mark.parametrize("value", [None, "0.5", torch.tensor(0.5), True, 0.5j, [0.5]])
def test_what_is_no_number_is_neither_temperature_nor_threshold(value):
    scores, gram = some_maps()
    refused(TypeError, "temperature is a", mask_head.resolve, scores, gram, (6, 7), value, 0.5)
    refused(TypeError, "threshold is a", mask_head.resolve, scores, gram, (6, 7), TAU, value)
    refused(TypeError, "threshold is a", mask_head.masks, scores, gram, (6, 7), TAU, value)


SCORES, GRAM = some_maps()


@pytest.mark.parametrize(
    ("scores", "gram", "kind", "found"),
    [
        (SCORES.half(), GRAM, TypeError, "torch.float16"),
        (SCORES.double(), GRAM.double(), TypeError, "torch.float64"),
        (SCORES, GRAM.to("meta"), TypeError, "meta"),
        (SCORES.numpy(), GRAM, TypeError, "ndarray"),
        (SCORES[0], GRAM, ValueError, "(3, 4, 5)"),
        (SCORES, GRAM[:, :4], ValueError, "(2, 4, 4, 5)"),
        (SCORES, GRAM[:1], ValueError, "(1, 5, 4, 5)"),
        (SCORES, GRAM.mT, ValueError, "(2, 5, 5, 4)"),
        (SCORES[:, :0], GRAM, ValueError, "(2, 0, 4, 5)"),
        (SCORES[:0], GRAM[:0], ValueError, "(0, 3, 4, 5)"),
        (SCORES.clone().requires_grad_(), GRAM, ValueError, "scores requires a gradient"),
        (torch.zeros(1).expand(1, 1, 2**14, 2**14), torch.zeros(1).expand(1, 5, 2**14, 2**14), ValueError, "scores of"),
        (torch.zeros(1).expand(1, 1, 1, 65536), torch.zeros(1).expand(1, 5, 1, 65536), ValueError, "65536"),
        (torch.zeros(1).expand(65536, 1, 1, 1), torch.zeros(1).expand(65536, 5, 1, 1), ValueError, "65536 pictures"),
    ],
)
def test_maps_that_do_not_fit_are_named(scores, gram, kind, found):
    refused(kind, found, mask_head.resolve, scores, gram, (6, 7), TAU, 0.5)
    refused(kind, found, mask_head.probabilities, scores, gram, (6, 7), TAU)
    refused(kind, found, mask_head.masks, scores, gram, (6, 7), TAU, 0.5)


def test_an_output_whose_taps_int32_cannot_hold_is_refused():
    scores, gram = torch.zeros(1).expand(1, 1, 16384, 1), torch.zeros(1).expand(1, 5, 16384, 1)
    refused(ValueError, "output edge", mask_head.resolve, scores, gram, (65535, 1), TAU, 0.5)


def test_more_words_than_a_label_has_bits_for_are_refused():
    scores, gram = torch.zeros(1).expand(1, 65536, 1, 1), torch.zeros(1).expand(1, 5, 1, 1)
    refused(ValueError, "65536 words", mask_head.resolve, scores, gram, (1, 1), TAU, 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, None])
def test_outputs_are_half_or_single_precision(dtype):
    refused(TypeError, "confidence is", mask_head.resolve, SCORES, GRAM, (6, 7), TAU, 0.5, confidence=dtype)
    refused(TypeError, "dtype is", mask_head.probabilities, SCORES, GRAM, (6, 7), TAU, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_views_of_any_stride_are_read_as_the_numbers_they_show(dtype):
    features, words = a_case(words=6, low=(8, 10), channels=32, dtype=dtype)
    strided = features[:, ::2, 1::3, 3:30:2], words[:, ::2, 3:30:2]
    expanded = features[:1].expand(2, -1, -1, -1), words[:1].expand(2, -1, -1)
    moved = features.movedim(1, 2), words.flip(1)
    for one, other in (strided, expanded, moved):
        ours = mask_head.score_maps(one, other)
        for mine, plain in zip(
            ours, mask_head.score_maps(one.clone().contiguous(), other.clone().contiguous()), strict=True
        ):
            assert torch.equal(mine, plain)
    scores, gram = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(scores.mT, gram.mT, (9, 6), TAU, 0.5)
    again = mask_head.resolve(scores.mT.contiguous(), gram.mT.contiguous(), (9, 6), TAU, 0.5)
    assert torch.equal(labels, again[0])
    assert torch.equal(confidence, again[1])


def test_without_gradients_parameters_are_numbers_like_others():
    features, words = a_case()
    with torch.no_grad():
        scores, _ = mask_head.score_maps(features.clone().requires_grad_(), torch.nn.Parameter(words))
    assert torch.equal(scores, mask_head.score_maps(features, words)[0])
    assert not scores.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("where", ["features", "words"])
def test_what_is_no_number_makes_background_without_confidence_never_a_mask(value, dtype, where):
    features, words = a_case(dtype=dtype)
    (features if where == "features" else words)[0, 1, 2] = value
    maps = mask_head.score_maps(features, words)
    labels, confidence = mask_head.resolve(*maps, (9, 11), TAU, 0.0)
    assert confidence[0].isnan().any()
    assert (labels[0].int()[confidence[0].isnan()] == 0).all()
    clean = mask_head.resolve(*(one[1:] for one in maps), (9, 11), TAU, 0.0)
    assert torch.equal(labels[1], clean[0][0])
    every = mask_head.probabilities(*maps, (9, 11), TAU)
    packed = mask_head.masks(*maps, (9, 11), TAU, 0.25)
    assert not reference.unpack(packed, 11)[every.isnan()].any()


@pytest.mark.parametrize(("threshold", "all_of_them"), [(0, True), (1, False), (0.0, True), (np.float32(1), False)])
def test_thresholds_of_zero_and_one_keep_everything_and_nothing(threshold, all_of_them):
    labels, _ = mask_head.resolve(SCORES, GRAM, (6, 7), TAU, threshold)
    assert (labels.int() > 0).all() if all_of_them else (labels.int() == 0).all()
    bits = reference.unpack(mask_head.masks(SCORES, GRAM, (6, 7), TAU, threshold), 7)
    assert bits.all() if all_of_them else not bits.any()
    assert mask_head.least_cosine(TAU, threshold) in (float("inf"), -float("inf"))


@pytest.mark.parametrize("scoring", ["Softmax", "", None, 1])
def test_a_scoring_that_is_none_of_the_two_is_refused(scoring):
    refused(ValueError, "scoring is", mask_head.resolve, SCORES, GRAM, (6, 7), TAU, 0.5, scoring=scoring)
    refused(ValueError, "scoring is", mask_head.probabilities, SCORES, GRAM, (6, 7), TAU, scoring=scoring)
    refused(ValueError, "scoring is", mask_head.masks, SCORES, GRAM, (6, 7), TAU, 0.5, scoring=scoring)


def test_the_scoring_asked_for_is_the_definitions():
    every = mask_head.probabilities(SCORES, GRAM, (6, 7), TAU, scoring="softmax")
    labels, confidence = mask_head.resolve(SCORES, GRAM, (6, 7), TAU, 0.4, scoring="softmax")
    bits = reference.unpack(mask_head.masks(SCORES, GRAM, (6, 7), TAU, 0.4, scoring="softmax"), 7)
    assert torch.allclose(every.sum(dim=1), torch.ones(1))
    assert torch.allclose(every.amax(dim=1), confidence)
    assert torch.equal(labels.long(), torch.where(confidence > 0.4, every.argmax(dim=1) + 1, 0))
    assert torch.equal(bits, every > 0.4)
