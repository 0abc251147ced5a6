"""`fusioner-rt segment --ray`: pictures on the cores and machines that Ray has, to masks in Parquet files."""

import argparse
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..atomic_files import writable_folder
from ..command_end import say, tell
from ..command_parser import CommandParser, count
from ..errors import ClusterFailed, PicturesFailed, UsageError
from ..folder_locks import locked
from ..interrupts import exit_code, raise_if_interrupted
from ..optional_packages import optional
from .run_record import differing
from .terminal import Bar, notes_on_stderr, print_error

if TYPE_CHECKING:
    import pyarrow as pa

    from ..ray.parts import Parts
    from ..words.parse import Words

_ALONE: dict[str, Any] = {
    "json": None, "legend": "below", "alpha": 0.5, "outlines": False, "polygons": None, "instances": False,
    "labelme": False, "yolo": False,
}  # fmt: skip
"""Options that runs on Ray do not have, and their defaults."""

_ASIDE = (
    "run", "pictures", "words", "words_file", "engine", "cache", "verbose", "resume", "ray", "actors", "out", *_ALONE,
)  # fmt: skip
"""Options that do not change what a run finds, or are told otherwise."""

_log = logging.getLogger("fusioner_rt")


OPTIONS = ("ray", "actors", "column")
"""Those of `add_to`."""


def add_to(parser: CommandParser) -> None:
    fleet = parser.add_argument_group(
        "fleet", "many pictures, on Ray (pip install 'fusioner-rt[ray]'): masks go to DIR/masks as Parquet files, a failed "
        "picture is a row there; docs/ray.md tells of rows, clusters and kills",
    )  # fmt: skip
    fleet.add_argument(
        "--ray",
        action="store_true",
        help="run on this machine's cores and GPUs, or on the cluster of RAY_ADDRESS. Pictures may also be URLs of an object "
        "store, s3://BUCKET/FOLDER, and Parquet files whose rows hold them",
    )
    fleet.add_argument("--actors", type=count, metavar="N", help="sessions at once (one per core, or per GPU)")
    fleet.add_argument(
        "--column",
        metavar="NAME",
        help="of Parquet files, the column that holds pictures (bytes, image or image.bytes)",
    )


def check(options: argparse.Namespace) -> None:
    """Whether the options are those of one kind of run. Raises UsageError."""
    if not options.ray:
        if alone := next((name for name in OPTIONS[1:] if getattr(options, name) is not None), None):
            raise UsageError(f"--{alone} is of runs on Ray", "add --ray, or leave it out")
        return
    if alone := next((name for name, default in _ALONE.items() if getattr(options, name) != default), None):
        raise UsageError(
            f"--{alone} was given with --ray, which writes masks to Parquet files and, with --labels, label maps",
            "leave one of the two out",
        )
    if {"-", "/dev/stdin"} & set(options.pictures):
        raise UsageError("stdin was named, and a run on Ray reads files", "name files", "-")


def segment_on_ray(
    options: argparse.Namespace,
    words: "Words",
    background: "Words | None",
    size: tuple[int, int] | None,
    threshold: float | Mapping[str, float] | Literal["default"],
) -> int:
    """Run the command. Returns the exit code. Raises FusionerError, before any picture is segmented."""
    optional("ray.data", "ray[data]", "runs on Ray", "'fusioner-rt[ray]'")
    asked = {
        "background": background,
        "threshold": threshold,
        "mode": options.mode,
        "window": options.window,
        "size": size,
    }
    out = writable_folder(options.out)
    with notes_on_stderr(), locked(out) as free:
        if free is False:
            raise UsageError("another run writes into this folder", "wait for it, or choose another with --out", out)
        folder = _try_once(options, words, asked)
        parts, column, filesystem = _parts(options, out, words, folder)

        def masks_of(dataset: Any) -> Any:
            from ..ray.data import segment
            from ..ray.sources import read_groups

            if column is not None:
                dataset = dataset.map_batches(
                    read_groups, batch_format="pyarrow", batch_size=None,
                    fn_kwargs={"filesystem": filesystem, "column": column},
                )  # fmt: skip
            return segment(
                dataset, options.engine, words, **asked, picture="at" if column is None else "bytes", filesystem=filesystem,
                labels=options.labels, backend=options.backend, input_size=options.input_size, max_pixels=options.max_pixels,
                cache=options.cache, actors=options.actors, threads=options.threads or 1,
            )  # fmt: skip

        return _run(parts, masks_of, bool(options.verbose))


