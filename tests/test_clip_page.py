"""docs/clip.md: its blocks run in their order, on a small CLIP with random weights in place of the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import blocks_of
from PIL import Image

from training.encoders.open_clip import import_open_clip

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "clip.md").read_text()
SMALL = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1},
}
STAND_IN = """
import pathlib, runpy, sys
from training.encoders.open_clip import import_open_clip
import_open_clip().add_model_config(pathlib.Path("ViT-B-16.json"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A command, with an architecture of that name which is small."""


blocks = partial(blocks_of, PAGE)


def voc(folder: Path) -> None:
    """Two pictures in VOC's layout."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("2007_000001", "2007_000002"):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(np.repeat(np.array([[0, 8, 15, 255]], np.uint8), 60, 0).repeat(20, 1), "P")
        mask.putpalette(bytes(range(256)) * 3)
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("2007_000001\n2007_000002\n")


@pytest.mark.slow
def test_the_blocks_run_in_their_order(tmp_path: Path) -> None:
    for name in ("docs", "export", "training", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "ViT-B-16.json").write_text(json.dumps(SMALL))
    import_open_clip().add_model_config(tmp_path / "ViT-B-16.json")
    try:
        torch.manual_seed(0)
        torch.save(import_open_clip().create_model("ViT-B-16").state_dict(), tmp_path / "ViT-B-16.pt")
    finally:
        for file in Path(import_open_clip().__file__).parent.glob("model_configs/ViT-B-16.json"):
            import_open_clip().add_model_config(file)  # the real one again
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    voc(tmp_path / "VOC")
    there = Path(sys.executable).parent
    for script in blocks("sh"):
        script = script.replace("python export/", "python stand_in.py export/")
        done = subprocess.run(
            ["env", f"PATH={there}:/usr/bin:/bin", "sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    manifest = json.loads((tmp_path / "engines" / "clip-b16" / "manifest.json").read_text())
    assert manifest["precision"] == "fp16"
    assert manifest["gates"]["parity"]["mask_agreement"] >= 0.995
    assert manifest["graphs"]["image_fusion"]["fp16_weight_share"] > 0.99
    assert Image.open(tmp_path / "output" / "cat.overlay.jpg").size
    done = subprocess.run(
        [sys.executable, "-c", "".join(blocks("python"))], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    alone, note, together = done.stdout.splitlines()
    assert "compares words with each other alone" in note
    assert alone == "[1.]"
    assert together.startswith("('cat', 'sofa')")
    assert together.endswith("0.1")
