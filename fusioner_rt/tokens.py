"""Prompts to token ids, by the bundle's own tokenizer file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .bundle import build_command
from .errors import ManifestInvalid


class PromptTokenizer:
    """A `tokenizer.json`, with truncation and padding as the bundle wants them and not as the file says."""

    def __init__(self, path: Path, max_tokens: int, content: bytes | None = None) -> None:
        """path: a file of the `tokenizers` library. max_tokens: longest prompt; the rest of it is cut off.
        content: the file's bytes, where the caller has read them.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(content) if content else Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ManifestInvalid(
                f"{path}: cannot be read as a tokenizer ({error}); rebuild the bundle: {build_command(path.parent)}"
            ) from None
        named = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self._pad = (self._tokenizer.padding or {}).get("pad_id", next((i for i in named if i is not None), 0))
        # A file may ask for a fixed length; padding is done here instead, to the longest prompt of a batch.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens included, at most max_tokens, not padded."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(prompts))]

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """N lists of ids to input_ids and attention_mask, both (N, L) int64, L the longest list."""
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
