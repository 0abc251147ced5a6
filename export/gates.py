"""What a bundle must prove before it is written (design section 6). Each gate has its own error and exit code.

parity  the graphs err at most twice what plain PyTorch errs in the same precision, and draw the same masks
batch   a picture's result does not depend on its place in a batch, on its neighbours, or on the batch's size
words   the vocabulary's order decides which mask is which, and nothing else

Where there are the parts of image_fusion beside it, both ways are put through every gate: backends run one or the other.

Graphs come as callables from arrays by name to arrays by name, so that any backend can be put through the same gates. The
build puts ONNX Runtime through them; TensorRT plans, which need their GPU to run, are built from the same graphs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusioner_rt.errors import FusionerError, WordUnreadable
from fusioner_rt.onnx.decoder import Decoder, graph_names
from fusioner_rt.onnx.decoder import Graph as DecoderGraph
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.onnx.workers import Workers
from fusioner_rt.pictures import SUFFIXES, decode
from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.words.templates import fill
from fusioner_rt.words.tokenizer import PromptTokenizer
from kernels import reference
from training.encoders import TextEncoder, readable_words
from training.model import Fusioner

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Record = dict[str, Any]

WORDS = ("cat", "dog", "horse", "person", "sofa", "tree", "grass", "bird")
"""Asked of every gate picture: some are there, some are not. A text encoder that cannot read one is asked for another."""

LEAST_AGREEMENT = 0.995
"""Share of pixels whose label is the one PyTorch gives. bfloat16 flips more near ties than that in PyTorch too: of its
plans twice the pixels are allowed that PyTorch flips in bfloat16, where they are more."""

MASK_HEAD_ERROR = 1e-5
"""Largest probability error of the mask head against its definition."""

ROUNDINGS = 16 * float(np.finfo(np.float32).eps)
"""What no float32 computation is asked to beat, relative to the largest value: a floor for errors that are near 0."""

IN_PARTS = "_in_parts"
"""Behind the name of an output in records: of the parts of image_fusion, one after the other."""

LARGEST_PICTURE = 1024
"""Masks are compared at the picture's own size up to this edge; PyTorch's side holds all K maps at once."""


class ParityFailed(FusionerError):
    """The graphs err more than precision explains, or draw other masks than PyTorch."""

    exit_code = 82


class BatchFailed(FusionerError):
    """A picture's result depends on the batch it is in."""

    exit_code = 83


class WordsFailed(FusionerError):
    """Permuting the vocabulary does more than permute the masks."""

    exit_code = 84


class NoPictures(FusionerError):
    """The folder for the gates holds no picture."""

    exit_code = 85


@dataclass(frozen=True)
class Parity:
    """What the parity gate found.

    errors, plain: by output, relative to its largest value; plain is PyTorch's own. agreement: share of all pixels, of
    the path and mask head that has the least. plain_agreement: PyTorch's own, where it was asked.
    mask_error: the mask head's, in probability. words: (K, t) float32, the text graph's vectors of gate_words.
    """

    errors: dict[str, float]
    plain: dict[str, float]
    agreement: float
    mask_error: float
    pictures: int
    words: np.ndarray
    plain_agreement: float | None = None

    def allowed(self, output: str) -> float:
        return 2 * self.plain[output] + ROUNDINGS

    def record(self) -> Record:
        outputs = {
            name: {"error": self.errors[name], "pytorch_error": self.plain[name], "allowed": self.allowed(name)}
            for name in self.errors
        }
        mask: Record = {"mask_agreement": self.agreement, "mask_head_error": self.mask_error, "pictures": self.pictures}
        if self.plain_agreement is not None:
            mask["pytorch_mask_agreement"] = self.plain_agreement
        return {**outputs, **mask}


