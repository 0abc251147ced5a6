"""The aligned residual: its score, what it keeps of names, and how it is aligned and trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fusioner_rt.errors import FusionerError
from training import checkpoint, recipe, train, words
from training.alignment import Regions, initialise_residual
from training.model import Fusioner, FusionerConfig, tiny
from training.words import Vocabulary, WordSampler


def model_with(aligned: int = 16, **changed: object) -> Fusioner:
    """The tiny model with an aligned residual whose parts all count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = checkpoint.build(replace(tiny().config, aligned=aligned, **changed)).eval()  # type: ignore[arg-type]
        model.image_encoder.load_state_dict(tiny().image_encoder.state_dict())
        residual = model.aligned
        assert residual is not None
        with torch.no_grad():
            residual.unknown.normal_()
            residual.root_weight.copy_(torch.tensor([1.3, 1.7]))
            residual.root_offset.copy_(torch.tensor([0.4, 0.2]))
            residual.names = F.normalize(torch.randn(3, model.text_encoder.width), dim=-1)
    return model


@pytest.mark.parametrize("changed", [{}, {"decoder": ()}, {"fusion": "late"}, {"fusion": "none"}])
def test_the_score_is_the_weighted_sum_of_two_cosines_and_an_offset(changed: dict[str, object]) -> None:
    model = model_with(**changed)
    residual = model.aligned
    assert residual is not None
    torch.manual_seed(1)
    tokens = F.normalize(torch.randn(2, 3, 4, model.image_encoder.width), dim=-1)
    vectors = F.normalize(torch.randn(2, 5, model.text_encoder.width), dim=-1)
    known = torch.tensor([1.0, 0.0, 0.3, 1.0, 0.0]).expand(2, 5)[..., None]
    with torch.no_grad():
        features, refined = model.fuse(tokens, vectors, known)
        assert features.shape[-1] == refined.shape[-1] == model.config.channels
        score = torch.einsum("bhwd,bkd->bkhw", features, refined)
        d, found = model.config.width, residual(tokens, vectors, known)
        fused = torch.einsum("bhwd,bkd->bkhw", *(F.normalize(x[..., :d], dim=-1) for x in (features, refined)))
        scale = float(model.decoder.scale) if model.decoder is not None else 1.0
        maps = torch.einsum("bhwr,bkr->bkhw", found.pixels, found.words)
        maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        known = known[..., None]
        weight = 1.3 * (known * 1.3 + (1 - known) * 1.7)
        offset = 0.4 * (known * 0.4 + (1 - known) * 0.2)
    torch.testing.assert_close(score, fused + weight * maps - offset, atol=1e-5, rtol=0)


def test_a_word_is_known_by_its_nearness_to_a_trained_name() -> None:
    residual = model_with().aligned
    assert residual is not None
    name = residual.names[0]
    across = F.normalize(torch.randn(name.shape) @ (torch.eye(len(name)) - torch.outer(name, name)), dim=-1)
    asked = torch.stack([c * name + (1 - c * c) ** 0.5 * across for c in (1.0, 0.92, 0.85, 0.79, -1.0)])
    assert residual.known(asked[None])[0, :, 0].tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-4)


def test_an_unknown_words_vector_reaches_the_fusion_by_its_direction_alone() -> None:
    """Two words of one direction are one word to the trained layers where both are unknown, and two where they are known."""
    model = model_with()
    residual = model.aligned
    assert residual is not None
    torch.manual_seed(2)
    tokens = F.normalize(torch.randn(1, 3, 4, model.image_encoder.width), dim=-1)
    word = F.normalize(torch.randn(1, 1, model.text_encoder.width), dim=-1)
    null = torch.linalg.svd(residual.words.weight).Vh[-1]  # a change of the vector that moves no direction
    other = word + null
    with torch.no_grad():
        for known, same in ((0.0, True), (1.0, False)):
            one, two = (model.fuse(tokens, w, torch.full((1, 1, 1), known))[1] for w in (word, other))
            assert torch.allclose(one, two, atol=1e-5) == same


