"""The models that benchmarks/latency.py times. The files that its candidates run are kept between runs, by a key.

WORK/NAME/checkpoint        random weights from a seed (the demonstration model's own are in models/demo)
WORK/NAME/fp32, /fp16       bundles, built by export.build_engine
WORK/NAME/fp32.onnx         the monolith: pixels and words to labels and confidence in one graph, naive head inside
WORK/NAME/fp32-scores.onnx  the same with scores at the features' resolution, which are upsampled: less work, and approximate
WORK/NAME/words.npy         (K, t) float32, the vectors of `words` as PyTorch's text encoder gives them
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusioner_rt.json_fields import Field
from fusioner_rt.preprocess import Preprocessing

if TYPE_CHECKING:
    import onnx

    from training.model import Fusioner

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/pictures/cat.jpg"
MAX_WORDS = 150
THRESHOLD = 0.5
SEED = 0
FORM = 2
"""The version of the files made here. It is raised where this module makes others."""
_MADE_BY = ("export/**/*.py", "training/model.py", "training/encoders/*.py")


@dataclass(frozen=True)
class Model:
    """config: arguments of FusionerConfig; none for the demonstration model.

    clipseg: arguments of transformers' CLIPSegVisionConfig for an image encoder of the same size, or None.
    """

    title: str
    channels: int
    config: dict[str, Any] = field(default_factory=dict)
    clipseg: dict[str, Any] | None = None


def _paper(image: str, d: int) -> dict[str, Any]:
    return {"image_encoder": image, "text_encoder": "minilm-l6", "width": d, "decoder": (d,) * 4}


MODELS = {
    "tiny": Model("tiny encoders", 32, {"image_encoder": "tiny", "text_encoder": "tiny", "width": 32, "layers": 2,
                                        "heads": 4, "decoder": (32, 24)}),
    "small": Model("tiny encoders, d = 128", 128, {"image_encoder": "tiny", "text_encoder": "tiny", "width": 128,
                                                   "layers": 3, "decoder": (128, 128, 64)}),
    "demo": Model("demonstration model", 128),
    "vits": Model("ViT-S/16, d = 256", 256, _paper("dino-vits16:random", 256),
                  {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}),
    "vitb": Model("ViT-B/16, d = 512", 512, _paper("dino-vitb16:random", 512), {}),
    "vitl": Model("ViT-L/14, d = 512", 512, _paper("open_clip:ViT-L-14:random", 512),
                  {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                   "patch_size": 14}),
}  # fmt: skip
"""All but the first three have early fusion of 12 layers and 8 heads, and an input of 224² (paper 4.1)."""


@dataclass(frozen=True)
class Files:
    """Where a model's files are. `prepare` makes them, in a process of its own: it takes memory that measurements need."""

    work: Path
    model: str
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        return self.work / self.model

    @property
    def checkpoint(self) -> Path:
        return ROOT / "models/demo/checkpoint" if self.model == "demo" else self.folder / "checkpoint"

    @property
    def words(self) -> Path:
        return self.folder / "words.npy"

    def bundle(self, precision: str) -> Path:
        """The demonstration model's in half precision is the one that is delivered. A GPU gets plans of its own."""
        if (self.model, precision, self.device) == ("demo", "fp16", "cpu"):
            return ROOT / "models/demo/bundle"
        return self.folder / (precision if self.device == "cpu" else f"{precision}-{self.device}")

    def monolith(self, precision: str, scores_upsampled: bool = False) -> Path:
        return self.folder / (f"{precision}-scores.onnx" if scores_upsampled else f"{precision}.onnx")

    def facts(self) -> dict[str, Any]:
        """What was made and of what: key, words, preprocessing, bytes of PyTorch's parameters."""
        try:
            facts: dict[str, Any] = json.loads((self.folder / "made.json").read_text())
        except (OSError, ValueError):
            return {"key": None}
        return facts

    def missing(self, precisions: list[str], count: int) -> list[str]:
        """The precisions without files, or all where the code has changed since or there are fewer than `count` words."""
        facts = self.facts()
        if facts["key"] != key(self.model) or len(facts.get("words", ())) < count:
            return precisions
        made = [
            self.monolith(one, True).is_file() and (self.bundle(one) / "manifest.json").is_file() for one in precisions
        ]
        return [one for one, there in zip(precisions, made, strict=True) if not there]

    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_manifest(Field(self.facts()["preprocessing"], "preprocessing"))


def key(model: str) -> str:
    """Changes with the model and with the code that exports it."""
    digest = hashlib.sha256(repr((MODELS[model].config, SEED, FORM)).encode())
    for pattern in _MADE_BY:
        for file in sorted(ROOT.glob(pattern)):
            digest.update(file.read_bytes())
    if model == "demo":
        digest.update((ROOT / "models/demo/bundle/manifest.json").read_bytes())
    return digest.hexdigest()


def words(count: int) -> list[str]:
    """Names of things: COCO's, then those of FSS-1000's test set."""
    from training.datasets.coco import CLASSES
    from training.datasets.fss import TEST_CLASSES

    names = dict.fromkeys(name.replace("_", " ").lower() for name in (*CLASSES[1:], *TEST_CLASSES))
    return list(names)[:count]


