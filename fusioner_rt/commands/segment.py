"""`fusioner-rt segment`: pictures and words to overlays, masks and label files."""

import argparse
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import __version__
from ..argument_checks import shown
from ..atomic_files import is_special
from ..command_end import say, tell
from ..command_parser import CommandParser, path_argument
from ..errors import FusionerError, OutputUnwritable, OverlayTooLarge, PicturesFailed, UsageError
from ..interrupts import exit_code, raise_if_interrupted
from . import fleet, video
from .run_record import Entry, RunRecord, size_of, state
from .session_options import add_session_options, open_session, pixels
from .terminal import Bar, notes_on_stderr, print_error

if TYPE_CHECKING:
    from ..named_pictures import NamedPicture
    from ..results.coco_document import Document
    from ..results.segmentation import Segmentation
    from ..session import Session
    from ..words.parse import Words

_EXAMPLES = """\
examples:
  fusioner-rt segment photo.jpg --words "cat, sofa"
      one line per picture: the words found, their share of the pixels, and where the overlay lies
  fusioner-rt segment photos/ more.png --words "red car, bus stop" --out seen --labels
      a folder and a picture; besides the overlays, label maps as grey PNG (pixel value n = word n)
  fusioner-rt segment 'photos/**/*.png' --words dog
      what a pattern names, ** being folders of any depth; docs/pictures.md tells what is read
  curl -s https://example.org/photo.jpg | fusioner-rt segment - --words dog
      a picture from stdin; its results are called stdin
  fusioner-rt segment photos/ --words "cat, sofa" --json masks.json --polygons 1 --instances
      COCO with a polygon around each cat, off by a pixel at most or so (pip install scipy shapely)
  fusioner-rt segment photos/ --words "cat, sofa" --out data --yolo
      data/labels/NAME.txt and data/data.yaml; with the pictures in data/images, what ultralytics trains on
  fusioner-rt segment photo.jpg --words "cat, dog" --mode independent --threshold 0.6
      judge every word alone, and only paint pixels above 60%
  fusioner-rt segment photo.jpg --words "cat, sofa|couch" --background common
      sofa and couch are one, called sofa; walls, sky and the like take their pixels and are not painted (docs/words.md)

  fusioner-rt segment clip.mp4 --words "cat, sofa"
      output/clip.overlay.mp4, with its sound, and output/clip.jsonl, a line for each frame (pip install 'fusioner-rt[video]')
  fusioner-rt segment clip.mp4 --words "cat, sofa" --from 1:30 --to 2:00 --every 5 --labels
      half a minute of it, each fifth frame, and label maps in output/clip.labels
  fusioner-rt segment /dev/video0 --words person
  fusioner-rt segment rtsp://camera.local/stream --words person --to 60
      a camera, until Ctrl-C or for a minute: the newest frame, and how many were dropped (docs/video.md)

  fusioner-rt segment 'photos/**/*.jpg' --ray --words "cat, sofa" --out seen
  fusioner-rt segment s3://bucket/photos --ray --words "cat, sofa" --out seen --resume
      on all cores, or on the cluster of RAY_ADDRESS: masks as Parquet files in seen/masks (docs/ray.md)

  fusioner-rt segment photos/ --words "cat, sofa" --json masks.json --resume
      go on where the same command was ended, by a signal, a kill or a full disk; the JSON file comes out the same

Where a GPU or a plan of the bundle goes unused, one line on stderr says so; --backend NAME makes that an error.

exit code: 0 when every picture was done; otherwise the rest is still done, each failure is one line on stderr,
and the code is that of the failure's kind (60 where kinds differ). docs: fusioner_rt/errors.py lists the codes.
An ended run writes what is done: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 141 where stdout's reader is gone.
"""


