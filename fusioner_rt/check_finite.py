"""The checks of values that every backend makes."""

import numpy as np

from .bundle import Bundle
from .cures import rebuild, rebuild_without_fp16
from .errors import GraphUnusable
from .executor_interface import Answer

_ROUNDING = 1e-5


def check_finite(bundle: Bundle, *arrays: np.ndarray) -> None:
    """Raises GraphUnusable where a value is not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise not_finite(bundle)


def not_finite(bundle: Bundle) -> GraphUnusable:
    """The error of `check_finite`."""
    return GraphUnusable(
        f"computed values that are not finite, as {bundle.precision} may on some machines",
        rebuild_without_fp16(bundle.folder),
        subject=bundle.graph("image_fusion"),
    )


def checked_answer(bundle: Bundle, answer: Answer) -> Answer:
    """The same. Raises GraphUnusable where the mask head's graphs gave what is no probability."""
    for name, values in (("mask_tiles", answer.confidence), ("mask_probabilities", answer.probabilities)):
        if values is not None and not (values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING):  # nor NaN
            raise GraphUnusable("gave what is no probability", rebuild(bundle.folder), subject=bundle.graph(name))
    return answer
