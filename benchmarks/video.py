"""Frames a second of `Session.stream` and of the command, against a loop that decodes, segments, draws and encodes in turn; memory.

  python -m benchmarks.video                                    # the table of docs/video.md, some ten minutes
  python -m benchmarks.video --json docs/records/video.jsonl    # and a JSON line per case
  python -m benchmarks.video --frames 5000                      # and whether memory grows, over so many frames more
  python -m benchmarks.video --from docs/records/video.jsonl    # the table of a record

The clip is made first: ten seconds of 720p, 25 frames a second, H.264, that pan and zoom over the photographs of docs/pictures. All
ways find the same labels, which is checked before. The loop has one thread, whose calls have all cores: it is what one writes first. Cases are
taken in turns, and medians of the rounds are told; the command is timed from its start to its end. Needs the extra `video`; Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import FusionerError
from fusioner_rt.video import OverlayWriter, frames

PICTURES = sorted((machine.ROOT / "docs/pictures").glob("*.jpg"))
WORDS = "person, cat, cup, sofa"
SIZE, RATE = (720, 1280), 25
STEP = 250
"""Frames between two looks at the memory."""

NAMES = {
    "loop, masks": "loop: decode, segment",
    "stream, masks": "`session.stream`",
    "loop, overlay": "loop: decode, segment, draw, encode",
    "stream, overlay": "`session.stream`, draw, encode",
    "command": "`fusioner-rt segment clip.mp4`, lines of JSON too",
}
"""Of the cases, in the table's order; ratios are to the loop before."""


def make_clip(path: Path, seconds: float) -> None:
    """Pan and zoom over each photograph in turn."""
    count = max(3, round(seconds * RATE))
    with OverlayWriter(path) as output:
        for index in range(count):
            output.write(_window(index / count), index / RATE)


def _window(at: float) -> Image.Image:
    """at: 0..1 of the clip."""
    picture = Image.open(PICTURES[int(at * len(PICTURES))]).convert("RGB")
    along = at * len(PICTURES) % 1
    height, width = SIZE
    zoom = max(width / picture.width, height / picture.height) * (1 + 0.5 * along)
    w, h = width / zoom, height / zoom
    left, top = (picture.width - w) * along, (picture.height - h) * (1 - along)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