def parity(
    model: Fusioner, graphs: Mapping[str, Run], how: Preprocessing, pictures: Sequence[np.ndarray], precision: str
) -> Parity:
    """Gate (a). pictures: (H, W, 3) uint8 each. precision: what the graphs claim: "fp32", "fp16" or "bf16".

    The truth is PyTorch one precision up: float64 for float32 graphs, float32 for those of 16 bits. Raises ParityFailed,
    and WordUnreadable where the text encoder reads no word at all.
    """
    truth, plain = in_pytorch(model, precision)
    half = precision != "fp32"
    without = f"build without --{precision}, or " if half else ""
    asked = gate_words(model.text_encoder)
    prompts = [prompt for word in asked for prompt in fill(model.config.templates, word)]
    tokenizer = PromptTokenizer(model.text_encoder.tokenizer_file, model.text_encoder.max_tokens)
    tokens = dict(zip(("input_ids", "attention_mask"), tokenizer(prompts), strict=True))

    compared = _Compared()
    embeddings = graphs["text"](tokens)["embeddings"], _text(plain, tokens), _text(truth, tokens)
    compared.add("embeddings", *embeddings)
    # Every side fuses the words its own text encoder gives: errors of the whole path, as a user meets them.
    words, plain_words, true_words = (_word_vectors(values, len(asked)) for values in embeddings)

    paths = _paths(graphs)
    bands = MaskHead(graphs["mask_scores"], graphs["mask_labels"], graphs["mask_probabilities"])
    head = MaskHead(
        graphs["mask_scores"], graphs["mask_labels"], graphs["mask_probabilities"], graphs.get("mask_tiles")
    )
    heads = {"mask_tiles": head, "mask_labels": bands}
    agreed = {(path, name): 0 for path in paths for name in heads}  # apart: none hides behind the others
    plain_agreed = pixels_compared = 0
    mask_error = 0.0
    for picture in pictures:
        pixels = how(picture)[None]
        true = image(truth, pixels, true_words)
        theirs = image(plain, pixels, plain_words)
        every = {path: _fused(run, pixels, words.astype(np.float32)[None]) for path, run in paths.items()}
        by_plain, by_truth = _outputs(*theirs), _outputs(*true)
        for path, ours in every.items():
            for name, value in ours.items():
                compared.add(name + path, value, by_plain[name], by_truth[name])
        if not all(
            np.isfinite(value).all() for value in (*true, *(v for ours in every.values() for v in ours.values()))
        ):
            continue  # no masks can be told from it, and what was compared is refused below

        size = _mask_size(picture)
        expected, confident, probable = reference_masks(true, size, model.config.temperature)
        pixels_compared += expected.size
        for path, ours in every.items():
            own = _maps(head, ours)
            for name, one in heads.items():
                agreed[path, name] += int((one.labels(*own, size, 0.5)[0] == expected).sum())
        if precision == "bf16":
            drawn = reference_masks(theirs, size, model.config.temperature)[0]
            plain_agreed += int((drawn == expected).sum())
        maps = head.maps(*(value.astype(np.float32) for value in true))
        for made, wanted in (
            (head.labels(*maps, size, 0.5)[1], confident),
            (bands.labels(*maps, size, 0.5)[1], confident),
            (head.probabilities(*maps, size)[0], probable),
        ):
            mask_error = max(mask_error, _largest(made - wanted))

    worst = min(agreed, key=lambda key: agreed[key])
    agreement = agreed[worst] / max(1, pixels_compared)
    of_plain = plain_agreed / max(1, pixels_compared) if precision == "bf16" else None
    least = min(LEAST_AGREEMENT, 1 - 2 * (1 - of_plain)) if of_plain is not None else LEAST_AGREEMENT
    result = Parity(
        compared.errors, compared.plain, agreement, mask_error, len(pictures), words.astype(np.float32), of_plain
    )
    for name, error in result.errors.items():
        if not _within(error, result.allowed(name)):
            raise ParityFailed(
                f"{name} err by {error:.2g} of their largest value, plain PyTorch errs by "
                f"{result.plain[name]:.2g} in {precision} and twice that is allowed",
                f"{without}look at the exported graph",
            )
    if not _within(mask_error, MASK_HEAD_ERROR):
        raise ParityFailed(
            f"the mask head's probabilities err by {mask_error:.2g}, at most {MASK_HEAD_ERROR} is allowed",
            "run: python -m pytest tests/export/onnx/test_mask_head_graph.py",
        )
    if not result.agreement >= least:
        raise ParityFailed(
            f"only {result.agreement:.2%} of the gate pictures' pixels get PyTorch's "
            f"label{' in parts' if worst[0] else ''} ({worst[1]}), {least:.1%} are "
            f"needed{f' in {precision}' if half else ''}",
            f"{without}train the checkpoint further: near ties flip",
        )
    return result


