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
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fusioner_rt.errors import FusionerError
from training import checkpoint, recipe, train, words
from training.alignment import Regions, initialise_residual
from training.model import Fusioner, FusionerConfig, tiny
from training.optimisation import Optimiser
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
            residual.trusted.fill_(1.25)
            residual.yielding.fill_(0.6)
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
        weight = 1.3 * (known * 1.3 + (1 - known) * 1.7 * 1.25)
        offset = 0.4 * (known * 0.4 + (1 - known) * 0.2 / 1.25)
    torch.testing.assert_close(score, fused + weight * maps - offset, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", [{}, {"decoder": ()}])
def test_unknown_words_yield_by_a_factor_of_their_score_and_known_ones_not_at_all(changed: dict[str, object]) -> None:
    model = model_with(**changed)
    residual = model.aligned
    assert residual is not None
    torch.manual_seed(4)
    tokens = F.normalize(torch.randn(1, 5, 3, model.image_encoder.width), dim=-1)
    vectors = F.normalize(torch.randn(1, 4, model.text_encoder.width), dim=-1)
    known = torch.tensor([1.0, 0.0, 0.0, 1.0])[None, :, None]

    def scores(yielding: float) -> Tensor:
        residual.yielding.fill_(yielding)
        with torch.no_grad():
            features, words = (F.normalize(x, dim=-1) for x in model.fuse(tokens, vectors, known))
        return torch.einsum("bhwd,bkd->bkhw", features, words)

    factor = (known * 1.0 + (1 - known) * 0.6)[..., None]
    torch.testing.assert_close(scores(0.6), factor * scores(1.0), atol=1e-6, rtol=1e-5)


def test_a_word_is_known_by_its_nearness_to_a_trained_name() -> None:
    residual = model_with().aligned
    assert residual is not None
    name = residual.names[0]
    across = F.normalize(torch.randn(name.shape) @ (torch.eye(len(name)) - torch.outer(name, name)), dim=-1)
    asked = torch.stack([c * name + (1 - c * c) ** 0.5 * across for c in (1.0, 0.92, 0.85, 0.79, -1.0)])
    with torch.no_grad():
        residual.common.fill_(0.4)
        assert residual.known(asked[None])[0, :, 0].tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-4)
        residual.common.fill_(0.7)  # an encoder whose words are all alike
        assert residual.known(asked[None])[0, :, 0].tolist() == pytest.approx([1, 0.4, 0, 0, 0], abs=1e-4)


