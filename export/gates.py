"""What a bundle must prove before it is written (design section 6). Each gate has its own error and exit code.

parity  the graphs err at most twice what plain PyTorch errs in the same precision, and draw the same masks
batch   a picture's result does not depend on its place in a batch, on its neighbours, or on the batch's size
words   the vocabulary's order decides which mask is which, and nothing else

A bundle may hold the parts of image_fusion beside it. Backends run the whole or the parts: both go through every gate.

Graphs are callables from arrays by name to arrays by name, so any backend can be put through the same gates. The build
puts ONNX Runtime through them. TensorRT plans run on their GPU alone: export/tensorrt/prove_plans.py does it there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusioner_rt.decode_picture import SUFFIXES, decode
from fusioner_rt.errors import FusionerError, WordUnreadable
from fusioner_rt.onnx.decoder_in_strips import Decoder, graph_names
from fusioner_rt.onnx.decoder_in_strips import Graph as DecoderGraph
from fusioner_rt.onnx.mask_head import MaskHead
from fusioner_rt.preprocess import Preprocessing
from fusioner_rt.words.templates import fill
from fusioner_rt.words.tokenizer import PromptTokenizer
from fusioner_rt.workers import Workers
from kernels import reference
from training.encoders import TextEncoder, readable_words
from training.model import Fusioner, FusionerConfig

Values = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Values]
Record = dict[str, Any]
Maps = tuple[np.ndarray, np.ndarray]
Labels = tuple[np.ndarray, np.ndarray]
Size = tuple[int, int]

WORDS = ("cat", "dog", "horse", "person", "sofa", "tree", "grass", "bird")
"""Asked of every gate picture: some are there, some are not. A text encoder that cannot read one is asked for another."""

LEAST_AGREEMENT = 0.995
"""Share of pixels whose label must be PyTorch's. bfloat16 flips more near ties than that, in PyTorch too: its plans may
flip twice as many pixels as PyTorch does in bfloat16, where that is more."""

MASK_HEAD_ERROR = 1e-5
"""Largest probability error of the mask head against its definition."""

LEAST_WORD_COSINE = 0.99
"""Of a word's vector by a text encoder with rounded weights and by the encoder itself."""

ROUNDINGS = 16 * float(np.finfo(np.float32).eps)
"""An error that every float32 computation may have, relative to the largest value. It is added to what is allowed, so that
a plain PyTorch that happens to err by almost nothing sets no bound of almost nothing."""

IN_PARTS = "_in_parts"
"""Ends the names of outputs in records that come from the parts of image_fusion, run one after the other."""

LARGEST_PICTURE = 1024
"""Masks are compared at the picture's own size up to this edge, for PyTorch holds all K maps of that size at once."""


class ParityFailed(FusionerError):
    """The graphs err more than precision explains, or draw other masks than PyTorch."""

    exit_code = 82
    is_input = False


class BatchFailed(FusionerError):
    """A picture's result depends on the batch it is in."""

    exit_code = 83
    is_input = False


class WordsFailed(FusionerError):
    """Permuting the vocabulary does more than permute the masks."""

    exit_code = 84
    is_input = False


class SmallTextFailed(FusionerError):
    """Rounded weights of the text encoder change what words mean."""

    exit_code = 98
    is_input = False


class NoPictures(FusionerError):
    """The folder for the gates holds no picture."""

    exit_code = 85
    is_input = True


@dataclass(frozen=True)
class Parity:
    """What the parity gate found.

    errors:          largest error of every output, relative to the output's largest value.
    plain:           the same of plain PyTorch, by the same names.
    agreements:      share of all pixels that get PyTorch's label, by path and by the graph that drew the masks: each is
                     judged by itself, so that none hides behind the others.
    mask_error:      largest error of the mask head, in probability.
    words:           (K, t) float32, the text graph's vectors of `gate_words`.
    plain_agreement: share of all pixels that plain PyTorch gives that label; for bf16 alone.
    config:          the model's, whose scoring and threshold make the labels.
    """

    errors: dict[str, float]
    plain: dict[str, float]
    agreements: dict[tuple[str, str], float]
    mask_error: float
    pictures: int
    words: np.ndarray
    plain_agreement: float | None = None
    config: FusionerConfig = field(default_factory=FusionerConfig)

    def allowed(self, output: str) -> float:
        return 2 * self.plain[output] + ROUNDINGS

    @property
    def agreement(self) -> float:
        """That of the path and graph that agree least."""
        return min(self.agreements.values())

    @property
    def least_agreement(self) -> float:
        """What `agreement` must reach."""
        if self.plain_agreement is None:
            return LEAST_AGREEMENT
        return min(LEAST_AGREEMENT, 1 - 2 * (1 - self.plain_agreement))

    def record(self) -> Record:
        outputs = {
            name: {"error": self.errors[name], "pytorch_error": self.plain[name], "allowed": self.allowed(name)}
            for name in self.errors
        }
        mask: Record = {"mask_agreement": self.agreement, "mask_head_error": self.mask_error, "pictures": self.pictures}
        if self.plain_agreement is not None:
            mask["pytorch_mask_agreement"] = self.plain_agreement
        return {**outputs, **mask}


