"""CLIP's weight files: OpenAI's archive, state dicts, other models'; and its ResNet's grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders import WeightsNotFound, WeightsUnfit, image_encoder, text_encoder
from training.encoders.open_clip import OPENAI_NUMBERS, OpenClipResNet, _load, import_open_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 16}


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("clips")
    for name, vision in (("tested-vit", VIT), ("tested-resnet", RESNET)):
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}))
    import_open_clip().add_model_config(folder)


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    _load.cache_clear()


def openai_names(layers: int) -> set[str]:
    """Every name in OpenAI's ViT releases but the three numbers."""
    block = [
        f"{part}.{kind}"
        for part in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ]
    block += ["attn.in_proj_weight", "attn.in_proj_bias"]
    names = {f"visual.transformer.resblocks.{i}.{part}" for i in range(layers) for part in block}
    names |= {f"transformer.resblocks.{i}.{part}" for i in range(TEXT["layers"]) for part in block}
    names |= {
        f"{norm}.{kind}" for norm in ("visual.ln_pre", "visual.ln_post", "ln_final") for kind in ("weight", "bias")
    }
    return names | {
        "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight", "logit_scale",
        "positional_embedding", "text_projection", "token_embedding.weight",
    }  # fmt: skip


@pytest.fixture
def clip() -> Any:
    """OpenAI's architecture: QuickGELU, half the weights in float16."""
    torch.manual_seed(5)
    model = import_open_clip().CLIP(24, VIT, TEXT, quick_gelu=True).eval()
    assert set(model.state_dict()) == openai_names(VIT["layers"])  # type: ignore[arg-type]
    return model


def released(model: nn.Module) -> dict[str, Tensor]:
    halved = {n: v.half() if v.ndim > 1 else v for n, v in model.state_dict().items()}
    return {
        **halved,
        **{name: torch.tensor(number) for name, number in zip(OPENAI_NUMBERS, (48, 77, 49408), strict=True)},
    }


@pytest.mark.parametrize(
    ("change", "openai"), [(lambda v: v.half().float(), True), (lambda v: v, False), (lambda v: v.half(), False)]
)
def test_openais_weights_without_its_numbers_are_known_by_their_rounding(
    clip: Any, tmp_path: Path, change: Any, openai: bool, recwarn: pytest.WarningsRecorder
) -> None:
    state = {name: change(value) for name, value in clip.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    encoder, _ = image_encoder(f"open_clip:tested-vit:{tmp_path / 'weights.pt'}")
    (kind,) = {type(block.mlp.gelu).__name__ for block in encoder.visual.transformer.resblocks}  # type: ignore[attr-defined]
    assert kind == ("QuickGELU" if openai else "GELU")
    assert any("16-bit weights" in str(w.message) for w in recwarn) == (state["visual.proj"].dtype == torch.float16)


class Archive(nn.Module):
    """Holds a state dict's tensors under its own dotted names, as OpenAI's scripted model does."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def test_openais_archive_and_its_state_dict_give_openais_vectors(clip: Any, tmp_path: Path) -> None:
    state = released(clip)
    torch.save(state, tmp_path / "state.pt")
    torch.jit.save(torch.jit.trace(Archive(state), torch.zeros(1)), str(tmp_path / "archive.pt"))
    clip.load_state_dict({n: v.float() for n, v in state.items() if n not in OPENAI_NUMBERS})  # rounded alike
    clip.visual.output_tokens = True
    pixels = torch.randn(1, 3, 48, 48)
    expected = F.normalize(clip.visual(pixels)[1], dim=-1)
    for file in ("state.pt", "archive.pt"):
        image, digest = image_encoder(f"open_clip:tested-vit:{tmp_path / file}")
        torch.testing.assert_close(image(pixels).flatten(1, 2), expected, atol=1e-5, rtol=0)
        text, same = text_encoder(f"open_clip:tested-vit:{tmp_path / file}")
        assert digest == same
        ids, mask = map(
            torch.from_numpy, PromptTokenizer(text.tokenizer_file, text.max_tokens)(["a cat", "two dogs here"])
        )
        padded = F.pad(ids * mask, (0, 77 - ids.shape[1]))
        torch.testing.assert_close(text(ids, mask), clip.encode_text(padded, normalize=True), atol=1e-5, rtol=0)


def test_without_openais_numbers_the_activation_is_the_architectures(clip: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{n}": v for n, v in clip.state_dict().items()}}, tmp_path / "trained.pt")
    image_encoder(f"open_clip:tested-vit:{tmp_path / 'trained.pt'}")
    model = _load(f"open_clip:tested-vit:{tmp_path / 'trained.pt'}").model
    assert isinstance(model.visual.transformer.resblocks[0].mlp.gelu, nn.GELU)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in clip.state_dict().items())


def test_a_clip_of_another_shape_is_refused(clip: Any, tmp_path: Path) -> None:
    state = released(clip)
    del state["visual.transformer.resblocks.1.attn.in_proj_bias"]
    torch.save({**state, "visual.prompt": torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(WeightsUnfit, match=r"1 missing \(visual\.transformer.*1 unexpected \(visual\.prompt\)"):
        image_encoder(f"open_clip:tested-vit:{tmp_path / 'odd.pt'}")
    torch.save(released(clip), tmp_path / "vit.pt")
    with pytest.raises(WeightsUnfit, match="unexpected"):
        image_encoder(f"open_clip:tested-resnet:{tmp_path / 'vit.pt'}")


def test_a_model_openai_did_not_release_wants_its_weights_named() -> None:
    with pytest.raises(WeightsNotFound, match="OpenAI released no such weights"):
        image_encoder("open_clip:tested-vit")


@torch.no_grad()
def test_the_resnets_tokens_are_its_last_grid_at_stride_32() -> None:
    torch.manual_seed(6)
    clip = import_open_clip().CLIP(24, RESNET, TEXT).eval()
    for module in clip.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
            module.weight.uniform_(0.5, 2), module.bias.normal_()
    visual, pixels = clip.visual, torch.randn(2, 3, 64, 160)
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))  # type: ignore[operator]
    encoder = OpenClipResNet(visual)
    assert encoder.width == 32 * RESNET["width"]  # type: ignore[operator]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    torch.testing.assert_close(encoder(pixels), F.normalize(grid, dim=1).permute(0, 2, 3, 1), atol=1e-5, rtol=0)
    assert encoder(pixels).shape == (2, 2, 5, encoder.width)


@torch.no_grad()
def test_clips_full_text_length_exports_and_padding_changes_nothing(clip: Any) -> None:
    from training.encoders.open_clip import OpenClipText

    encoder = OpenClipText(clip)
    ids = torch.randint(1, 49000, (2, 9))
    padded = F.pad(ids, (0, 68))
    mask = (torch.arange(77) < 9).long().expand(2, -1)
    alone = encoder(ids, torch.ones_like(ids))
    np.testing.assert_allclose(encoder(padded, mask), alone, atol=1e-6)
