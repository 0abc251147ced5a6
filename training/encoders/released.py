"""Released weight files: finds them in a local cache or, where allowed, downloads them; reads and loads them.

Nothing is downloaded unless `allow_download` was called or FUSIONER_DOWNLOAD=1 is in the environment.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusioner_rt.cures import INSTALL_TRAINING
from fusioner_rt.errors import FusionerError, one_line
from training.encoders.recognition import described, is_safetensors, looks_like, no_weights

DOWNLOAD = "FUSIONER_DOWNLOAD"
"""The environment variable that allows downloads, for this process and those it starts."""


class WeightsNotFound(FusionerError):
    """The frozen weights an encoder needs are not on this machine."""

    exit_code = 70
    is_input = False
    may_lie_elsewhere = False  # the file, folder or release that an encoder's name stands for


class WeightsUnfit(FusionerError):
    """A weight file cannot be read, or belongs to another model."""

    exit_code = 78
    is_input = False


def not_there(found: str, cure: str, subject: str | Path | None = None) -> WeightsNotFound:
    """The error of weights that may lie elsewhere."""
    error = WeightsNotFound(found, cure, subject)
    error.may_lie_elsewhere = True
    return error


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
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        if downloads_allowed() and not constants.HF_HUB_OFFLINE:
            return Path(hf_hub_download(repository, filename))
        cached = try_to_load_from_cache(repository, filename)
    except ModuleNotFoundError as error:
        raise not_installed(error, encoder) from None
    except Exception as error:  # the hub client raises many kinds
        raise _missing(encoder, source, error) from None
    if isinstance(cached, str):
        return Path(cached)
    if downloads_allowed():
        raise not_there(
            f"{source} is not on this machine, and HF_HUB_OFFLINE is set, which forbids the download",
            f"unset HF_HUB_OFFLINE, or {_INSTEAD}",
            subject=encoder,
        )
    raise _missing(encoder, source, None, ", and unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "")


def url_file(url: str, encoder: str) -> Path:
    """A file released at a URL, from torch.hub's cache or downloaded into it. Raises WeightsNotFound."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if file.is_file():
        return file
    if not downloads_allowed():
        raise _missing(encoder, f"{file.name} (released at {url})", None)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        published = re.search(r"/([0-9a-f]{64})/", url)  # OpenAI's addresses hold the sha256
        # Into a temporary file, then renamed.
        torch.hub.download_url_to_file(url, str(file), hash_prefix=published[1] if published else None)
    except Exception as error:
        raise _missing(encoder, f"{file.name} (released at {url})", error) from None
    return file


def _missing(encoder: str, source: str, error: Exception | None, also: str = "") -> WeightsNotFound:
    """also: what a download needs beside the permission."""
    if error is None or not downloads_allowed():
        return not_there(
            f"{source} is not on this machine",
            f"name a local file or folder in its place, or allow the download: --download, or {DOWNLOAD}=1{also}",
            subject=encoder,
        )
    return not_there(
        f"{source} is not on this machine, and the download failed: {_reason(error)}", _INSTEAD, subject=encoder
    )


def _reason(error: Exception) -> str:
    """Why a download failed, in words."""
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"the server {_ANSWERS.get(status, 'answered')} ({status})"
    if "invalid hash" in str(error):
        return "what came has another sha256 than the release"
    cause: Any = getattr(error, "reason", error)  # urllib wraps the socket's error
    if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{cause.filename or 'the cache'} cannot be written ({cause.strerror})"
    if isinstance(error, OSError):  # those of sockets, of urllib and of the hub's client
        return f"the server cannot be reached ({getattr(cause, 'strerror', None) or one_line(cause)})"
    return one_line(error)


_INSTEAD = "fetch it on another machine, and name the local file or folder in its place"
_ANSWERS = {401: "wants you to log in", 403: "refuses it", 404: "has no such file", 429: "asks to wait"}