def small_text(before: torch.Tensor, after: torch.Tensor) -> Record:
    """before, after: (K, t) unit vectors of words, of a text encoder and with its weights rounded. Raises SmallTextFailed."""
    cosine = (before * after).sum(1)
    record = {"least_cosine": float(cosine.min()), "mean_cosine": float(cosine.mean()), "words": len(cosine)}
    if not record["least_cosine"] >= LEAST_WORD_COSINE:
        raise SmallTextFailed(
            f"with rounded weights the text encoder turns a word's vector to a cosine of {record['least_cosine']:.4f} with "
            f"its own, {LEAST_WORD_COSINE} is the least",
            "build without --small-text",
        )
    return record


def parity(
    model: Fusioner,
    graphs: Mapping[str, Run],
    preprocessing: Preprocessing,
    pictures: Sequence[np.ndarray],
    precision: str,
) -> Parity:
    """Gate (a). pictures: (H, W, 3) uint8 each. precision: what the graphs claim: "fp32", "fp16" or "bf16".

    The truth is PyTorch one precision up: float64 for float32 graphs, float32 for those of 16 bits. Raises ParityFailed,
    and WordUnreadable where the text encoder reads no word at all.
    """
    truth, plain = in_pytorch(model, precision)
    asked = gate_words(model.text_encoder)
    tokens = _tokens(model, asked)
    embeddings = graphs["text"](tokens)["embeddings"], _text(plain, tokens), _text(truth, tokens)
    # Each side fuses the words of its own text encoder: errors are those of the whole path, as a user meets them.
    words, plain_words, true_words = (_word_vectors(values, len(asked)) for values in embeddings)
    words = words.astype(np.float32)

    comparison = _Comparison(graphs, model.config, precision)
    comparison.add_output("embeddings", *embeddings)
    for picture in pictures:
        pixels = preprocessing(picture)[None]
        ours = {path: _fused(run, pixels, words[None]) for path, run in comparison.paths.items()}
        by_plain, by_truth = image(plain, pixels, plain_words), image(truth, pixels, true_words)
        comparison.add_picture(ours, by_plain, by_truth, _mask_size(picture))
    found = comparison.result(len(pictures), words)
    _judge(found, precision)
    return found


