"""Two bundles side by side: their size, the first mask, and a call at several label maps, in turns.

  git worktree add ../before COMMIT
  python -m benchmarks.against ../before/models/demo/bundle models/demo/bundle
  python -m benchmarks.against engines/mine engines/smaller --picture photo.jpg --words 50 --json rows.jsonl

One Markdown table: medians, and the share of pixels that both label alike. First mask: processor seconds of the command line
with words never seen, start-up included. A picture of each side is made of a photograph.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import command, machine
from benchmarks.session import NOUNS, cold
from fusioner_rt import Session
from fusioner_rt.command_parser import CommandParser
from fusioner_rt.decode_picture import decode

ROOT = Path(__file__).resolve().parents[1]


def calls(bundles: list[Path], picture: Path, sides: list[int], words: int, repeats: int) -> list[command.Row]:
    """A row per side: every bundle's median milliseconds, and the share of labels that they share."""
    names = [f"{noun} {turn}" if turn else noun for turn in range(-(-words // len(NOUNS))) for noun in NOUNS][:words]
    rows: list[command.Row] = []
    image = Image.fromarray(decode(picture))
    sessions = [Session(bundle, cache=False) for bundle in bundles]
    try:
        for session in sessions:
            session.set_vocabulary(names)
        for side in sides:
            pixels = np.asarray(image.resize((side, side)))
            labels = [session.segment(pixels).labels for session in sessions]  # readies the shape, untimed
            times: list[list[float]] = [[] for _ in sessions]
            for turn in range(2 * repeats):
                index = turn % 2
                started = time.perf_counter()
                sessions[index].segment(pixels)
                times[index].append((time.perf_counter() - started) * 1000)
            rows.append(
                {
                    "what": "call",
                    "side": side,
                    "words": words,
                    "p50_ms": [round(float(np.median(each)), 2) for each in times],
                    "alike": round(float((labels[0] == labels[1]).mean()), 4),
                }
            )
    finally:
        for session in sessions:
            session.close()
    return rows


def size(bundle: Path) -> float:
    """Megabytes of its files."""
    return sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6


def table(sizes: list[float], first: list[float], rows: list[command.Row]) -> str:
    def line(name: str, one: float, other: float, unit: str) -> str:
        return f"| {name} | {one:.4g} {unit} | {other:.4g} {unit} | {other / one:.2f} |"

    lines = ["| | first bundle | second | second / first |", "|---|--:|--:|--:|", line("size", *sizes, "MB")]
    lines.append(line("first mask, new words, processor time", *first, "s"))
    lines += [line(f"{row['side']}², {row['words']} words", *row["p50_ms"], "ms") for row in rows]
    alike = ", ".join(f"{row['side']}² {row['alike']:.1%}" for row in rows)
    return "\n".join([*lines, "", f"Pixels with the same label: {alike}."])


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, cat = parser.add_argument, ROOT / "docs/pictures/cat.jpg"
    add("bundles", nargs=2, type=Path, metavar="BUNDLE", help="two engine bundles")
    add("--picture", type=Path, default=cat, help="a photograph (default: %(default)s)")
    add("--sides", type=command.counts, default=[224, 320, 512, 1024], help="of label maps (224,320,512,1024)")
    add("--words", type=command.count, default=20, help="number of words (%(default)s)")
    add("--repeats", type=command.count, default=15, help="calls of each bundle (%(default)s)")
    add("--json", type=Path, help="append the rows to this file")
    add("--busy", action="store_true", help="measure although other processes run, and say so")
    given = parser.parse_args(arguments)
    return command.exit_status("against.py", lambda: run(given), "nothing was measured to its end")


def run(given: argparse.Namespace) -> int:
    """Raises FusionerError."""
    machine.check_idle(given.busy)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(decode(given.picture)).save(photograph := Path(folder) / "picture.png")
        others = machine.OtherWork()
        rows = calls(given.bundles, photograph, given.sides, given.words, given.repeats)
        busy = round(others.cores(), 2)
        first = [cold(bundle, photograph, 3)["new_words_p50_s"] for bundle in given.bundles]
    sizes = [round(size(bundle), 2) for bundle in given.bundles]
    print(table(sizes, first, rows))
    about = {
        **machine.record("onnxruntime"),
        "others_cores": busy,
        "bundles": [str(bundle) for bundle in given.bundles],
    }
    command.append(
        [{**row, **about} for row in [{"what": "bundle", "mb": sizes, "first_mask_s": first}, *rows]], given.json
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
