"""A result in the form that the client accepts."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..optional_packages import optional
from ..results import rle
from ..results.colours import word_colours
from ..results.instances import Instance, connected, per_word
from ..results.segmentation import Segmentation, check_edges
from .errors import FormUnknown
from .request import SegmentRequest

_MOST_FORMS = 50  # of a header of 64 kB, which is read on the event loop
JSON, PNG, JPEG, NPZ = "application/json", "image/png", "image/jpeg", "application/x-npz"


@dataclass(frozen=True)
class Answer:
    """What is told of one request. id: of the request. timing: milliseconds by stage. handle: of the encoded picture.

    check: is called before each mask, and may raise to stop.
    """

    id: str
    model: str
    request: SegmentRequest
    result: Segmentation
    timing: Mapping[str, float]
    handle: str | None = None
    check: Callable[[], None] = lambda: None


def media_type(accept: str) -> str:
    """The form to answer in. accept: the header's value. Raises FormUnknown."""
    best: tuple[float, int, int, str] | None = None
    for place, part in enumerate(accept.split(",", _MOST_FORMS)[:_MOST_FORMS] if accept.strip() else ["*/*"]):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        for form in FORMS:
            exact = 2 if name == form else 1 if name == f"{form.split('/')[0]}/*" else 0 if name == "*/*" else -1
            rank = (weight, exact, -place, form)
            if exact >= 0 and weight > 0 and (best is None or rank[:3] > best[:3]):
                best = rank
    if best is None:
        raise FormUnknown(f"none of {accept[:200]} is answered", f"accept one of {', '.join(FORMS)}", "Accept")
    return best[3]


def check_packages(form: str, request: SegmentRequest) -> None:
    """Before the model runs: whether what the answer needs is installed. Raises PackageMissing."""
    if request.masks == "polygons" and form == JSON:
        optional("shapely", "shapely", "polygons")
    if request.instances and form in (JSON, NPZ):
        optional("scipy.ndimage", "scipy", "instances")


def encode(form: str, answer: Answer) -> bytes:
    """The answer's bytes. Raises PackageMissing, OverlayTooLarge."""
    return FORMS[form](answer)


def _json(answer: Answer) -> bytes:
    return _dumps(_fields(answer, answer.request.masks))


def _png(answer: Answer) -> bytes:
    return _image(answer.result.label_image(), "PNG", compress_level=1)


def _jpeg(answer: Answer) -> bytes:
    overlay = answer.result.overlay()
    check_edges(overlay, "JPEG", "ask for a smaller size", "size")
    return _image(overlay, "JPEG", quality=92)


def _npz(answer: Answer) -> bytes:
    """labels.npy (H, W) uint16, confidence.npy (H, W) float16 and answer.json, the JSON answer without masks."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (
            ("labels.npy", answer.result.labels),
            ("confidence.npy", answer.result.confidence.astype(np.float16)),
        ):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(name, file.getbuffer())
        archive.writestr("answer.json", _dumps(_fields(answer, "none")))
    return stream.getvalue()


FORMS: dict[str, Callable[[Answer], bytes]] = {JSON: _json, PNG: _png, JPEG: _jpeg, NPZ: _npz}


def _fields(answer: Answer, masks: str) -> dict[str, Any]:
    result, request = answer.result, answer.request
    colours = word_colours(result.words).tolist()
    words: list[dict[str, Any]] = [
        {
            "word": word,
            "share": round(float(result.shares[number]), 6),
            "score": round(float(result.scores[number]), 6),
            "area": 0,
            "box": None,
            "colour": colours[number],
        }
        for number, word in enumerate(result.words)
    ]
    for whole in per_word(result.labels, result.words, result.scores):
        answer.check()
        words[whole.label - 1] |= _found(whole, masks, request.tolerance)
    instances = []
    for part in connected(result.labels, result.confidence, result.words) if request.instances else ():
        answer.check()
        score = {"word": part.word, "score": round(part.score, 6)}
        instances.append(score | _found(part, masks, request.tolerance))
    return {
        "id": answer.id,
        "model": answer.model,
        "size": list(result.labels.shape),
        "words": words,
        "instances": instances,
        "threshold": result.threshold,
        "notes": list(result.notes),
        "timing": {stage: round(taken, 3) for stage, taken in answer.timing.items()},
        "handle": answer.handle,
    }


def _found(instance: Instance, masks: str, tolerance: float) -> dict[str, Any]:
    """Area, box and mask, as COCO has them."""
    found: dict[str, Any] = {"area": instance.area, "box": list(instance.box)}
    if masks == "rle":
        counts = rle.run_lengths(instance.crop, instance.box[:2], instance.size)
        found["mask"] = {"size": list(instance.size), "counts": rle.compress(counts)}
    elif masks == "polygons":
        found["polygons"] = [
            {"exterior": polygon.exterior.tolist(), "holes": [hole.tolist() for hole in polygon.holes]}
            for polygon in instance.polygons(tolerance)
        ]
    return found


def _dumps(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, default=dict).encode("utf-8", "replace")


def _image(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