def not_installed(error: ImportError, encoder: str) -> WeightsNotFound:
    """The error of a library that an encoder needs."""
    if not isinstance(error, ModuleNotFoundError):
        found = f"a Python package that it needs cannot be imported ({one_line(error)})"
    else:
        found = f"the Python package {error.name} is not installed, which it needs"
    return WeightsNotFound(found, INSTALL_TRAINING, subject=encoder)


def read_state(file: Path, device: str = "cpu") -> dict[str, Any]:
    """Reads the dictionary in a .safetensors file, a PyTorch file or a TorchScript archive (OpenAI's CLIP).

    Runs no pickled code: PyTorch files are read with weights_only, and only the tensors of an archive are used.
    device: "meta" for names and shapes alone. Raises WeightsNotFound, WeightsUnfit.
    """
    expected = "expected weights as .safetensors, .pth or .pt"
    if file.is_dir():
        inside = weight_files(file)
        raise not_there(
            f"{file} is a folder, not a file; {expected}",
            f"name the file in it: {inside[0]}" if inside else "name a file",
        )
    if not file.is_file():
        raise not_there(f"{file} is not a file; {expected}", "name the weights' file")
    try:
        if other := no_weights(file):
            raise WeightsUnfit(f"{file} {other[0]}; {expected}", other[1])
        if is_safetensors(file):
            return _read_safetensors(file, device)
        if _is_torchscript(file):
            return dict(torch.jit.load(str(file), map_location=device).state_dict())
        # DINO's training checkpoints hold their command line as a Namespace, which is plain data.
        # From a stream: of a path, torch looks at the suffix rather than at the content.
        with torch.serialization.safe_globals([argparse.Namespace]), file.open("rb") as stream:
            state = torch.load(stream, map_location=device, weights_only=True)
    except FusionerError:
        raise
    except OSError as error:
        raise WeightsUnfit(f"{file} cannot be read ({one_line(error)})", "check its permissions and its disk") from None
    except Exception as error:  # each reader raises its own kinds
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):  # PyTorch's own text advises to run it
            raise WeightsUnfit(
                f"{file} holds a pickled {code[1]}, which could run code when it is read; expected tensors alone",
                "where you trust it, write its tensors: torch.save(model.state_dict(), FILE)",
            ) from None
        reason = "no format that is known here" if "weights_only" in str(error) else one_line(error)
        raise WeightsUnfit(f"{file} cannot be read as weights ({reason})", "fetch it again") from None
    if not isinstance(state, Mapping):
        raise WeightsUnfit(f"{file} holds a {type(state).__name__}; expected names with tensors", "name another file")
    return dict(state)


def _read_safetensors(file: Path, device: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        if device != "meta":
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return {n: torch.empty(opened.get_slice(n).get_shape(), device=device) for n in opened.keys()}  # noqa: SIM118


def weight_files(folder: Path) -> list[Path]:
    """Files in a folder that are called as weights are."""
    return sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))


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
    looks, cure = of_another_model(given, own)
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise WeightsUnfit(f"{source} holds the weights of another model{looks}: names {' and '.join(parts)}", cure)
    for name, value in own.items():
        if not isinstance(given[name], Tensor) or given[name].shape != value.shape:
            shape = tuple(getattr(given[name], "shape", ()))
            raise WeightsUnfit(
                f"{source} holds the weights of another model{looks}: {name} has shape {shape}, expected {tuple(value.shape)}",
                cure,
            )
    broken = [name for name in own if own[name].is_floating_point() and not given[name].isfinite().all()]
    if broken:
        raise WeightsUnfit(f"{source} holds NaN or infinity in {broken[0]}", "fetch it again, or name another file")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in given.items()}, strict=False)


def of_another_model(
    given: Mapping[str, Any], asked: Mapping[str, Any], unknown: str = "check the name"
) -> tuple[str, str]:
    """What the given weights look like, in brackets or "", and the cure. asked: the expected weights, or {}.

    unknown: the cure where nothing tells.
    """
    likeness = looks_like(given)
    if likeness is None or likeness == looks_like(asked):
        return "", unknown
    cure = f"name them {likeness.name}" if likeness.encoder else likeness.instead or unknown
    return f" ({described(given)})", cure
