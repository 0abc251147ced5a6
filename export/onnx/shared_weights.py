"""Weights that several graphs of a bundle share, stored once: ONNX external data in one file beside the graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import onnx
from onnx import TensorProto, numpy_helper

from export.onnx.half_precision import without_weights
from fusioner_rt.atomic_files import write_atomically

FILE = "weights.bin"
LEAST = 1024
"""Bytes. Smaller weights stay in the graphs, where shape inference looks for them."""

_PAGE, _LINE = 4096, 64  # bytes: whole pages are mapped, and cache lines read


def share(graphs: Mapping[str, onnx.ModelProto], file: Path) -> dict[str, onnx.ModelProto]:
    """Write the large weights of `graphs` to `file`, equal ones once. Returns the graphs with references in their place.

    Weights of a page or more begin at a page, others at a cache line. The same graphs give the same bytes. Raises
    OSError.
    """
    places: dict[bytes, tuple[int, int]] = {}
    contents: list[bytes] = []
    end = 0
    lean = {name: without_weights(graph) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        for tensor in graph.graph.initializer:
            content = numpy_helper.to_array(tensor).tobytes()
            if len(content) >= LEAST:
                key = hashlib.sha256(content).digest()
                if key not in places:
                    step = _PAGE if len(content) >= _PAGE else _LINE
                    start = -(-end // step) * step
                    contents += bytes(start - end), content
                    places[key], end = (start, len(content)), start + len(content)
                tensor = _reference(tensor, file.name, *places[key])
            lean[name].graph.initializer.append(tensor)

    def write(stream: IO[bytes]) -> None:
        for content in contents:
            stream.write(content)

    write_atomically(file, write)
    return lean


def _reference(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> onnx.TensorProto:
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=str(value))
    return made