def test_the_mean_cosine_of_the_names_is_kept_with_them() -> None:
    residual = model_with().aligned
    assert residual is not None
    names = F.normalize(torch.randn(5, residual.names.shape[1]), dim=1)
    residual.keep(names)
    pairs = [float(names[i] @ names[j]) for i in range(5) for j in range(5) if i != j]
    assert float(residual.common) == pytest.approx(np.mean(pairs), abs=1e-5)


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
    """The first and the sixth class share a fold: a plain ridge regression without both gives their directions."""
    model = model_with(aligned=64)
    residual = model.aligned
    assert residual is not None
    regions, vectors = clusters(model, 10)
    unseen = initialise_residual(model, regions, vectors, None, strength=10.0)
    centred = F.normalize(regions.tokens - regions.tokens.mean(0), dim=1)
    means = torch.stack([F.normalize(centred[regions.classes == i].mean(0), dim=0) for i in range(1, 11)])
    others = [i for i in range(10) if i not in (0, 5)]
    x = (vectors[1:] - vectors[1:].mean(0)).double()
    gram = x[others].T @ x[others]
    gram += 0.1 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    expected = x[[0, 5]] @ torch.linalg.solve(gram, x[others].T @ means[others].double())
    with torch.no_grad():
        found = residual(regions.tokens[None, None], unseen[None, [1, 6]]).words[0]
        axes = residual.pixels.weight
    expected = F.normalize(expected.float() @ axes.T, dim=1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_directions_have_the_slow_rate_whatever_the_encoder_has() -> None:
    model, plan = model_with(), recipe.Plan(rate=1e-2, word_rate=0.1)
    rates = {}
    for group in Optimiser(model, plan, False, 10, 1, torch.device("cpu")).adamw.param_groups:
        rates |= {id(parameter): group["initial_lr"] for parameter in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in rates}
    assert by_name["aligned.pixels.weight"] == by_name["aligned.words.bias"] == pytest.approx(1e-3)
    assert (
        by_name["aligned.root_weight"] == by_name["aligned.prototype.weight"] == by_name["project_words.0.bias"] == 1e-2
    )


@pytest.mark.parametrize("text", ["random", "other"])
def test_two_clips_have_no_space_in_common(small_clip: tuple[Any, Path], tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.pt"
    torch.save({name: value + 1 for name, value in torch.load(small_clip[1], weights_only=True).items()}, other)
    where = f"open_clip:tested-dense:{other if text == 'other' else text}"
    config = FusionerConfig(f"dense_clip:tested-dense:{small_clip[1]}", where, 32, 1, 4, decoder=(8,), aligned=17)
    assert not checkpoint.build(config).one_space


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


@pytest.mark.parametrize("channels", [1, 2, -2])
def test_a_residual_of_no_direction_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="expected 3 channels or more"):
        FusionerConfig(aligned=channels)


def test_a_run_trains_keeps_its_names_and_goes_on(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "FREQUENT", 2)
    given = ["tiny", "--data", str(shapes), "--cache", str(tmp_path / "cache"), "--aligned", "16", "--unknown", "0.5"]
    given += [
        "--epochs",
        "2",
        "--alone",
        "0.2",
        "--near",
        "0.5",
        "--choice",
        "1",
        "--trust",
        "1.5",
        "--yielding",
        "0.5",
    ]
    assert train.main([*given, "--out", str(tmp_path / "run")]) == 0
    model = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert model.aligned is not None
    assert len(model.aligned.names) > 1
    assert train.main([*given, "--out", str(tmp_path / "on"), "--from", str(tmp_path / "run" / "checkpoint")]) == 0
    further = checkpoint.load(tmp_path / "on" / "checkpoint")
    assert further.aligned is not None
    assert len(further.aligned.names) == len(model.aligned.names), "names known before are not kept twice"
    assert float(model.aligned.trusted) == float(further.aligned.trusted) == 1.5, "trust does not grow from run to run"
    assert float(model.aligned.yielding) == float(further.aligned.yielding) == 0.5


def test_a_run_that_was_stopped_goes_on_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    given = ["tiny", "--data", str(shapes), "--cache", str(tmp_path / "cache"), "--aligned", "16", "--epochs", "3"]
    assert train.main([*given, "--out", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        ends = iter([None, KeyboardInterrupt()])

        def epoch(*arguments: Any, kept: Any = train._epoch) -> float:
            if (error := next(ends)) is not None:
                raise error
            return float(kept(*arguments))

        patch.setattr(train, "_epoch", epoch)
        assert train.main([*given, "--out", str(tmp_path / "broken")]) == 130
    assert train.main([*given, "--out", str(tmp_path / "broken")]) == 0
    whole, broken = (load_file(tmp_path / name / "checkpoint" / "weights.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_an_aligned_model_is_trained_with_unknown_words(shapes: Path, tmp_path: Path, capsys: Any) -> None:
    given = ["tiny", "--data", str(shapes), "--out", str(tmp_path), "--aligned", "16", "--unknown", "0"]
    assert train.main(given) == recipe.RecipeError.exit_code
    assert "unknown is 0" in capsys.readouterr().err


PINNED = [[4, 0], [3, 0, 2, 0], [3, 4, 1]]  # as drawn before these fields were there


def test_old_draws_are_what_they_were() -> None:
    """The plan's new fields take no random number where they are off: recorded runs stay reproducible."""
    chosen, labels = vocabulary(), torch.ones(1, 2, 2, dtype=torch.int16)
    chosen.unseen = None
    sampler, random = WordSampler(chosen, recipe.Plan(words=4)), np.random.default_rng(1)
    drawn = [sampler.draw(["b"], labels, random).words[0] for _ in range(3)]
    found = [[[torch.equal(row, v) for v in chosen.vectors].index(True) for row in one] for one in drawn]
    assert found == PINNED


def vocabulary() -> Vocabulary:
    """Four classes; picture a shows the first, which is nearest to the second, b all of them."""
    vectors = F.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 1, 0.1]]), dim=1)
    return Vocabulary(
        words=["background", "dog", "puppy", "car", "van"], vectors=vectors, classes=[1, 2, 3, 4],
        present={"a": [1], "b": [1, 2, 3, 4]}, names={}, frequency=np.array([0.0, 12, 12, 12, 3]), first_name=5,
        unseen=-vectors,
    )  # fmt: skip


@given(st.integers(0, 1000))
def test_words_near_to_what_a_picture_shows_are_asked_as_absent(seed: int) -> None:
    plan = recipe.Plan(words=2, exact_words=True, absent=1.0, near=1.0)
    labels, chosen = torch.ones(1, 2, 2, dtype=torch.int16), vocabulary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "NEAR", 1)
        drawn = WordSampler(chosen, plan).draw(["a"], labels, np.random.default_rng(seed))
    assert torch.equal(drawn.words[0].abs(), vocabulary().vectors[[1, 2]])
    assert drawn.targets.sum((2, 3)).tolist() == [[4, 0]]


def test_a_picture_is_asked_for_nothing_that_it_shows_as_often_as_the_plan_says() -> None:
    plan = recipe.Plan(words=1, alone=0.25)
    labels = torch.ones(1, 2, 2, dtype=torch.int16)
    chosen = vocabulary()
    sampler, random = WordSampler(chosen, plan), np.random.default_rng(0)
    shown = [bool(sampler.draw(["a"], labels, random).targets.any()) for _ in range(400)]
    assert np.mean(shown) == pytest.approx(0.75, abs=0.07)


def test_words_taken_for_unknown_have_the_other_vectors() -> None:
    plan, labels = (
        recipe.Plan(words=4, exact_words=True, absent=0.0, unknown=0.5),
        torch.ones(1, 2, 2, dtype=torch.int16),
    )
    chosen = vocabulary()
    sampler, random = WordSampler(chosen, plan), np.random.default_rng(0)
    seen = []
    for _ in range(40):
        drawn = sampler.draw(["b"], labels, random)
        ours = torch.where(drawn.known > 0, drawn.words, -drawn.words)
        found = [[torch.equal(row, vector) for vector in vocabulary().vectors].index(True) for row in ours[0]]
        assert sorted(found) == [1, 2, 3, 4]
        assert drawn.known[0, found.index(4), 0] == 0, "a van is shown three times: it is never known"
        seen.append(drawn.known.mean())
    assert np.mean(seen) == pytest.approx(0.5 * 3 / 4, abs=0.15)


def test_names_are_known_that_training_showed_often() -> None:
    chosen = vocabulary()
    chosen.synonyms = {1: [5], 4: [6]}
    assert chosen.known() == [1, 2, 3, 5]


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
