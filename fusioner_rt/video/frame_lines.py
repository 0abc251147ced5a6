"""What was found in the frames of a video, as JSON lines: one a frame."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FusionerError, as_command

if TYPE_CHECKING:
    from ..results.segmentation import Segmentation

Line = dict[str, Any]


def found_line(index: int, time: float, result: "Segmentation", instances: bool, dropped: int = 0) -> Line:
    """annotations: as COCO has them, masks as compressed run lengths, per word or per connected part; image_id is the index."""
    return {
        **_frame(index, time, dropped),
        "size": list(result.labels.shape),
        "words": list(result.words),
        "shares": [round(share, 6) for share in result.shares.tolist()],
        "scores": [round(score, 6) for score in result.scores.tolist()],
        "annotations": result.to_coco(index, 1, compressed=True, instances=instances),
    }


def failed_line(index: int, time: float, error: FusionerError, dropped: int = 0) -> Line:
    """A frame that could not be decoded or run. code: the error's exit code."""
    return {**_frame(index, time, dropped), "error": as_command(error.found), "code": error.exit_code}


def encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def whole_lines(path: Path) -> Iterator[tuple[bytes, Line]]:
    """The lines of a file as far as they are whole and follow each other, each with what it says."""
    with open(path, "rb") as stream:
        for index, text in enumerate(stream):
            try:
                line = json.loads(text) if text.endswith(b"\n") else None
            except (ValueError, RecursionError):
                return
            if not isinstance(line, dict) or line.get("index") != index or not _is_whole(line):
                return
            yield text, line


def _is_whole(line: Line) -> bool:
    return {"time", *(("code",) if "error" in line else ("words", "shares"))} <= line.keys()


def _frame(index: int, time: float, dropped: int) -> Line:
    return {"index": index, "time": round(time, 6), **({"dropped": dropped} if dropped else {})}
