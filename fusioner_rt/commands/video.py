"""`fusioner-rt segment` of videos, cameras and streams: an overlay as a video, and a line of JSON for each frame."""

import argparse
import contextlib
import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..atomic_files import writable_folder
from ..command_end import say, tell
from ..command_parser import CommandParser, count
from ..errors import FusionerError, PicturesFailed, UsageError, VideoUnreadable
from ..interrupts import exit_code, raise_if_interrupted
from .run_record import RunRecord
from .session_options import open_session
from .terminal import Bar, notes_on_stderr, print_error

if TYPE_CHECKING:
    from fractions import Fraction

    from ..session import Session
    from ..stream import StreamedFrame
    from ..video.frames import Frames
    from ..video.sources import Source
    from ..words.parse import Words
    from .video_files import VideoFiles

OPTIONS = ("every", "from", "to", "live", "container", "steady")
"""Those of `add_to`."""

_ALONE: dict[str, Any] = {"json": None, "polygons": None, "labelme": False, "yolo": False}
"""Options that videos do not have, and their defaults."""

_TOLD = 5  # bad frames of a video that are told one by one

Stream = Callable[["Frames"], "Iterator[StreamedFrame]"]


def add_to(parser: CommandParser) -> None:
    video = parser.add_argument_group(
        "video", "files, cameras and URLs (pip install 'fusioner-rt[video]'): DIR/NAME.overlay.mp4 with the sound, and "
        "DIR/NAME.jsonl, a line for each frame; docs/video.md tells all",
    )  # fmt: skip
    video.add_argument("--every", type=count, metavar="N", help="each N-th frame alone (1)")
    video.add_argument("--from", metavar="TIME", help="where to begin: seconds, or 1:30, or 0:01:30.5 (the beginning)")
    video.add_argument("--to", metavar="TIME", help="where to end; of a camera, after how long (the end)")
    video.add_argument(
        "--live", action="store_true", default=None,
        help="of a URL of http: work on the newest frame and drop those that come meanwhile, as is done for cameras and rtsp:// anyway",
    )  # fmt: skip
    video.add_argument(
        "--steady", type=float, metavar="A",
        help="keep masks from flickering, 0 to 1; 0.5 is a good start, docs/steadiness.md (0)",
    )  # fmt: skip
    video.add_argument(
        "--container", choices=("mp4", "mov", "mkv", "webm"),
        help="of the overlay, which is H.264, in webm VP9 (mp4; mkv where the sound does not go into mp4 as it is)",
    )  # fmt: skip


def named_videos(arguments: Sequence[str], out: Path) -> list[str]:
    """The videos that arguments name; empty where they name pictures. A pattern names videos where it ends as they do.

    Overlays of earlier runs below `out` are left out. Raises UsageError where videos and pictures are named, or a pattern names none.
    """
    from ..missing_pictures import is_pattern, without_secrets
    from ..video.sources import SUFFIXES, is_url, is_video

    videos: list[str] = []
    others: list[str] = []
    for argument in arguments:
        path = os.path.expanduser(argument)
        if (
            is_pattern(argument)
            and not is_url(argument)
            and not os.path.lexists(path)
            and Path(argument).suffix.lower() in SUFFIXES
        ):
            matched = sorted(name for name in glob.glob(path, recursive=True) if not _is_result(Path(name), out))
            if not matched:
                found = "no video has such a name"
                raise UsageError(
                    found, f"check the pattern (relative to {Path.cwd()})", subject=without_secrets(argument)
                )
            videos += matched
        else:
            (videos if is_video(argument) else others).append(argument)
    if videos and others:
        raise UsageError(
            f"{without_secrets(videos[0])} is a video, {without_secrets(others[0])} names pictures",
            "give videos and pictures a command each",
        )
    return videos


def check(options: argparse.Namespace, videos: Sequence[str]) -> None:
    """Whether the options are those of one kind of run. Raises UsageError."""
    from ..missing_pictures import without_secrets

    given = vars(options)
    if not videos:
        if alone := next((name for name in OPTIONS if given[name] is not None), None):
            raise UsageError(f"--{alone} is of videos, and pictures were named", "leave it out")
        return
    if options.ray:
        raise UsageError(
            "this is a video, and runs on Ray are of pictures", "leave --ray out", without_secrets(videos[0])
        )
    if alone := next((name for name, default in _ALONE.items() if given[name] != default), None):
        raise UsageError(
            f"--{alone} was given with a video, whose masks are lines of JSON in the folder of --out",
            "leave it out; --instances has each connected part by itself, --labels adds label maps",
            subject=without_secrets(videos[0]),
        )


def segment_videos(
    options: argparse.Namespace,
    videos: Sequence[str],
    words: "Words",
    background: "Words | None",
    size: tuple[int, int] | None,
    threshold: float | Mapping[str, float] | Literal["default"],
    overlay: dict[str, Any],
    asked: Callable[["Session"], dict[str, Any]],
) -> int:
    """Run the command. asked: what results depend on, by option. Returns the exit code."""
    from ..named_pictures import unique_names
    from ..optional_packages import optional
    from ..results.steadiness import Steadier
    from ..video.sources import find_source, package
    from ..video.times import seconds
    from .video_files import VideoFiles

    version = package().__version__
    Steadier(options.steady or 0.0)  # checks it
    if options.instances:
        optional("scipy.ndimage", "scipy", "instances")
    start, end = (seconds(vars(options)[name], name) for name in ("from", "to"))
    if end is not None and end <= (start or 0):
        raise UsageError("--to is not after --from", "give a later time")
    sources = [find_source(name, options.live) for name in videos]
    _check_live(options, sources)
    out = writable_folder(options.out)
    with notes_on_stderr(), contextlib.ExitStack() as opened:
        session = opened.enter_context(open_session(options, options.max_pixels))
        session.set_vocabulary(words, background=background)
        record = RunRecord(out / "segment.partial", {**asked(session), "version of PyAV": version}, options.resume)
        names = unique_names([source.stem for source in sources])
        runs: list[_Run] = []
        opened.callback(lambda: record.close(_is_finished(runs)))
        if not record.is_ours:
            raise UsageError("another run writes into this folder", "wait for it, or choose another with --out", out)

        def stream(frames: "Frames") -> "Iterator[StreamedFrame]":
            return session.stream(
                frames, size=size, threshold=threshold, mode=options.mode, window=options.window, live=frames.live,
                steady=options.steady or 0.0,
            )  # fmt: skip

        for source, name in zip(sources, names, strict=True):
            files = VideoFiles(source, out, name, record, options.labels, bool(options.steady))
            runs.append(_Run(source, files, options, start, end))
        return _all(runs, stream, overlay)