def in_pytorch(model: Fusioner, precision: str) -> tuple[Fusioner | Halved, Fusioner | Halved]:
    """The truth, PyTorch one precision up, and plain PyTorch in the precision "fp32", "fp16" or "bf16"."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    return (model, Halved(model, half)) if half else (copy.deepcopy(model).double(), model)


class _Comparison:
    """What the parity gate has seen so far: the graphs beside plain PyTorch and the truth, picture by picture."""

    def __init__(self, graphs: Mapping[str, Run], config: FusionerConfig, precision: str) -> None:
        self.paths = _paths(graphs)
        self._config, self._precision = config, precision
        self._head = _mask_head(graphs, config.scoring)
        # Sessions run mask_tiles; mask_labels is in the bundle for other servers.
        self._labels_by: dict[str, Callable[[Maps, Size], Labels]] = {
            "mask_tiles": lambda maps, size: self._head.labels(*maps, size, config.threshold),
            "mask_labels": lambda maps, size: _labels_by_graph(graphs["mask_labels"], maps, size, config.threshold),
        }
        self._errors: dict[str, float] = {}
        self._plain: dict[str, float] = {}
        self._agreed = {(path, name): 0 for path in self.paths for name in self._labels_by}
        self._plain_agreed = self._pixels = 0
        self._mask_error = 0.0

    def add_output(self, name: str, ours: np.ndarray, plain: np.ndarray, true: np.ndarray) -> None:
        self._errors[name] = max(self._errors.get(name, 0), _relative(ours, true))
        self._plain[name] = max(self._plain.get(name, 0), _relative(plain, true))

    def add_picture(
        self, ours: Mapping[str, Values], plain: Sequence[np.ndarray], true: Sequence[np.ndarray], size: tuple[int, int]
    ) -> None:
        """ours: the outputs of every path. plain, true: the model's features and refined words. size: of the masks."""
        by_plain, by_truth = _outputs(*plain), _outputs(*true)
        for path, outputs in ours.items():
            for name, value in outputs.items():
                self.add_output(name + path, value, by_plain[name], by_truth[name])
        values = [*true, *(value for outputs in ours.values() for value in outputs.values())]
        if not all(np.isfinite(value).all() for value in values):
            return  # such values give no masks, and `_judge` refuses their errors
        labels, confidence, probabilities = reference_masks(true, size, self._config)
        self._pixels += labels.size
        self._add_masks(ours, labels)
        if self._precision == "bf16":
            by_plain_labels = reference_masks(plain, size, self._config)[0]
            self._plain_agreed += int((by_plain_labels == labels).sum())
        self._add_mask_head(true, confidence, probabilities)

    def _add_masks(self, ours: Mapping[str, Values], labels: np.ndarray) -> None:
        """labels: (H, W), PyTorch's."""
        size = (labels.shape[0], labels.shape[1])
        for path, outputs in ours.items():
            maps = _maps(self._head, outputs)
            for name, labels_of in self._labels_by.items():
                self._agreed[path, name] += int((labels_of(maps, size)[0] == labels).sum())

    def _add_mask_head(self, true: Sequence[np.ndarray], confidence: np.ndarray, probabilities: np.ndarray) -> None:
        """The mask head's graphs on the truth's features. confidence (H, W) and probabilities (K, H, W): by definition."""
        size = (confidence.shape[0], confidence.shape[1])
        maps = self._head.maps(*(value.astype(np.float32) for value in true))
        errors = [_largest(labels_of(maps, size)[1] - confidence) for labels_of in self._labels_by.values()]
        errors.append(_largest(self._head.probabilities(*maps, size)[0] - probabilities))
        self._mask_error = max(self._mask_error, *errors)

    def result(self, pictures: int, words: np.ndarray) -> Parity:
        pixels = max(1, self._pixels)
        agreements = {key: agreed / pixels for key, agreed in self._agreed.items()}
        plain_agreement = self._plain_agreed / pixels if self._precision == "bf16" else None
        return Parity(
            self._errors, self._plain, agreements, self._mask_error, pictures, words, plain_agreement, self._config
        )


def _judge(found: Parity, precision: str) -> None:
    """Raises ParityFailed."""
    half = precision != "fp32"
    without = f"build without --{precision}, or " if half else ""
    for name, error in found.errors.items():
        if not _within(error, found.allowed(name)):
            raise ParityFailed(
                f"{name} err by {error:.2g} of their largest value, plain PyTorch errs by "
                f"{found.plain[name]:.2g} in {precision} and twice that is allowed",
                f"{without}look at the exported graph",
            )
    if not _within(found.mask_error, MASK_HEAD_ERROR):
        raise ParityFailed(
            f"the mask head's probabilities err by {found.mask_error:.2g}, at most {MASK_HEAD_ERROR} is allowed",
            "run: python -m pytest tests/export/onnx/test_mask_head_graphs.py",
        )
    if not found.agreement >= found.least_agreement:
        path, graph = min(found.agreements, key=lambda key: found.agreements[key])
        raise ParityFailed(
            f"only {found.agreement:.2%} of the gate pictures' pixels get PyTorch's "
            f"label ({graph}{', computed part by part' if path else ''}), {found.least_agreement:.1%} are "
            f"needed{f' in {precision}' if half else ''}",
            f"give pictures like those it was trained on with --pictures DIR, {without}train the checkpoint further: near ties flip",
        )


