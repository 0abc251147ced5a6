"""Prompts to token ids, by the bundle's tokenizer file."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cures import build_command
from ..errors import ManifestInvalid, WordUnreadable, one_line
from ..memory_shortage import check_room, is_shortage

_ROOM = 64 << 20
"""Bytes that must be free before a tokenizer is made: its library ends the process where it gets none."""


class PromptTokenizer:
    """A `tokenizer.json`, with truncation by the bundle and padding to the longest prompt of a batch."""

    def __init__(self, path: Path, max_tokens: int, content: bytes | None = None) -> None:
        """path: a file of the `tokenizers` library. max_tokens: longer prompts are cut off.
        content: the file's bytes, if already read.
        """
        from tokenizers import Tokenizer

        self._path = path
        check_room(_ROOM)
        try:
            self._tokenizer = Tokenizer.from_buffer(content) if content is not None else Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise self._unusable("cannot be read as a tokenizer", error) from None
        pads = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self._pad = (self._tokenizer.padding or {}).get("pad_id", next((i for i in pads if i is not None), 0))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        model = self._tokenizer.model
        unknown = getattr(model, "unk_token", None)
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self._whole_names = type(model).__name__ == "WordLevel" and self._tokenizer.pre_tokenizer is None

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens included, at most max_tokens, not padded.

        One by one: for a batch the library starts threads, and where it once cannot, it encodes no batch ever after.
        """
        return [self._encode(prompt).ids for prompt in prompts]

    def reads(self, text: str) -> bool:
        """Whether the tokenizer knows any token of `text`, special tokens aside."""
        ids = self._encode(text, add_special_tokens=False).ids
        return any(index != self._unknown for index in ids)

    def pieces(self, text: str) -> list[str]:
        """The tokens of `text`, special ones aside; the marks of their place in a word are left off."""
        tokens = self._encode(text, add_special_tokens=False).tokens
        return [token.removeprefix("##").removesuffix("</w>").strip("▁Ġ") for token in tokens]

    def check(self, word: str, prompts: Sequence[str] = ()) -> None:
        """Raises WordUnreadable where all tokens of the word, or of a prompt, are unknown: such words share one vector.

        Byte-level tokenizers (CLIP's) read everything. A table of names reads its names alone; the error suggests
        similar names.
        """
        if not self.reads(word):
            if self._whole_names:
                raise WordUnreadable(
                    f"the text encoder cannot read {word!r}: it is a fixed table of {len(self.names())} "
                    "names, and this is none of them",
                    self._near(word),
                )
            raise WordUnreadable(
                f"the text encoder cannot read {word!r}: no part of it is in its vocabulary",
                "use another word, an English one unless the encoder was trained on another language",
            )
        for prompt in prompts if self._whole_names else ():
            if not self.reads(prompt):
                raise WordUnreadable(
                    f"the text encoder cannot read {prompt!r}: it is a fixed table of names, which knows "
                    f"{word!r} and no sentences",
                    "leave the templates at its own, '{category}'",
                )

    def names(self) -> list[str]:
        """The names of a table of names, sorted; empty for other tokenizers."""
        if not self._whole_names:
            return []
        return sorted(name for name, index in self._tokenizer.get_vocab().items() if index != self._unknown)

    def _encode(self, text: str, add_special_tokens: bool = True) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # its vocabulary lacks what it needs for this text
            raise self._unusable(f"as a tokenizer, cannot read {text!r}", error) from None

    def _unusable(self, found: str, error: Exception) -> Exception:
        if is_shortage(error):
            return error
        return ManifestInvalid(
            f"{found} ({one_line(error)})",
            f"rebuild the bundle: {build_command(self._path.parent)}",
            subject=self._path,
        )

    def _near(self, word: str) -> str:
        normalizer = self._tokenizer.normalizer
        sought = normalizer.normalize_str(word) if normalizer is not None else word
        near = difflib.get_close_matches(sought, self.names(), n=3)
        return f"near ones are: {', '.join(near)}" if near else "no name in it is near; use another word"

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask of N lists of ids, both (N, L) int64. L: length of the longest list."""
        longest = max(len(row) for row in ids)
        padded = np.full((len(ids), longest), self._pad, np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for row, values in enumerate(ids):
            padded[row, : len(values)] = values
            mask[row, : len(values)] = 1
        return padded, mask

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """N prompts to input_ids and attention_mask, both (N, L) int64, L the longest prompt."""
        return self.pad(self.ids(prompts))