def add_to(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    segment = commands.add_parser(
        "segment", help="find words in pictures and videos", description="Find words in pictures and videos.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    segment.add_argument(
        "pictures",
        nargs="*",
        type=_given,
        metavar="PICTURE",
        help="picture files, folders of them, patterns in quotes, - for stdin, or a shell's <(COMMAND); or videos, cameras and URLs",
    )
    asked = segment.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--words", nargs="+", metavar="WORD",
        help='what to look for: "cat, red sofa", "cat, sofa|couch" where two words mean one thing',
    )  # fmt: skip
    asked.add_argument("--words-file", type=path_argument, metavar="FILE", help="what to look for, a word per line")
    segment.add_argument(
        "--background", nargs="+", metavar="WORD",
        help='words whose pixels belong to nothing, for example "wall, sky", or common for a list of them',
    )  # fmt: skip
    segment.add_argument(
        "--out",
        type=path_argument,
        default=Path("output"),
        metavar="DIR",
        help="folder for results, made where it is missing (output)",
    )
    segment.add_argument(
        "--json", type=path_argument, metavar="FILE", help="also write all masks as one COCO file; its folder is made"
    )
    segment.add_argument(
        "--legend", choices=("below", "right", "none"), default="below",
        help="where the overlay has its legend; with none it has the masks' size (below)",
    )  # fmt: skip
    segment.add_argument("--alpha", type=float, default=0.5, metavar="A", help="how much masks cover, 0 to 1 (0.5)")
    segment.add_argument("--outlines", action="store_true", help="draw the masks' outlines alone")
    segment.add_argument(
        "--polygons", nargs="?", type=float, const=0.0, metavar="TOLERANCE",
        help="masks of --json as polygons, exact, or off by TOLERANCE pixels to have fewer points; so also those of "
        "--labelme and --yolo",
    )  # fmt: skip
    segment.add_argument(
        "--instances", action="store_true", help="in --json, and in a video's lines, each connected part of a word by itself",
    )  # fmt: skip
    segment.add_argument(
        "--labels",
        action="store_true",
        help="also write each label map as a grey PNG, NAME.labels.png, of a video NAME.labels/000000.png, value n = word n",
    )
    segment.add_argument("--labelme", action="store_true", help="also write polygons for LabelMe, NAME.labelme.json")
    segment.add_argument(
        "--yolo", action="store_true",
        help="also write YOLO's labels for segmentation, labels/NAME.txt, and data.yaml with the words",
    )  # fmt: skip
    segment.add_argument(
        "--threshold",
        metavar="P",
        help='least probability of a mask, or of some: "cat=0.7, sofa=0.4" (the bundle\'s)',
    )
    segment.add_argument(
        "--mode", choices=("joint", "independent"), default="joint",
        help="words may influence each other, or each is judged alone, a pass per word (joint)",
    )  # fmt: skip
    segment.add_argument(
        "--window", choices=("whole", "sliding"), default="whole",
        help="show the network the whole picture, or overlapping windows, for small things, a pass per window; of "
        "bundles that have windows, such as CLIP's (whole)",
    )  # fmt: skip
    segment.add_argument("--size", metavar="HxW", help="size of the masks (each picture's own)")
    segment.add_argument(
        "--resume", action="store_true",
        help="go on with this command where it was ended: pictures whose results are there are not done again",
    )  # fmt: skip
    segment.add_argument(
        "--max-pixels", type=pixels, metavar="N",
        help="pixels of the largest picture and of --size, 134217728 at most; more takes more time and memory (67108864)",
    )  # fmt: skip
    add_session_options(segment)
    video.add_to(segment)
    fleet.add_to(segment)
    segment.set_defaults(run=_segment)


def _given(text: str) -> str:
    """A picture or folder, as it was given."""
    path_argument(text)
    return text


def _segment(options: argparse.Namespace) -> int:
    from ..atomic_files import writable_folder, writable_place
    from ..named_pictures import named_pictures, names_a_picture
    from ..results.overlay import check_options
    from ..video.sources import is_url
    from ..words.arguments import join_words, parse_threshold, read_words, take_pictures
    from ..words.parse import parse_words

    overlay = {
        "legend": False if options.legend == "none" else options.legend, "alpha": options.alpha,
        "outlines": options.outlines,
    }  # fmt: skip
    check_options(**overlay)
    size = _parse_size(options.size)
    threshold = parse_threshold(options.threshold)
    if options.words and not options.pictures:
        options.words, options.pictures = take_pictures(
            options.words, lambda name: names_a_picture(name) or is_url(name)
        )
    if not options.pictures:
        raise UsageError("no pictures were given", "name files, folders or patterns of them before --words")
    words = read_words(options.words_file) if options.words_file else join_words(options.words)
    background = join_words(options.background) if options.background else None
    parse_words(words, background)
    local = [name for name in options.pictures if not (options.ray and is_url(name))]  # Ray reads URLs of pictures
    videos = video.named_videos(local, options.out)
    video.check(options, videos)
    fleet.check(options)
    if options.ray:
        return fleet.segment_on_ray(options, words, background, size, threshold)
    if videos:
        return video.segment_videos(
            options, videos, words, background, size, threshold, overlay,
            lambda session: _asked(options, words, session),
        )  # fmt: skip
    if options.json and options.json.is_dir():
        raise UsageError(
            f"--json {options.json} is a folder", f"name a file in it, for example {options.json / 'masks.json'}"
        )
    _check_shapes(options)
    out = writable_folder(options.out)
    with notes_on_stderr(), contextlib.ExitStack() as opened:
        pictures = named_pictures(options.pictures, out)
        _check_outputs(options, [name for name, _ in pictures])
        if options.json:
            writable_place(options.json)
        if options.yolo:
            writable_folder(out / "labels")
        session = opened.enter_context(open_session(options, options.max_pixels))
        session.set_vocabulary(words, background=background)
        asked = {
            name: given for name, given in _asked(options, words, session).items() if name[2:] not in video.OPTIONS
        }
        record = RunRecord(_record_place(options), asked, options.resume)
        report = opened.enter_context(_Report(pictures, overlay, options, session.words, record))

        def segment(picture: "str | IO[bytes]") -> "Segmentation":
            return session.segment(picture, size=size, threshold=threshold, mode=options.mode, window=options.window)

        return _run(report, segment)


