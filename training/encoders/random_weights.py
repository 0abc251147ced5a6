"""Random weights in place of released ones."""

from __future__ import annotations

import hashlib
import warnings

from torch import nn


def digest(module: nn.Module) -> str:
    """sha256 of a module's names and values, in place of a weights file's."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def warn_random(name: str) -> None:
    """Warns at the caller's caller."""
    warnings.warn(f"{name}: random weights; masks will mean nothing", stacklevel=3)
