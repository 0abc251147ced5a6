"""Caches the frozen encoder's maps on disk, so that an epoch computes the fusion and the decoder only.

One safetensors file per picture and flip. The folder's name hashes the encoder and the preprocessing; the file's name
hashes size and modification time of picture and mask. So an existing file is valid, and an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from fusioner_rt.atomic_files import clear_temporaries, writable_folder, write_result
from fusioner_rt.errors import one_line
from fusioner_rt.preprocess import Preprocessing
from training.data import DataError, PictureMasks, read_picture
from training.encoders import ImageEncoder
from training.model import Fusioner

CHUNK = 64  # words per file of vectors; a kill costs one file at most
LABEL_STRIDE = 2  # input pixels per label: masks are cached at half the network input's resolution


@dataclass(frozen=True)
class CachedPicture:
    """levels: the encoder's maps (1, c, h, w) float16; labels: (H/2, W/2) int16 class indices."""

    levels: list[Tensor]
    labels: Tensor


def word_vectors(folder: Path, model: Fusioner, words: list[str]) -> Tensor:
    """model.word_vectors (K, t), cached on disk: a thousand words take minutes on a CPU."""
    chunks = [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
    missing = [chunk for chunk in chunks if not _words_file(folder, model, chunk).is_file()]
    if missing:
        writable_folder(folder)
        with tqdm(total=sum(map(len, missing)), desc="word vectors, once", unit="word") as bar:
            for chunk in missing:
                parts = []
                for start in range(0, len(chunk), 8):
                    parts.append(model.word_vectors(chunk[start : start + 8]))
                    bar.update(len(parts[-1]))
                _write(_words_file(folder, model, chunk), save({"vectors": torch.cat(parts)}))
    return torch.cat([load_file(_words_file(folder, model, chunk))["vectors"] for chunk in chunks])


def _words_file(folder: Path, model: Fusioner, words: list[str]) -> Path:
    # With the encoder's name: one weights file can be read in several ways (a BERT's pooling).
    config = model.config
    key = json.dumps([config.text_encoder, config.encoder_sha256["text"], config.templates, words])
    return folder / f"words-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def encoder_key(model: Fusioner) -> str:
    """The image encoder's name and weights hash; one weights file can be read in several ways, so the name counts."""
    return f"{model.config.image_encoder} {model.config.encoder_sha256['image']}"


class FeatureCache:
    """Features and labels of a data set's pictures, for one encoder and preprocessing."""

    def __init__(
        self, folder: Path, data: PictureMasks, encoder: ImageEncoder, encoder_key: str, preprocessing: Preprocessing
    ) -> None:
        key = json.dumps([encoder_key, preprocessing.to_manifest(), LABEL_STRIDE, str(data.root.resolve())])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.data, self.encoder, self.preprocessing = data, encoder, preprocessing

    def fill(self, names: list[str], flips: tuple[bool, ...] = (False, True)) -> None:
        """Computes missing features, with a progress bar. Raises DataError, OutputUnwritable."""
        missing = [name for name in names if not all(self._file(name, flip).is_file() for flip in flips)]
        for some, prepare in ((names, clear_temporaries), (missing, writable_folder)):
            for folder in {self._file(name, flip).parent for name in some for flip in flips}:  # names may contain "/"
                prepare(folder)
        for name in tqdm(missing, desc="features", unit="picture", disable=not missing):
            rgb, mask = read_picture(self.data, name)
            pixels = torch.from_numpy(self.preprocessing(rgb))[None]
            labels = torch.from_numpy(labels_of(mask, (pixels.shape[2], pixels.shape[3])))
            for flip in flips:
                with torch.no_grad():
                    levels = self.encoder.extract(pixels.flip(3) if flip else pixels)
                tensors = {f"level{i}": level.half().contiguous() for i, level in enumerate(levels)}
                tensors["labels"] = (labels.flip(1) if flip else labels).contiguous()
                _write(self._file(name, flip), save(tensors))

    def get(self, name: str, flip: bool = False) -> CachedPicture:
        """Raises DataError for a damaged or missing file."""
        file = self._file(name, flip)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the cached features {file} cannot be read ({one_line(error)})", "remove it and start again"
            ) from None
        return CachedPicture([tensors[f"level{i}"] for i in range(len(tensors) - 1)], tensors["labels"])

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of a cached picture's labels; pictures of one size can share a batch."""
        with safe_open(self._file(name, False), "pt") as file:
            return tuple(file.get_slice("labels").get_shape())

    def tokens(self, pictures: list[CachedPicture]) -> Tensor:
        """Tokens (B, h, w, c) float32 of unit length; all pictures have one size."""
        return self.encoder.assemble(
            [torch.cat(levels).float() for levels in zip(*(p.levels for p in pictures), strict=True)]
        )

    def _file(self, name: str, flip: bool) -> Path:
        stamp = hashlib.sha256(json.dumps(self.data.stamp(name)).encode()).hexdigest()[:12]
        return self.folder / ("flipped" if flip else "plain") / f"{name}-{stamp}.safetensors"


def labels_of(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """mask resized to 1/LABEL_STRIDE of a network input's size (H, W)."""
    return nearest(mask, (size[0] // LABEL_STRIDE, size[1] // LABEL_STRIDE))


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """mask (H, W) class indices → `size` (height, width): each cell has the index of the pixel at its centre."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns])


def _write(file: Path, content: bytes) -> None:
    write_result(file, lambda stream: stream.write(content))
