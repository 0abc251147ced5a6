"""The frozen encoder's maps on disk, so that an epoch costs the fusion and the decoder only.

One safetensors file per picture and flip. Its folder is named by the encoder and the preprocessing, its own name by the
picture's and the mask's size and time of change: what is there fits, and an interrupted run goes on where it stopped.
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

from fusioner_rt.errors import one_line
from fusioner_rt.files import writable_folder, write_result
from fusioner_rt.preprocess import Preprocessing
from training.data import DataError, PictureMasks, read_picture
from training.encoders import ImageEncoder
from training.model import Fusioner

CHUNK = 64  # words whose vectors are kept together: what a kill can cost
LABEL_STRIDE = 2  # masks are kept at half the network input's resolution: what the loss is computed at


@dataclass(frozen=True)
class CachedPicture:
    """levels: the encoder's maps (1, c, h, w) float16; labels: (H/2, W/2) int16 class indices."""

    levels: list[Tensor]
    labels: Tensor


def word_vectors(folder: Path, model: Fusioner, words: list[str]) -> Tensor:
    """model.word_vectors (K, t), kept on disk, CHUNK words a file: a thousand take minutes on a CPU, once."""
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
    # The name too: one file of weights may be read in several ways (a BERT's pooling).
    config = model.config
    key = json.dumps([config.text_encoder, config.encoder_sha256["text"], config.templates, words])
    return folder / f"words-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def encoder_key(model: Fusioner) -> str:
    """What a picture's features depend on, preprocessing aside. One file may be read in several ways: the name counts."""
    return f"{model.config.image_encoder} {model.config.encoder_sha256['image']}"


class FeatureCache:
    def __init__(
        self, folder: Path, data: PictureMasks, encoder: ImageEncoder, encoder_key: str, preprocessing: Preprocessing
    ) -> None:
        """encoder_key: see `encoder_key`."""
        key = json.dumps([encoder_key, preprocessing.to_manifest(), LABEL_STRIDE, str(data.root.resolve())])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.data, self.encoder, self.preprocessing = data, encoder, preprocessing

    def fill(self, names: list[str], flips: tuple[bool, ...] = (False, True)) -> None:
        """Computes what is missing, with a progress bar. Raises DataError, OutputUnwritable."""
        missing = [name for name in names if not all(self._file(name, flip).is_file() for flip in flips)]
        for folder in {self._file(name, flip).parent for name in missing for flip in flips}:  # a name may hold a "/"
            writable_folder(folder)
        for name in tqdm(missing, desc="features", unit="picture", disable=not missing):
            rgb, mask = read_picture(self.data, name)
            pixels = torch.from_numpy(self.preprocessing(rgb))[None]
            small = torch.from_numpy(nearest(mask, (pixels.shape[2] // LABEL_STRIDE, pixels.shape[3] // LABEL_STRIDE)))
            for flip in flips:
                with torch.no_grad():
                    levels = self.encoder.extract(pixels.flip(3) if flip else pixels)
                tensors = {f"level{i}": level.half().contiguous() for i, level in enumerate(levels)}
                tensors["labels"] = (small.flip(1) if flip else small).contiguous()
                content = save(tensors)
                _write(self._file(name, flip), content)

    def get(self, name: str, flip: bool = False) -> CachedPicture:
        """Raises DataError where it is damaged, or gone."""
        file = self._file(name, flip)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the cached features {file} cannot be read ({one_line(error)})", "remove it and start again"
            ) from None
        return CachedPicture([tensors[f"level{i}"] for i in range(len(tensors) - 1)], tensors["labels"])

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of a cached picture's labels: pictures of one size can be batched."""
        with safe_open(self._file(name, False), "pt") as file:
            return tuple(file.get_slice("labels").get_shape())

    def tokens(self, pictures: list[CachedPicture]) -> Tensor:
        """(B, h, w, c) float32, unit length, of pictures of one size."""
        return self.encoder.assemble(
            [torch.cat(levels).float() for levels in zip(*(p.levels for p in pictures), strict=True)]
        )

    def _file(self, name: str, flip: bool) -> Path:
        stamp = hashlib.sha256(json.dumps(self.data.stamp(name)).encode()).hexdigest()[:12]
        return self.folder / ("flipped" if flip else "plain") / f"{name}-{stamp}.safetensors"


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) class indices at another size (height, width): at each cell's centre the pixel that holds it."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns])


def _write(file: Path, content: bytes) -> None:
    write_result(file, lambda stream: stream.write(content))
