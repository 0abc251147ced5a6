"""The folder of a run: what was asked, of which pictures, and a Parquet file for each part of them that is done.

run.json            what was asked; it is there once the run has begun
sources.parquet     the pictures, by part: those that were there when the run began
masks/              part-00000.parquet and so on, each whole or not there
labels/part-00000/  label maps, where they were asked for; all of a part are there before its file in masks/ is
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from ..atomic_files import writable_folder, write_json, write_result
from ..errors import ClusterFailed, OutputUnwritable, UsageError
from ..named_pictures import unique_names
from ..picture_formats import suffixes
from .sources import Sources

RUN, SOURCES, MASKS, LABELS = "run.json", "sources.parquet", "masks", "labels"
_FORMAT = "fusioner-rt segment --ray"
_LEAST, _MOST = 4, 256  # pictures of a part, of which a kill loses one for each actor
_LONGEST = 200  # letters of a label map's name
_PARTS = 1024  # enough for the cores of a large cluster, few enough for a folder


class Parts:
    """A run's folder, its record read or written."""

    def __init__(self, folder: Path, table: pa.Table) -> None:
        """table: path, at, group, rows and part of each source, sorted by part."""
        self.folder, self._table = folder, table
        part = table["part"].to_numpy()
        self._starts = np.searchsorted(part, np.arange(part[-1] + 2))
        self._sizes = np.add.reduceat(table["rows"].to_numpy(), self._starts[:-1])

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def pictures(self) -> int:
        return int(self._sizes.sum())

    def size(self, part: int) -> int:
        """Pictures of a part."""
        return int(self._sizes[part])

    def sources(self, part: int) -> pa.Table:
        """What is to be done of a part: part, row, path and at of its pictures, or part, path, at, group and rows of its
        row group.
        """
        rows = self._table.slice(self._starts[part], self._starts[part + 1] - self._starts[part])
        if rows["group"][0].is_valid:
            return rows
        rows = rows.drop_columns(["rows"])
        return rows.set_column(rows.schema.get_field_index("group"), "row", pa.array(range(len(rows)), pa.int32()))

    def file(self, part: int) -> Path:
        return self.folder / MASKS / f"part-{part:05}.parquet"

    def done(self) -> dict[int, np.ndarray]:
        """The codes of the pictures of each part that is done. A file that is harmed, or of another size, does not count."""
        found = {}
        for part in range(len(self)):
            try:
                codes = pq.read_table(self.file(part), columns=["code"])["code"].to_numpy()
            except (OSError, pa.ArrowException, KeyError):
                continue
            if len(codes) == self.size(part):
                found[part] = codes
        return found

    def write(self, part: int, rows: pa.Table) -> pa.Table:
        """Write what was found of a part: its label maps, and then its file. Returns what that holds.

        Raises OutputUnwritable, and ClusterFailed where rows are missing or too many.
        """
        rows = rows.sort_by("row")
        if rows["row"].to_pylist() != list(range(self.size(part))):
            raise ClusterFailed(f"part {part} came with other rows than it has", "the same command goes on")
        rows = rows.drop_columns(["part", "row"])
        if "labels" in rows.schema.names:
            rows = rows.set_column(rows.schema.get_field_index("labels"), "labels", self._write_labels(part, rows))
        write_result(self.file(part), lambda stream: pq.write_table(rows, stream, compression="zstd"))
        return rows

    def _write_labels(self, part: int, rows: pa.Table) -> pa.Array:
        """Named so that no later run takes them for pictures. Returns the files' places in the folder, null of pictures that failed."""
        folder = writable_folder(self.folder / LABELS / f"part-{part:05}")
        places: list[str | None] = []
        for name, content in zip(names_of(rows["path"].to_pylist()), rows["labels"], strict=True):
            if content.is_valid:
                png: bytes = content.as_py()
                write_result(folder / f"{name}.labels.png", lambda stream, png=png: stream.write(png))  # type: ignore[misc]
            places.append(f"{LABELS}/{folder.name}/{name}.labels.png" if content.is_valid else None)
        return pa.array(places, pa.string())


def begin(folder: Path, asked: Mapping[str, Any], sources: Sources) -> Parts:
    """A new run, recorded. Raises OutputUnwritable where the folder holds another's files."""
    if any((folder / MASKS).glob("*")):
        raise OutputUnwritable(
            "holds files, and no record of a run of this command is beside it", "choose another folder", folder / MASKS
        )
    if (folder / SOURCES).exists():
        raise OutputUnwritable(
            "is there, and no record of a run of this command is beside it", "choose another folder", folder / SOURCES
        )
    each = min(_MOST, max(_LEAST, sources.pictures // _PARTS))
    numbers = np.arange(len(sources.table), dtype=np.int32)
    table = sources.table.append_column("part", pa.array(numbers if sources.is_parquet else numbers // each))
    write_result(folder / SOURCES, lambda stream: pq.write_table(table, stream, compression="zstd"))
    record = {"format": _FORMAT, "asked": asked, "column": sources.column, "pictures": sources.pictures}
    write_json(folder / RUN, record)
    writable_folder(folder / MASKS)
    return Parts(folder, table)


def recorded(folder: Path) -> dict[str, Any] | None:
    """The record of the run in a folder, or None where there is none. Raises OutputUnwritable where it is none of this command."""
    try:
        record = json.loads((folder / RUN).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise OutputUnwritable(
            "is no record of a run of this command, which keeps one there", "choose another folder", folder / RUN
        )
    return record


def go_on(folder: Path) -> Parts:
    """The parts of the run in a folder. Raises UsageError where the list of its pictures is harmed."""
    try:
        parts = Parts(folder, pq.read_table(folder / SOURCES))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UsageError(f"cannot be read ({error})", "begin anew in another folder", folder / SOURCES) from None
    writable_folder(folder / MASKS)
    return parts


def _stem(path: str) -> str:
    """The name of a picture's label map, after the picture's own."""
    own = re.sub(r"[^\w.-]", "_", path.rpartition("/")[2])[-_LONGEST:]
    return Path(own).stem if Path(own).suffix.lower() in suffixes() else own


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each picture's label map."""
    return unique_names([_stem(path) for path in paths])
