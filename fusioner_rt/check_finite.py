"""The check for non-finite values that every backend makes."""

import numpy as np

from .bundle import Bundle
from .cures import rebuild_without_fp16
from .errors import GraphUnusable


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
