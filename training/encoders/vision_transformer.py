"""Self-supervised ViTs as frozen image encoders: DINO, DINOv2 and MoCo v3 (paper 4.1, table 1).

The architecture is timm's VisionTransformer, which all three releases share; parameter names are those of the releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.encoders.attention import self_attention
from training.encoders.positions import interpolate_positions
from training.encoders.released import WeightsUnfit, fit, of_another_model, read_state

EPS = 1e-6  # of every layer norm; torch's default is 1e-5


@dataclass(frozen=True)
class Variant:
    """One release. side: pretraining size in pixels. url: of its weights."""

    width: int
    depth: int
    heads: int
    patch: int
    side: int
    layer_scale: bool
    url: str
    dropped: tuple[str, ...] = ()  # parameters that serve only its training


_PLACE = "https://dl.fbaipublicfiles.com"


def _dinov2(width: int, depth: int, heads: int, name: str) -> Variant:
    url = f"{_PLACE}/dinov2/{name}/{name}_pretrain.pth"
    return Variant(width, depth, heads, 14, 518, True, url, dropped=("mask_token",))


def _mocov3(width: int, heads: int, name: str) -> Variant:
    return Variant(width, 12, heads, 16, 224, False, f"{_PLACE}/moco-v3/{name}/{name}.pth.tar", dropped=("head.",))


VARIANTS = {
    "dino-vits16": Variant(384, 12, 6, 16, 224, False, f"{_PLACE}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"),
    "dino-vitb16": Variant(768, 12, 12, 16, 224, False, f"{_PLACE}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
    "dinov2-vits14": _dinov2(384, 12, 6, "dinov2_vits14"),
    "dinov2-vitb14": _dinov2(768, 12, 12, "dinov2_vitb14"),
    "dinov2-vitl14": _dinov2(1024, 24, 16, "dinov2_vitl14"),
    "mocov3-vits16": _mocov3(384, 12, "vit-s-300ep"),  # 12 heads, where other ViT-S have 6
    "mocov3-vitb16": _mocov3(768, 12, "vit-b-300ep"),
}  # fmt: skip

# Keys and prefixes of the backbone in training checkpoints. For MoCo v3, the base encoder: its authors evaluate that.
_WRAPPERS = ("teacher", "state_dict")
_PREFIXES = (
    "module.base_encoder.", "base_encoder.", "module.momentum_encoder.", "momentum_encoder.",
    "module.backbone.", "backbone.", "module.", "",
)  # fmt: skip


class VisionTransformer(nn.Module):
    """Patch tokens of the last layer after its norm, without the class token. Positions are interpolated to any size."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of all three releases

    def __init__(self, width: int, depth: int, heads: int, patch: int, side: int, layer_scale: bool) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.stride = self.multiple = patch
        self.grid = (side // patch, side // patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.grid[0] * self.grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    @classmethod
    def of(cls, variant: Variant) -> VisionTransformer:
        return cls(variant.width, variant.depth, variant.heads, variant.patch, variant.side, variant.layer_scale)

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W), H and W multiples of the patch → [(B, width, h, w)]."""
        x = self.patch_embed["proj"](pixels)
        h, w = x.shape[2], x.shape[3]
        x = (x + interpolate_positions(self.pos_embed[0, 1:], self.grid, (h, w))).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return [self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (h, w))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        """extract's map → tokens (B, h, w, width), L2-normalised."""
        return F.normalize(levels[0], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ls1 = _LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = _LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, width) → the same shape."""
        attended = self_attention(self.attn["qkv"](self.norm1(x)), self.heads)
        x = x + self.ls1(self.attn["proj"](attended))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def load_released(encoder: VisionTransformer, file: Path, dropped: tuple[str, ...] = ()) -> None:
    """Loads released weights: a bare backbone, or a training checkpoint that holds it.

    dropped: parameters to leave out, as names, or prefixes that end in a dot. Raises WeightsNotFound, WeightsUnfit.
    """
    fit(encoder, backbone(read_state(file), str(file), dropped), str(file))


def backbone(state: dict[str, Any], source: str, dropped: tuple[str, ...] = ()) -> dict[str, Any]:
    """The backbone's parameters in a released state dict: without wrapper, prefix and DINOv2's chunk numbers."""
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}cls_token" in state), None)
    if prefix is None:
        looks, cure = of_another_model(state, {}, "name the file of a DINO, DINOv2 or MoCo v3 release")
        names = ", ".join(map(str, list(state)[:3]))
        raise WeightsUnfit(
            f"{source} holds no ViT backbone{looks}: no cls_token among its {len(state)} names ({names}, …)", cure
        )
    named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    named = {
        name: value
        for name, value in named.items()
        if not any(name.startswith(drop) if drop.endswith(".") else name == drop for drop in dropped)
    }
    # DINOv2 trains in chunks (FSDP): block 3 is blocks.0.3, or blocks.1.3 in the second chunk.
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in named.items()}