def batch(
    graphs: Mapping[str, Run],
    found: Parity,
    preprocessing: Preprocessing,
    pictures: Sequence[np.ndarray],
    max_pictures: int,
) -> Record:
    """Gate (b), for batches of up to three different pictures, and of `max_pictures` equal ones. Raises BatchFailed.

    Two correct results each lie within the parity gate's tolerance of the truth, so within twice that of each other.
    """
    count = min(3, max_pictures)
    if count < 2:
        return {"skipped": "the profile holds one picture"}
    size = (preprocessing.side // preprocessing.multiple * preprocessing.multiple,) * 2
    single = [preprocessing(pictures[index % len(pictures)], size) for index in range(count)]
    if len(pictures) < count:  # a picture seen from the other side is another picture
        single[1:] = [np.ascontiguousarray(pixels[:, :, ::-1]) for pixels in single[1:]]
    worst = max(_worst_of_batches(path, run, found, single, max_pictures) for path, run in _paths(graphs).items())
    return {"pictures": count, "equal_pictures": max_pictures, "largest_difference_of_allowed": worst}


def _worst_of_batches(path: str, run: Run, found: Parity, single: Sequence[np.ndarray], max_pictures: int) -> float:
    """The largest difference as a share of the allowed one. single: (3, h, w) each. Raises BatchFailed."""
    alone = [_fused(run, pixels[None], found.words[None]) for pixels in single]
    count = len(single)
    each, turned = [*range(count)], [*range(1, count), 0]
    worst = 0.0
    for subject, given, expected in (  # pictures by their index
        ("identical pictures in a batch", [0] * max_pictures, [0] * max_pictures),
        ("one picture shared by a batch of vocabularies", [0], [0] * count),
        ("different pictures in a batch", each, each),
        ("a permuted batch", turned, turned),
    ):
        pixels = np.stack([single[index] for index in given])
        together = _fused(run, pixels, np.repeat(found.words[None], len(expected), axis=0))
        for name, rows in together.items():
            allowed = 2 * found.allowed(name + path)
            for row, index in enumerate(expected):
                apart = _relative(rows[row], alone[index][name][0])
                worst = max(worst, apart / allowed)
                if not _within(apart, allowed):
                    raise BatchFailed(
                        f"row {row} of {name}{path} differs by {apart:.2g} of its largest value from the picture "
                        f"alone, {allowed:.2g} is allowed",
                        "build with --max-batch 1, or use another backend",
                        subject=subject,
                    )
    return worst


def words(graphs: Mapping[str, Run], found: Parity, preprocessing: Preprocessing, picture: np.ndarray) -> Record:
    """Gate (c). Raises WordsFailed."""
    pixels, order = preprocessing(picture)[None], np.random.default_rng(0).permutation(len(found.words))
    head, size, agreements = _mask_head(graphs, found.config.scoring), _mask_size(picture), []
    for path, run in _paths(graphs).items():
        plain, permuted = (_fused(run, pixels, vectors[None]) for vectors in (found.words, found.words[order]))
        _judge_permuted(path, found, plain, permuted, order)
        before, after = (
            head.labels(*_maps(head, outputs), size, found.config.threshold)[0] for outputs in (plain, permuted)
        )
        named = np.concatenate([[0], order + 1])[after]
        agreement = float((named == before).mean())
        if not agreement >= LEAST_AGREEMENT:
            raise WordsFailed(
                f"permuting the words leaves only {agreement:.2%} of the pixels their word, "
                f"{LEAST_AGREEMENT:.1%} are needed",
                "look at the exported mask_tiles graph",
            )
        agreements.append(agreement)
    return {"words": len(order), "mask_agreement": min(agreements)}


def _judge_permuted(path: str, found: Parity, plain: Values, permuted: Values, order: np.ndarray) -> None:
    """plain, permuted: a path's outputs for the words as they are, and in `order`. Raises WordsFailed."""
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


def gate_words(encoder: TextEncoder) -> list[str]:
    """WORDS, with names of the encoder's own (a table's, taken evenly from all of them) in place of those it cannot read.

    No two words have the same tokens: neither would get pixels of its own. There are fewer where the encoder knows no
    more. Raises WordUnreadable where it reads none.
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


def gate_pictures(folder: Path | None) -> list[np.ndarray]:
    """The first three pictures of a folder by name; without a folder, generated ones. Raises NoPictures."""
    if folder is None:
        return [textured(seed, size) for seed, size in enumerate(((240, 320), (333, 250), (200, 200)))]
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        found = "holds no picture" if folder.is_dir() else "is no folder"
        raise NoPictures(
            f"{folder} {found}, the gates need one or more pictures", "name a folder of photographs with --pictures DIR"
        )
    return [decode(file) for file in files[:3]]


def textured(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: overlapping shapes with texture, in place of photographs."""
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
    """Plain PyTorch in 16 bits, as on a GPU under autocast: operands and results of products are rounded to them.

    Embedding tables hold 16 bits too, as in any model whose weights do: a text encoder that is a table of names would
    otherwise not err at all. It is emulated: a CPU rounds to 16 bits far faster than it computes in them.
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


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over largest expected value; infinite where a value is not finite."""
    largest = _largest(found.astype(np.float64) - expected)
    return largest / max(float(np.abs(expected).max()), 1e-30) if math.isfinite(largest) else math.inf


def _largest(difference: np.ndarray) -> float:
    """Largest magnitude; infinite where a value is not finite, for max() would pass over NaN."""
    largest = float(np.abs(difference).max())
    return largest if math.isfinite(largest) else math.inf


def _within(error: float, allowed: float) -> bool:
    """False where either is not finite: an infinite error of PyTorch would allow every error of ours."""
    return math.isfinite(error) and math.isfinite(allowed) and error <= allowed


def _tokens(model: Fusioner, asked: Sequence[str]) -> Values:
    """The text graph's inputs: every word in every template, the templates of a word side by side."""
    prompts = [prompt for word in asked for prompt in fill(model.config.templates, word)]
    tokenizer = PromptTokenizer(model.text_encoder.tokenizer_file, model.text_encoder.max_tokens)
    return dict(zip(("input_ids", "attention_mask"), tokenizer(prompts), strict=True))


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


def _mask_head(graphs: Mapping[str, Run], scoring: str) -> MaskHead:
    return MaskHead(graphs["mask_scores"], graphs["mask_tiles"], graphs["mask_probabilities"], scoring=scoring)


def _labels_by_graph(graph: Run, maps: Maps, size: Size, threshold: float) -> Labels:
    """Labels and confidence (H, W) by the graph mask_labels, all rows at once."""
    scores, gram = maps
    found = graph({
        "scores": scores, "gram": gram, "size": np.array(size, np.int64), "rows": np.array((0, size[0]), np.int64),
        "threshold": np.asarray(threshold, np.float32),
    })  # fmt: skip
    return found["labels"][0], found["confidence"][0]


def _maps(head: MaskHead, outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and Gram maps of a path's outputs."""
    if "gram" in outputs:
        return outputs["scores"], outputs["gram"]
    return head.maps(outputs["features"], outputs["refined"])


def _paths(graphs: Mapping[str, Run]) -> dict[str, Run]:
    """The ways from pixels and words to features or maps. A way's key ends the names of its outputs in records."""
    paths = {"": graphs["image_fusion"]}
    return paths | {IN_PARTS: in_parts(graphs)} if "image" in graphs else paths


def in_parts(graphs: Mapping[str, Run]) -> Run:
    """image_fusion as `image`, `fusion` and the decoder's graphs in turn.

    Without a decoder it gives features and refined words, with one the mask head's maps of them (`comparable`).
    """
    decoder = graph_names(graphs)
    runs = Decoder([cast(DecoderGraph, graphs[name]) for name in decoder], Workers(2, "gate")) if decoder else None

    def run(inputs: Mapping[str, np.ndarray]) -> Values:
        tokens = graphs["image"]({"pixels": inputs["pixels"]})["tokens"]
        fusion = graphs["fusion"]({"tokens": tokens, "words": inputs["words"]})
        if runs is None:
            return {"features": fusion["fused"], "refined": fusion["refined"]}
        return comparable(*runs.maps(fusion["fused"], fusion["refined"]))

    return run


def comparable(scores: np.ndarray, gram: np.ndarray) -> Values:
    """Maps in units of the picture's mean squared feature length. A cosine does not depend on their scale."""
    unit = gram[:, :1].mean(axis=(2, 3), keepdims=True)
    return {"scores": scores / np.sqrt(unit), "gram": gram / unit}


def _outputs(features: np.ndarray, refined: np.ndarray) -> Values:
    """Every output that a path may give, from the model's own features and words, in their dtype."""
    unit_words = refined / np.linalg.norm(refined, axis=-1, keepdims=True)
    right = np.concatenate([features[:, :, 1:], features[:, :, -1:]], axis=2)
    down, diagonal = (np.concatenate([x[:, 1:], x[:, -1:]], axis=1) for x in (features, right))
    pairs = reference.gram_pairs(features, right, down, diagonal)
    gram = np.stack([(one * other).sum(axis=-1) for one, other in pairs], axis=1)
    maps = comparable(np.einsum("bhwd,bkd->bkhw", features, unit_words), gram)
    return {"features": features, "refined": refined, **maps}


def _fused(run: Run, pixels: np.ndarray, words: np.ndarray) -> Values:
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
    true: Sequence[np.ndarray], size: tuple[int, int], config: FusionerConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and confidence (H, W), and probabilities (K, H, W), by the mask head's definition."""
    scores, gram = reference.score_maps(*(torch.from_numpy(value) for value in true))
    temperature, scoring = config.temperature, config.scoring
    labels, confidence = reference.resolve(scores, gram, size, temperature, config.threshold, scoring)
    probabilities = reference.probabilities(scores, gram, size, temperature, scoring)
    return labels[0].numpy(), confidence[0].numpy(), probabilities[0].numpy()