class Ways:
    """The ways from a clip to its masks, with one session."""

    def __init__(self, clip: Path, engine: Path, folder: Path) -> None:
        self._clip, self._engine, self._folder = clip, engine, folder
        self.session = Session(engine, "onnxruntime-cpu")
        self.session.set_vocabulary(WORDS)

    def cases(self) -> dict[str, Callable[[], int]]:
        """Each returns the number of frames."""
        return {
            "loop, masks": lambda: sum(1 for _ in self.loop()),
            "stream, masks": lambda: sum(1 for _ in self.stream()),
            "loop, overlay": lambda: self.write(self.loop()),
            "stream, overlay": lambda: self.write(self.stream()),
            "command": self.command,
        }

    def loop(self) -> Iterator[tuple[Any, float]]:
        with frames(self._clip) as clip:
            for index, picture in enumerate(clip):
                yield self.session.segment(picture), clip.time(index)

    def stream(self, most: int | None = None) -> Iterator[tuple[Any, float]]:
        """most: frames, of the clip over and over; by default the clip's."""
        with frames(self._clip) as clip:
            source: Iterable[Any] = clip if most is None else itertools.islice(self._endless(), most)
            for seen in self.session.stream(source):
                if seen.error is not None:
                    raise seen.error
                yield seen.result, clip.time(seen.index) if most is None else seen.index / RATE

    def _endless(self) -> Iterator[Any]:
        while True:
            with frames(self._clip) as clip:
                yield from clip

    def write(self, found: Iterator[tuple[Any, float]], looked: Callable[[int], None] = lambda count: None) -> int:
        """Draw and encode. looked: called with each number of frames."""
        with OverlayWriter(self._folder / "seen.mp4") as output:
            for count, (result, at) in enumerate(found, 1):
                output.write(result.overlay(), at)
                looked(count)
            return output.frames

    def command(self) -> int:
        out = self._folder / "out"
        asked = ["--words", WORDS, "--engine", str(self._engine), "--backend", "onnxruntime-cpu", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-m", "fusioner_rt", "segment", str(self._clip), *asked],
            cwd=machine.ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise FusionerError(f"the command ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return (out / f"{self._clip.stem}.jsonl").read_bytes().count(b"\n")

    def check(self) -> None:
        """Raises FusionerError where they differ."""
        digests = (_digest(found) for found in (self.loop(), self.stream()))
        if len(set(digests)) != 1:
            raise FusionerError("session.stream found other labels than session.segment", "report it")


def _digest(found: Iterator[tuple[Any, float]]) -> str:
    digest = hashlib.sha256()
    for result, at in found:
        digest.update(result.labels.tobytes() + str(at).encode())
    return digest.hexdigest()


def cases(given: argparse.Namespace) -> Iterator[list[Row]]:
    """Every case's row. Raises MachineBusy, FusionerError."""
    machine.check_idle(given.busy)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        make_clip(clip, given.seconds)
        ways = Ways(clip, given.engine, Path(folder))
        ways.check()
        found: dict[str, list[Row]] = {case: [] for case in ways.cases()}
        for _ in range(given.rounds):
            for case, run in ways.cases().items():
                found[case].append(_timed(run))
        told = {
            "size": list(SIZE), "seconds": given.seconds, "rounds": given.rounds, "busy": given.busy,
            **machine.record("numpy", "onnxruntime", "av"),
        }  # fmt: skip
        for case, rows in found.items():
            middle = {key: round(median(row[key] for row in rows), 2) for key in rows[0]}
            yield [{"what": "video", "case": case, **middle, **told}]
        if given.frames:
            yield [{"what": "video", "case": "memory", **_growth(ways, given.frames), **told}]


def _timed(run: Callable[[], int]) -> Row:
    start, spent = time.perf_counter(), _processor_seconds()
    count = run()
    wall = time.perf_counter() - start
    each = (_processor_seconds() - spent) * 1000 / count
    return {"frames": count, "frames_a_second": count / wall, "processor_ms_a_frame": each}


def _processor_seconds() -> float:
    """Of this process and those that it started and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _growth(ways: Ways, count: int) -> Row:
    """How resident memory changes while frames are streamed, drawn and encoded, by a line through all looks but the first."""
    looks: list[Row] = []

    def look(done: int) -> None:
        if done % STEP == 0 or done == count:
            looks.append({"frames": done, "bytes": machine.resident(os.getpid())})

    ways.write(ways.stream(count), look)
    later = looks[1:] if len(looks) > 2 else looks
    at, resident = ([one[key] for one in later] for key in ("frames", "bytes"))
    slope = float(np.polyfit(at, resident, 1)[0]) if len(later) > 1 else 0.0
    return {"bytes_a_frame": round(slope, 1), "looks": looks}


def table(rows: list[Row]) -> str:
    """Markdown. Ratios are to the loop that does the same."""
    by_case = {row["case"]: row for row in rows}
    lines = ["| | frames a second | to the loop | CPU ms a frame |", "|---|--:|--:|--:|"]
    loop = 0.0
    for case, name in NAMES.items():
        if row := by_case.get(case):
            rate = row["frames_a_second"]
            loop = rate if case.startswith("loop") else loop
            ratio = f"{rate / loop:.2f}" if loop else ""
            lines.append(f"| {name} | {rate:.1f} | {ratio} | {row['processor_ms_a_frame']:.0f} |")
    if row := by_case.get("memory"):
        first, last = row["looks"][0], row["looks"][-1]
        lines += [
            "",
            f"Over {last['frames']} frames, streamed, drawn and encoded: {row['bytes_a_frame'] / 1000:.2f} kB more resident memory a frame, "
            f"{first['bytes'] / 1e6:.0f} MB after {first['frames']} and {last['bytes'] / 1e6:.0f} MB in the end.",
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=machine.ROOT / "models/demo/bundle", metavar="DIR",
                        help="engine bundle (the demonstration's)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of the clip (10)")
    parser.add_argument("--rounds", type=command.count, default=5, metavar="N", help="of which medians are taken (5)")
    parser.add_argument("--frames", type=command.whole, default=0, metavar="N", help="for memory, 0 for none (0)")
    command.add_record_options(parser)
    given = parser.parse_args(arguments)
    return command.exit_status("video.py", lambda: command.tell(given, "video", cases, table))


if __name__ == "__main__":
    raise SystemExit(main())
