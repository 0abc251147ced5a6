"""CLIP towers of the open_clip library behind the encoder interfaces: `open_clip:MODEL[:WEIGHTS]`.

WEIGHTS is one of open_clip's tags, a local file, TAG:FILE for a file that is a tag's, or `random`; the default is OpenAI's
release. A local file is OpenAI's .pt archive or a state dict; both use the same names. OpenAI's weights were trained with QuickGELU; they are recognised by
the archive's extra scalars (input_resolution, ...), or by float32 weights that are float16 numbers. A state dict in float16
may be anyone's: where it is OpenAI's, write open_clip:ViT-B-16:openai:FILE.
"""

from __future__ import annotations

import functools
import gzip
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.bundle import sha256
from fusioner_rt.errors import FusionerError
from training.encoders.interface import ImageEncoder, TextEncoder
from training.encoders.positions import interpolate_positions
from training.encoders.random_weights import mark_random, warn_random
from training.encoders.released import WeightsNotFound, fit, hub_file, not_installed, read_state, url_file
from training.encoders.tokenizer_file import keep_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's release
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Scalars that only OpenAI's files hold beside the weights."""


class OpenClipImage(nn.Module):
    """A CLIP ViT: patch tokens of the last layer after its norm, without the class token and before CLIP's projection.

    Positions are interpolated to any size.
    """

    def __init__(self, visual: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.visual = visual
        self.stride = self.multiple = visual.patch_size[0]
        self.side = visual.image_size[0]
        self.width = visual.conv1.out_channels
        self.mean, self.std = mean, std

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W) → [(B, width, h, w)]."""
        visual = self.visual
        x = visual.conv1(pixels)
        h, w = x.shape[2], x.shape[3]
        class_position, grid = visual.positional_embedding[:1], visual.positional_embedding[1:]
        x = (x + interpolate_positions(grid, visual.grid_size, (h, w))).flatten(2).transpose(1, 2)
        first = (visual.class_embedding + class_position).expand(x.shape[0], -1, -1)
        x = self.after_blocks(visual.ln_pre(torch.cat([first, x], dim=1)), (h, w))
        return [x[:, 1:].transpose(1, 2).unflatten(2, (h, w))]

    def after_blocks(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The transformer and what follows it: x (B, 1 + h·w, c), grid (h, w) → (B, 1 + h·w, width)."""
        return cast(Tensor, self.visual.ln_post(self.visual.transformer(x)))

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return F.normalize(levels[0], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))


