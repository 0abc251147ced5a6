"""The mask head's definition, against what it abbreviates: upsample every channel, normalise, multiply."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels import reference

TEMPERATURE = 0.07


def random_case(seed, pictures, words, low, channels):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(pictures, *low, channels, generator=generator)
    return features, torch.randn(pictures, words, channels, generator=generator)


@given(st.integers(1, 300), st.integers(1, 3000), st.data())
@settings(max_examples=60, deadline=None)
def test_taps_are_the_rational_positions_rounded_once(size_in, size_out, data):
    taps = reference.interpolation_taps(size_in, size_out)
    index = data.draw(st.integers(0, size_out - 1))
    position = (Fraction(index) + Fraction(1, 2)) * size_in / size_out - Fraction(1, 2)
    position = min(max(position, Fraction(0)), Fraction(size_in - 1))
    assert taps.first[index] == position // 1
    assert taps.fraction[index].item() == float(position % 1)


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 90)] * 2), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_upsample_is_torchs_bilinear_interpolation(low, size, seed):
    maps = torch.randn(2, 3, *low, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    theirs = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(reference.upsample(maps, size), theirs, rtol=0, atol=1e-12)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 40), st.tuples(*[st.integers(1, 12)] * 2),
    st.tuples(*[st.integers(1, 50)] * 2), st.sampled_from([16, 33, 128]), st.sampled_from([1e-30, 1.0, 1e25]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_probabilities_equal_upsample_normalise_multiply(seed, pictures, words, low, size, channels, magnitude):
    features, vectors = random_case(seed, pictures, words, low, channels)
    features *= magnitude
    vectors /= magnitude
    exact = reference.naive_probabilities(features.double(), vectors.double(), size, TEMPERATURE)
    ours = reference.probabilities(*reference.score_maps(features, vectors), size, TEMPERATURE)
    assert ours.shape == exact.shape
    assert ours.dtype == torch.float32
    # A cosine errs by a few float32 roundings of its d products; sigmoid(·/τ) multiplies that by at most 1/(4τ).
    allowed = (8 + channels**0.5) * np.finfo(np.float32).eps / (4 * TEMPERATURE)
    assert (ours - exact).abs().max() <= min(allowed, 1e-5)


def test_half_precision_features_are_read_as_the_numbers_they_hold():
    features, words = random_case(0, 2, 5, (9, 7), 32)
    features, words = features.half(), words.half()
    exact = reference.naive_probabilities(features.double(), words.double(), (31, 17), TEMPERATURE)
    ours = reference.probabilities(*reference.score_maps(features, words), (31, 17), TEMPERATURE)
    assert (ours - exact).abs().max() < 1e-5


def test_labels_are_the_best_word_over_the_threshold_counted_from_one():
    features, words = random_case(1, 2, 6, (8, 5), 24)
    exact = reference.naive_probabilities(features.double(), words.double(), (37, 23), TEMPERATURE)
    labels, confidence = reference.resolve(*reference.score_maps(features, words), (37, 23), TEMPERATURE, 0.9)
    best, word = exact.max(dim=1)
    assert torch.equal(labels, torch.where(best > 0.9, word + 1, 0))
    assert 0.05 < (labels == 0).float().mean() < 0.95
    assert (confidence - best).abs().max() < 1e-5


def test_a_zero_feature_or_word_has_probability_one_half_and_is_background():
    features, words = random_case(2, 1, 3, (4, 4), 16)
    features[:] = 0
    labels, confidence = reference.resolve(*reference.score_maps(features, words), (9, 9), TEMPERATURE, 0.5)
    assert (confidence == 0.5).all()
    assert (labels == 0).all()
    features, words = random_case(2, 1, 3, (4, 4), 16)
    words[:] = 0
    labels, confidence = reference.resolve(*reference.score_maps(features, words), (9, 9), TEMPERATURE, 0.5)
    assert (confidence == 0.5).all()
    assert (labels == 0).all()


def test_a_tie_goes_to_the_word_named_first():
    features, words = random_case(3, 1, 4, (5, 5), 16)
    words[:, 1:] = words[:, :1]
    labels, _ = reference.resolve(*reference.score_maps(features, words), (13, 13), TEMPERATURE, 0.0)
    assert (labels == 1).all()


@pytest.mark.parametrize("turn", [0.0, 1e-4, 1e-2, 0.3])
def test_opposite_neighbours_cost_accuracy_only_as_far_as_they_cancel(turn):
    features, words = random_case(4, 1, 3, (1, 2), 64)
    features[:, :, 1] = -features[:, :, 0] + turn * features[:, :, 1]
    size = (1, 41)  # odd: one pixel lies in the middle, where a feature and its opposite cancel
    exact = reference.naive_probabilities(features.double(), words.double(), size, TEMPERATURE)
    ours = reference.probabilities(*reference.score_maps(features, words), size, TEMPERATURE)
    upsampled = reference.upsample(features.double().movedim(-1, 1), size).norm(dim=1)
    left = upsampled / features.double().norm(dim=-1).max()
    # The squared length is a sum of terms of size 1 that float32 rounds: its relative error grows as 1/left².
    allowed = 1e-6 + 8 * np.finfo(np.float32).eps / (4 * TEMPERATURE) / left.square().clamp(min=1e-30)
    assert torch.isfinite(ours).all()
    assert ((ours - exact).abs() <= allowed[:, None]).all()
