"""What a run is of: pictures in files and in object stores, and rows of Parquet files, as a table that is cut into parts."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlunsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pyarrow import parquet as pq

from ..errors import Spelled, UsageError, one_line
from ..missing_pictures import is_pattern, split_url
from ..named_pictures import named_pictures
from ..picture_formats import suffixes

_PARQUET = ".parquet"
_BYTES = ("bytes", "image", "image.bytes")
"""Columns of Parquet files that hold pictures where none is named: the first of these that is binary."""

_CONTAINERS = ("abfs", "abfss", "az", "wasb", "wasbs")
"""Schemes whose URLs have a container before the @, and no user."""

_ROWS = 32  # of a Parquet file, that are read at once
_SCHEMA = pa.schema([("path", pa.string()), ("at", pa.string()), ("group", pa.int32()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Sources:
    """table: path, as results name it; at, its place in the filesystem; group, a Parquet file's row group, or null of a picture;
    rows: 1 of a picture. filesystem: pyarrow's, None for this machine's files. column: of Parquet files.
    """

    table: pa.Table
    filesystem: Any
    column: str | None

    @property
    def is_parquet(self) -> bool:
        return self.column is not None

    @property
    def pictures(self) -> int:
        return int(np.sum(self.table["rows"].to_numpy()))


def is_url(name: str) -> bool:
    return "://" in name


def without_secrets(url: str) -> str:
    """A URL as it may be shown and kept: its user, password and parameters are left out."""
    if not is_url(url):
        return url
    parts = split_url(url)
    user, at, host = parts.netloc.rpartition("@")
    container = user.partition(":")[0] + at if parts.scheme in _CONTAINERS else ""
    return urlunsplit((parts.scheme, container + host, parts.path, "", ""))


def _secrets(url: str) -> tuple[str, str]:
    """What `without_secrets` leaves out of a URL: its user, with a password, and its parameters. Each may be empty."""
    parts = split_url(url)
    user = parts.netloc.rpartition("@")[0]
    return user.partition(":")[2] if parts.scheme in _CONTAINERS else user, parts.query


def find_sources(names: Sequence[str], out: Path, column: str | None) -> Sources:
    """The pictures that names mean: files, folders, patterns, and URLs of an object store of these, or of Parquet files, whose rows
    are pictures. out: label maps and overlays of earlier runs in folders below it are none. column: that holds them in Parquet files.

    Raises UsageError.
    """
    filesystem = filesystem_of(names)
    if filesystem is None:
        found = [(os.path.abspath(name),) * 2 for name, _ in named_pictures(names, out)]
    else:
        found = [pair for name in names for pair in _stored(name, filesystem)]
    parquet = [at.lower().endswith(_PARQUET) for _, at in found]
    if not any(parquet):
        if column is not None:
            raise UsageError(
                Spelled("a column was named, and no Parquet file", f"--column {column}: no Parquet file was named"),
                "leave it out; pictures have none",
            )
        return Sources(_table([(path, at, None, 1) for path, at in found]), filesystem, None)
    if not all(parquet):
        raise UsageError(
            "pictures and Parquet files were named in one run",
            "run each by itself, into folders of their own",
            found[parquet.index(False)][0],
        )
    groups: list[tuple[str, str, int | None, int]] = []
    for path, at in found:
        try:
            with (filesystem or fs.LocalFileSystem()).open_input_file(at) as stream, pq.ParquetFile(stream) as file:
                column = _picture_column(file.schema_arrow, column, path)
                sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"is no Parquet file that can be read ({one_line(error)})", "check it", path) from None
        groups += [(path, at, index, rows) for index, rows in enumerate(sizes) if rows]
    if not groups:
        raise UsageError("the Parquet files have no rows", "name others")
    return Sources(_table(groups), filesystem, column)


def _table(rows: Sequence[tuple[str, str, int | None, int]]) -> pa.Table:
    return pa.table(dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=_SCHEMA)


def filesystem_of(names: Sequence[str]) -> Any:
    """The filesystem of pyarrow that URLs lie in; None of names without one. Raises UsageError where they differ."""
    urls = [name for name in names if is_url(name)]
    if not urls:
        return None
    other = next((name for name in names if not is_url(name)), None)
    filesystems = [_opened(url)[0] for url in urls]
    if other is None:
        other = next((url for url, one in zip(urls, filesystems, strict=True) if not one.equals(filesystems[0])), None)
    if other is not None:
        raise UsageError(
            "lies in another store than the first",
            "run each by itself, into folders of their own",
            without_secrets(other),
        )
    return filesystems[0]


def _opened(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it: Arrow's own, or fsspec's. Raises UsageError."""
    try:
        return fs.FileSystem.from_uri(quote(url, safe=":/?#[]@!$&'()*+,;=%"))
    except (pa.ArrowException, ValueError):  # a scheme that Arrow has not
        pass
    except OSError as error:
        raise _unlisted(url, error) from None
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # of an unknown scheme, of a package that is missing, or the store's own
        raise _unlisted(url, error) from None
    user, query = _secrets(url)
    if (user and f"{user}@" in path) or (query and f"?{query}" in path):  # as HTTP's has them
        raise UsageError(
            "has a user, a password or parameters, which this kind of store keeps in the names of its files",
            "leave them out, or fetch the files and name their folder: names are written down",
            without_secrets(url),
        )
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _unlisted(url: str, error: BaseException) -> UsageError:
    text = str(error)
    for user_or_query in filter(None, _secrets(url)):
        text = text.replace(user_or_query, "…")
    return UsageError(
        f"cannot be listed ({one_line(Exception(text)) if text else one_line(error)})",
        "check the URL, and the store's rights and packages",
        without_secrets(url),
    )


