"""The files of a video's run, and what of them an ended run left.

While a run is at work they are called NAME.overlay.partial.mp4 and NAME.partial.jsonl. As far as they go both are whole at any moment, after
`kill -9` too, and they get their names once all is done. A frame's line is written before its picture, so that lines are at least as many.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..atomic_files import unwritable, writable_folder
from ..command_end import tell
from ..errors import OutputUnwritable
from ..video.frame_lines import encoded, failed_line, found_line, whole_lines
from ..video.overlay_writer import OverlayWriter
from ..video.written_video import whole_frames
from .run_record import RunRecord, size_of, state

if TYPE_CHECKING:
    from ..stream import StreamedFrame
    from ..video.frames import Frames
    from ..video.sources import Source

_LABELS = re.compile(r"\d{6,}\.png")


@dataclass
class Counts:
    """What the lines of a video say, together."""

    frames: int = 0
    failed: int = 0
    dropped: int = 0
    with_word: Counter[str] = field(default_factory=Counter)
    codes: set[int] = field(default_factory=set)

    def add(self, line: Mapping[str, Any]) -> None:
        self.frames += 1
        self.dropped += line.get("dropped", 0)
        if "error" in line:
            self.failed += 1
            self.codes.add(line["code"])
        else:
            self.with_word.update(word for word, share in zip(line["words"], line["shares"], strict=True) if share)


class VideoFiles:
    """Names of a video's files, and what is in them. after: the overlay to go on with and its frames, or None."""

    def __init__(self, source: "Source", out: Path, name: str, record: RunRecord, labels: bool, steady: bool) -> None:
        """steady: masks depend on the frames before them, and a video that is not done begins anew."""
        self._steady = steady
        self._source, self._out, self._name, self._record = source, out, name, record
        self.lines, self.partial_lines = out / f"{name}.jsonl", out / f"{name}.partial.jsonl"
        self.labels = out / f"{name}.labels" if labels else None
        self.overlay = self.partial_overlay = self.next_overlay = out
        self.counts, self.kept_bytes = Counts(), 0
        self.after: tuple[Path, int] | None = None
        self._read = state(str(Path(source.name).expanduser())) if source.kind == "file" else None
        entry = record.done.get((source.name, name))
        self._goes_on = entry is not None and entry["read"] == self._read
        self.is_done = (
            self._goes_on
            and bool(entry and entry["saved"])
            and all(size_of(Path(file)) == size for file, size in (entry or {"saved": {}})["saved"].items())
        )
        self.is_unfinished = False

    def begin(self, suffix: str, resume: bool) -> None:
        """Take up what an ended run left, or begin anew. suffix: of the overlay. Raises OutputUnwritable."""
        self.overlay, self.partial_overlay, self.next_overlay = (
            self._out / f"{self._name}.overlay{part}{suffix}" for part in ("", ".partial", ".partial.next")
        )
        self.next_overlay.unlink(missing_ok=True)
        if self.labels:
            writable_folder(self.labels)
        if resume and self._goes_on and not self._steady:
            self._take_up()
        if self.after is None:
            self.partial_overlay.unlink(missing_ok=True)
        self._record.add(self._source.name, self._name, {"read": self._read, "saved": {}, "coco": None})
        self.is_unfinished = True

    def written(self) -> Iterator[Path]:
        """What a finished run has written."""
        yield from (path for path in (self.overlay, self.lines, self.labels) if path is not None and path.exists())

    def finish(self) -> None:
        """Give the files their names. Raises OutputUnwritable."""
        saved = {}
        for partial, path in ((self.partial_overlay, self.overlay), (self.partial_lines, self.lines)):
            try:
                if not partial.exists():  # an overlay, where each frame failed
                    path.unlink(missing_ok=True)  # of a run before
                    continue
                os.replace(partial, path)
            except OSError as error:
                raise unwritable(path, error) from None
            saved[str(path)] = size_of(path)
        if self.labels:  # of a longer run before
            for path in self.labels.iterdir():
                if _LABELS.fullmatch(path.name) and int(path.stem) >= self.counts.frames:
                    path.unlink(missing_ok=True)
        self._record.add(self._source.name, self._name, {"read": self._read, "saved": saved, "coco": None})
        self.is_done, self.is_unfinished = True, False

    def discard(self) -> None:
        """Of a video without frames nothing is left."""
        for path in (self.partial_overlay, self.partial_lines):
            path.unlink(missing_ok=True)
        if self.labels:
            with contextlib.suppress(OSError):  # it holds others
                self.labels.rmdir()
        self.is_unfinished = False

    def left(self) -> str:
        """What to tell of an unfinished run, or nothing where no frame is done."""
        if not self.is_unfinished or not self.counts.frames:
            return ""
        frames = f"{self.counts.frames} frame{'s' * (self.counts.frames > 1)} of {self._source.name}"
        places = [str(path) for path in (self.partial_overlay, self.partial_lines) if path.exists()]
        text = f"{frames} {'is' if self.counts.frames == 1 else 'are'} in {' and '.join(places)}"
        if self._source.live:
            return text
        goes_on = "begins it anew, for steady masks depend on the frames before" if self._steady else "goes on"
        return f"{text}; the same command with --resume {goes_on}"

    def _take_up(self) -> None:
        if not self.partial_lines.exists():
            return
        on_disk = whole_frames(self.partial_overlay) if self.partial_overlay.exists() else 0
        good = 0
        for text, line in whole_lines(self.partial_lines):
            if "error" not in line:
                if good == on_disk:
                    break
                good += 1
            self.counts.add(line)
            self.kept_bytes += len(text)
        if good:
            self.after = self.partial_overlay, good
        if self.counts.frames:
            tell(f"fusioner-rt: note: {self.counts.frames} frames of {self._source.name} are done already")