def _run(report: "_Report", segment: Callable[[Any], "Segmentation"]) -> int:
    """Segment what is left to do. However that ends, what is done is written and told. Returns the exit code."""
    failures: list[FusionerError] = []
    todo, total = report.todo(), report.total
    bar = Bar(len(todo))
    try:
        if len(todo) < total:
            tell(f"fusioner-rt: note: {total - len(todo)} of {total} pictures are done already")
        for index in todo:
            raise_if_interrupted()
            try:
                line = report.add(index, segment)
            except (OutputUnwritable, UsageError):
                raise  # the next picture would fail too
            except FusionerError as error:
                bar.clear()
                failures.append(error.as_command())  # without the traceback, which keeps arrays alive
                print_error(error)
            else:
                bar.clear()
                say(line)
            bar.step()
        bar.clear()
        report.finish()
    except BaseException as error:
        bar.clear()
        if isinstance(error, FusionerError):
            print_error(error)
        left = report.end_early()
        if isinstance(error, KeyboardInterrupt):
            tell(f"fusioner-rt: interrupted; {left or f'none of {_counted(total)} is done'}")
            return exit_code(error)
        if left:
            tell(f"fusioner-rt: {left}")
        if isinstance(error, FusionerError):
            return error.exit_code
        raise
    if not failures:
        return 0
    if total > 1:
        tell(f"fusioner-rt: {len(failures)} of {total} pictures failed, see above")
    codes = {failure.exit_code for failure in failures}
    return codes.pop() if len(codes) == 1 else PicturesFailed.exit_code


def _counted(pictures: int) -> str:
    return f"{pictures} picture{'s' * (pictures != 1)}"


def _record_place(options: argparse.Namespace) -> Path:
    """Beside the JSON file, or in the folder of results where there is none."""
    if options.json and not is_special(options.json):
        real = Path(os.path.realpath(options.json))
        return real.with_name(f"{real.name}.partial")
    place: Path = options.out / "segment.partial"
    return place


def _asked(options: argparse.Namespace, words: "Words", session: "Session") -> dict[str, Any]:
    """What results depend on, by option: all options but those that say where things lie and what is told."""
    from ..manifest import MANIFEST

    aside = ("run", "pictures", "words", "words_file", "json", "engine", "cache", "verbose", "resume", *fleet.OPTIONS)
    asked = {f"--{name.replace('_', '-')}": given for name, given in vars(options).items() if name not in aside}
    manifest = (session.bundle.folder / MANIFEST).read_bytes()
    return {
        **asked,
        "--out": str(options.out.resolve()),
        "--words": words,
        "--engine": hashlib.sha256(manifest).hexdigest(),
        "--backend": session.backend.effective,
        "version of fusioner-rt": __version__,
    }


def _check_shapes(options: argparse.Namespace) -> None:
    """Check the options of polygons and instances, and that their packages are there, before any work."""
    from ..optional_packages import optional

    files = options.labelme or options.yolo
    if options.polygons is not None:
        from ..results.polygons import check_tolerance

        check_tolerance(options.polygons)
        if not (options.json or files):
            raise UsageError("--polygons says how masks are written", "add --json FILE, --labelme or --yolo")
    if options.instances and not options.json:
        raise UsageError("--instances says what --json holds", "add --json FILE")
    if files or options.polygons is not None:
        optional("shapely", "shapely", "polygons")
    if files or options.instances:
        optional("scipy.ndimage", "scipy", "instances")


def _check_outputs(options: argparse.Namespace, pictures: Sequence[str]) -> None:
    """Check that no result would replace what is not one. Raises UsageError, OutputUnwritable."""
    from ..results.yolo import is_ours

    if options.json and any(os.path.realpath(options.json) == os.path.realpath(name) for name in pictures):
        raise UsageError(f"--json {options.json} is one of the pictures", "name another file for the masks")
    if options.labelme and "-" in options.pictures:
        raise UsageError("--labelme names the picture's file, and stdin has none", "save the picture, and name it")
    if options.yolo and not is_ours(options.out):
        raise OutputUnwritable(
            "holds labels or a data.yaml that --yolo did not write", "choose another folder with --out", options.out
        )


