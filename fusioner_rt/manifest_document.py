"""`manifest.json` as a JSON document of any version: read within bounds, and its own digest (docs/bundle.md)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .manifest import MANIFEST
from .regular_files import read_regular

LARGEST = 16 << 20
"""Bytes of a manifest."""
DIGEST = "sha256"
"""The entry that holds the manifest's digest."""
_DEEPEST = 32  # lists and objects in each other


def read_document(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle's folder; nothing in it is checked, nor its digest.

    Raises OSError; ValueError where it is no JSON, too long or too deep, or holds a name twice; TypeError where it is no object.
    """
    try:
        # Of bytes, json would guess the encoding, and pass over a mark before the text.
        document = json.loads(read_regular(folder / MANIFEST, LARGEST).decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None
    if not isinstance(document, dict):
        raise TypeError("it is no object")
    for name, value in document.items():
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for one in level if isinstance(one, (dict, list)) for inner in _inside(one)]
        if level:
            raise ValueError(f"{name[:60]} holds more than {_DEEPEST} lists and objects in each other")
    return document


def digest_of(document: Mapping[str, Any]) -> str:
    """The sha256 of a manifest: of its JSON in ASCII without spaces, names sorted, but for this digest itself."""
    rest = {name: value for name, value in document.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its digest: that of what a reader will have, who knows no tuples and no names but texts."""
    return {**document, DIGEST: digest_of(json.loads(json.dumps(document)))}


def has_its_digest(document: Mapping[str, Any]) -> bool:
    return bool(document.get(DIGEST) == digest_of(document))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} is in it twice")
    return made


def _inside(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value
