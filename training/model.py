"""Fusioner (paper section 3): frozen encoders, a transformer that fuses picture tokens and words, a conv decoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.words.templates import PAPER_TEMPLATES, check_templates, fill
from training.aligned_residual import BESIDE, Aligned, AlignedResidual
from training.encoders import ImageEncoder, TextEncoder, has_random_weights, image_encoder, text_encoder
from training.encoders.attention import self_attention

LONGEST_EDGE = 1024  # longest edge of a network input in pixels; a build may ask for more
FUSIONS = ("early", "late", "none")
IDENTITY = "identity"
"""A fusion that is not trained: both encoders' vectors as they are (`training.training_free`)."""


@dataclass(frozen=True)
class FusionerConfig:
    """Everything that rebuilds a checkpoint's model. Defaults follow the paper (section 4.1, table 7)."""

    image_encoder: str = "efficientnet-lite0"
    text_encoder: str = "minilm-l6"
    width: int = 512  # d
    layers: int = 12
    heads: int = 8
    fusion: str = "early"  # "early": joint attention; "late": separate MLPs (table 1); "none" (table 4);
    decoder: tuple[int, ...] = (512, 512, 512, 512)  # channels of each 3×3 conv; () = no decoder (table 4)
    aligned: int = 0  # channels of the aligned residual, two beside its axes; 0 = none (training.aligned_residual)
    temperature: float = 0.07
    templates: tuple[str, ...] = PAPER_TEMPLATES
    encoder_sha256: dict[str, str] = field(default_factory=dict)  # hash of the frozen weights, by "image" and "text"

    def __post_init__(self) -> None:
        if self.fusion not in (*FUSIONS, IDENTITY):
            raise ValueError(
                f"fusion is {self.fusion!r}; expected 'early', 'late' or 'none', or {IDENTITY!r} untrained"
            )
        if self.fusion == IDENTITY and (self.layers or self.decoder):
            raise ValueError(f"fusion {IDENTITY!r} has neither layers nor a decoder; expected layers 0 and decoder ()")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.aligned < 0 or 0 < self.aligned <= BESIDE:
            raise ValueError(
                f"aligned is {self.aligned}; expected {BESIDE + 1} channels or more, such as 64, or 0 for none"
            )
        if self.aligned and self.fusion == IDENTITY:
            raise ValueError(f"aligned is {self.aligned}; fusion {IDENTITY!r} is aligned as a whole, expected 0")
        if not 0 < self.temperature <= 1:
            raise ValueError(f"temperature is {self.temperature}; expected a number in (0, 1], the paper's is 0.07")
        check_templates(self.templates)

    @property
    def channels(self) -> int:
        """Of the pixel features and refined words that the mask head compares."""
        return self.width + self.aligned

    @property
    def scoring(self) -> str:
        """Of the mask head: where nothing was trained to judge a word alone, words are compared with each other."""
        return "softmax" if self.fusion == IDENTITY else "sigmoid"

    @property
    def threshold(self) -> float:
        """The probability that a mask's pixels exceed where a call names none; of softmax a choice, not measured."""
        return 0.1 if self.scoring == "softmax" else 0.5

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FusionerConfig:
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown names in the model configuration: {sorted(unknown)}")
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**arguments)


