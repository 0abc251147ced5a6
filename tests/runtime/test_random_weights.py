"""A bundle of encoders with random weights says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fusioner_rt import Session
from fusioner_rt.bundle import Bundle
from fusioner_rt.cli import main
from fusioner_rt.errors import ManifestInvalid
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.manifest_document import with_digest


def with_random(bundle: Path, to: Path, value: Any) -> Path:
    folder = to / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest | {"random_weights": value})))
    return folder


@pytest.mark.parametrize(
    ("random", "note", "fact"),
    [
        (["image"], "the image encoder of this bundle has random weights: its masks mean nothing", "random: image"),
        (["text"], "the text encoder of this bundle has random weights: its masks mean nothing", "random: text"),
        (
            ["image", "text"],
            "the image and text encoders of this bundle have random weights: its masks mean nothing",
            "random: image, text",
        ),
        ([], None, "trained"),
    ],
)
def test_a_session_notes_random_weights_and_info_prints_them(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    random: list[str],
    note: str | None,
    fact: str,
) -> None:
    folder = with_random(tiny_bundle, tmp_path, random)
    with Session(folder) as session:
        assert session.notes == ([note] if note else [])
    command = ["info", "--engine", str(folder)]
    assert main(command) == 0
    assert f"weights      {fact}\n" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"]["weights"] == fact


def test_a_bundle_that_says_nothing_of_it_has_trained_weights(tiny_bundle: Path) -> None:
    assert "random_weights" not in json.loads((tiny_bundle / MANIFEST).read_text())
    assert Bundle.open(tiny_bundle).random_weights == ()


@pytest.mark.parametrize("value", [None, "image", ["pixels"], [1], {"image": True}])
def test_what_names_no_encoder_is_refused(tiny_bundle: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(ManifestInvalid, match="random_weights"):
        Bundle.open(with_random(tiny_bundle, tmp_path, value))
