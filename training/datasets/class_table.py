"""The classes of a folder as a table: how many pictures show each, and its share of the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.data import IGNORE


def class_table(classes: Sequence[str], shown: Mapping[str, Mapping[int, int]], pixels: Mapping[int, int]) -> str:
    """classes: by index. shown: column → index → pictures that show the class. pixels: by index, ignored ones under IGNORE."""
    rows = [(str(index), name, index) for index, name in enumerate(classes)]
    if pixels.get(IGNORE):
        rows.append(("", "ignored (255)", IGNORE))
    heading, total = "pictures that show", max(1, sum(pixels.values()))
    width = max(len(heading), *(len(name) for _, name, _ in rows))
    lines = [f"  {'':>4} {heading:<{width}}" + "".join(f"{column:>8}" for column in shown) + "  pixels"]
    for number, name, index in rows:
        counts = "".join(f"{of.get(index, 0):>8,}" if index > 0 else f"{'–':>8}" for of in shown.values())
        lines.append(f"  {number:>4} {name:<{width}}{counts}  {100 * pixels.get(index, 0) / total:>5.1f}%")
    return "\n".join(lines)
