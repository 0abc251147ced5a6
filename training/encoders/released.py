"""Released weight files: finds them in a local cache or, where allowed, downloads them; reads and loads them.

Nothing is downloaded unless `allow_download` was called or FUSIONER_DOWNLOAD=1 is in the environment.
"""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusioner_rt.errors import FusionerError, one_line

DOWNLOAD = "FUSIONER_DOWNLOAD"
"""The environment variable that allows downloads, for this process and those it starts."""


class WeightsNotFound(FusionerError):
    """The frozen weights an encoder needs are not on this machine."""

    exit_code = 70


class WeightsUnfit(FusionerError):
    """A weight file cannot be read, or belongs to another model."""

    exit_code = 78


def allow_download() -> None:
    """From now on, weights that are not in a local cache are downloaded."""
    os.environ[DOWNLOAD] = "1"


def downloads_allowed() -> bool:
    return os.environ.get(DOWNLOAD, "") not in ("", "0")


def hub_file(repository: str, filename: str, encoder: str) -> Path:
    """A file of a Hugging Face repository, from the local hub cache or downloaded. Raises WeightsNotFound.

    huggingface_hub reads HF_HUB_OFFLINE itself: 1 forbids downloads, too.
    """
    source = f"{filename} of the hub's {repository}"
    try:
        # Imported here: huggingface_hub reads its environment at import. Its offline download still asks the hub for
        # known user agents, so without permission to download only the cache is searched.
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        if downloads_allowed():
            return Path(hf_hub_download(repository, filename))
        cached = try_to_load_from_cache(repository, filename)
    except Exception as error:  # the hub client raises many kinds
        raise _missing(encoder, source, error) from None
    if not isinstance(cached, str):
        raise _missing(encoder, source, None)
    return Path(cached)


def url_file(url: str, encoder: str) -> Path:
    """A file released at a URL, from torch.hub's cache or downloaded into it. Raises WeightsNotFound."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if file.is_file():
        return file
    if not downloads_allowed():
        raise _missing(encoder, f"{file.name} (released at {url})", None)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))  # into a temporary file, then renamed
    except Exception as error:
        raise _missing(encoder, f"{file.name} (released at {url})", error) from None
    return file


def _missing(encoder: str, source: str, error: Exception | None) -> WeightsNotFound:
    reason = f" ({one_line(error)})" if error is not None and downloads_allowed() else ""
    return WeightsNotFound(
        f"{source} is not on this machine{reason}",
        f"name a local file or folder in its place, or allow the download: --download, or {DOWNLOAD}=1",
        subject=encoder,
    )


def read_state(file: Path) -> dict[str, Any]:
    """Reads the dictionary in a .safetensors file, a PyTorch file or a TorchScript archive (OpenAI's CLIP).

    Runs no pickled code: PyTorch files are read with weights_only, and only the tensors of an archive are used.
    Raises WeightsNotFound, WeightsUnfit.
    """
    if not file.is_file():
        raise WeightsNotFound(
            f"{file} is not a file; expected weights as .safetensors, .pth or .pt", "name the weights' file"
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        if _is_torchscript(file):
            return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
        # DINO's training checkpoints hold their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises its own kinds
        raise WeightsUnfit(f"{file} cannot be read as weights ({one_line(error)})", "fetch it again") from None
    if not isinstance(state, Mapping):
        raise WeightsUnfit(f"{file} holds a {type(state).__name__}; expected names with tensors", "name another file")
    return dict(state)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fit(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Loads `state` into `module`; names and shapes must agree, dtypes are converted.

    Raises WeightsUnfit, which names a few missing, unexpected or misshapen tensors.
    """
    counters = "num_batches_tracked"  # batch norm statistics of training; not read here
    own = {name: value for name, value in module.state_dict().items() if not name.endswith(counters)}
    given = {name: value for name, value in state.items() if not name.endswith(counters)}
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise WeightsUnfit(
            f"{source} holds the weights of another model: names {' and '.join(parts)}", "check the name"
        )
    for name, value in own.items():
        if not isinstance(given[name], Tensor) or given[name].shape != value.shape:
            shape = tuple(getattr(given[name], "shape", ()))
            raise WeightsUnfit(
                f"{source} holds the weights of another model: {name} has shape {shape}, expected {tuple(value.shape)}",
                "check the name",
            )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in given.items()}, strict=False)
