"""fusioner-rt: open-vocabulary segmentation from an engine bundle, without a training framework.

    from fusioner_rt import Session
    result = Session("models/demo/bundle").segment("photo.jpg", words="cat, sofa")
    result.overlay().save("seen.jpg")

Session        pictures and words to masks
EncodedPicture a picture after the image encoder; `segment` takes it with any words
Segmentation   the result: labels, masks, scores, timing, overlay, COCO, files
Preprocessing  picture to network input, for serving and training
StreamedFrame  a frame of `Session.stream`, and what was found in it
to_coco        one COCO document of many results
FusionerError  the base class of all errors; `fusioner_rt.errors` lists the kinds
"""

import logging
import os
from typing import TYPE_CHECKING, Any

from .printable_text import PrintableRecords

# Before ONNX Runtime is imported, which would keep a device id and a queue of events in the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
logging.getLogger("fusioner_rt").addHandler(logging.NullHandler())
logging.getLogger("fusioner_rt").addFilter(PrintableRecords())

__version__ = "0.1.0"
__all__ = [
    "EncodedPicture", "FusionerError", "Preprocessing", "Segmentation", "Session", "StreamedFrame", "__version__", "to_coco",
]  # fmt: skip

if TYPE_CHECKING:
    from .encoder_output import EncodedPicture
    from .errors import FusionerError
    from .preprocess import Preprocessing
    from .results.coco_document import to_coco
    from .results.segmentation import Segmentation
    from .session import Session
    from .stream import StreamedFrame

_HOMES = {
    "EncodedPicture": "encoder_output",
    "FusionerError": "errors",
    "Preprocessing": "preprocess",
    "Segmentation": "results.segmentation",
    "Session": "session",
    "StreamedFrame": "stream",
    "to_coco": "results.coco_document",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `fusioner-rt --help` does not wait for ONNX Runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
