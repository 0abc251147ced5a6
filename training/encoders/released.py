"""Weight files as they were released: found here or, where that is allowed, fetched; read; fitted to a module.

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
    """A weight file that cannot be read, or is of another model than the one named."""

    exit_code = 78


def allow_download() -> None:
    """From here on, weights that are neither local nor in a cache are fetched from where they were released."""
    os.environ[DOWNLOAD] = "1"


def downloads_allowed() -> bool:
    return os.environ.get(DOWNLOAD, "") not in ("", "0")


def hub_file(repository: str, filename: str, wanted_for: str) -> Path:
    """A file of a Hugging Face repository: from the local hub cache, or fetched. Raises WeightsNotFound.

    HF_HUB_OFFLINE=1 forbids the fetching too: huggingface_hub reads it itself.
    """
    what = f"{filename} of the hub's {repository}"
    try:
        # Imported here: huggingface_hub reads its environment at import. Its own offline download is not silent: it
        # asks the hub for a list of known user agents first. So the cache alone is looked into.
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        if downloads_allowed():
            return Path(hf_hub_download(repository, filename))
        cached = try_to_load_from_cache(repository, filename)
    except Exception as error:  # the hub client raises many kinds; to the user they are one: the file did not come
        raise _missing(wanted_for, what, error) from None
    if not isinstance(cached, str):
        raise _missing(wanted_for, what, None)
    return Path(cached)


def url_file(url: str, wanted_for: str) -> Path:
    """A file released at a plain address: from torch.hub's cache, or fetched into it. Raises WeightsNotFound."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if file.is_file():
        return file
    if not downloads_allowed():
        raise _missing(wanted_for, f"{file.name} (released at {url})", None)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))  # into a temporary file, then renamed
    except Exception as error:
        raise _missing(wanted_for, f"{file.name} (released at {url})", error) from None
    return file


def _missing(wanted_for: str, what: str, error: Exception | None) -> WeightsNotFound:
    why = f" ({one_line(error)})" if error is not None and downloads_allowed() else ""
    return WeightsNotFound(
        f"{what} is not on this machine{why}",
        f"name a local file or folder in its place, or allow the download: --download, or {DOWNLOAD}=1",
        subject=wanted_for,
    )


def read_state(file: Path) -> dict[str, Any]:
    """A .safetensors file, a PyTorch file or a TorchScript archive (OpenAI's CLIP) as the dictionary it holds.

    No pickled code is run: PyTorch files are read with weights_only, of an archive nothing but its tensors is used.
    Raises WeightsNotFound, WeightsUnfit.
    """
    if not file.is_file():
        raise WeightsNotFound(f"{file} is not a file; expected weights as .safetensors, .pth or .pt")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        if _is_torchscript(file):
            return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
        # Training checkpoints (DINO's) hold their command line: a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader raises its own kinds, and they mean the same to the user
        raise WeightsUnfit(f"{file} cannot be read as weights ({one_line(error)})", "fetch it again") from None
    if not isinstance(state, Mapping):
        raise WeightsUnfit(f"{file} holds a {type(state).__name__}; expected names with tensors")
    return dict(state)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fit(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Loads `state` into `module`, every name of both and every shape the same; float16 is widened.

    Raises WeightsUnfit naming a few of what is missing, unexpected or misshapen.
    """
    counters = "num_batches_tracked"  # of batch norms in training: some releases hold them, nothing here reads them
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
                f"{source} holds the weights of another model: {name} has shape {shape}, expected {tuple(value.shape)}"
            )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in given.items()}, strict=False)