class DenseClipImage(OpenClipImage):
    """A CLIP ViT whose patch tokens lie in the space of its words, without training: `dense_clip:MODEL[:WEIGHTS]`.

    After NACLIP (Hajimiri et al., WACV 2025), with its equation 5: in the last block each patch attends to those whose
    keys are like its own and that lie near it, and the block's residual and feed-forward are left out, which make the
    tokens of a picture alike:
        x = W_o · softmax(K Kᵀ / √d + G) · V,  G_ij = exp(-‖p_i - p_j‖² / 2σ²)
    p being a patch's row and column, and G 0 for the class token. CLIP's own norm and projection follow.
    """

    SIGMA = 5.0  # in patches
    SIDE = 336

    def __init__(self, visual: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__(visual, mean, std)
        self.side = self.SIDE
        self.width = visual.proj.shape[1]

    def after_blocks(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        return cast(Tensor, self.visual.ln_post(self._last_attention(last, x, grid)) @ self.visual.proj)

    def _last_attention(self, block: Any, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (B, 1 + h·w, width), grid (h, w) → the same shape."""
        attention = block.attn
        _, key, value = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        key, value = (y.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for y in (key, value))
        alike = key @ key.transpose(2, 3) * key.shape[-1] ** -0.5  # (B, heads, 1 + h·w, 1 + h·w)
        near = F.pad(nearness(grid, self.SIGMA, x), (1, 0, 1, 0))
        attended = torch.softmax(alike + near, dim=-1) @ value
        return cast(Tensor, attention.out_proj(attended.transpose(1, 2).flatten(2)))


def nearness(grid: tuple[int, int], sigma: float, like: Tensor) -> Tensor:
    """(h·w, h·w): exp(-‖p_i - p_j‖² / 2σ²) of a grid's positions, which is the product of that of rows and columns.

    like: a tensor of the dtype and on the device wanted.
    """
    rows, columns = (
        torch.exp((steps[:, None] - steps).square() / (-2 * sigma**2))
        for steps in (torch.arange(edge, dtype=like.dtype, device=like.device) for edge in grid)
    )
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)


class OpenClipResNet(nn.Module):
    """A CLIP ResNet (paper, table 2): the last feature map, at stride 32, before CLIP's attention pooling.

    The pooling makes one vector of a picture and has positions for one size only; the paper does not say which map it
    takes. This map has 2048 channels for ResNet-101; the decoder then has 5 stages (paper 4.1).
    Batch norms are folded into the convolutions: the encoder is frozen, and exported graphs are smaller.
    """

    stride = multiple = 32

    def __init__(self, visual: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        visual = visual.eval()
        self.stem = nn.Sequential(*(getattr(visual, f"{kind}{i}") for i in (1, 2, 3) for kind in ("conv", "bn", "act")))
        self.pool = visual.avgpool
        self.layers = nn.Sequential(visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        fold_norms(self)
        size = visual.image_size
        self.side = size[0] if isinstance(size, tuple) else size
        self.width = visual.attnpool.k_proj.in_features
        self.mean, self.std = mean, std

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W), H and W multiples of 32 → [(B, width, H/32, W/32)]."""
        return [self.layers(self.pool(self.stem(pixels)))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return F.normalize(levels[0], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))


def fold_norms(module: nn.Module) -> None:
    """Folds each batch norm into the convolution before it, among a module's children (in eval mode)."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        else:
            fold_norms(child)
        previous = (name, child)


class OpenClipText(nn.Module):
    """CLIP's sentence vector: the projected embedding of the end-of-text token."""

    templates = None  # any

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name in ("token_embedding", "transformer", "ln_final"):
            setattr(self, name, getattr(model, name))
        self.positional_embedding = model.positional_embedding
        self.text_projection = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.width, self.max_tokens = model.text_projection.shape[1], model.context_length
        self.tokenizer_file = clip_tokenizer_file()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (N, L) int64 → (N, width), unit length. Attention is causal: padding changes nothing."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask[:length, :length]))
        # A product with a mask, not a lookup: it exports for any length.
        last = (attention_mask.cumsum(1) * attention_mask == attention_mask.sum(1, keepdim=True)).to(x.dtype)
        return F.normalize((x * last[:, :, None]).sum(1) @ self.text_projection, dim=-1)


def image_tower(name: str) -> tuple[ImageEncoder, str]:
    loaded = _load(name)
    visual = loaded.model.visual
    if hasattr(visual, "layer4") and hasattr(visual, "attnpool"):
        return cast(ImageEncoder, OpenClipResNet(visual, loaded.mean, loaded.std)), loaded.sha256
    if not hasattr(visual, "conv1") or not hasattr(visual, "grid_size"):
        raise FusionerError(
            "only CLIP's ViT and ResNet image towers are supported",
            "name one, for example open_clip:ViT-B-16, open_clip:RN101",
            subject=name,
        )
    return cast(ImageEncoder, OpenClipImage(visual, loaded.mean, loaded.std)), loaded.sha256


def dense_tower(name: str) -> tuple[ImageEncoder, str]:
    """`dense_clip:MODEL[:WEIGHTS]`, with the weights that `open_clip:MODEL[:WEIGHTS]` has."""
    loaded = _load(f"open_clip:{name.removeprefix('dense_clip:')}")
    visual = loaded.model.visual
    if not (hasattr(visual, "conv1") and isinstance(getattr(visual, "proj", None), nn.Parameter)):
        raise FusionerError(
            "only CLIP's ViTs with a plain projection give dense features without training",
            "name one, for example dense_clip:ViT-B-16",
            subject=name,
        )
    return cast(ImageEncoder, DenseClipImage(visual, loaded.mean, loaded.std)), loaded.sha256


def text_tower(name: str) -> tuple[TextEncoder, str]:
    loaded = _load(name)
    if not isinstance(getattr(loaded.model, "text_projection", None), nn.Parameter):
        raise FusionerError(
            "only CLIP text towers with a plain projection are supported",
            "name one, for example open_clip:ViT-B-16",
            subject=name,
        )
    return cast(TextEncoder, OpenClipText(loaded.model)), loaded.sha256


@dataclass(frozen=True)
class _Loaded:
    model: Any
    sha256: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


@functools.lru_cache(maxsize=1)  # both towers of one model are usually asked for in turn
def _load(name: str) -> _Loaded:
    """`open_clip:MODEL[:WEIGHTS]`. Raises WeightsNotFound, WeightsUnfit."""
    _, architecture, weights = (*name.split(":", 2), "")[:3]
    open_clip = import_open_clip()
    if architecture not in open_clip.list_models():
        raise WeightsNotFound(
            f"open_clip has no model {architecture!r}",
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them",
        )
    if weights == "random":
        warn_random(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _create(architecture)
        return _Loaded(model, mark_random(model))
    tag, place = tag_and_file(weights)
    file, preset = Path(place), {}
    if tag:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in tags:
            raise WeightsNotFound(
                f"{tag!r} is neither a file nor one of open_clip's tags"
                if weights
                else "OpenAI released no such weights",
                f"name one of open_clip's tags for {architecture}: {', '.join(tags) or 'none'}",
                subject=name,
            )
        preset = open_clip.get_pretrained_cfg(architecture, tag)
        file = file if place else _tag_file(preset, name)
    state = clip_state(read_state(file))
    openai = tag == "openai" or (not tag and _of_openai(state, name))
    model = _create(architecture, quick_gelu=openai or bool(preset.get("quick_gelu")))
    fit(model, {n: v for n, v in state.items() if n not in OPENAI_NUMBERS}, str(file))
    return _Loaded(model, sha256(file), tuple(preset.get("mean") or MEAN), tuple(preset.get("std") or STD))


def _of_openai(state: dict[str, Any], name: str) -> bool:
    """Whether a file holds OpenAI's weights, which ask for QuickGELU.

    Its archive says so by numbers that no other file holds. It released float16: copies of it in float32 hold no other
    numbers. A state dict in float16 may be anyone's; it is read as the architecture is, with a warning.
    """
    if any(number in state for number in OPENAI_NUMBERS):
        return True
    matrices = [value for value in state.values() if isinstance(value, Tensor) and value.ndim > 1]
    if any(value.dtype != torch.float32 for value in matrices):
        warnings.warn(
            f"{name}: 16-bit weights, read with the activation of {name.split(':')[1]}; OpenAI's have another, name "
            "them openai:FILE in place of FILE",
            stacklevel=2,
        )
        return False
    return bool(matrices) and all(torch.equal(value, value.half().float()) for value in matrices)


def tag_and_file(weights: str) -> tuple[str, str]:
    """What stands for the weights in a name → one of open_clip's tags, or "", and a file, or ""."""
    first, _, rest = (weights or "openai").partition(":")
    # No tag holds a dot or a slash.
    return ("", weights) if Path(weights).is_file() or set("./\\") & set(first) else (first, rest)


def _create(architecture: str, quick_gelu: bool = False) -> Any:
    """The model with random weights; quick_gelu: the activation OpenAI's weights were trained with."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(logging.ERROR, level))  # its warnings are about weights that our callers load
    try:
        return import_open_clip().create_model(architecture, precision="fp32", force_quick_gelu=quick_gelu)
    finally:
        logging.getLogger().setLevel(level)


def clip_state(state: dict[str, Any]) -> dict[str, Any]:
    """A CLIP's parameters in a released state dict; open_clip's checkpoints wrap and prefix them."""
    state = state["state_dict"] if isinstance(state.get("state_dict"), dict) else state
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _tag_file(preset: dict[str, Any], name: str) -> Path:
    """The file of one of open_clip's tags. Raises WeightsNotFound."""
    if not preset.get("hf_hub"):
        return url_file(preset["url"], name)
    repository, filename = os.path.split(preset["hf_hub"])
    if filename:
        return hub_file(repository, filename, name)
    try:
        return hub_file(repository, "open_clip_model.safetensors", name)
    except WeightsNotFound:
        return hub_file(repository, "open_clip_pytorch_model.bin", name)


def import_open_clip() -> Any:
    """The open_clip module. Raises WeightsNotFound without it.

    It imports torchvision, whose CUDA wheel expects operators that a CPU torch lacks: they are declared first.
    """
    try:
        define_torchvision_operators()
        import open_clip
    except ImportError as error:
        raise not_installed(error, "open_clip") from None
    return open_clip


@functools.cache
def define_torchvision_operators() -> torch.library.Library | None:
    """Declares nms and qnms where torch lacks them: `import torchvision` then succeeds. The cache keeps the library."""
    if torch.cuda.is_available() or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@functools.cache
def clip_tokenizer_file() -> Path:
    """CLIP's byte-pair tokenizer as a `tokenizers` file, built from open_clip's merges."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing

    source = Path(import_open_clip().tokenizer.default_bpe())
    with gzip.open(source, "rt", encoding="utf-8") as text:
        lines = text.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # CLIP's vocabulary ends there
    merges = [tuple(line.split()) for line in lines]
    alphabet = _byte_alphabet()
    pieces = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *("".join(m) for m in merges),
        "<start_of_text>",
        "<end_of_text>",
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        BPE(vocabulary, cast("list[tuple[str, str]]", merges), end_of_word_suffix="</w>", unk_token="<end_of_text>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start, end = vocabulary["<start_of_text>"], vocabulary["<end_of_text>"]
    tokenizer.post_processor = TemplateProcessing(
        "<start_of_text> $A <end_of_text>", special_tokens=[("<start_of_text>", start), ("<end_of_text>", end)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="!")
    return keep_tokenizer(tokenizer.to_str())


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in CLIP's order: printable bytes first, the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
