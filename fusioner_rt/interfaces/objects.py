"""What a result shows, in the form that other tools take: one object per word, or per connected part of one."""

from typing import Any

from ..errors import UsageError
from ..results.instances import Instance, per_word
from ..results.segmentation import Segmentation


def objects(result: Any, instances: bool = False) -> list[Instance]:
    """The words of a Segmentation that have pixels, in their order, or with `instances` their connected parts.

    Raises UsageError, and PackageMissing without scipy where parts are wanted.
    """
    if not isinstance(result, Segmentation):
        raise UsageError(
            f"the result is a {type(result).__name__}", "give what session.segment returned, one picture's"
        )
    return result.instances() if instances else list(per_word(result.labels, result.words, result.scores))
