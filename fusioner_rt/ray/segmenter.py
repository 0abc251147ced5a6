"""What an actor does: rows of pictures to rows of masks, by a session of its own."""

import contextlib
import hashlib
import io
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..decode_picture import BYTE_LIMIT
from ..errors import FusionerError, PictureInvalid, PictureMissing, PictureTooLarge, UsageError, one_line
from ..manifest import MANIFEST
from ..results import rle
from ..results.segmentation import Segmentation
from ..session import Session
from ..words.parse import Words

PICTURE_COLUMNS = ("bytes", "image", "path")
"""The column of pictures where none is named: the first of these that a dataset has."""

_AHEAD = 8  # files that are read ahead of the session: a store answers in the time of a picture or more
_CPU = "onnxruntime-cpu"

_MASKS = (
    ("size", pa.list_(pa.int32())),
    ("words", pa.list_(pa.string())),
    ("scores", pa.list_(pa.float32())),
    ("shares", pa.list_(pa.float64())),
    ("boxes", pa.list_(pa.list_(pa.int32()))),
    ("rle", pa.list_(pa.string())),
)
_ERRORS = (("code", pa.int32()), ("error", pa.string()))


def schema_of_masks(labels: bool) -> pa.Schema:
    """The columns that `Segmenter` adds; `fusioner_rt.ray.segment` tells what they hold."""
    return pa.schema([*_MASKS, *([("labels", pa.binary())] if labels else []), *_ERRORS])


