"""A small data folder: coloured shapes on noise, each class a colour, so that a tiny model learns in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("background", "red thing", "green thing", "blue thing")
COLOURS = ((200, 40, 40), (40, 180, 40), (40, 40, 200))


def write_shapes(root: Path, pictures: int = 12) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    random = np.random.default_rng(0)
    names = []
    for number in range(pictures):
        height, width = ((96, 96), (64, 128))[number % 2]
        rgb = random.integers(90, 150, (height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for index in random.choice((1, 2, 3), size=2, replace=False):
            top, left = int(random.integers(0, height - 40)), int(random.integers(0, width - 40))
            mask[top : top + 40, left : left + 40] = index
            rgb[top : top + 40, left : left + 40] = COLOURS[index - 1]
        mask[:2] = 255
        names.append(f"shape{number:02}")
        Image.fromarray(rgb).save(root / "images" / f"{names[-1]}.jpg", quality=95)
        Image.fromarray(mask).save(root / "masks" / f"{names[-1]}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "train.txt").write_text("\n".join(names[: pictures * 2 // 3]) + "\n")
    (root / "val.txt").write_text("\n".join(names[pictures * 2 // 3 :]) + "\n")
    return root


@pytest.fixture
def shapes_in() -> Callable[..., Path]:
    """Writes a folder of shapes: `shapes_in(folder, pictures)`."""
    return write_shapes


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "shapes")
