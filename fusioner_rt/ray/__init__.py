"""The bundle on many machines, by Ray (extra `ray`); docs/ray.md shows both.

segment     masks of a Ray dataset's pictures, by actors that hold a session each
deployment  a bundle as an application of Ray Serve, which takes the requests of `fusioner-rt serve`
application the same for Serve's command line and files
"""

import os
from typing import TYPE_CHECKING, Any

# Before Ray is started, which would report from the cluster what it is made of and which libraries it uses.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__all__ = ["application", "deployment", "segment"]

if TYPE_CHECKING:
    from .data import segment
    from .serve import application, deployment

_HOMES = {
    "segment": "data",
    "application": "serve",
    "deployment": "serve",
}  # no module has a public name: importing it would hide the function


def __getattr__(name: str) -> Any:
    """Import a public name on first use: neither half of Ray waits for the other's packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
