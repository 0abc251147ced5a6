from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fusioner_rt.errors import OutputUnwritable
from training import checkpoint
from training.model import tiny


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny(seed=5)
    checkpoint.save(model, tmp_path / "one", {"pictures": 3})
    again = checkpoint.load(tmp_path / "one")
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert checkpoint.read_config(tmp_path / "one")[1] == {"pictures": 3}


def test_saving_over_a_checkpoint_replaces_it_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    checkpoint.save(tiny(seed=1), tmp_path / "one", {})
    checkpoint.save(tiny(seed=2), tmp_path / "one", {})
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert torch.equal(checkpoint.load(tmp_path / "one").norm.weight, tiny(seed=2).norm.weight)


def test_the_encoders_are_not_repeated_in_the_weights(tmp_path: Path) -> None:
    checkpoint.save(tiny(), tmp_path / "one", {})
    from safetensors.torch import load_file

    assert not [n for n in load_file(tmp_path / "one" / "weights.safetensors") if "encoder" in n]


def edit(folder: Path, change: dict[str, object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["model"] |= change
    (folder / "config.json").write_text(json.dumps(document))


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x" * 100), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "too deep"),
        (lambda folder: pipe(folder / "config.json"), "it is a named pipe, a regular file was expected"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not a version 1 checkpoint"),
        (lambda folder: edit(folder, {"encoder_sha256": {"image": "0" * 64}}), "install the same weights"),
        (lambda folder: edit(folder, {"layers": 3}), "do not fit"),
        (lambda folder: edit(folder, {"width": 64}), "do not fit"),
        (lambda folder: edit(folder, {"wings": 2}), "wings"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    checkpoint.save(tiny(), tmp_path / "one", {})
    damage(tmp_path / "one")  # type: ignore[operator]
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path / "one")


def test_a_checkpoint_replaces_another_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for _ in range(2):
        checkpoint.save(tiny(), folder, {})
    (folder / "notes.md").write_text("mine")
    with pytest.raises(OutputUnwritable, match=r"holds notes\.md, which would be removed"):
        checkpoint.save(tiny(), folder, {})
    assert (folder / "notes.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    checkpoint.load(folder)
    (folder / "notes.md").unlink()
    (tmp_path / "link").symlink_to(folder)
    checkpoint.save(tiny(), tmp_path / "link", {"new": True})
    assert (tmp_path / "link").is_symlink()
    assert checkpoint.read_config(folder)[1]["new"]