def clusters(model: Fusioner, classes: int, each: int = 6) -> tuple[Regions, Tensor]:
    """Regions about a direction per class, and vectors per class, all drawn at random."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(classes + 1, model.image_encoder.width, generator=generator)
    labels = torch.arange(1, classes + 1).repeat(each)
    noise = 0.1 * torch.randn(len(labels), centres.shape[1], generator=generator)
    vectors = torch.randn(classes + 1, model.text_encoder.width, generator=generator)
    return Regions(F.normalize(centres[labels] + noise, dim=1), labels), F.normalize(vectors, dim=1)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 12))
def test_regions_alone_align_an_encoder_without_a_classifier(classes: int) -> None:
    model = model_with()
    residual = model.aligned
    assert residual is not None
    regions, vectors = clusters(model, classes)
    unseen = initialise_residual(model, regions, vectors, None, strength=0.1)
    found = residual(regions.tokens[None, None], vectors[None, 1:])
    named = (found.pixels[0, 0] @ found.words[0].T).argmax(1) + 1
    assert torch.equal(named, regions.classes)
    assert unseen.shape == vectors.shape


def test_a_class_taken_for_unseen_has_the_direction_that_the_others_give_it() -> None:
    model = model_with()
    residual = model.aligned
    assert residual is not None
    regions, vectors = clusters(model, 10)
    unseen = initialise_residual(model, regions, vectors, None)
    before = residual(regions.tokens[None, None], unseen[None, 1:2]).words[0, 0]
    with torch.no_grad():
        own = residual(regions.tokens[None, None], vectors[None, 1:2]).words[0, 0]
    assert not torch.allclose(before, own, atol=0.05)


def test_words_of_clips_own_space_keep_their_directions_without_a_region(small_clip: tuple[Any, Path]) -> None:
    name = f"tested-dense:{small_clip[1]}"
    config = FusionerConfig(f"dense_clip:{name}", f"open_clip:{name}", 32, 1, 4, decoder=(8,), aligned=17)
    model = checkpoint.build(config)
    assert model.one_space
    residual = model.aligned
    assert residual is not None
    vectors = F.normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    initialise_residual(model, Regions(torch.zeros(0, 32), torch.zeros(0, dtype=torch.int64)), vectors, None, 0.01)
    tokens = vectors - vectors.mean(0)
    found = residual(tokens[None, None], vectors[None])
    assert (found.pixels[0, 0] @ found.words[0].T).argmax(1).tolist() == list(range(40))


def test_too_little_to_align_with_is_an_error_that_says_so() -> None:
    model = model_with()
    regions, vectors = clusters(model, 1)
    with pytest.raises(FusionerError, match="1 classes have 3 regions or more; expected 2"):
        initialise_residual(model, regions, vectors, None)


@pytest.mark.parametrize("channels", [1, -2])
def test_a_residual_of_no_direction_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="expected 2 channels or more"):
        FusionerConfig(aligned=channels)


def test_a_run_trains_keeps_its_names_and_goes_on(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "FREQUENT", 2)
    given = ["tiny", "--data", str(shapes), "--cache", str(tmp_path / "cache"), "--aligned", "16", "--unknown", "0.5"]
    given += ["--epochs", "2", "--alone", "0.2", "--near", "0.5", "--choice", "1"]
    assert train.main([*given, "--out", str(tmp_path / "run")]) == 0
    model = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert model.aligned is not None
    assert len(model.aligned.names) > 1
    assert train.main([*given, "--out", str(tmp_path / "on"), "--from", str(tmp_path / "run" / "checkpoint")]) == 0
    further = checkpoint.load(tmp_path / "on" / "checkpoint")
    assert further.aligned is not None
    assert len(further.aligned.names) == len(model.aligned.names), "names known before are not kept twice"


def vocabulary() -> Vocabulary:
    """Four classes; picture a shows the first, which is nearest to the second, b all of them."""
    vectors = F.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 1, 0.1]]), dim=1)
    return Vocabulary(
        words=["background", "dog", "puppy", "car", "van"], vectors=vectors, classes=[1, 2, 3, 4],
        present={"a": [1], "b": [1, 2, 3, 4]}, names={}, frequency=np.array([0.0, 12, 12, 12, 3]), first_name=5,
        synonyms={1: [5]}, unseen=-vectors,
    )  # fmt: skip


@given(st.integers(0, 1000))
def test_words_near_to_what_a_picture_shows_are_asked_as_absent(seed: int) -> None:
    plan = recipe.Plan(words=2, exact_words=True, absent=1.0, near=1.0)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(words, "NEAR", 1)
    labels = torch.ones(1, 2, 2, dtype=torch.int16)
    chosen = vocabulary()
    chosen.synonyms = {}
    drawn = WordSampler(chosen, plan).draw(["a"], labels, np.random.default_rng(seed))
    monkey.undo()
    assert torch.equal(drawn.words[0].abs(), vocabulary().vectors[[1, 2]])
    assert drawn.targets.sum((2, 3)).tolist() == [[4, 0]]


def test_a_picture_is_asked_for_nothing_that_it_shows_as_often_as_the_plan_says() -> None:
    plan = recipe.Plan(words=1, alone=0.25)
    labels = torch.ones(1, 2, 2, dtype=torch.int16)
    chosen = vocabulary()
    chosen.synonyms = {}
    sampler, random = WordSampler(chosen, plan), np.random.default_rng(0)
    shown = [bool(sampler.draw(["a"], labels, random).targets.any()) for _ in range(400)]
    assert np.mean(shown) == pytest.approx(0.75, abs=0.07)


def test_words_taken_for_unknown_have_the_other_vectors() -> None:
    plan, labels = recipe.Plan(words=4, exact_words=True, unknown=0.5), torch.ones(1, 2, 2, dtype=torch.int16)
    chosen = vocabulary()
    chosen.synonyms = {}
    sampler, random = WordSampler(chosen, plan), np.random.default_rng(0)
    for _ in range(20):
        drawn = sampler.draw(["b"], labels, random)
        ours = torch.where(drawn.known > 0, drawn.words, -drawn.words)
        assert all(any(torch.equal(row, vector) for vector in vocabulary().vectors) for row in ours[0])


def test_names_are_known_that_training_showed_often() -> None:
    assert vocabulary().known() == [1, 2, 3, 5]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 100))
def test_the_entropy_of_the_choice_is_that_of_the_label_that_a_pixel_gets(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, count, 3, 5, generator=generator)
    label = torch.randint(0, count + 1, (2, 3, 5), generator=generator)
    targets = F.one_hot(label, count + 1).movedim(-1, 1)[:, 1:].float()
    plain = F.cross_entropy(torch.cat([torch.zeros(2, 1, 3, 5), logits], 1), label, reduction="none")
    torch.testing.assert_close(train.choice_entropy(logits, targets), plain, atol=1e-4, rtol=1e-5)


def test_of_two_right_words_either_will_do() -> None:
    logits, both = torch.tensor([4.0, -9.0]).reshape(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert float(train.choice_entropy(logits, both)) < 0.02
