from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusioner_rt.decode_picture import decode
from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders import WeightsNotFound, classifier_rows, image_encoder, text_encoder
from training.encoders.efficientnet_lite import BATCH_NORM_EPS, EfficientNetLite

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def released_state(encoder: EfficientNetLite, classes: int = 10) -> dict[str, torch.Tensor]:
    """A state dict with the released names, random, for an encoder of any width."""
    random = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, norm: str, convolution: nn.Conv2d) -> None:
        state[name + ".weight"] = torch.randn(convolution.weight.shape, generator=random) * 0.1
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(convolution.out_channels, generator=random) + 0.1
        state[norm + ".num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", encoder.stem)
    for index, block in enumerate(encoder.blocks):
        if block.expand is not None:
            add(f"_blocks.{index}._expand_conv", f"_blocks.{index}._bn0", block.expand)
        add(f"_blocks.{index}._depthwise_conv", f"_blocks.{index}._bn1", block.depthwise)
        add(f"_blocks.{index}._project_conv", f"_blocks.{index}._bn2", block.project)
    add("_conv_head", "_bn1", encoder.head)
    state["_fc.weight"] = torch.randn(classes, encoder.head.out_channels, generator=random)
    state["_fc.bias"] = torch.zeros(classes)
    return state


def test_the_folded_stem_is_the_convolution_and_its_batch_norm() -> None:
    encoder = EfficientNetLite(0.25, 0.3, head=40)
    state = released_state(encoder)
    encoder.load_released(dict(state))
    x = torch.randn(1, 3, 33, 33)
    norm = [state[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    expected = F.batch_norm(F.conv2d(x, state["_conv_stem.weight"], stride=2), *norm, eps=BATCH_NORM_EPS)
    torch.testing.assert_close(encoder.stem(x), expected, atol=1e-5, rtol=1e-5)


def test_missing_unexpected_and_misshapen_weights_are_errors() -> None:
    encoder = EfficientNetLite(0.25, 0.3, head=40)
    state = released_state(encoder)
    with pytest.raises(KeyError, match="_conv_head"):
        encoder.load_released({n: v for n, v in state.items() if not n.startswith("_conv_head")})
    with pytest.raises(ValueError, match="_blocks"):
        encoder.load_released({**state, "_blocks.99._bn0.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="expected"):
        encoder.load_released({**state, "_conv_stem.weight": torch.ones(1, 3, 3, 3)})


@torch.no_grad()
def test_the_real_image_encoder_names_the_cat() -> None:
    encoder, digest = image_encoder("efficientnet-lite0")
    names, rows = classifier_rows("efficientnet-lite0")
    encoder.eval()
    pixels = Preprocessing(320, 32, 1024, "bicubic", encoder.mean, encoder.std)(decode(PICTURES / "cat.jpg"))  # type: ignore[arg-type]
    head = encoder.extract(torch.from_numpy(pixels)[None])[0].mean((2, 3))[0]
    best = [names[i] for i in (rows @ head).topk(3).indices]
    assert any("cat" in name.lower() or "Mau" in name for name in best), best
    assert len(digest) == 64


@torch.no_grad()
def test_tokens_have_unit_length_at_stride_16() -> None:
    encoder, _ = image_encoder("efficientnet-lite0")
    tokens = encoder(torch.randn(2, 3, 64, 96))
    assert tokens.shape == (2, 4, 6, encoder.width)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 4, 6))


@torch.no_grad()
def test_the_real_text_encoder_knows_a_kitten_from_a_truck_and_padding_changes_nothing() -> None:
    encoder, _ = text_encoder("minilm-l6")
    tokenizer = PromptTokenizer(encoder.tokenizer_file, encoder.max_tokens)
    vectors = encoder(*map(torch.from_numpy, tokenizer(["a cat", "a small kitten asleep on the couch", "a truck"])))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    alone = encoder(*map(torch.from_numpy, tokenizer(["a cat"])))
    torch.testing.assert_close(vectors[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["efficientnet-lite9", "resnet-1", "dino-vitg16", "open_clip:no-such-model", "open_clip:ViT-B-32:no-such-weights"],
)
def test_an_unknown_image_encoder_is_named(name: str) -> None:
    with pytest.raises(WeightsNotFound, match=r"no .*model|no image encoder|neither a file"):
        image_encoder(name)


def test_an_unknown_text_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="no text encoder"):
        text_encoder("word2vec")
    with pytest.raises(WeightsNotFound, match="does not hold a text encoder"):
        text_encoder(f"bert:{tmp_path}")
    with pytest.raises(WeightsNotFound, match=r"no\.safetensors is not a file"):
        text_encoder(f"table:{tmp_path / 'no.safetensors'}")


class TestOpenClip:
    """The towers against open_clip's own code, at a small size and with random weights."""

    @pytest.fixture(scope="class")
    def clip(self) -> nn.Module:
        from training.encoders.open_clip import import_open_clip

        torch.manual_seed(0)
        vision = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
        return import_open_clip().CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()

    @torch.no_grad()
    def test_image_tokens_at_the_trained_size_are_open_clips(self, clip: nn.Module) -> None:
        from training.encoders.open_clip import OpenClipImage

        encoder = OpenClipImage(clip.visual, (0.5,) * 3, (0.5,) * 3)
        pixels = torch.randn(2, 3, 64, 64)  # positions are the table's own at this size
        clip.visual.output_tokens = True  # type: ignore[union-attr]
        expected = F.normalize(clip.visual(pixels)[1], dim=-1)  # type: ignore[operator]
        torch.testing.assert_close(encoder(pixels).flatten(1, 2), expected, atol=1e-5, rtol=0)
        assert encoder(torch.randn(1, 3, 48, 96)).shape == (1, 3, 6, 32)

    @torch.no_grad()
    def test_text_vectors_and_token_ids_are_open_clips(self, clip: nn.Module) -> None:
        from training.encoders.open_clip import OpenClipText, import_open_clip

        encoder = OpenClipText(clip)
        prompts = ["a photo of a Cat, 12 dogs!", "it's  the sheep's wool", "naïve café – 50% tvmonitor", "a"]
        ids, mask = PromptTokenizer(encoder.tokenizer_file, encoder.max_tokens)(prompts)
        expected = import_open_clip().get_tokenizer("ViT-B-16")(prompts)
        np.testing.assert_array_equal(np.where(mask, ids, 0), expected[:, : ids.shape[1]].numpy())
        own = encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        torch.testing.assert_close(own, clip.encode_text(expected, normalize=True), atol=1e-5, rtol=0)  # type: ignore[operator]