def _is_finished(runs: "Sequence[_Run]") -> bool:
    """Whether there is nothing to go on with."""
    done = [run.files.is_done for run in runs]
    return all(done) or not (any(done) or any(run.files.is_unfinished for run in runs))


def _check_live(options: argparse.Namespace, sources: "Sequence[Source]") -> None:
    """Raises UsageError."""
    live = [source for source in sources if source.live]
    if not live:
        return
    if any(source.kind == "file" for source in live):
        raise UsageError("--live is of cameras and URLs, and this is a file", "leave it out", subject=live[0].name)
    if len(sources) > 1:
        raise UsageError(
            "never ends by itself, and others were named with it", "give it a command of its own", live[0].name
        )
    if options.resume:
        raise UsageError("is live, and what it showed is gone", "leave --resume out", subject=live[0].name)


def _all(runs: "Sequence[_Run]", stream: Stream, overlay: dict[str, Any]) -> int:
    """Segment what is left to do. However that ends, what is done is whole and told. Returns the exit code."""
    codes: set[int] = set()
    todo = [run for run in runs if not run.files.is_done]
    if len(todo) < len(runs):
        tell(f"fusioner-rt: note: {len(runs) - len(todo)} of {len(runs)} videos are done already")
    for run in todo:
        try:
            raise_if_interrupted()
            codes |= run.segment(stream, overlay)
        except KeyboardInterrupt as interrupt:
            tell(f"fusioner-rt: interrupted; {run.files.left() or 'no frame is done'}")
            return exit_code(interrupt)
        except BaseException as error:
            if isinstance(error, FusionerError):
                print_error(error)
            if left := run.files.left():
                tell(f"fusioner-rt: {left}")
            if not isinstance(error, FusionerError):
                raise
            if not isinstance(error, VideoUnreadable):
                return error.exit_code  # the next would fail too
            codes.add(error.exit_code)
    return 0 if not codes else codes.pop() if len(codes) == 1 else PicturesFailed.exit_code


class _Run:
    """Of one video."""

    def __init__(
        self,
        source: "Source",
        files: "VideoFiles",
        options: argparse.Namespace,
        start: "Fraction | None",
        end: "Fraction | None",
    ) -> None:
        self._source, self.files, self._options = source, files, options
        self._start, self._end = start, end

    def segment(self, stream: Stream, overlay: dict[str, Any]) -> set[int]:
        """Returns the exit codes of bad frames. Raises FusionerError, KeyboardInterrupt."""
        from ..video.frames import Frames
        from ..video.sound import container_for
        from .video_files import VideoResults

        files, source, options = self.files, self._source, self._options
        files.begin(container_for(source, options.container), options.resume)
        began = time.monotonic()
        frames = Frames(source, options.every or 1, self._start, self._end, skip=files.counts.frames)
        with frames, VideoResults(files, frames, overlay, options.instances) as results:
            bar = Bar(frames.expected, "frames")
            try:
                with contextlib.closing(stream(frames)) as seen_frames:  # type: ignore[type-var]
                    for seen in seen_frames:
                        results.put(seen)
                        if seen.error is not None and results.failed <= _TOLD:
                            bar.clear()
                            print_error(self._placed(seen.error, frames.time(seen.index)))
                        bar.step(1, f"{files.counts.dropped} dropped" if frames.live else "")
            except KeyboardInterrupt:
                if not frames.live:  # of what is live it is the end
                    raise
            finally:
                bar.clear()
        counts = files.counts
        if not counts.frames:
            files.discard()
            raise VideoUnreadable(
                "holds no frame, or none of the time that was asked for", "check --from and --to", source.name
            )
        files.finish()
        say(self._told(results.added / max(time.monotonic() - began, 1e-3)))
        if counts.failed:
            tell(
                f'fusioner-rt: {counts.failed} of {counts.frames} frames of {source.name} failed: "error" in {files.lines}'
            )
        return counts.codes

    def _placed(self, error: FusionerError, time: float) -> FusionerError:
        """The error of a frame, by its video and time: what segments it knows it as an array."""
        return type(error)(error.found, error.cure, f"{self._source.name} at {time:.2f} s")

    def _told(self, rate: float) -> str:
        counts, files = self.files.counts, self.files
        dropped = f", {counts.dropped} dropped" if self._source.live else ""
        words = (
            ", ".join(f"{word} in {number}" for word, number in counts.with_word.most_common()) or "none of the words"
        )
        written = ", ".join(str(path) for path in files.written())
        return f"{self._source.name}: {counts.frames} frames{dropped}, {rate:.1f} a second; {words} -> {written}"


def _is_result(path: Path, out: Path) -> bool:
    return ".overlay." in path.name and path.resolve().is_relative_to(out.resolve())