class VideoResults:
    """Writes what was found in frames, in a thread of its own: a signal does not stop it within a frame.

    `with` ends the files, where an error left the block up to the last frame.
    """

    def __init__(self, files: VideoFiles, frames: "Frames", overlay: dict[str, Any], instances: bool) -> None:
        """overlay, instances: as of `Segmentation.overlay` and `to_coco`. Raises OutputUnwritable, UsageError."""
        self._files, self._frames, self._overlay, self._instances = files, frames, overlay, instances
        self.added = self.failed = 0
        self._path = files.next_overlay if files.after else files.partial_overlay
        self._video = OverlayWriter(self._path, frames, after=files.after)
        self._lines = _opened(files.partial_lines, files.kept_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fusioner-writer")
        self._pending: Future[None] | None = None

    def put(self, seen: "StreamedFrame") -> None:
        """Write a frame while the caller goes on, once the one before is written. Raises what writing that raised: nothing may follow
        what is not whole, for a line's number is its index.
        """
        if self._pending is not None:
            self._pending.result()
        self.failed += seen.error is not None
        self._pending = self._thread.submit(self._write, seen)

    def __enter__(self) -> "VideoResults":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        whole = kind is None
        try:
            if self._pending is not None:
                self._pending.result()
        except BaseException:
            whole = False
            if kind is None:
                raise
        finally:
            ended = self._thread.submit(self._end, whole)
            self._thread.shutdown()
        if whole:
            ended.result()

    def _write(self, seen: "StreamedFrame") -> None:
        files, index, time = self._files, self._files.counts.frames, self._frames.time(seen.index)
        result: Any = seen.result
        if seen.error is not None:
            line = failed_line(index, time, seen.error, seen.dropped)
            if files.labels:  # of a run before
                (files.labels / f"{index:06}.png").unlink(missing_ok=True)
        else:
            line = found_line(index, time, result, self._instances, seen.dropped)
            if files.labels:
                result.save(files.labels / f"{index:06}.png")
        text = encoded(line)
        try:
            self._lines.write(text)
            self._lines.flush()
        except OSError as error:
            raise unwritable(files.partial_lines, error) from None
        if seen.error is None:
            self._video.write(result.overlay(**self._overlay), time)
            self._replace_partial()
        files.kept_bytes += len(text)
        files.counts.add(line)
        self.added += 1

    def _replace_partial(self) -> None:
        """By the overlay that goes on with it, once that has all its frames."""
        if self._path != self._files.partial_overlay:
            os.replace(self._path, self._files.partial_overlay)
            self._path = self._files.partial_overlay

    def _end(self, whole: bool) -> None:
        try:
            if whole:
                self._video.close()
                if self._path.exists():
                    self._replace_partial()
            else:
                with contextlib.suppress(OutputUnwritable):  # as is told already
                    self._video.end_early()
        finally:
            with contextlib.suppress(OSError):  # what is buffered would be tried again
                self._lines.close()
            with contextlib.suppress(OSError):  # half a line, of a full disk
                os.truncate(self._files.partial_lines, self._files.kept_bytes)


def _opened(path: Path, kept: int) -> IO[bytes]:
    """A file to append to, after its first `kept` bytes. Raises OutputUnwritable."""
    try:
        stream = open(path, "ab")  # noqa: SIM115
        stream.truncate(kept)
    except OSError as error:
        raise unwritable(path, error) from None
    return stream
