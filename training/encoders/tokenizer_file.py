"""Generated tokenizers as files."""

from __future__ import annotations

import atexit
import contextlib
import tempfile
from pathlib import Path

from fusioner_rt.atomic_files import write_result
from fusioner_rt.whole_folders import unfinished_folder

_kept = contextlib.ExitStack()
atexit.register(_kept.close)


def keep_tokenizer(content: str) -> Path:
    """Writes a tokenizer's JSON as tokenizer.json, in a temporary folder that lasts as long as the process.

    Raises OutputUnwritable.
    """
    place = Path(tempfile.gettempdir()) / "fusioner-tokenizer"
    file = _kept.enter_context(unfinished_folder(place, say=lambda _: None)) / "tokenizer.json"
    write_result(file, lambda stream: stream.write(content.encode()))
    return file
