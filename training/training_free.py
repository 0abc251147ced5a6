"""Training-free dense CLIP: the paper's model without fusion and decoder (table 4), and without any layer of ours.

Pixels are CLIP's own patches, with the last block of `training.encoders.open_clip.DenseClipImage`; words are CLIP's, in
the 80 templates of its ImageNet evaluation. A picture's words share a pixel by softmax(40 · cosine).
"""

from __future__ import annotations

from fusioner_rt.cures import CLIP_MODELS
from training import checkpoint
from training.encoders import WeightsNotFound, WeightsUnfit
from training.encoders.open_clip import import_open_clip
from training.encoders.released import downloads_allowed
from training.model import IDENTITY, Fusioner, FusionerConfig

MODELS = {name: (CLIP_MODELS[name], width) for name, width in (("clip-b16", 512), ("clip-l14", 768))}
"""open_clip's architecture and the width of its joint space, by the name that `build_engine.py --model` takes."""

TEMPERATURE = 1 / 40
WINDOW, STRIDE = 224, 112
"""Sliding windows, in pixels of the network's input: multiples of both models' patches."""


def clip(name: str, weights: str = "") -> FusionerConfig:
    """The configuration of one of MODELS. weights: a file, a tag of open_clip's, "random", or "" for OpenAI's release.

    Raises WeightsNotFound without open_clip.
    """
    architecture, width = MODELS[name]
    weights = f":{weights}" if weights else ""
    return FusionerConfig(
        image_encoder=f"dense_clip:{architecture}{weights}",
        text_encoder=f"open_clip:{architecture}{weights}",
        width=width, layers=0, fusion=IDENTITY, decoder=(), temperature=TEMPERATURE, templates=imagenet_templates(),
    )  # fmt: skip


def build(name: str, weights: str = "") -> Fusioner:
    """The model of `clip`. Raises WeightsNotFound and WeightsUnfit, whose cures speak of build_engine.py's options."""
    try:
        return checkpoint.build(clip(name, weights)).eval()
    except WeightsUnfit as error:
        if "another model" not in error.found:
            raise
        other = next((m for m, (architecture, _) in MODELS.items() if f"open_clip:{architecture}:" in error.cure), None)
        known = ", ".join(f"{architecture}'s with --model {model}" for model, (architecture, _) in MODELS.items())
        cure = f"build it with --model {other}" if other and other != name else f"give --weights of CLIP: {known}"
        raise WeightsUnfit(error.found, cure, subject=error.subject) from None
    except WeightsNotFound as error:
        if weights or "is not on this machine" not in error.found:
            raise
        allow = "" if downloads_allowed() else ", or allow the download: --download"
        raise WeightsNotFound(
            error.found, f"name the file of its weights: --weights FILE{allow}", subject=f"--model {name}"
        ) from None


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts of CLIP's ImageNet evaluation, as open_clip has them."""
    import_open_clip()
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{category}") for template in OPENAI_IMAGENET_TEMPLATES)
