"""Generated tokenizers as files."""

from __future__ import annotations

import tempfile
from pathlib import Path

_temporary: list[tempfile.TemporaryDirectory[str]] = []


def keep_tokenizer(content: str) -> Path:
    """Writes a tokenizer's JSON as tokenizer.json, in a temporary folder that lasts as long as the process."""
    _temporary.append(tempfile.TemporaryDirectory(prefix="fusioner-tokenizer-"))
    file = Path(_temporary[-1].name) / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    return file