class Segmenter:
    """A session, and what it is asked of each picture. Ray Data makes one in each actor."""

    def __init__(
        self,
        session: dict[str, Any],
        digest: str,
        words: Words,
        background: Words | None,
        call: dict[str, Any],
        picture: str | None,
        filesystem: Any,
        labels: bool,
    ) -> None:
        """session: arguments of `Session`. digest: of the bundle's manifest where the run was begun. call: further
        arguments of `Session.segment`. picture: the column. filesystem: that paths are in, or None for this machine's."""
        self._call, self._picture, self._filesystem = call, picture, filesystem
        self._schema = schema_of_masks(labels)
        self._failed: FusionerError | None = None
        try:
            self._open(session, digest, words, background)
        except FusionerError as error:  # of an actor that is being made, Ray would tell the text alone
            self._failed = error

    def _open(self, session: dict[str, Any], digest: str, words: Words, background: Words | None) -> None:
        self._session = Session(**session)
        folder = self._session.bundle.folder
        if digest != digest_of(folder):
            raise UsageError(
                f"is another bundle on {platform.node()} than where this run was begun",
                "put the same bundle at its place on every machine of the cluster",
                subject=folder,
            )
        self._session.set_vocabulary(words, background=background)
        self._together = 1 if self._session.backend.effective == _CPU else self._session.bundle.batch.max

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with their masks; pictures are left out.

        Raises what the session could not be opened for, and UsageError where columns are missing or taken.
        """
        if self._failed:
            raise self._failed
        column = picture_column(rows.schema.names, self._picture)
        kept = [name for name in rows.schema.names if name != column or name == "path"]
        if taken := sorted(set(kept) & set(self._schema.names)):
            raise UsageError(f"the dataset has columns called {', '.join(taken)} already", "rename or drop them")
        paths = rows.column("path").to_pylist() if "path" in kept else [None] * len(rows)
        results = map(self._row, self._results(self._pictures(rows, column)), paths)
        found = pa.Table.from_pylist(list(results), schema=self._schema)
        return pa.table(
            {**{name: rows.column(name) for name in kept}, **{name: found.column(name) for name in self._schema.names}}
        )

    def _pictures(self, rows: pa.Table, name: str) -> Iterator[Any]:
        """What `Session.segment` takes of each row, without a copy; or the error that its file ended in."""
        column, kind = rows.column(name), rows.schema.field(name).type
        if _is_any(kind, "is_binary", "is_large_binary", "is_binary_view"):
            yield from (_or_missing(value.as_buffer()) for value in column)
        elif _is_any(kind, "is_string", "is_large_string", "is_string_view"):
            paths = column.to_pylist()
            yield from self._read(paths) if self._filesystem else map(_or_missing, paths)
        else:
            from ray.data.block import BlockAccessor

            yield from BlockAccessor.for_block(rows).to_numpy([name])[name]

    def _read(self, paths: Sequence[str | None]) -> Iterator[Any]:
        """The files of an object store, a few of which are read ahead."""
        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting = iter(paths)
            running = [pool.submit(read_file, self._filesystem, path) for path in islice(waiting, _AHEAD)]
            while running:
                yield running.pop(0).result()
                running += [pool.submit(read_file, self._filesystem, path) for path in islice(waiting, 1)]

    def _results(self, pictures: Iterator[Any]) -> Iterator[Segmentation | FusionerError]:
        """The result of each picture, or its error. On a GPU, pictures run together where none of them fails.

        Raises UsageError, of arguments: the next picture would fail too.
        """
        while group := list(islice(pictures, self._together)):
            if len(group) > 1:
                with contextlib.suppress(FusionerError):  # then each by itself
                    yield from self._session.segment(group, **self._call)
                    continue
            yield from map(self._result, group)

    def _result(self, picture: Any) -> Segmentation | FusionerError:
        if isinstance(picture, FusionerError):
            return picture
        try:
            result: Segmentation = self._session.segment(picture, **self._call)
            return result
        except UsageError:
            raise
        except FusionerError as error:
            return error

    def _row(self, result: Segmentation | FusionerError, path: str | None) -> dict[str, Any]:
        if isinstance(result, FusionerError):
            named = type(result)(result.found, result.cure, path or result.subject)
            return {"code": named.exit_code, "error": str(named)}
        found = {entry["category_id"]: entry for entry in result.to_coco(compressed=True)}
        numbers = range(1, len(result.words) + 1)
        empty = {"bbox": [0, 0, 0, 0], "segmentation": {"counts": rle.compress([result.labels.size])}}
        masks = [found.get(number, empty) for number in numbers]
        row = {
            "size": list(result.labels.shape),
            "words": list(result.words),
            "scores": result.scores.tolist(),
            "shares": result.shares.tolist(),
            "boxes": [mask["bbox"] for mask in masks],
            "rle": [mask["segmentation"]["counts"] for mask in masks],
            "code": 0,
        }
        if "labels" in self._schema.names:
            png = io.BytesIO()
            result.label_image().save(png, "PNG")
            row["labels"] = png.getvalue()
        return row


def picture_column(names: Sequence[str], given: str | None) -> str:
    """The column that holds the pictures. Raises UsageError."""
    candidates = PICTURE_COLUMNS if given is None else (given,)
    found = next((name for name in candidates if name in names), None)
    if found is None:
        has = f"the dataset has the columns {', '.join(names) or 'none'}"
        raise UsageError(
            f"{has}, and none called {' or '.join(candidates)}",
            "pass the name of the column that holds files' bytes, pixels or paths as picture",
        )
    return found


def read_file(filesystem: Any, path: str | None) -> bytes | FusionerError:
    """The content of an object store's file, or why there is none. filesystem: pyarrow's."""
    if path is None:
        return _no_picture()
    try:
        with filesystem.open_input_file(path) as stream:
            content: bytes = stream.read(BYTE_LIMIT + 1)
    except Exception as error:  # what stores raise, of networks, names and rights
        return PictureMissing(f"cannot be read ({one_line(error)})", "check its name and the store's rights", path)
    if len(content) > BYTE_LIMIT:
        return PictureTooLarge(f"has more than {BYTE_LIMIT >> 20} MiB, as no picture has", "check the file", path)
    return content


def digest_of(bundle: Path) -> str:
    """The SHA-256 of its manifest, which has those of all its files."""
    return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()


def _or_missing(picture: Any) -> Any:
    return _no_picture() if picture is None else picture


def _no_picture() -> FusionerError:
    return PictureInvalid("this row holds no picture", "give a file's bytes, pixels or a path")


def _is_any(kind: Any, *names: str) -> bool:
    return any(getattr(pa.types, name, lambda _: False)(kind) for name in names)  # older Arrows lack views
