"""How often labels flicker, and how good they are, with and without steadying.

  python -m benchmarks.steadiness DIR                                       # some minutes
  python -m benchmarks.steadiness DIR --json docs/records/steadiness.jsonl  # and a JSON line per kind of clip and amount
  python -m benchmarks.steadiness --from docs/records/steadiness.jsonl      # the tables of a record

DIR holds frames of videos in the layout of DAVIS as training takes it: images/SEQUENCE_NNNNN.jpg, numbered at 24 frames a
second, masks/SEQUENCE_NNNNN.png of class numbers, 255 where none is known, and classes.txt, whose lines name the numbers. A
sequence shows one class. It is asked for together with words of scenes.

Frames of such sets are some apart, and flicker is what a user sees at the full rate. So the frame in the middle of each sequence
also becomes clips of one second, with new noise of a sensor and compression as JPEG in each of their 24 frames: held
still, in a hand, panned with a zoom, and the object cut out and moved across a picture of another sequence. Masks move with
them. Flips are changes of a pixel's label, a pixel and second; those of the object's own mask are true motion. Then: what
steadying a frame of 1280x720 costs, in time of one processor.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks import command, machine
from benchmarks.command import Row
from fusioner_rt import Segmentation, Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.errors import UsageError
from fusioner_rt.results.steadiness import Steadier

KINDS = {
    "apart": "frames as they are",
    "still": "held still",
    "hand": "in a hand",
    "pan": "panned",
    "object": "moving object",
}
COST = "cost"
AMOUNTS = [0.0, 0.25, 0.5, 0.75, 1.0]
SCENES = ["tree", "grass", "road", "water", "sky", "building"]
RATE = 24
NOISE, QUALITY = 4.0, 80
"""Of made frames: deviation of each pixel, of 255, and JPEG's quality."""
SHOWN = 5 / 6
"""Share of a picture's width and height that a made frame shows, so that there is room to move."""
IGNORED = 255

Frame = tuple[float, np.ndarray, np.ndarray]
"""Seconds, (H, W, 3) uint8, and (H, W) uint8: 1 the object, 255 unknown."""


