"""Random weights in place of released ones: marked, so that whatever is built with them says so."""

from __future__ import annotations

import hashlib
import warnings
from typing import cast

from torch import nn


def mark_random(module: nn.Module) -> str:
    """Marks a module and all in it; returns its digest.

    All in it, because an encoder takes a loaded model's parts.
    """
    for part in module.modules():
        part.random_weights = True  # type: ignore[assignment]
    return digest(module)


def has_random_weights(encoder: object) -> bool:
    """Whether any part of an encoder was marked."""
    return any(getattr(part, "random_weights", False) for part in cast(nn.Module, encoder).modules())


def digest(module: nn.Module) -> str:
    """sha256 of a module's names and values, in place of a weights file's."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def warn_random(name: str) -> None:
    """Warns at the caller's caller."""
    warnings.warn(f"{name}: random weights; masks will mean nothing", stacklevel=3)
