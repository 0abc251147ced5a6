"""Encoders of the real architectures at a hundredth of the size, with seeded random weights, for tests and dry runs."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import torch
from torch import nn

from training.encoders.bert import Bert
from training.encoders.efficientnet_lite import EfficientNetLite
from training.encoders.random_weights import mark_random
from training.encoders.tokenizer_file import keep_tokenizer


def tiny_image() -> tuple[EfficientNetLite, str]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = EfficientNetLite(width_factor=0.25, depth_factor=0.3, head=40)
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):  # keeps the signal's scale through depth, as trained weights do
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    encoder.side = 96
    return encoder, mark_random(encoder)


def tiny_text() -> tuple[Bert, str]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        encoder = Bert(
            vocabulary=len(_vocabulary()), width=24, layers=2, heads=4, inner=48, positions=96, eps=1e-12,
            tokenizer_file=_tokenizer_file(), max_tokens=64,
        )  # fmt: skip
    return encoder, mark_random(encoder)


def _vocabulary() -> dict[str, int]:
    characters = string.ascii_lowercase + string.digits + ".,'-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *("##" + c for c in characters)]
    return {piece: index for index, piece in enumerate(pieces)}


@cache
def _tokenizer_file() -> Path:
    """A character-level WordPiece tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    tokenizer = Tokenizer(WordPiece(_vocabulary(), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return keep_tokenizer(tokenizer.to_str())
