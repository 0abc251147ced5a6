from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from training import checkpoint
from training.model import Fusioner, FusionerConfig, tiny


@pytest.fixture(scope="module")
def model() -> Fusioner:
    return tiny()


def tokens_and_words(model: Fusioner, batch: int = 2, words: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    tokens = F.normalize(torch.randn(batch, 3, 5, model.image_encoder.width, generator=random), dim=-1)
    return tokens, F.normalize(torch.randn(batch, words, model.text_encoder.width, generator=random), dim=-1)


@torch.no_grad()
def test_features_keep_the_pictures_shape_at_stride_16_over_2_to_the_stages_less_one(model: Fusioner) -> None:
    features, words = model(torch.randn(2, 3, 64, 96), torch.randn(2, 7, model.text_encoder.width))
    assert features.shape == (2, 64 // 8, 96 // 8, 32)
    assert words.shape == (2, 7, 32)


@torch.no_grad()
def test_permuting_the_words_permutes_the_refined_words_and_leaves_the_pixels(model: Fusioner) -> None:
    tokens, words = tokens_and_words(model)
    order = [3, 0, 4, 1, 2]
    features, refined = model.fuse(tokens, words)
    features_permuted, refined_permuted = model.fuse(tokens, words[:, order])
    torch.testing.assert_close(refined[:, order], refined_permuted, atol=1e-5, rtol=0)
    torch.testing.assert_close(features, features_permuted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_early_fusion_lets_a_word_change_the_pixels_and_late_fusion_does_not() -> None:
    for fusion, changes in (("early", True), ("late", False), ("none", False)):
        values = {**tiny().config.to_dict(), "fusion": fusion, "encoder_sha256": {}}
        model = checkpoint.build(FusionerConfig.from_dict(values)).eval()
        tokens, words = tokens_and_words(model)
        before, after = model.fuse(tokens, words)[0], model.fuse(tokens, words.flip(-1))[0]
        assert torch.equal(before, after) != changes


@torch.no_grad()
def test_one_pictures_tokens_meet_many_vocabularies(model: Fusioner) -> None:
    tokens, words = tokens_and_words(model, batch=3)
    together = model.fuse(tokens[:1], words)
    for row in range(3):
        alone = model.fuse(tokens[:1], words[row : row + 1])
        torch.testing.assert_close(together[0][row], alone[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-5, rtol=0)


def test_a_step_changes_fusion_and_decoder_and_nothing_of_the_encoders() -> None:
    model = tiny().train()
    assert not model.image_encoder.training  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    features, words = model(torch.randn(2, 3, 64, 64), torch.randn(2, 3, model.text_encoder.width))
    torch.einsum("bhwd,bkd->bkhw", features, words).square().mean().backward()
    optimiser.step()
    frozen = {n for n, value in model.state_dict().items() if torch.equal(value, before[n])}
    assert {n for n in before if n.startswith(("image_encoder.", "text_encoder."))} <= frozen
    assert {"layers.0.query_key_value.weight", "decoder.convolutions.0.weight", "project_words.1.weight"}.isdisjoint(
        frozen
    )


def test_without_a_decoder_features_stay_at_token_resolution() -> None:
    values = {**tiny().config.to_dict(), "decoder": (), "encoder_sha256": {}}
    model = checkpoint.build(FusionerConfig.from_dict(values)).eval()
    assert model(torch.randn(1, 3, 64, 96), torch.randn(1, 1, 24))[0].shape == (1, 4, 6, 32)


def test_a_words_vector_is_the_unit_mean_of_its_prompts_unit_vectors(model: Fusioner) -> None:
    from fusioner_rt.words.tokenizer import PromptTokenizer

    tokenizer = PromptTokenizer(model.text_encoder.tokenizer_file, model.text_encoder.max_tokens)
    prompts = [template.replace("{category}", "sofa") for template in model.config.templates]
    with torch.no_grad():
        vectors = [model.text_encoder(*map(torch.from_numpy, tokenizer([prompt])))[0] for prompt in prompts]
    torch.testing.assert_close(
        model.word_vectors(["cat", "sofa"])[1], F.normalize(torch.stack(vectors).mean(0), dim=0), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fusion": "middle"}, "'early', 'late' or 'none'"),
        ({"width": 100, "heads": 8}, "multiple of 8"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusionerConfig(**values)  # type: ignore[arg-type]
