"""CLIP towers of the open_clip library behind the encoder interfaces. Weights: a hub tag, a local file, or random."""

from __future__ import annotations

import functools
import gzip
import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.errors import FusionerError
from training.encoders import ImageEncoder, TextEncoder, WeightsNotFound, digest, keep_tokenizer, sha256, warn_random


class OpenClipImage(nn.Module):
    """Patch tokens of the last layer after its norm, without the class token. Any size: positions are interpolated."""

    def __init__(self, visual: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
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
        grid = grid.unflatten(0, visual.grid_size).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, size=(h, w), mode="bilinear", align_corners=False)
        x = (x + grid).flatten(2).transpose(1, 2)
        first = (visual.class_embedding + class_position).expand(x.shape[0], -1, -1)
        x = visual.ln_post(visual.transformer(visual.ln_pre(torch.cat([first, x], dim=1))))
        return [x[:, 1:].transpose(1, 2).unflatten(2, (h, w))]

    def assemble(self, levels: list[Tensor]) -> Tensor:
        return F.normalize(levels[0], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.assemble(self.extract(pixels))


class OpenClipText(nn.Module):
    """The embedding at the end-of-text token, projected: CLIP's own sentence vector."""

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
    model, digest = _model(name)
    if not hasattr(model.visual, "conv1") or not hasattr(model.visual, "grid_size"):
        raise FusionerError(f"{name}: only plain ViT image towers are supported, for example open_clip:ViT-B-16")
    mean = getattr(model.visual, "image_mean", None) or (0.48145466, 0.4578275, 0.40821073)
    std = getattr(model.visual, "image_std", None) or (0.26862954, 0.26130258, 0.27577711)
    return cast(ImageEncoder, OpenClipImage(model.visual, tuple(mean), tuple(std))), digest


def text_tower(name: str) -> tuple[TextEncoder, str]:
    model, digest = _model(name)
    if not isinstance(getattr(model, "text_projection", None), nn.Parameter):
        raise FusionerError(
            f"{name}: only CLIP text towers with a plain projection are supported, for example open_clip:ViT-B-16"
        )
    return cast(TextEncoder, OpenClipText(model)), digest


@functools.lru_cache(maxsize=1)  # both towers of one model are usually asked for in turn
def _model(name: str) -> tuple[Any, str]:
    """`open_clip:MODEL[:WEIGHTS]`. Raises WeightsNotFound where the library or the weights are missing."""
    _, architecture, weights = (*name.split(":", 2), "")[:3]
    open_clip = import_open_clip()
    if architecture not in open_clip.list_models():
        raise WeightsNotFound(
            f"open_clip has no model {architecture!r}; `python -c 'import open_clip; print(open_clip.list_models())'` lists them"
        )
    if not weights:
        warn_random(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            logging.getLogger().setLevel(
                max(logging.ERROR, logging.getLogger().level)
            )  # it warns of what warn_random says
            return open_clip.create_model(architecture, precision="fp32"), ""
    if not Path(weights).is_file() and weights not in open_clip.list_pretrained_tags_by_model(architecture):
        raise WeightsNotFound(
            f"{name}: {weights!r} is neither a file nor one of open_clip's tags for {architecture}: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(architecture)) or 'none'}"
        )
    try:
        model = open_clip.create_model(architecture, pretrained=weights, precision="fp32")
    except Exception as error:  # the hub client raises many kinds; to the user they are one: the weights did not come
        raise WeightsNotFound(
            f"{name}: the weights could not be loaded ({error}); give a local file: open_clip:{architecture}:/path/to/weights"
        ) from None
    return model, sha256(Path(weights)) if Path(weights).is_file() else digest(model)


def import_open_clip() -> Any:
    """open_clip imports torchvision, whose wheel for CUDA declares operators that a CPU torch does not have."""
    try:
        define_torchvision_operators()
        import open_clip
    except ImportError as error:
        raise WeightsNotFound(
            f"open_clip is not installed ({error}); install it: pip install --no-deps open_clip_torch timm torchvision ftfy wcwidth regex"
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