@dataclass
class Sequence:
    """number: of the class, which `word` names. frames: number of each, and where its picture and mask lie."""

    name: str
    number: int
    word: str
    frames: list[tuple[int, Path, Path]]

    def frame(self, index: int) -> Frame:
        number, picture, mask = self.frames[index]
        numbers = np.asarray(Image.open(mask))
        truth = np.where(numbers == IGNORED, IGNORED, numbers == self.number).astype(np.uint8)
        return number / RATE, np.asarray(Image.open(picture).convert("RGB")), truth

    @property
    def middle(self) -> Frame:
        return self.frame(len(self.frames) // 2)


@dataclass
class Flicker:
    """What was found in one clip. flips: sum of shares of pixels; both intersection and union in pixels."""

    steadier: Steadier
    flips: float = 0.0
    intersection: int = 0
    union: int = 0
    before: np.ndarray | None = field(default=None, repr=False)

    def add(self, result: Segmentation, truth: np.ndarray) -> None:
        labels = self.steadier(result).labels
        found, there = (labels == 1) & (truth != IGNORED), truth == 1
        self.intersection += int((found & there).sum())
        self.union += int((found | there).sum())
        if self.before is not None:
            self.flips += float((labels != self.before).mean())
        self.before = labels


def sequences(folder: Path) -> list[Sequence]:
    """Raises UsageError."""
    try:
        names = (folder / "classes.txt").read_text().splitlines()
    except OSError as error:
        raise UsageError(
            f"{folder} has no classes.txt ({error.strerror})", "give a folder as --help describes it"
        ) from None
    frames: dict[str, list[tuple[int, Path, Path]]] = {}
    for picture in sorted((folder / "images").glob("*_*.jpg")):
        name, _, number = picture.stem.rpartition("_")
        mask = folder / "masks" / f"{picture.stem}.png"
        if number.isdecimal() and mask.is_file():
            frames.setdefault(name, []).append((int(number), picture, mask))
    found = []
    for name, own in frames.items():
        shown = {int(one) for _, _, mask in own for one in np.unique(np.asarray(Image.open(mask)))} - {0, IGNORED}
        if len(own) > 1 and len(shown) == 1 and max(shown) < len(names):
            found.append(Sequence(name, *shown, names[max(shown)].strip(), own))
    if not found:
        cure = "give a folder as --help describes it"
        raise UsageError(f"{folder} has no sequence of two frames or more with masks of one class", cure)
    return found


def clip(kind: str, sequence: Sequence, other: Sequence, seed: int, frames: int) -> Iterator[Frame]:
    """other: whose picture an object is moved across."""
    if kind == "apart":
        yield from (sequence.frame(index) for index in range(len(sequence.frames)))
        return
    random = np.random.default_rng(seed)
    _, picture, truth = sequence.middle
    _, scene, _ = other.middle
    height, width = truth.shape
    for index, (right, down, zoom) in enumerate(path(kind, frames, width, random)):
        seen, mask = (moved(array, right, down, zoom) for array in (picture, truth))
        if kind == "object":
            background = moved(np.asarray(Image.fromarray(scene).resize((width, height))), 0, 0, 1)
            seen = np.where((mask == 1)[..., None], seen, background)
        yield index / RATE, worn(seen, random), mask


def path(kind: str, frames: int, width: int, random: np.random.Generator) -> Iterator[tuple[float, float, float]]:
    """Where the middle of each frame looks, in pixels from the picture's, and its zoom. A hand's is random and pulled back."""
    at, speed = np.zeros(2), np.zeros(2)
    for part in np.linspace(-1, 1, frames):
        if kind == "hand":
            speed = 0.8 * speed + random.normal(0, width / 800, 2) - 0.05 * at
            at = np.clip(at + speed, -width / 32, width / 32)
            yield float(at[0]), float(at[1]), 1.0
        elif kind == "pan":
            yield part * width / 13, part * width / 64, 1.075 + 0.075 * part
        else:
            yield (-part * width / 6.4 if kind == "object" else 0.0), 0.0, 1.0


def moved(array: np.ndarray, right: float, down: float, zoom: float) -> np.ndarray:
    """The part of a picture, or of a mask, that a made frame shows."""
    height, width = array.shape[:2]
    size = int(width * SHOWN), int(height * SHOWN)
    left, top = (
        edge / 2 + by - shown / zoom / 2 for edge, by, shown in zip((width, height), (right, down), size, strict=True)
    )
    taken = Image.Resampling.BILINEAR if array.ndim == 3 else Image.Resampling.NEAREST
    steps = (1 / zoom, 0, left, 0, 1 / zoom, top)
    return np.asarray(Image.fromarray(array).transform(size, Image.Transform.AFFINE, steps, taken))


def worn(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A picture as a camera and a codec would give it."""
    noisy = np.clip(picture + random.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file := io.BytesIO(), "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file).convert("RGB"))


def cases(given: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of each kind of clip, then of the cost. Raises FusionerError."""
    told = machine.record("numpy", "onnxruntime")
    found = sequences(given.data)[: given.sequences]
    with Session(given.engine, "onnxruntime-cpu") as session:
        for kind in (kind for kind in KINDS if kind in given.clips):
            truth, clips = [], []
            for seed, sequence in enumerate(tqdm(found, unit="clip", desc=kind, leave=False)):
                other = found[(seed + len(found) // 2) % len(found)]
                own, seconds, true = [Flicker(Steadier(amount)) for amount in AMOUNTS], 0.0, 0.0
                before: Frame | None = None
                for frame in clip(kind, sequence, other, seed, given.frames):
                    result = session.segment(frame[1], [sequence.word, *SCENES])
                    for one in own:
                        one.add(result, frame[2])
                    if before is not None:
                        seconds += frame[0] - before[0]
                        true += float((frame[2] != before[2]).mean())
                    before = frame
                clips.append([(one.flips / seconds, one.intersection / max(one.union, 1)) for one in own])
                truth.append(true / seconds)
            means = np.mean(clips, axis=0)
            yield [
                {
                    "what": "steadiness", "clip": kind, "amount": amount, "clips": len(clips),
                    "flips": round(float(flips), 4), "true_flips": round(float(np.mean(truth)), 4),
                    "iou": round(100 * float(iou), 2), **told,
                }
                for amount, (flips, iou) in zip(AMOUNTS, means, strict=True)
            ]  # fmt: skip
        if COST in given.clips:
            yield [{"what": "steadiness", "clip": COST, **cost(session, found[0], given.frames), **told}]


def cost(session: Session, sequence: Sequence, frames: int) -> Row:
    """Milliseconds of processor time that steadying a frame of 1280x720 takes, while the camera pans."""
    results = []
    for _, picture, _ in clip("pan", sequence, sequence, 0, frames):
        large = np.asarray(Image.fromarray(picture).resize((1280, 720)))
        results.append(session.segment(large, [sequence.word, *SCENES]))
    milliseconds, steadier = [], Steadier(0.5)
    for result in results * 4:
        started = time.thread_time()
        steadier(result)
        milliseconds.append(1000 * (time.thread_time() - started))
    return {"size": [720, 1280], **machine.percentiles(milliseconds)}


def table(rows: list[Row]) -> str:
    """Markdown: flips and IoU by kind and amount, then the cost."""
    lines = []
    if made := [row for row in rows if row["clip"] in KINDS]:
        amounts = sorted({row["amount"] for row in made})
        by = {(row["clip"], row["amount"]): row for row in made}
        kinds = [kind for kind in KINDS if (kind, amounts[0]) in by]
        heads = " | ".join(f"{amount:g}" for amount in amounts)
        rule = f"|---|{'--:|' * (len(amounts) + 1)}"
        lines += [f"| flips, a pixel and second | the object's own | {heads} |", rule]
        for kind in kinds:
            flips = " | ".join(f"{by[kind, amount]['flips']:.3f}" for amount in amounts)
            lines.append(f"| {KINDS[kind]} | {by[kind, amounts[0]]['true_flips']:.3f} | {flips} |")
        lines += ["", f"| mIoU, % | clips | {heads} |", rule]
        for kind in kinds:
            iou = " | ".join(f"{by[kind, amount]['iou']:.1f}" for amount in amounts)
            lines.append(f"| {KINDS[kind]} | {by[kind, amounts[0]]['clips']} | {iou} |")
    for row in rows:
        if row["clip"] == COST:
            height, width = row["size"]
            lines += [
                *[""] * bool(lines),
                f"Steadying a frame of {width}x{height} while the camera pans takes {row['p50_ms']:.1f} ms of one processor (p20 "
                f"{row['p20_ms']:.1f}, p80 {row['p80_ms']:.1f}).",
            ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", metavar="DIR", help="frames and masks of videos")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="engine bundle (the one a session finds)")
    parser.add_argument("--sequences", type=command.count, metavar="N", help="only the first N (all)")
    every = [*KINDS, COST]
    parser.add_argument("--clips", type=command.names(*every), default=every, metavar="KIND,...", help=",".join(every))
    parser.add_argument("--frames", type=command.count, default=RATE, metavar="N", help="of each made clip (24)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line per kind of clip and amount")
    parser.add_argument(
        "--from", dest="record", type=Path, metavar="FILE", help="measure nothing, print a record's tables"
    )
    given = parser.parse_args(arguments)
    if given.record is None and given.data is None:
        parser.error("give the folder of the frames, or a record with --from")
    if given.frames < 2:
        parser.error("a clip of one frame does not flicker: give --frames 2 or more")
    return command.exit_status("steadiness.py", lambda: run(given))


def run(given: argparse.Namespace) -> int:
    """Raises FusionerError."""
    if given.record:
        print(table(command.read(given.record, "steadiness")))
    else:
        print(table(command.collect(cases(given), given.json, table)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
