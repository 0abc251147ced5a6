"""An auto-annotation function for CVAT.

    cvat-cli ... task auto-annotate TASK --function-module fusioner_rt.interfaces.cvat -p words='str:cat, sofa'

The task's labels are called as the words. Agents take it as well (`cvat-cli function create-native` and `run-agent`).
"""

import inspect
from functools import cached_property
from typing import Any

from ..argument_checks import flag
from ..errors import UsageError, WordsInvalid
from ..optional_packages import optional
from ..results.instances import Instance
from ..results.key_holes import without_holes
from ..session import Session
from .objects import objects

_OPTIONS = [name for name in inspect.signature(Session).parameters if name != "bundle"]


def create(words: str = "", bundle: str | None = None, instances: bool = False, **options: Any) -> "Function":
    """What CVAT calls with the parameters of `-p NAME=TYPE:VALUE`.

    words: "cat, sofa", groups as in docs/words.md. bundle: its folder, None for the default. instances: one shape per
    connected part, not per word. options: of `Session`, such as backend=str:onnxruntime-cpu.
    Raises PackageMissing, UsageError of other parameters, and what `Session` and `set_vocabulary` raise.
    """
    for name in options:
        if name not in _OPTIONS:
            raise UsageError(
                f"the function for CVAT has no parameter {name!r}",
                f"give words, and of these what you need: bundle, instances, {', '.join(_OPTIONS)}",
            )
    if not isinstance(words, str) or not words:
        raise WordsInvalid(f"words is {words!r}, a text was expected", "give some, such as 'cat, sofa'")
    return Function(words, bundle, instances, options)


class Function:
    """CVAT's `DetectionFunction`."""

    def __init__(self, words: str, bundle: str | None, instances: bool, options: dict[str, Any]) -> None:
        """As `create`."""
        self._instances = flag(instances, "instances")
        self._interface = optional("cvat_sdk.auto_annotation", "cvat-sdk", "functions of CVAT")
        self._encode_mask = optional("cvat_sdk.masks", "cvat-sdk", "functions of CVAT").encode_mask
        self._session = Session(bundle, **options)
        self._session.set_vocabulary(words)

    @cached_property
    def spec(self) -> Any:
        """A label of type mask per word."""
        label, words = self._interface.label_spec, self._session.words
        return self._interface.DetectionFunctionSpec(
            labels=[label(word, number, type="mask") for number, word in enumerate(words, start=1)]
        )

    def detect(self, context: Any, image: Any) -> list[Any]:
        """Shapes of a picture: masks, or polygons where `context` wants them, with holes joined to the rings around them.

        context.conf_threshold: the least score of a shape. image: a Pillow image.
        """
        least = context.conf_threshold or 0.0
        found = objects(self._session.segment(image), self._instances)
        shape = self._polygons if context.conv_mask_to_poly else self._masks
        return [made for one in found if one.score >= least for made in shape(one)]

    def _masks(self, one: Instance) -> list[Any]:
        return [self._interface.mask(one.label, self._encode_mask(one.mask))]

    def _polygons(self, one: Instance) -> list[Any]:
        rings = map(without_holes, one.polygons())
        return [self._interface.polygon(one.label, ring.ravel().tolist()) for ring in rings]
