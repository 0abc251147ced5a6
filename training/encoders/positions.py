"""Position embeddings for any picture size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def interpolate_positions(table: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """table (rows · columns, c), learnt on a grid (rows, columns) → (1, c, h, w) for `size` (h, w).

    Bicubic without antialiasing, as in DINO and DINOv2; at the learnt size it is the identity. They scale by
    (h + 0.1) / rows against rounding of the output's size; here the size is given, so the scale is exactly h / rows.
    """
    image = table.unflatten(0, grid).permute(2, 0, 1)[None]
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False)