def _stored(url: str, filesystem: Any) -> list[tuple[str, str]]:
    """What a URL names, a file, a folder or a pattern: each file's URL and path. Raises UsageError."""
    shown = without_secrets(url)
    _, base = _opened(url)
    try:
        if is_pattern(base):
            from fsspec.implementations.arrow import ArrowFSWrapper

            found, endings = ArrowFSWrapper(filesystem).glob(base), (*suffixes(), _PARQUET)
        elif (info := filesystem.get_file_info(base)).type == fs.FileType.Directory:
            inside = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
            found = [one.path for one in inside if one.type == fs.FileType.File]
            endings = tuple(suffixes())
        else:
            if info.type == fs.FileType.NotFound:
                raise UsageError("there is nothing in the store", "check the URL", shown)
            return [(shown, base)]
    except (OSError, pa.ArrowException) as error:
        raise _unlisted(url, error) from None
    # The path of a URL is the end of that in the filesystem, which may begin with the bucket.
    parts = split_url(shown)
    root = len(base.rstrip("/").removesuffix(unquote(parts.path).strip("/")))
    inner = {path: path[root:].lstrip("/") for path in sorted(found) if path.lower().endswith(endings)}
    seen = [(f"{parts.scheme}://{parts.netloc}/{end}", path) for path, end in inner.items() if not _is_hidden(end)]
    if not seen:
        raise UsageError("names no pictures", "name a folder that holds some; Parquet files by a pattern", shown)
    return seen


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _picture_column(schema: pa.Schema, given: str | None, file: str) -> str:
    """The column of a Parquet file that holds pictures. Raises UsageError."""
    for name in _BYTES if given is None else (given,):
        column, _, field = name.partition(".")
        if column in schema.names:
            kind = schema.field(column).type
            if field and pa.types.is_struct(kind) and kind.get_field_index(field) >= 0:
                kind = kind.field(field).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    raise UsageError(
        f"has no column {given or ' or '.join(_BYTES)} of bytes, but {', '.join(schema.names)}",
        Spelled("name the column of pictures", "name the column of pictures with --column"),
        file,
    )


def read_groups(rows: pa.Table, filesystem: Any, column: str) -> Iterator[pa.Table]:
    """The rows of Parquet files' row groups, of a table with part, path, at, group and rows: part, row, path and bytes.

    path: what the file has in a column of this name, else FILE#ROW, counted from 0 in the file.
    Raises UsageError where a group has not as many rows as the table says.
    """
    for part, path, at, group, count in zip(
        *(rows[name].to_pylist() for name in ("part", "path", "at", "group", "rows")), strict=True
    ):
        with (
            (filesystem or fs.LocalFileSystem()).open_input_file(at) as stream,
            pq.ParquetFile(stream, pre_buffer=False) as file,
        ):
            if group >= file.num_row_groups or file.metadata.row_group(group).num_rows != count:
                raise UsageError("has other rows than when the run began", "begin anew in another folder", path)
            before = sum(file.metadata.row_group(index).num_rows for index in range(group))
            named = "path" in file.schema_arrow.names and pa.types.is_string(file.schema_arrow.field("path").type)
            row = 0
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column, *(["path"] if named else [])]):
                first, _, field = column.partition(".")
                content = batch.column(first)
                own = batch.column("path").to_pylist() if named else [None] * len(batch)
                yield pa.table(
                    {
                        "part": pa.array([part] * len(batch), pa.int32()),
                        "row": pa.array(range(row, row + len(batch)), pa.int32()),
                        "path": [name or f"{path}#{before + row + index}" for index, name in enumerate(own)],
                        "bytes": content.field(field) if field else content,
                    }
                )
                row += len(batch)
