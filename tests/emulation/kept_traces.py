"""Graphs that the exporter made, kept in files: it takes ten seconds a module, and tests ask for few modules many times.

What is kept is found again by all that a trace depends on: the module with its weights, its inputs' shapes, its names.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch


def keep(trace: Callable[..., onnx.ModelProto], folder: Path) -> Callable[..., onnx.ModelProto]:
    """`export.onnx.model_graphs.traced` that asks the exporter once for each module. folder: that processes may share."""

    def kept(module: Any, example: tuple[torch.Tensor, ...], inputs: Any, outputs: Any) -> onnx.ModelProto:
        key = _key(module, tuple((str(one.dtype), one.shape) for one in example), inputs, outputs)
        if key is None:
            return trace(module, example, inputs, outputs)
        file = folder / f"{key}.onnx"
        with alone(file):
            if not file.exists():
                onnx.save(trace(module, example, inputs, outputs), file)
        return onnx.load(file)

    return kept


@contextmanager
def alone(made: Path) -> Iterator[None]:
    """One process at a time makes it; a file beside it is locked."""
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(*parts: Any) -> str | None:
    """None: something in it cannot be written down, such as a function without a name."""
    written = io.BytesIO()
    try:
        _Pickler(written).dump(parts)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """In place of what would be written otherwise every time: a tensor's storage, a file in a folder of the test's."""
        if isinstance(value, torch.Tensor):
            plain = value.detach().contiguous().reshape(-1).view(torch.uint8)
            return str(value.dtype), tuple(value.shape), hashlib.sha256(plain.numpy()).hexdigest()
        if isinstance(value, Path) and value.is_file():
            return "file", hashlib.sha256(value.read_bytes()).hexdigest()
        return None