def in_pytorch(model: Fusioner, precision: str) -> tuple[Fusioner | Halved, Fusioner | Halved]:
    """The truth, PyTorch one precision up, and plain PyTorch in the precision "fp32", "fp16" or "bf16"."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    return (model, Halved(model, half)) if half else (copy.deepcopy(model).double(), model)


def batch(
    graphs: Mapping[str, Run], found: Parity, how: Preprocessing, pictures: Sequence[np.ndarray], most: int
) -> Record:
    """Gate (b), for batches of up to three different pictures, and of `most` equal ones. Raises BatchFailed.

    Two correct results each lie within the parity gate's tolerance of the truth, so within twice that of each other.
    """
    count = min(3, most)
    if count < 2:
        return {"skipped": "the profile holds one picture"}
    size = (how.side // how.multiple * how.multiple,) * 2
    single = [how(pictures[index % len(pictures)], size) for index in range(count)]
    if len(pictures) < count:  # a picture seen from the other side is another picture
        single[1:] = [np.ascontiguousarray(pixels[:, :, ::-1]) for pixels in single[1:]]
    worst = max(_worst_of_batches(path, run, found, single, most) for path, run in _paths(graphs).items())
    return {"pictures": count, "equal_pictures": most, "largest_difference_of_allowed": worst}


def _worst_of_batches(path: str, run: Run, found: Parity, single: Sequence[np.ndarray], most: int) -> float:
    """The largest difference as a share of the allowed one. single: (3, h, w) each. Raises BatchFailed."""
    alone = [_fused(run, pixels[None], found.words[None]) for pixels in single]
    count = len(single)
    order = [*range(1, count), 0]
    worst = 0.0
    for what, pixels, expected in (
        ("identical pictures in a batch", [single[0]] * most, [alone[0]] * most),
        ("one picture shared by a batch of vocabularies", [single[0]], [alone[0]] * count),
        ("different pictures in a batch", single, alone),
        ("a permuted batch", [single[index] for index in order], [alone[index] for index in order]),
    ):
        together = _fused(run, np.stack(pixels), np.repeat(found.words[None], len(expected), axis=0))
        for name, rows in together.items():
            allowed = 2 * found.allowed(name + path)
            for row in range(len(expected)):
                apart = _relative(rows[row], expected[row][name][0])
                worst = max(worst, apart / allowed)
                if not _within(apart, allowed):
                    raise BatchFailed(
                        f"row {row} of {name}{path} differs by {apart:.2g} of its largest value from the picture "
                        f"alone, {allowed:.2g} is allowed",
                        "build with --max-batch 1, or use another backend",
                        subject=what,
                    )
    return worst


def words(graphs: Mapping[str, Run], found: Parity, how: Preprocessing, picture: np.ndarray) -> Record:
    """Gate (c). Raises WordsFailed."""
    pixels, order = how(picture)[None], np.random.default_rng(0).permutation(len(found.words))
    head = MaskHead(
        graphs["mask_scores"], graphs["mask_labels"], graphs["mask_probabilities"], graphs.get("mask_tiles")
    )
    size, least = _mask_size(picture), 1.0
    for path, run in _paths(graphs).items():
        plain, permuted = (_fused(run, pixels, vectors[None]) for vectors in (found.words, found.words[order]))
        for name, value in plain.items():
            apart = _relative(permuted[name], value[:, order] if name in ("refined", "scores") else value)
            allowed = 2 * found.allowed(name + path)
            if not _within(apart, allowed):
                raise WordsFailed(
                    f"permuting the words changes {name}{path} by {apart:.2g} of its largest value, "
                    f"{allowed:.2g} is allowed",
                    "a graph must not know a word's place: look at the exported "
                    f"{'fusion' if path else 'image_fusion'} graph",
                )
        before, after = (head.labels(*_maps(head, values), size, 0.5)[0] for values in (plain, permuted))
        named = np.concatenate([[0], order + 1])[after]
        agreement = float((named == before).mean())
        if not agreement >= LEAST_AGREEMENT:
            raise WordsFailed(
                f"permuting the words leaves only {agreement:.2%} of the pixels their word, "
                f"{LEAST_AGREEMENT:.1%} are needed",
                "look at the exported mask_tiles graph",
            )
        least = min(least, agreement)
    return {"words": len(order), "mask_agreement": least}


def gate_words(encoder: TextEncoder) -> list[str]:
    """WORDS, those the encoder cannot read replaced by names of its own (a table's, taken evenly from all of them).

    No two are the same tokens, for then neither has pixels of its own; fewer where there are no more. Raises
    WordUnreadable where there is none.
    """
    tokenizer = PromptTokenizer(encoder.tokenizer_file, encoder.max_tokens)
    names = tokenizer.names()
    spread = names[:: max(1, len(names) // (2 * len(WORDS)))]
    chosen: dict[tuple[int, ...], str] = {}
    for word in (*readable_words(encoder, WORDS), *spread, *names):
        chosen.setdefault(tuple(tokenizer.ids([word])[0]), word)
        if len(chosen) == len(WORDS):
            break
    if not chosen:
        raise WordUnreadable(
            f"the text encoder reads none of the words that the gates ask for ({', '.join(WORDS)}) "
            "and has no names of its own",
            "check the tokenizer.json beside its weights",
        )
    return list(chosen.values())


def gate_pictures(folder: Path | None, most: int = 3) -> list[np.ndarray]:
    """The first pictures of a folder by name; without a folder, generated ones. Raises NoPictures."""
    if folder is None:
        return [textured(seed, size) for seed, size in enumerate(((240, 320), (333, 250), (200, 200)))]
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise NoPictures(
            f"{folder} holds no picture, the gates need one or more", "name a folder of photographs with --pictures DIR"
        )
    return [decode(file) for file in files[:most]]


def textured(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: overlapping shapes with texture, where there are no photographs."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.full((*size, 3), generator.uniform(0, 255, 3))
    for _ in range(12):
        centre, radius = generator.uniform((0, 0), size), generator.uniform(0.1, 0.4) * min(size)
        waves = 40 * np.sin(generator.uniform(0.05, 0.8, 2) @ np.stack([y.ravel(), x.ravel()])).reshape(size)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        picture[inside] = (generator.uniform(0, 255, 3) + waves[..., None])[inside]
    return np.clip(picture + generator.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


class Halved:
    """Plain PyTorch in 16 bits, as on a GPU under autocast: products of such operands, kept so. Tables that are looked up
    are of 16 bits too, as in any model whose weights are: of a table of names nothing else would err.

    Emulated, because a CPU is far slower at the real thing than at rounding to it.
    """

    def __init__(self, model: Fusioner, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    class Mode(TorchDispatchMode):
        aten = torch.ops.aten
        halved = (
            aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default, aten.embedding.default,
        )  # fmt: skip

        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in self.halved:
                return func(*args, **(kwargs or {}))
            rounded = [self.round(value) if isinstance(value, torch.Tensor) else value for value in args]
            return self.round(func(*rounded, **(kwargs or {})))

        def round(self, value: torch.Tensor) -> torch.Tensor:
            return value.to(self.dtype).float() if value.is_floating_point() else value  # indices stay whole


class _Compared:
    """Largest errors so far, by output."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self.plain: dict[str, float] = {}

    def add(self, name: str, ours: np.ndarray, plain: np.ndarray, true: np.ndarray) -> None:
        self.errors[name] = max(self.errors.get(name, 0), _relative(ours, true))
        self.plain[name] = max(self.plain.get(name, 0), _relative(plain, true))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over largest expected value; infinite where a number is not finite."""
    largest = _largest(found.astype(np.float64) - expected)
    return largest / max(float(np.abs(expected).max()), 1e-30) if math.isfinite(largest) else math.inf


def _largest(difference: np.ndarray) -> float:
    """Infinite where a number is not finite: max() would pass over NaN."""
    largest = float(np.abs(difference).max())
    return largest if math.isfinite(largest) else math.inf


def _within(error: float, allowed: float) -> bool:
    """Never where one is not finite: infinite errors of both sides would allow each other."""
    return math.isfinite(error) and math.isfinite(allowed) and error <= allowed


def _text(model: Fusioner | Halved, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
    return _torch(
        model, lambda m: m.text_encoder(*(torch.from_numpy(tokens[n]) for n in ("input_ids", "attention_mask")))
    )[0]


def image(model: Fusioner | Halved, pixels: np.ndarray, words: np.ndarray) -> list[np.ndarray]:
    """pixels: (B, 3, H, W). words: (K, t). Returns features (B, h, w, d) and refined words (B, K, d)."""

    def run(m: Fusioner) -> Iterable[torch.Tensor]:
        dtype = next(m.parameters()).dtype
        return m(torch.from_numpy(pixels).to(dtype), torch.from_numpy(words).to(dtype)[None])

    return _torch(model, run)


@torch.no_grad()
def _torch(model: Fusioner | Halved, run: Callable[[Fusioner], Any]) -> list[np.ndarray]:
    if isinstance(model, Halved):
        with Halved.Mode(model.dtype):
            result = run(model.model)
    else:
        result = run(model)
    return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]


def _maps(head: MaskHead, outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and Gram maps of what a path gave."""
    if "gram" in outputs:
        return outputs["scores"], outputs["gram"]
    return head.maps(outputs["features"], outputs["refined"])


def _paths(graphs: Mapping[str, Run]) -> dict[str, Run]:
    """The ways from pixels and words to features or maps, by what is added to the names of their outputs."""
    paths = {"": graphs["image_fusion"]}
    return paths | {IN_PARTS: in_parts(graphs)} if "image" in graphs else paths


def in_parts(graphs: Mapping[str, Run]) -> Run:
    """image_fusion as `image`, `fusion` and, where there are any, the decoder's graphs in turn: to features and refined
    words without a decoder, else to the maps that the mask head makes of those (`comparable`).
    """
    decoder = graph_names(graphs)
    runs = Decoder([cast(DecoderGraph, graphs[name]) for name in decoder], Workers(2, "gate")) if decoder else None

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = graphs["image"]({"pixels": inputs["pixels"]})["tokens"]
        found = graphs["fusion"]({"tokens": tokens, "words": inputs["words"]})
        if runs is None:
            return {"features": found["fused"], "refined": found["refined"]}
        return comparable(*runs.maps(found["fused"], found["refined"]))

    return run


def comparable(scores: np.ndarray, gram: np.ndarray) -> dict[str, np.ndarray]:
    """Maps in units of the picture's mean squared feature length: their scale is nothing that a cosine knows."""
    unit = gram[:, :1].mean(axis=(2, 3), keepdims=True)
    return {"scores": scores / np.sqrt(unit), "gram": gram / unit}


def _outputs(features: np.ndarray, refined: np.ndarray) -> dict[str, np.ndarray]:
    """All that paths may give, from the model's own features and words, in their dtype."""
    f, words = features, refined / np.linalg.norm(refined, axis=-1, keepdims=True)
    right = np.concatenate([f[:, :, 1:], f[:, :, -1:]], axis=2)
    down, diagonal = (np.concatenate([x[:, 1:], x[:, -1:]], axis=1) for x in (f, right))
    gram = [(one * other).sum(axis=-1) for one, other in ((f, f), (f, right), (f, down), (f, diagonal), (right, down))]
    maps = comparable(np.einsum("bhwd,bkd->bkhw", f, words), np.stack(gram, axis=1))
    return {"features": features, "refined": refined, **maps}


def _fused(run: Run, pixels: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
    return run({"pixels": np.ascontiguousarray(pixels), "words": np.ascontiguousarray(words)})


def _word_vectors(embeddings: np.ndarray, count: int) -> np.ndarray:
    """(count · templates, t) prompt vectors to (count, t) word vectors, float64 (paper 3.1.1)."""
    prompts = embeddings.astype(np.float64).reshape(count, -1, embeddings.shape[-1])
    mean = prompts.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def _mask_size(picture: np.ndarray) -> tuple[int, int]:
    shrink = min(1.0, LARGEST_PICTURE / max(picture.shape[:2]))
    return max(1, round(picture.shape[0] * shrink)), max(1, round(picture.shape[1] * shrink))


def reference_masks(
    true: Sequence[np.ndarray], size: tuple[int, int], temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and confidence (H, W), and probabilities (K, H, W), by the mask head's definition."""
    scores, gram = reference.score_maps(*(torch.from_numpy(value) for value in true))
    labels, confidence = reference.resolve(scores, gram, size, temperature, 0.5)
    return labels[0].numpy(), confidence[0].numpy(), reference.probabilities(scores, gram, size, temperature)[0].numpy()