def picture(edge: int, index: int = 0) -> np.ndarray:
    """(edge, edge, 3) uint8: a photograph. Others of a batch are the same one shifted."""
    from PIL import Image

    with Image.open(PICTURE) as image:
        pixels = np.asarray(image.convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(np.roll(pixels, index * edge // 11, axis=1))


def prepare(files: Files, precisions: list[str], count: int) -> None:
    """Makes what is missing, for `count` words. Raises what export.build_engine.build raises."""
    import onnx
    import torch

    from export.build_engine import Options, build
    from fusioner_rt import Session
    from training import checkpoint

    new = key(files.model)
    if files.facts()["key"] != new:
        shutil.rmtree(files.folder, ignore_errors=True)
    files.folder.mkdir(parents=True, exist_ok=True)
    if MODELS[files.model].config and not files.checkpoint.is_dir():
        checkpoint.save(random_model(files.model), files.checkpoint, {"pictures": 0})
    model = checkpoint.load(files.checkpoint)
    names = words(count)
    np.save(files.words, model.word_vectors(names).numpy())
    for precision in precisions:
        bundle = files.bundle(precision)
        if not (bundle / "manifest.json").is_file():
            served = {"backend": "onnxruntime", "kernels": "none"}
            if files.device == "cuda":
                served = {"backend": "auto", "kernels": "sm_{}{}".format(*torch.cuda.get_device_capability())}
            build(Options(files.checkpoint, bundle, precision == "fp16", **served), shown=False)
        image_fusion = onnx.load(bundle / "image_fusion.onnx")
        for scores_upsampled in (False, True):
            whole = monolith(image_fusion, model.config.channels, model.config.temperature, scores_upsampled)
            onnx.save_model(whole, files.monolith(precision, scores_upsampled))
        with Session(bundle, "onnxruntime-cpu", files.work / "words") as session:
            session.set_vocabulary(names[: session.bundle.words.max])  # every measurement finds them in the cache
    facts = {
        "key": new, "words": names, "preprocessing": model.preprocessing().to_manifest(),
        "parameter_bytes": parameter_bytes(model),
    }  # fmt: skip
    (files.folder / "made.json").write_text(json.dumps(facts, indent=1))


def parameter_bytes(model: Any) -> int:
    """Of a PyTorch model, buffers included."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def random_model(name: str) -> Fusioner:
    """The model with seeded weights. Both outputs are centred on what the photograph gives, so that many words win."""
    import torch

    from training import checkpoint
    from training.model import FusionerConfig

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = checkpoint.build(FusionerConfig(**MODELS[name].config)).eval()
    pixels = torch.from_numpy(model.preprocessing()(picture(model.preprocessing().side)))
    with torch.no_grad():
        features, refined = model(pixels[None], model.word_vectors(words(20))[None])
        last = model.decoder.out if model.decoder is not None else model.out_pixels
        last.bias -= features.mean(dim=(0, 1, 2))
        model.out_words.bias -= refined.mean(dim=(0, 1))
    return model


def monolith(
    image_fusion: onnx.ModelProto, channels: int, temperature: float, scores_upsampled: bool = False
) -> onnx.ModelProto:
    """`image_fusion` with the head that people export: every feature at output size, or with `scores_upsampled` the cheaper one that
    a good engineer writes: cosines at the features' resolution, upsampled, which is not the cosine of upsampled features.

    pixels (B, 3, h, w), words (B, K, t), size (2,) int64 -> labels (B, H, W) uint16, confidence (B, H, W) float32.
    """
    import onnx

    from export.onnx.mask_head_graphs import FLOAT, INT64, TINY, UINT16, Graph, integer, real

    graph = Graph("mask_naive", {
        "head_features": (FLOAT, ["B", "h", "w", channels]),
        "head_refined": (FLOAT, ["B", "K", channels]),
        "size": (INT64, [2]),
    }, "head_")  # fmt: skip

    def upsampled(planes: str) -> str:
        sizes = graph.Concat(graph.Shape(planes, start=0, end=2), "size", axis=0)
        return graph.Resize(planes, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    def unit(vectors: str, axis: int) -> str:
        return graph.Div(vectors, graph.Max(graph.ReduceL2(vectors, integer([axis]), keepdims=1), real(TINY)))

    planes, words = graph.Transpose("head_features", perm=[0, 3, 1, 2]), unit("head_refined", 2)
    pixels = unit(planes if scores_upsampled else upsampled(planes), 1)
    score = graph.MatMul(words, graph.Reshape(pixels, integer([0, 0, -1])))  # (B, K, h·w) or (B, K, H·W)
    if scores_upsampled:
        edges = graph.Concat(graph.Shape("head_refined", start=0, end=2), graph.Shape(planes, start=2, end=4), axis=0)
        score = graph.Reshape(upsampled(graph.Reshape(score, edges)), integer([0, 0, -1]))
    best = graph.Sigmoid(graph.Mul(graph.ReduceMax(score, integer([1]), keepdims=0), real(1 / temperature)))
    word = graph.Add(graph.ArgMax(score, axis=1, keepdims=0), integer(1))
    found = graph.Cast(graph.Where(graph.Greater(best, real(THRESHOLD)), word, integer(0)), to=UINT16)
    shape = graph.Concat(integer([-1]), "size", axis=0)
    graph.Reshape(found, shape, name="labels")
    graph.Reshape(best, shape, name="confidence")
    head = graph.model({"labels": (UINT16, ["B", "H", "W"]), "confidence": (FLOAT, ["B", "H", "W"])})
    joined = [("features", "head_features"), ("refined", "head_refined")]
    return onnx.compose.merge_models(image_fusion, head, joined, producer_name="fusioner-rt")