def _try_once(options: argparse.Namespace, words: "Words", asked: dict[str, Any]) -> Path:
    """Ask a picture of one pixel all that the others are asked, before Ray is started: what is wrong is told at once, the words are
    in the cache, and what makes their masks doubtful is noted. Returns the bundle's folder.
    """
    import numpy as np

    from ..session import Session

    with Session(
        options.engine, "onnxruntime-cpu", options.cache, threads=options.threads or 1, input_size=options.input_size,
        max_pixels=options.max_pixels,
    ) as session:  # fmt: skip
        session.set_vocabulary(words, background=asked["background"])
        session.segment(np.zeros((1, 1, 3), np.uint8), words, **asked)
        return session.bundle.folder


def _parts(options: argparse.Namespace, out: Path, words: "Words", bundle: Path) -> tuple["Parts", str | None, Any]:
    """The parts of the run, a new one or that which is gone on with, the column of Parquet files, and the filesystem.

    Raises UsageError, OutputUnwritable.
    """
    from ..ray import parts
    from ..ray.segmenter import digest_of
    from ..ray.sources import filesystem_of, find_sources, without_secrets

    asked = {
        **{f"--{name.replace('_', '-')}": given for name, given in vars(options).items() if name not in _ASIDE},
        "pictures": [without_secrets(name) for name in options.pictures],
        "--words": words,
        "--engine": digest_of(bundle),
        "version of fusioner-rt": __version__,
    }
    record = parts.recorded(out)
    if record is None:
        if options.resume:
            _log.warning("no run of this command was interrupted here; it begins with the first picture")
        sources = find_sources(options.pictures, out, options.column)
        return parts.begin(out, asked, sources), sources.column, sources.filesystem
    if not options.resume:
        raise UsageError(
            "holds a run of this command", "add --resume to go on with it, or choose another folder with --out", out
        )
    if other := differing(record["asked"], asked):
        raise UsageError(
            f"the run to go on with had other {', '.join(other)}",
            "give what it had, or choose another folder with --out",
            out / parts.RUN,
        )
    return parts.go_on(out), record["column"], filesystem_of(options.pictures)


def _run(parts: "Parts", masks_of: Callable[[Any], Any], verbose: bool) -> int:
    """Segment what is left to do. However that ends, what is done is whole, and told. Returns the exit code."""
    from ..ray.cluster import running_cluster, told_by_ray

    codes = parts.done()
    todo = [part for part in range(len(parts)) if part not in codes]
    total = parts.pictures
    if codes:
        tell(f"fusioner-rt: note: {sum(map(len, codes.values()))} of {total} pictures are done already")
    bar = Bar(sum(map(parts.size, todo)))
    try:
        if todo:
            with running_cluster(verbose):
                for part, rows in _finished(parts, todo, masks_of):
                    codes[part] = rows["code"].to_numpy()
                    bar.clear()
                    _tell_failures(rows)
                    bar.step(len(rows))
            if missing := total - sum(map(len, codes.values())):
                raise ClusterFailed(f"Ray ended without the rows of {missing} pictures", "look at its logs with -v")
    except (Exception, KeyboardInterrupt) as error:
        bar.clear()
        left = f"{sum(map(len, codes.values()))} of {total} pictures are done in {parts.folder}; the same command with --resume goes on"
        if isinstance(error, KeyboardInterrupt):
            tell(f"fusioner-rt: interrupted; {left}")
            return exit_code(error)
        known = told_by_ray(error)
        print_error(known)
        tell(f"fusioner-rt: {left}")
        return known.exit_code
    bar.clear()
    kinds = Counter(code for part in codes.values() for code in part.tolist())
    failed = total - kinds.pop(0, 0)
    say(f"{total} pictures, {failed or 'none'} failed -> {parts.file(0).parent}")
    return 0 if not kinds else kinds.popitem()[0] if len(kinds) == 1 else PicturesFailed.exit_code


def _finished(parts: "Parts", todo: Sequence[int], masks_of: Callable[[Any], Any]) -> "Iterator[tuple[int, pa.Table]]":
    """Each part once it is written, and its rows."""
    import pyarrow as pa
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # of a run that has few parts left
    masks = masks_of(ray.data.from_arrow([parts.sources(part) for part in todo]))
    waiting: dict[int, list[pa.Table]] = defaultdict(list)
    for rows in masks.iter_batches(batch_size=None, batch_format="pyarrow"):
        raise_if_interrupted()
        for part in rows["part"].unique().to_pylist():
            waiting[part].append(rows.filter(pa.compute.equal(rows["part"], part)))
            if sum(map(len, waiting[part])) >= parts.size(part):
                yield part, parts.write(part, pa.concat_tables(waiting.pop(part)))


def _tell_failures(rows: "pa.Table") -> None:
    for error in rows["error"].drop_null().to_pylist():
        tell(f"fusioner-rt: {error}")