class Fusioner(nn.Module):
    """pixels and word vectors → low-resolution pixel features and refined words; the mask head compares them.

    The encoders are frozen and not part of `trained_state`. A word vector is the average over the word's templated
    prompts (`word_vectors`); it is computed once per word, outside this graph.
    """

    def __init__(self, config: FusionerConfig, image_encoder: ImageEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        d = config.width
        self.decoder: Decoder | None = None
        self.aligned: AlignedResidual | None = None
        if config.fusion == IDENTITY:
            if not image_encoder.width == text_encoder.width == d:
                raise ValueError(
                    f"pixels have {image_encoder.width} channels and words {text_encoder.width}, the model {d}; without "
                    "layers of ours all three are one space"
                )
            return
        self.project_pixels = nn.Sequential(nn.LayerNorm(image_encoder.width), nn.Linear(image_encoder.width, d))
        self.project_words = nn.Sequential(nn.LayerNorm(text_encoder.width), nn.Linear(text_encoder.width, d))
        if config.fusion == "early":
            self.layers = nn.ModuleList(FusionLayer(d, config.heads) for _ in range(config.layers))
        elif config.fusion == "late":  # six MLP layers per modality, without interaction (table 1)
            self.pixel_layers = nn.Sequential(*(FeedForward(d) for _ in range(6)))
            self.word_layers = nn.Sequential(*(FeedForward(d) for _ in range(6)))
        self.norm = nn.LayerNorm(d)
        self.out_pixels = nn.Linear(d, d)
        self.out_words = nn.Linear(d, d)
        if config.decoder:
            self.decoder = Decoder(d, config.decoder)
        if config.aligned:
            self.aligned = AlignedResidual(image_encoder.width, text_encoder.width, d, config.aligned)
        if config.fusion != "none":
            for linear in (self.out_pixels, self.out_words):  # identity: training starts from the projections' cosine
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)

    def train(self, mode: bool = True) -> Fusioner:
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        return self

    def trained_state(self) -> dict[str, Tensor]:
        return {n: v for n, v in self.state_dict().items() if not n.startswith(("image_encoder.", "text_encoder."))}

    @property
    def one_space(self) -> bool:
        """Whether tokens and word vectors are compared as they are: both of one CLIP, patches by its own projection."""
        image, text = self.config.image_encoder, self.config.text_encoder
        one_file = self.config.encoder_sha256.get("image") == self.config.encoder_sha256.get("text")
        return image.startswith("dense_clip:") and text.startswith("open_clip:") and one_file

    @property
    def random_weights(self) -> list[str]:
        """Which of "image" and "text" have an encoder with random weights."""
        encoders = {"image": self.image_encoder, "text": self.text_encoder}
        return [kind for kind, encoder in encoders.items() if has_random_weights(encoder)]

    def preprocessing(self, side: int | None = None, longest: int | None = None) -> Preprocessing:
        """The preprocessing of pictures in training and, unless an export overrides it, in bundles.

        side: square root of the input's area, of training-free CLIP its short edge; longest: the longest edge; in pixels.
        """
        encoder = self.image_encoder
        side = side or encoder.side
        longest = longest or max(side, LONGEST_EDGE // encoder.multiple * encoder.multiple)
        fit = "short" if self.config.fusion == IDENTITY else "area"
        return Preprocessing(side, encoder.multiple, longest, "bicubic", _rgb(encoder.mean), _rgb(encoder.std), fit)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) normalised → tokens (B, h, w, c), unit length (paper equation 2)."""
        return self.image_encoder(pixels)

    def fuse(self, tokens: Tensor, words: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B or 1, h, w, c), words (B, K, t) → features (B, h', w', D), refined (B, K, D) (equation 4).

        D is d, the model's width, and the channels of the aligned residual. known: as of `AlignedResidual`.
        """
        fused, refined = self.attend(tokens, words, known)
        return self.decode(fused), refined

    def attend(self, tokens: Tensor, words: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`fuse` up to the decoder: fused pixels (B, h, w, D), refined words (B, K, D).

        Tokens of one picture are expanded to the B vocabularies here, so that the encoder runs once.
        """
        residual = self.aligned
        if residual is not None:
            aligned: Aligned = residual(tokens, words, known)
        tokens = tokens.expand(words.shape[0], -1, -1, -1)
        if self.config.fusion == IDENTITY:
            return tokens, words
        h, w = tokens.shape[1], tokens.shape[2]
        pixels = self.project_pixels(tokens).flatten(1, 2)
        words = self.project_words(words)
        if residual is not None:
            words = residual.with_evidence(aligned, pixels, words)
        if self.config.fusion == "early":
            sequence = torch.cat([pixels, words], dim=1)
            for layer in self.layers:
                sequence = layer(sequence)
            sequence = self.norm(sequence)
            # Slices at the pixel count, not a split into both lengths: K stays dynamic in exported graphs.
            pixels, words = sequence[:, : h * w], sequence[:, h * w :]
        elif self.config.fusion == "late":
            pixels, words = self.norm(self.pixel_layers(pixels)), self.norm(self.word_layers(words))
        fused, refined = self.out_pixels(pixels).unflatten(1, (h, w)), self.out_words(words)
        if residual is None:
            return fused, refined
        if self.decoder is None:
            fused = F.normalize(fused, dim=-1)
        aligned_pixels, aligned_words = residual.channels(aligned)
        aligned_pixels = aligned_pixels.expand(fused.shape[0], -1, -1, -1)
        return torch.cat([fused, aligned_pixels], -1), torch.cat([F.normalize(refined, dim=-1), aligned_words], -1)

    def decode(self, fused: Tensor) -> Tensor:
        """fused (B, h, w, D) → features (B, h', w', D); without a decoder h' = h and w' = w."""
        if self.decoder is None:
            return fused
        maps = fused.permute(0, 3, 1, 2)
        if self.aligned is None:
            return self.decoder(maps)
        features, aligned = self.decoder(maps[:, : self.config.width]), maps[:, self.config.width :]
        scale = float(self.decoder.scale)
        aligned = F.interpolate(aligned, scale_factor=scale, mode="bilinear", align_corners=False)
        return torch.cat([F.normalize(features, dim=-1), aligned.permute(0, 2, 3, 1)], -1)

    def forward(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.fuse(self.encode(pixels), words)

    @torch.no_grad()
    def word_vectors(self, words: list[str], batch: int = 256) -> Tensor:
        """(K, t), unit length: a word's vector averages its encoded prompts (paper 3.1.1 and 6.2).

        batch: prompts encoded at a time. Raises WordUnreadable for a word whose every token is unknown.
        """
        from fusioner_rt.words.tokenizer import PromptTokenizer

        tokenizer = PromptTokenizer(self.text_encoder.tokenizer_file, self.text_encoder.max_tokens)
        prompts = []
        for word in words:
            filled = fill(self.config.templates, word)
            tokenizer.check(word, filled)
            prompts += filled
        vectors = []
        for start in range(0, len(prompts), batch):
            ids, mask = tokenizer(prompts[start : start + batch])
            vectors.append(self.text_encoder(torch.from_numpy(ids), torch.from_numpy(mask)))
        per_word = torch.cat(vectors).unflatten(0, (len(words), len(self.config.templates)))
        return F.normalize(per_word.mean(1), dim=-1)


def tiny(seed: int = 0) -> Fusioner:
    """A small model with random weights, for tests; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FusionerConfig(
            image_encoder="tiny", text_encoder="tiny", width=32, layers=2, heads=4, decoder=(32, 24),
            templates=PAPER_TEMPLATES[:2],
        )  # fmt: skip
        image, image_hash = image_encoder("tiny")
        text, text_hash = text_encoder("tiny")
        config = replace(config, encoder_sha256={"image": image_hash, "text": text_hash})
        return Fusioner(config, image, text).eval()


def _rgb(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


class FusionLayer(nn.Module):
    """Pre-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(x + self.out(self_attention(self.query_key_value(self.norm(x)), self.heads)))


class FeedForward(nn.Module):
    """x + MLP(norm(x)), inner width 4d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Decoder(nn.Module):
    """k × [3×3 conv, instance norm, ReLU, 2× bilinear], with a 1×1 conv before the last upsampling (paper 3.1.3, 4.1).

    The mask head does the last upsampling, to any output size.
    """

    def __init__(self, width: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (width, *channels[:-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, channels, strict=True))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(o, affine=True) for o in channels)
        self.out = nn.Linear(channels[-1], width)  # a 1×1 conv, applied to channels-last maps
        self.scale = 2 ** (len(channels) - 1)  # cells of the map that it gives per cell of its input and edge

    def forward(self, x: Tensor) -> Tensor:
        """x (B, d, h, w) → (B, h·2^(k-1), w·2^(k-1), d)."""
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if index:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = F.relu(norm(convolution(x)))
        return self.out(x.permute(0, 2, 3, 1))
