"""docs/results.md: its Python blocks run in their order, and its commands run."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from documented import blocks_of, run_there
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()


blocks = partial(blocks_of, PAGE)


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    lines = run_there([sys.executable, "-c", "".join(blocks("python"))], tmp_path).splitlines()
    assert lines[0].startswith("<Segmentation 451x300: ")
    assert lines[1] == "docs/pictures/cat.jpg"
    exact = sum(int(line.split()[0]) for line in lines if line.endswith("holes"))
    (few,) = (int(line.split()[0]) for line in lines if line.endswith("points"))
    assert 4 <= few < exact
    labels = np.asarray(Image.open(tmp_path / "cat.png"))
    assert set(np.unique(labels)) == {0, 1}
    with np.load(tmp_path / "cat.npz") as arrays:
        np.testing.assert_array_equal(arrays["labels"], labels)
    images = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["astronaut.jpg", "cat.jpg", "coffee.jpg"]


def test_the_commands_run(tmp_path: Path) -> None:
    (script,) = blocks("sh")
    there = Path(sys.executable).parent
    run_there(["env", f"PATH={there}:/usr/bin:/bin", "sh", "-ec", script], tmp_path)
    annotations = json.loads((tmp_path / "seen" / "masks.json").read_text())["annotations"]
    assert all(isinstance(annotation["segmentation"], list) for annotation in annotations)
    assert {file.name for file in (tmp_path / "data" / "labels").iterdir()} == {
        "astronaut.txt",
        "cat.txt",
        "coffee.txt",
    }
    opened = json.loads((tmp_path / "seen" / "cat.labelme.json").read_text())
    assert (tmp_path / "seen" / opened["imagePath"]).samefile(ROOT / "docs" / "pictures" / "cat.jpg")
