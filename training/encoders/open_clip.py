"""CLIP towers of the open_clip library behind the encoder interfaces: `open_clip:MODEL[:WEIGHTS]`.

WEIGHTS is one of open_clip's tags, a local file, or `random`; left out, it is OpenAI's release. A local file is OpenAI's
own .pt archive or a state dict: OpenAI and open_clip use the same names. OpenAI's weights were trained with QuickGELU,
which is told from the archive's extra numbers (input_resolution, ...); for a state dict of them without those, name the
model so: open_clip:ViT-B-16-quickgelu:FILE.
"""

from __future__ import annotations

import functools
import gzip
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.errors import FusionerError
from training.encoders import ImageEncoder, TextEncoder, WeightsNotFound, digest, keep_tokenizer, sha256, warn_random
from training.encoders.positions import interpolate_positions
from training.encoders.released import fit, hub_file, read_state, url_file

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's release
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Scalars that OpenAI's files hold beside the weights; open_clip's do not."""


class OpenClipImage(nn.Module):
    """A CLIP ViT: patch tokens of the last layer after its norm, without the class token and before CLIP's projection.

    Any size: positions are interpolated.
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
        x = visual.ln_post(visual.transformer(visual.ln_pre(torch.cat([first, x], dim=1))))
        return [x[:, 1:].transpose(1, 2).unflatten(2, (h, w))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return F.normalize(levels[0], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))


class OpenClipResNet(nn.Module):
    """A CLIP ResNet (paper, table 2): the last grid, at stride 32, before CLIP's attention pooling.

    That pooling turns a whole picture into one vector and has positions for one size alone; the paper does not say
    which grid it takes. This one has 2048 channels for ResNet-101; the decoder then has 5 stages (paper 4.1).
    Batch norms are folded into the convolutions: the encoder is frozen, and graphs come out smaller.
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
    """Every batch norm that follows a convolution among a module's children becomes part of it (in eval mode)."""
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
    """The embedding at the end-of-text token, projected: CLIP's own sentence vector."""

    templates = None  # the paper's

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
        # A product, not a lookup: any length exports plainly.
        last = (attention_mask.cumsum(1) * attention_mask == attention_mask.sum(1, keepdim=True)).to(x.dtype)
        return F.normalize((x * last[:, :, None]).sum(1) @ self.text_projection, dim=-1)


def image_tower(name: str) -> tuple[ImageEncoder, str]:
    loaded = _load(name)
    visual = loaded.model.visual
    if hasattr(visual, "layer4") and hasattr(visual, "attnpool"):
        return cast(ImageEncoder, OpenClipResNet(visual, loaded.mean, loaded.std)), loaded.sha256
    if not hasattr(visual, "conv1") or not hasattr(visual, "grid_size"):
        raise FusionerError(
            "only CLIP's ViT and ResNet image towers are supported, for example open_clip:ViT-B-16, open_clip:RN101",
            subject=name,
        )
    return cast(ImageEncoder, OpenClipImage(visual, loaded.mean, loaded.std)), loaded.sha256


def text_tower(name: str) -> tuple[TextEncoder, str]:
    loaded = _load(name)
    if not isinstance(getattr(loaded.model, "text_projection", None), nn.Parameter):
        raise FusionerError(
            "only CLIP text towers with a plain projection are supported, for example open_clip:ViT-B-16", subject=name
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
            f"open_clip has no model {architecture!r}; `python -c 'import open_clip",
            "print(open_clip.list_models())'` lists them",
        )
    if weights == "random":
        warn_random(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _create(architecture)
        return _Loaded(model, digest(model))
    file, tag = Path(weights), ""
    about: dict[str, Any] = {}
    if not weights or not file.is_file():
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        tag = weights or "openai"
        if tag not in tags:
            given = f"{tag!r} is neither a file nor" if weights else "OpenAI released none of these; name"
            raise WeightsNotFound(
                f"{given} one of open_clip's tags for {architecture}: {', '.join(tags) or 'none'}", subject=name
            )
        about = open_clip.get_pretrained_cfg(architecture, tag)
        file = _tag_file(about, name)
    state = clip_state(read_state(file))
    openai = tag == "openai" or any(number in state for number in OPENAI_NUMBERS)
    model = _create(architecture, quick_gelu=openai or bool(about.get("quick_gelu")))
    fit(model, {n: v for n, v in state.items() if n not in OPENAI_NUMBERS}, str(file))
    return _Loaded(model, sha256(file), tuple(about.get("mean") or MEAN), tuple(about.get("std") or STD))


def _create(architecture: str, quick_gelu: bool = False) -> Any:
    """The model with random weights; quick_gelu: the activation OpenAI's weights were trained with."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(logging.ERROR, level))  # open_clip warns of what our callers say, or mend
    try:
        return import_open_clip().create_model(architecture, precision="fp32", force_quick_gelu=quick_gelu)
    finally:
        logging.getLogger().setLevel(level)


def clip_state(state: dict[str, Any]) -> dict[str, Any]:
    """A CLIP's names out of a release: OpenAI's archive and open_clip's files are bare, its checkpoints are wrapped."""
    state = state["state_dict"] if isinstance(state.get("state_dict"), dict) else state
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _tag_file(about: dict[str, Any], name: str) -> Path:
    """The file of one of open_clip's tags. Raises WeightsNotFound."""
    if not about.get("hf_hub"):
        return url_file(about["url"], name)
    repository, filename = os.path.split(about["hf_hub"])
    if filename:
        return hub_file(repository, filename, name)
    try:
        return hub_file(repository, "open_clip_model.safetensors", name)
    except WeightsNotFound:
        return hub_file(repository, "open_clip_pytorch_model.bin", name)


def import_open_clip() -> Any:
    """open_clip imports torchvision, whose wheel for CUDA declares operators that a CPU torch does not have."""
    try:
        define_torchvision_operators()
        import open_clip
    except ImportError as error:
        raise WeightsNotFound(
            f"open_clip is not installed ({error})",
            "install it: pip install --no-deps open_clip_torch timm torchvision ftfy wcwidth regex",
        ) from None
    return open_clip


@functools.cache
def define_torchvision_operators() -> torch.library.Library | None:
    """Declares nms and qnms where torch lacks them, so that `import torchvision` succeeds. Kept alive by the cache."""
    if torch.cuda.is_available() or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@functools.cache
def clip_tokenizer_file() -> Path:
    """CLIP's byte-pair tokenizer as a `tokenizers` file, made from the merges open_clip ships."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing

    source = Path(import_open_clip().tokenizer.default_bpe())
    with gzip.open(source, "rt", encoding="utf-8") as text:
        lines = text.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # the rest of the file is beyond CLIP's vocabulary
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
    return keep_tokenizer(tokenizer)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte, in CLIP's order: printable bytes first, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
