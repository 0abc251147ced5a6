"""Optimisation profiles: the shapes that a TensorRT plan takes, and those it is tuned for, as named sets.

latency     one picture, edges from half to twice the usual, at most 64 words
throughput  as many pictures as the bundle takes at once, tuned for that many
any-size    all that the manifest allows, tuned for one picture of the usual size

One plan may have several, in the order named. The runtime takes the first that holds the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

NAMES = ("latency", "throughput", "any-size")
LATENCY_WORDS = 64
MAX_PROMPTS = 256
"""In one call: those of one word's templates, or of several words'."""

Shape = tuple[int, ...]
Shapes = dict[str, list[Shape]]
"""Least, usual and largest shape by input."""


def shapes(name: str, manifest: Mapping[str, Any], model: onnx.ModelProto) -> Shapes:
    """One of the NAMES for one graph, whose dimensions have letters (docs/bundle.md).

    P, the number of pictures, may be 1 in all of them: `mode="independent"` fuses one picture with B vocabularies.
    """
    letters = _letters(name, manifest)

    def shape(value: onnx.ValueInfoProto, bound: int) -> Shape:
        dimensions = value.type.tensor_type.shape.dim
        return tuple(letters[d.dim_param][bound] if d.dim_param else d.dim_value for d in dimensions)

    return {value.name: [shape(value, bound) for bound in range(3)] for value in model.graph.input}


def distinct(names: Sequence[str], manifest: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, Shapes]:
    """Shapes by name. A set that equals one before it is left out: the runtime would never take it."""
    found: dict[str, Shapes] = {}
    for name in names:
        asked = shapes(name, manifest, model)
        if asked not in found.values():
            found[name] = asked
    return found


def _letters(name: str, manifest: Mapping[str, Any]) -> dict[str, Shape]:
    """Least, usual and largest length by letter."""
    words, batch, size = (
        tuple(int(manifest["profiles"][key][bound]) for bound in ("min", "opt", "max"))
        for key in ("words", "batch", "size")
    )
    tokens, templates = int(manifest["tokenizer"]["max_tokens"]), len(manifest["templates"])
    multiple = int(manifest["preprocessing"]["multiple"])
    prompts = (1, templates, max(MAX_PROMPTS, templates))
    if name == "latency":
        words = (words[0], min(words[1], LATENCY_WORDS), min(words[2], LATENCY_WORDS))
        batch = (1, 1, 1)
        half, twice = size[1] // 2 // multiple * multiple, 2 * size[1]
        size = (max(size[0], half), size[1], min(size[2], twice))
    elif name == "throughput":
        batch = (1, batch[2], batch[2])
        prompts = (1, prompts[2], prompts[2])
    return {
        "K": words, "B": batch, "P": batch, "H": size, "W": size,
        "N": prompts, "L": (1, min(16, tokens), tokens),
    }  # fmt: skip
