"""Packages that the runtime can do without."""

from importlib import import_module
from typing import Any

from .errors import PackageMissing, one_line
from .memory_shortage import is_shortage


def optional(module: str, package: str, purpose: str, install: str | None = None) -> Any:
    """Import a module of a package that only some calls need. purpose: what needs it, for the message. install: what pip
    installs, by default the package.

    Raises PackageMissing.
    """
    try:
        return import_module(module)
    except ImportError as error:
        if is_shortage(error):
            raise
        raise PackageMissing(
            f"{purpose} need the package {package}, which cannot be imported here ({one_line(error)})",
            f"pip install {install or package}",
        ) from None
