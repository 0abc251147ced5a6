"""EfficientNet-Lite as a frozen image encoder (Tan and Le 2019; the Lite variants drop squeeze-excite and use ReLU6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# kernel, stride, expansion, output channels, repeats: EfficientNet-B0's stages, shared by every variant.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
VARIANTS = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite1": (1.0, 1.1), "efficientnet-lite2": (1.1, 1.2)}
BATCH_NORM_EPS = 1e-3  # of the released weights; torch's default is 1e-5


class EfficientNetLite(nn.Module):
    """Tokens at stride 16: the 1280-channel head (stride 32, upsampled) concatenated with the last stride-16 map.

    Batch norms are folded into the convolutions on loading: the encoder is frozen, and exported graphs are smaller.
    Padding is TensorFlow's SAME; for sizes divisible by 32 that is one more row and column at the end.
    """

    stride, multiple, side = 16, 32, 320
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # the released weights expect (x - 127) / 128

    def __init__(self, width_factor: float = 1.0, depth_factor: float = 1.0, head: int = 1280) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.middle = 0  # index of the last block at stride 16
        width, total_stride = 32, 2
        for index, (kernel, stride, expansion, out, repeats) in enumerate(STAGES):
            out = _round_channels(out * width_factor)
            # The Lite variants scale neither the first nor the last stage's depth.
            repeats = repeats if index in (0, len(STAGES) - 1) else math.ceil(repeats * depth_factor)
            total_stride *= stride
            for _ in range(repeats):
                self.blocks.append(_Block(width, out, kernel, stride, expansion))
                width, stride = out, 1
            if total_stride == 16:
                self.middle, middle_width = len(self.blocks) - 1, width
        self.head = nn.Conv2d(width, head, 1)
        self.width = head + middle_width

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W), H and W multiples of 32 → [(B, 1280, H/32, W/32), (B, c, H/16, W/16)]."""
        x = F.relu6(self.stem(F.pad(pixels, (0, 1, 0, 1))))
        middle = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.middle:
                middle = x
        return [F.relu6(self.head(x)), middle]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        """extract's maps → tokens (B, h, w, c), L2-normalised; both levels have equal weight."""
        head, middle = levels
        head = F.interpolate(head, scale_factor=2.0, mode="bilinear", align_corners=False)
        tokens = torch.cat([F.normalize(head, dim=1), F.normalize(middle, dim=1)], dim=1)
        return F.normalize(tokens, dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))

    def load_released(self, state: dict[str, Tensor]) -> None:
        """Loads the released state dict (names `_blocks.3._expand_conv.weight`), without its classifier.

        Raises KeyError for a missing name, ValueError for an unexpected name or another shape.
        """
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        self._take(self.stem, state, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            prefix = f"_blocks.{index}."
            if block.expand is not None:
                self._take(block.expand, state, prefix + "_expand_conv", prefix + "_bn0")
            self._take(block.depthwise, state, prefix + "_depthwise_conv", prefix + "_bn1")
            self._take(block.project, state, prefix + "_project_conv", prefix + "_bn2")
        self._take(self.head, state, "_conv_head", "_bn1")
        del state["_fc.weight"], state["_fc.bias"]
        if state:
            raise ValueError(f"names in the weights that EfficientNet-Lite does not have: {sorted(state)[:4]}")

    @staticmethod
    @torch.no_grad()
    def _take(convolution: nn.Conv2d, state: dict[str, Tensor], name: str, norm: str) -> None:
        weight = state.pop(name + ".weight")
        if weight.shape != convolution.weight.shape:
            raise ValueError(
                f"{name}.weight has shape {tuple(weight.shape)}, expected {tuple(convolution.weight.shape)}"
            )
        scale = state.pop(norm + ".weight") / torch.sqrt(state.pop(norm + ".running_var") + BATCH_NORM_EPS)
        convolution.weight.copy_(weight * scale[:, None, None, None])
        assert convolution.bias is not None
        convolution.bias.copy_(state.pop(norm + ".bias") - state.pop(norm + ".running_mean") * scale)


class _Block(nn.Module):
    """Inverted bottleneck: 1×1 expand, depthwise k×k, 1×1 project, residual where shapes allow."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = nn.Conv2d(width, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(
            inner, inner, kernel, stride=stride, groups=inner, padding=0 if stride == 2 else kernel // 2
        )
        self.project = nn.Conv2d(inner, out, 1)
        self.pad = (kernel // 2 - 1, kernel // 2) * 2 if stride == 2 else None
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = y if self.pad is None else F.pad(y, self.pad)
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


def _round_channels(channels: float) -> int:
    """Rounds to a multiple of 8, at most a tenth below `channels` (the EfficientNet rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