class _Report:
    """Writes each picture's files under a unique name, and the files of all of them."""

    def __init__(
        self,
        pictures: "Sequence[NamedPicture]",
        overlay: dict[str, Any],
        options: argparse.Namespace,
        words: Sequence[str],
        record: RunRecord,
    ) -> None:
        from ..named_pictures import unique_names

        self._pictures, self._names = pictures, unique_names([Path(name).stem for name, _ in pictures])
        self._overlay, self._options, self._words, self._record = overlay, options, words, record
        self._out: Path = options.out
        self._tolerance = options.polygons or 0.0
        self._document = self._new_document()
        self.total = len(pictures)

    def __enter__(self) -> "_Report":
        return self

    def __exit__(self, *_: object) -> None:
        done = self._done()
        self._record.close(finished=not done or len(done) == self.total)

    def todo(self) -> list[int]:
        """The pictures, by index, that the record does not know as done: unchanged, their results as they were written."""
        entries = zip(self._pictures, map(self._entry, range(self.total)), strict=True)
        return [index for index, (picture, entry) in enumerate(entries) if not (entry and self._stands(picture, entry))]

    def add(self, index: int, segment: Callable[[Any], "Segmentation"]) -> str:
        """Segment a picture and write its files. Returns the line to print."""
        from ..results.legend import percent

        (path, picture), name = self._pictures[index], self._names[index]
        source = str(Path(path))
        read = state(picture) if isinstance(picture, str) else None
        self._record.done.pop((path, name), None)
        result = replace(segment(picture), source=source)  # of stdin its name, not that of the file behind it
        if self._options.yolo and not self._record.done:
            self._write_data_file()  # before the first of the labels, which it tells to be ours
        try:
            overlay = result.save(self._out / f"{name}.overlay.jpg", **self._overlay)
        except OverlayTooLarge:
            overlay = result.save(self._out / f"{name}.overlay.png", **self._overlay)
        saved = [overlay]
        if self._options.labels:
            saved.append(result.save(self._out / f"{name}.labels.png"))
        for wanted, file in (
            (self._options.labelme, f"{name}.labelme.json"),
            (self._options.yolo, f"labels/{name}.txt"),
        ):
            if wanted:
                saved.append(result.save(self._out / file, tolerance=self._tolerance))
        part = self._document.part(result) if self._options.json else None
        sizes = {str(file): size_of(file) for file in saved}
        self._record.add(path, name, {"read": read, "saved": sizes, "coco": part})
        shares = sorted(zip(result.shares, result.words, strict=True), reverse=True)
        found = ", ".join(f"{word} {percent(share)}" for share, word in shares if share) or "none of the words"
        return f"{source}: {found} -> {', '.join(map(str, saved))}"

    def finish(self) -> None:
        """Write the files of all pictures that are done; where none is, earlier files stay."""
        from ..atomic_files import write_json

        done = self._done()
        if done and self._options.json:
            document = self._new_document()
            for entry in done:
                document.add_part(entry["coco"])
            write_json(self._options.json, document.content())
        if done and self._options.yolo:
            self._write_data_file()

    def end_early(self) -> str:
        """Write what is done. Returns what to tell of it, or nothing where none is."""
        done = len(self._done())
        if not done:
            return ""
        text = f"{done} of {_counted(self.total)} {'is' if done == 1 else 'are'} done"
        try:
            self.finish()
        except FusionerError:
            return f"{text}, but not in {self._options.json}; the same command with --resume goes on, once that can be written"
        where = f" and in {self._options.json}" if self._options.json else ""
        return f"{text}{where}; the same command with --resume goes on"

    def _done(self) -> "list[Entry]":
        return [entry for entry in map(self._entry, range(self.total)) if entry]

    def _entry(self, index: int) -> "Entry | None":
        return self._record.done.get((self._pictures[index].name, self._names[index]))

    def _stands(self, picture: "NamedPicture", entry: "Entry") -> bool:
        read = state(picture.picture) if isinstance(picture.picture, str) else None
        saved = all(size_of(Path(file)) == size for file, size in entry["saved"].items())
        return read is not None and read == entry["read"] and saved

    def _new_document(self) -> "Document":
        from ..results.coco_document import Document

        return Document(self._options.polygons is not None, self._tolerance, self._options.instances)

    def _write_data_file(self) -> None:
        from ..atomic_files import write_result
        from ..results.yolo import data_file

        text = data_file(self._words).encode()
        write_result(self._out / "data.yaml", lambda stream: stream.write(text))


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    size = re.fullmatch(r"0*([1-9][0-9]{0,8})[xX]0*([1-9][0-9]{0,8})", text.strip())
    if not size:
        raise UsageError(
            "expected height x width in pixels, at least 1 each",
            "give for example 480x640",
            subject=f"--size {shown(text)}",
        )
    return int(size[1]), int(size[2])
